// Package kubefixture lays out a control-plane node's files as kubeadm 1.36 does: a
// real PKI with its keys, kubeconfigs, static manifests, kubelet, containerd, CNI and
// systemd files; and those of servers of k3s, rke2 and k0s (distros.go). The
// demonstration destroys and restores such a tree; tests capture one.
//
// The texts are in the embedded folders, by kind; keys, certificates and tokens are
// made anew by every Build. It is no installer: nothing starts from these files but
// what can do with a PKI and a few flags.
package kubefixture

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

// Kind says which node is built.
type Kind int

// The kinds of node.
const (
	// Stacked is a kubeadm node whose etcd is a static pod.
	Stacked Kind = iota
	// ExternalEtcd is a kubeadm node whose API server uses etcd servers outside
	// Kubernetes, and that runs one of them as a systemd unit.
	ExternalEtcd
	// ExtraFiles is a stacked node whose API server names an encryption
	// configuration, an audit policy, an admission configuration and an OIDC
	// authority outside /etc/kubernetes/pki, mounted under other names.
	ExtraFiles
	// K3s, RKE2 and K0s are servers of these distributions with an etcd of their own.
	K3s
	RKE2
	K0s
)

func (k Kind) String() string {
	switch k {
	case Stacked:
		return "stacked"
	case ExternalEtcd:
		return "external-etcd"
	case ExtraFiles:
		return "extra-files"
	case K3s:
		return "k3s"
	case RKE2:
		return "rke2"
	case K0s:
		return "k0s"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// Options says what to build. The zero value is a stacked node "cp1".
type Options struct {
	Kind    Kind
	Node    string // default cp1
	Address string // the node's IP address; default 10.0.0.11
	// Endpoint is the control plane's name in kubeconfigs and in the API
	// server's certificate; default k8s.example.test.
	Endpoint string
	// EtcdEndpoints are the client URLs of etcd: what the static pod listens on,
	// or, for ExternalEtcd, what the API server dials.
	// Default https://127.0.0.1:2379 and https://Address:2379.
	EtcdEndpoints []string
	EtcdVersion   string // of the static pod's image; default 3.6.8
	// Now stands in certificates and file times; default the present.
	Now time.Time
	// LeafValidity is how long leaf certificates hold from Now; default one
	// year, as kubeadm's. A negative one makes a node with expired certificates.
	LeafValidity time.Duration

	// Of K3s, RKE2 and K0s: the URL of the server that this one joined (empty: it is
	// the first), the passphrase of the cluster's token (default a random one), and
	// that SQLite takes etcd's place.
	Server string
	Token  string
	SQLite bool
}

//go:embed tree external extra k3s rke2 k0s
var texts embed.FS

// EncryptionKey is the name of the aescbc key in the encryption configuration
// of ExtraFiles, and EncryptionKMS that of its KMS provider.
const (
	EncryptionKey = "key-2026"
	EncryptionKMS = "vault"
)

// values are what the templates see.
type values struct {
	Node, Address, AdvertiseClientURL            string
	ListenClientURLs, EtcdServers, EventsServers []string
	External, Extra                              bool
	Server, Endpoint, Member, EtcdVersion        string
}

// Build writes the tree below root, which is created if missing. Files that
// are already there are an error: a fixture never overwrites.
func Build(root string, opts Options) error {
	opts = withDefaults(opts)
	b := &builder{root: root, opts: opts}
	v := values{
		Node:               opts.Node,
		Address:            opts.Address,
		ListenClientURLs:   opts.EtcdEndpoints,
		EtcdServers:        opts.EtcdEndpoints,
		EventsServers:      []string{"https://10.0.0.31:2379", "https://10.0.0.32:2379"},
		AdvertiseClientURL: opts.EtcdEndpoints[len(opts.EtcdEndpoints)-1],
		External:           opts.Kind == ExternalEtcd,
		Extra:              opts.Kind == ExtraFiles,
		Server:             opts.Server,
		Endpoint:           opts.Endpoint,
		Member:             b.member(),
		EtcdVersion:        opts.EtcdVersion,
	}
	folders := []string{"tree"}
	switch opts.Kind {
	case Stacked:
	case ExternalEtcd:
		folders = append(folders, "external")
	case ExtraFiles:
		folders = append(folders, "extra")
	case K3s, RKE2, K0s:
		folders = []string{opts.Kind.String()}
		for _, name := range osTexts {
			b.text("tree", "tree/"+name, v)
		}
	default:
		return fmt.Errorf("build a node's files: unknown kind %v", opts.Kind)
	}
	for _, folder := range folders {
		b.texts(folder, v)
	}
	switch opts.Kind {
	case K3s, RKE2, K0s:
		b.distribution()
	default:
		b.pki()
		b.system()
	}
	if v.Extra {
		b.extra()
	}
	b.times()
	if b.err != nil {
		return fmt.Errorf("build a %v node below %s: %w", opts.Kind, root, b.err)
	}
	return nil
}

func withDefaults(o Options) Options {
	if o.Node == "" {
		o.Node = "cp1"
	}
	if o.Address == "" {
		o.Address = "10.0.0.11"
	}
	if o.Endpoint == "" {
		o.Endpoint = "k8s.example.test"
	}
	if len(o.EtcdEndpoints) == 0 {
		o.EtcdEndpoints = []string{"https://127.0.0.1:2379", "https://" + net.JoinHostPort(o.Address, "2379")}
	}
	if o.EtcdVersion == "" {
		o.EtcdVersion = "3.6.8"
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	o.Now = o.Now.UTC().Truncate(time.Second)
	if o.LeafValidity == 0 {
		o.LeafValidity = 365 * 24 * time.Hour
	}
	return o
}

// builder writes files until the first error, which it keeps.
type builder struct {
	root string
	opts Options
	err  error
}

func (b *builder) fail(err error) {
	if b.err == nil && err != nil {
		b.err = err
	}
}

// texts renders one embedded folder.
func (b *builder) texts(folder string, v values) {
	err := fs.WalkDir(texts, folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b.text(folder, path, v)
		return nil
	})
	b.fail(err)
}

// text renders one text of an embedded folder.
func (b *builder) text(folder, path string, v values) {
	text, err := texts.ReadFile(path)
	if err != nil {
		b.fail(err)
		return
	}
	t, err := template.New(path).Funcs(template.FuncMap{"join": strings.Join}).Option("missingkey=error").Parse(string(text))
	if err != nil {
		b.fail(err)
		return
	}
	var out bytes.Buffer
	if err := t.Execute(&out, v); err != nil {
		b.fail(err)
		return
	}
	if out.Len() == 0 {
		return // a text that this kind of node has not
	}
	name := strings.TrimPrefix(path, folder+"/")
	mode := fs.FileMode(0o644)
	if strings.HasPrefix(name, "etc/kubernetes/manifests/") || strings.HasSuffix(name, ".env") || b.opts.Kind >= K3s && private(name) {
		mode = 0o600 // kubeadm's mode, and that of the distributions
	}
	b.file(name, mode, out.Bytes())
}

func (b *builder) file(name string, mode fs.FileMode, data []byte) {
	if b.err != nil {
		return
	}
	path := filepath.Join(b.root, filepath.FromSlash(name))
	b.fail(os.MkdirAll(filepath.Dir(path), 0o755))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		b.fail(err)
		return
	}
	_, err = f.Write(data)
	b.fail(errors.Join(err, f.Chmod(mode), f.Close()))
}

func (b *builder) folder(name string, mode fs.FileMode) {
	if b.err != nil {
		return
	}
	path := filepath.Join(b.root, filepath.FromSlash(name))
	b.fail(os.MkdirAll(path, 0o755))
	b.fail(os.Chmod(path, mode))
}

func (b *builder) link(name, target string) {
	if b.err != nil {
		return
	}
	path := filepath.Join(b.root, filepath.FromSlash(name))
	b.fail(os.MkdirAll(filepath.Dir(path), 0o755))
	b.fail(os.Symlink(target, path))
}

// system adds what no text file holds: folders, links, the operating system's
// trust store, and a database that a capture must leave alone.
func (b *builder) system() {
	ca := selfSigned(b, "Example Public Root", b.opts.Now)
	b.file("usr/share/ca-certificates/example/root.crt", 0o644, ca.certPEM)
	b.link("etc/ssl/certs/example-root.pem", "/usr/share/ca-certificates/example/root.crt")
	b.file("etc/ssl/certs/ca-certificates.crt", 0o644, ca.certPEM)
	b.folder("etc/ca-certificates", 0o755)
	b.folder("usr/local/share/ca-certificates", 0o755)
	b.folder("usr/libexec/kubernetes/kubelet-plugins/volume/exec", 0o755)
	b.folder("etc/containerd/certs.d", 0o755)
	b.folder("var/lib/kubelet/pods", 0o750)
	b.link("etc/os-release", "../usr/lib/os-release")
	b.folder("run", 0o755)
	b.link("var/run", "/run")
	data := "var/lib/etcd"
	if b.opts.Kind == ExternalEtcd {
		data = "data/etcd"
	}
	b.folder(data, 0o700)
	b.file(data+"/member/snap/db", 0o600, []byte("stands for a database"))
}

// extra adds the files of ExtraFiles that hold a secret or a certificate.
func (b *builder) extra() {
	b.file("srv/kube/encryption/config.yaml", 0o600, encryptionConfig())
	oidc := selfSigned(b, "Example Login Authority", b.opts.Now)
	b.file("opt/company/pki/oidc-ca-2026.pem", 0o644, oidc.certPEM)
	b.link("etc/company/oidc-ca.pem", "/opt/company/pki/oidc-ca-2026.pem")
	b.file("var/log/kubernetes/audit/audit.log", 0o600, []byte("{}\n"))
	b.folder("run/kmsplugin", 0o755)
}

// times gives every entry a time of its own before Now, so that a restore that
// forgets times is found out. Symbolic links keep theirs.
func (b *builder) times() {
	if b.err != nil {
		return
	}
	var paths []string
	b.fail(filepath.WalkDir(b.root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeSymlink == 0 {
			paths = append(paths, path)
		}
		return err
	}))
	for i, path := range paths {
		t := b.opts.Now.Add(-time.Duration(i+1) * time.Minute)
		b.fail(os.Chtimes(path, t, t))
	}
}

// hosts returns the host parts of the etcd endpoints.
func (b *builder) etcdHosts() []string {
	var hosts []string
	for _, e := range b.opts.EtcdEndpoints {
		if u, err := url.Parse(e); err == nil && u.Hostname() != "" {
			hosts = append(hosts, u.Hostname())
		}
	}
	return hosts
}
