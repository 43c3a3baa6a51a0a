package kubeapi

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"strings"

	"sigs.k8s.io/yaml"

	"lifeboat/internal/chroot"
)

// config is what a kubeconfig says of one context.
type config struct {
	server, token string
	tls           *tls.Config
}

// kubeconfig holds what is read of one (client-go, tools/clientcmd/api/v1).
type kubeconfig struct {
	CurrentContext string `json:"current-context"`
	Clusters       []struct {
		Name    string `json:"name"`
		Cluster struct {
			Server        string `json:"server"`
			TLSServerName string `json:"tls-server-name"`
			CAFile        string `json:"certificate-authority"`
			CAData        []byte `json:"certificate-authority-data"`
			Insecure      bool   `json:"insecure-skip-tls-verify"`
		} `json:"cluster"`
	} `json:"clusters"`
	Contexts []struct {
		Name    string `json:"name"`
		Context struct {
			Cluster string `json:"cluster"`
			User    string `json:"user"`
		} `json:"context"`
	} `json:"contexts"`
	Users []struct {
		Name string `json:"name"`
		User struct {
			CertFile  string `json:"client-certificate"`
			CertData  []byte `json:"client-certificate-data"`
			KeyFile   string `json:"client-key"`
			KeyData   []byte `json:"client-key-data"`
			Token     string `json:"token"`
			TokenFile string `json:"tokenFile"`
		} `json:"user"`
	} `json:"users"`
}

// maxKubeconfig bounds a kubeconfig and each file that it names.
const maxKubeconfig = 4 << 20

func readKubeconfig(o Options) (*config, error) {
	if len(o.Kubeconfig) > maxKubeconfig {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(o.Kubeconfig), maxKubeconfig)
	}
	var k kubeconfig
	if err := yaml.Unmarshal(o.Kubeconfig, &k); err != nil {
		// What the parser says may quote the text, and with it a key.
		return nil, errors.New("it is no YAML of a kubeconfig's form; take /etc/kubernetes/admin.conf or super-admin.conf")
	}
	if k.CurrentContext == "" && len(k.Contexts) == 1 {
		k.CurrentContext = k.Contexts[0].Name
	}
	for _, named := range k.Contexts {
		if named.Name != k.CurrentContext {
			continue
		}
		out := &config{tls: &tls.Config{MinVersion: tls.VersionTLS12}}
		if err := out.cluster(&k, named.Context.Cluster, o); err != nil {
			return nil, err
		}
		if err := out.user(&k, named.Context.User, o.Root); err != nil {
			return nil, err
		}
		return out, nil
	}
	return nil, fmt.Errorf("it has no context %q, which it says is the current one", k.CurrentContext)
}

func (c *config) cluster(k *kubeconfig, name string, o Options) error {
	for _, named := range k.Clusters {
		if named.Name != name {
			continue
		}
		cluster := named.Cluster
		own, err := serverURL(cluster.Server)
		if err != nil {
			return fmt.Errorf("cluster %q: %w", name, err)
		}
		dial := own
		if o.Server != "" {
			if dial, err = serverURL(o.Server); err != nil {
				return fmt.Errorf("the server that is to be asked instead: %w", err)
			}
		}
		if cluster.Insecure {
			return fmt.Errorf("cluster %q says insecure-skip-tls-verify: a restore does not talk to a server that anybody could be; name the CA instead", name)
		}
		c.server = strings.TrimSuffix(dial.String(), "/")
		c.tls.ServerName = cmp.Or(o.TLSServerName, cluster.TLSServerName)
		if c.tls.ServerName == "" && o.Server != "" {
			c.tls.ServerName = own.Hostname()
		}
		ca, err := dataOrFile(o.Root, cluster.CAData, cluster.CAFile)
		if err != nil {
			return fmt.Errorf("cluster %q: the CA's certificate: %w", name, err)
		}
		if ca == nil {
			return nil // the system's
		}
		c.tls.RootCAs = x509.NewCertPool()
		if !c.tls.RootCAs.AppendCertsFromPEM(ca) {
			return fmt.Errorf("cluster %q: its CA's certificate is no PEM of one", name)
		}
		return nil
	}
	return fmt.Errorf("its current context names the cluster %q, which it hasn't", name)
}

func (c *config) user(k *kubeconfig, name, root string) error {
	for _, named := range k.Users {
		if named.Name != name {
			continue
		}
		user := named.User
		cert, err := dataOrFile(root, user.CertData, user.CertFile)
		if err != nil {
			return fmt.Errorf("user %q: its certificate: %w", name, err)
		}
		key, err := dataOrFile(root, user.KeyData, user.KeyFile)
		if err != nil {
			return fmt.Errorf("user %q: its key: %w", name, err)
		}
		token := []byte(user.Token)
		if len(token) == 0 {
			if token, err = dataOrFile(root, nil, user.TokenFile); err != nil {
				return fmt.Errorf("user %q: its token: %w", name, err)
			}
		}
		if c.token = strings.TrimSpace(string(token)); strings.ContainsFunc(c.token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("user %q: its token is none", name)
		}
		if (cert == nil || key == nil) && c.token == "" {
			return fmt.Errorf("user %q has neither a certificate with its key nor a token; take /etc/kubernetes/admin.conf or super-admin.conf", name)
		}
		if cert == nil || key == nil {
			return nil
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("user %q: its certificate and key: %w", name, err) // crypto/tls says nothing of their content
		}
		c.tls.Certificates = []tls.Certificate{pair}
		return nil
	}
	return fmt.Errorf("its current context names the user %q, which it hasn't", name)
}

func serverURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "":
		return nil, errors.New("its server is no URL; give https://HOST:PORT")
	case u.Scheme != "https":
		return nil, fmt.Errorf("its server's URL begins with %s and not with https", u.Scheme)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("its server's URL holds more than host, port and path")
	}
	return u, nil
}

// dataOrFile returns the data, else what is in the file below root, else nothing.
func dataOrFile(root string, data []byte, file string) ([]byte, error) {
	if len(data) > 0 {
		return data, nil
	}
	if file == "" {
		return nil, nil
	}
	if !path.IsAbs(file) {
		return nil, fmt.Errorf("%s is not absolute, and where the kubeconfig lay is not known", file)
	}
	tree, err := os.OpenRoot(cmp.Or(root, "/"))
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	place, err := chroot.Resolve(file, func(name string) (string, error) {
		info, err := tree.Lstat(name)
		if err != nil || info.Mode().Type() != fs.ModeSymlink {
			return "", err
		}
		return tree.Readlink(name)
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	info, err := tree.Stat(place.Name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxKubeconfig {
		return nil, fmt.Errorf("read %s: it is no file of at most %d bytes", file, maxKubeconfig)
	}
	f, err := tree.Open(place.Name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	defer f.Close()
	out, err := io.ReadAll(io.LimitReader(f, maxKubeconfig))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if out = bytes.TrimSpace(out); len(out) == 0 {
		return nil, fmt.Errorf("%s is empty", file)
	}
	return out, nil
}
