package host

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"lifeboat/internal/hostfacts"
)

// ErrNoEtcd says that nothing below the root tells where etcd is.
var ErrNoEtcd = errors.New("no etcd was found in the static pods")

// Discover reads the static pods below root. The file names it returns are
// joined with root, so that this process can open them.
func Discover(root string) (*Discovery, error) {
	if root == "" {
		root = "/"
	}
	t, err := openTree(root)
	if err != nil {
		return nil, err
	}
	defer t.close()
	own, pods, _ := setUp(t)
	d := discover(t, pods, etcdServers(t), own)
	if d == nil {
		err := ErrNoEtcd
		if own != nil && Lost(own) != "" {
			err = fmt.Errorf("%w: %s", ErrNoEtcd, Lost(own))
		}
		return nil, fmt.Errorf("look for etcd below %s: %w", root, err)
	}
	d.Separate = nil // its names are the host's
	for _, file := range []*string{&d.CAFile, &d.CertFile, &d.KeyFile, &d.DataDir} {
		t.join(root, file)
	}
	return d, nil
}

// join turns a file's name on the host into one that this process can open.
func (t *tree) join(root string, file *string) {
	if *file == "" {
		return
	}
	// An absolute link on the way would lead out of the root.
	if place, err := t.resolve(*file); err == nil && len(place.Links) > 0 && filepath.Clean(root) != "/" {
		*file = filepath.Join(root, filepath.FromSlash(place.Name))
	} else {
		*file = filepath.Join(root, *file)
	}
}

// readPods parses the static pods in the usual folders and in the kubelet's.
func readPods(t *tree) []staticPod {
	var pods []staticPod
	folders := append([]string(nil), manifestFolders...)
	if p := staticPodPath(t); p != "" && !slices.Contains(folders, p) {
		folders = append(folders, p)
	}
	for _, folder := range folders {
		place, err := t.resolve(folder)
		if err != nil || place.Missing {
			continue
		}
		names, err := t.folder(place.Name, defaultFiles)
		if err != nil {
			continue
		}
		for _, name := range names {
			if strings.HasPrefix(name, ".") {
				continue
			}
			file, err := t.resolve(path.Join(place.Name, name))
			if err != nil || file.Missing {
				continue
			}
			got, err := t.read(file.Name, parseLimit, parseLimit)
			if err != nil {
				continue
			}
			if pod, ok := parsePod(path.Join(folder, name), got.data); ok {
				pods = append(pods, pod)
			}
		}
	}
	return pods
}

// discover looks at the etcd and kube-apiserver pods, but for those that a
// distribution makes: what it says itself beats them. It returns nil when there is
// none.
func discover(t *tree, pods []staticPod, servers []EtcdServer, own *hostfacts.Distribution) *Discovery {
	if own != nil {
		return distributionEtcd(t, pods, own)
	}
	etcd, api := programs(pods)
	d := &Discovery{EtcdServersOverrides: []string{}}
	if api != nil {
		d.EtcdServersOverrides = list(api.option("etcd-servers-overrides"))
		d.EtcdEndpoints = list(api.option("etcd-servers"))
		d.CAFile = onHost(api, "etcd-cafile")
		d.CertFile = onHost(api, "etcd-certfile")
		d.KeyFile = onHost(api, "etcd-keyfile")
		d.Kind = "external"
		d.Separate = separates(api, etcd, pods, servers)
	}
	if etcd != nil {
		d.Kind = "stacked"
		d.Name, d.InitialCluster, d.PeerURLs, d.Image = etcd.option("name"), etcd.option("initial-cluster"), etcd.option("initial-advertise-peer-urls"), etcd.image
		d.DataDir = onHost(etcd, "data-dir")
		d.EtcdEndpoints = endpoints(etcd)
		ca := onHost(etcd, "trusted-ca-file")
		if ca != "" {
			d.CAFile = ca
			// kubeadm keeps a client certificate for probes beside the authority.
			cert, key := path.Join(path.Dir(ca), "healthcheck-client.crt"), path.Join(path.Dir(ca), "healthcheck-client.key")
			if exists(t, cert) && exists(t, key) {
				d.CertFile, d.KeyFile = cert, key
			}
		}
	}
	if len(d.EtcdEndpoints) > 0 {
		return d
	}
	return nil
}

// programs are the API server and its main etcd among the static pods; nil where
// there is none. Beside another etcd, such as the events', the main one is the
// one whose client ports the API server names. With an external etcd the only one
// may be another.
func programs(pods []staticPod) (etcd, api *container) {
	var etcds []*container
	for i := range pods {
		for j := range pods[i].containers {
			c := &pods[i].containers[j]
			switch {
			case c.runs("kube-apiserver"):
				api = c
			case c.runs("etcd") && c.option("data-dir") != "":
				etcds = append(etcds, c)
			}
		}
	}
	if len(etcds) == 0 {
		return nil, api
	}
	if api != nil {
		etcds = slices.DeleteFunc(etcds, func(c *container) bool { return ofOverride(api, c) })
		if len(etcds) == 0 {
			return nil, api
		}
		ports := portsOf(list(api.option("etcd-servers")))
		for _, c := range etcds {
			if slices.ContainsFunc(portsOf(list(c.option("listen-client-urls"))), func(p string) bool { return slices.Contains(ports, p) }) {
				return c, api
			}
		}
	}
	return etcds[0], api
}

// ofOverride says whether an etcd is one that the API server uses for some
// resources alone.
func ofOverride(api, etcd *container) bool {
	listen, known := list(etcd.option("listen-client-urls")), list(etcd.option("advertise-client-urls")+","+etcd.option("initial-advertise-peer-urls"))
	if hostfacts.LeadsTo(list(api.option("etcd-servers")), listen, known) {
		return false
	}
	return slices.ContainsFunc(hostfacts.Overrides(list(api.option("etcd-servers-overrides"))), func(s hostfacts.Separate) bool {
		return hostfacts.LeadsTo(s.Servers, listen, known)
	})
}

func portsOf(urls []string) []string {
	var ports []string
	for _, text := range urls {
		if u, err := url.Parse(text); err == nil && u.Port() != "" {
			ports = append(ports, u.Port())
		}
	}
	return ports
}

// endpoints prefers a loopback address that etcd listens on: it is there
// whatever becomes of the machine's network.
func endpoints(etcd *container) []string {
	for _, e := range list(etcd.option("listen-client-urls")) {
		u, err := url.Parse(e)
		if err != nil {
			continue
		}
		switch a, err := netip.ParseAddr(u.Hostname()); {
		case err != nil && u.Hostname() == "localhost", err == nil && a.IsLoopback():
			return []string{e}
		case err == nil && a.IsUnspecified():
			u.Host = net.JoinHostPort("127.0.0.1", u.Port())
			return []string{u.String()}
		}
	}
	if urls := list(etcd.option("advertise-client-urls")); len(urls) > 0 {
		return urls
	}
	return list(etcd.option("listen-client-urls"))
}

func list(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == ',' })
}

// onHost returns where the file that an option names lies on the host.
func onHost(c *container, option string) string {
	value := c.option(option)
	if value == "" {
		return ""
	}
	host, ok := c.view.host(value)
	if !ok {
		return ""
	}
	return host
}

func exists(t *tree, p string) bool {
	place, err := t.resolve(p)
	if err != nil || place.Missing {
		return false
	}
	_, err = t.root.Lstat(place.Name)
	return !errors.Is(err, fs.ErrNotExist)
}
