// Package distro knows how k3s, rke2 and k0s are laid out on a host: where they keep
// their state, which options their servers run with, where the token is, and which
// datastore they use. It reads what they read, in their order, and runs nothing.
//
// Find tells which of them a host is a server of. What comes out is
// hostfacts.Distribution, which holds no secrets. Sources: docs.k3s.io, docs.rke2.io
// and docs.k0sproject.io on configuration, and their code where these say nothing.
// k3s and rke2 are in rancher.go, k0s in k0s.go.
package distro

import (
	"path"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"lifeboat/internal/etcdhost"
	"lifeboat/internal/hostfacts"
)

// The kinds.
const (
	K3s  = "k3s"
	RKE2 = "rke2"
	K0s  = "k0s"
)

// The datastores.
const (
	Etcd         = "etcd"          // its own, on this host
	ExternalEtcd = "external-etcd" // somebody else's
	SQLite       = "sqlite"        // through kine
	External     = "external"      // MySQL, PostgreSQL or NATS, through kine
)

// Host is where files are read. Names are the host's own, absolute.
type Host interface {
	etcdhost.Host
	Exists(name string) bool
}

// Find returns the server that a host's files set up; nil: none. Workers, which
// have no state of the cluster, are none. apis names the host's static pods that run
// an API server, by their files: beside one that the distribution's own kubelet does
// not run, what is there of the distribution has been left behind.
func Find(h Host, apis []string) *hostfacts.Distribution {
	for _, find := range []func(Host) *hostfacts.Distribution{rke2.find, k3s.find, findK0s} {
		d := find(h)
		if d != nil && !slices.ContainsFunc(apis, func(file string) bool {
			return !within(file, PodManifests(d)) && !within(file, PodManifests(Usual(d.Kind)))
		}) {
			return d
		}
	}
	return nil
}

// Left says which static pods, by their files, nobody runs: those of k3s and rke2
// where Find found no server, and another kubelet runs an API server.
func Left(own *hostfacts.Distribution, apis []string) func(file string) bool {
	of := func(file string) bool {
		return within(file, PodManifests(Usual(K3s))) || within(file, PodManifests(Usual(RKE2)))
	}
	beside := own == nil && slices.ContainsFunc(apis, func(file string) bool { return !of(file) })
	return func(file string) bool { return beside && of(file) }
}

// within says whether a file is below a folder, or is it. Without a folder none is.
func within(file, folder string) bool {
	return folder != "" && (file == folder || strings.HasPrefix(file, folder+"/"))
}

// Default returns where a distribution keeps its state unless it is told another place.
func Default(kind string) (dataDir string) {
	switch kind {
	case K3s:
		return k3s.dataDir
	case RKE2:
		return rke2.dataDir
	case K0s:
		return k0sDataDir
	}
	return ""
}

// Is says whether a kind of etcd or of host is one of the distributions.
func Is(kind string) bool { return Default(kind) != "" }

// Usual returns how a distribution is set up where nobody changed anything; nil: it
// is none.
func Usual(kind string) *hostfacts.Distribution {
	d := &hostfacts.Distribution{
		Kind: kind, How: "its usual places", DataDir: Default(kind), Datastore: Etcd, Program: "/usr/local/bin/" + kind,
		Arguments: []string{}, Configs: []string{}, Environment: []string{}, Settings: []hostfacts.Setting{}, TokenFrom: []string{},
	}
	switch kind {
	case K3s, RKE2:
		d.Unit, d.TokenFile = k3s.unit, path.Join(d.DataDir, "server", "token")
		if kind == RKE2 {
			d.Unit = rke2.unit
		}
	case K0s:
		d.Unit = k0sUnit
	default:
		return nil
	}
	return d
}

// Files names, below a data directory, what makes the server: files and whole
// folders. The database is not among them, nor is what a start makes anew.
func Files(kind, dataDir string) (out []string) {
	var names []string
	switch kind {
	case K3s, RKE2:
		names = rancherFiles
	case K0s:
		names = k0sFiles
	}
	for _, name := range names {
		out = append(out, path.Join(dataDir, name))
	}
	return out
}

// Never names, below a data directory, what is not to be stored even where
// something names it: databases with their snapshots, and logs.
func Never(kind, dataDir string) (out []string) {
	var names []string
	switch kind {
	case K3s, RKE2:
		names = []string{"server/db", "server/logs"}
	case K0s:
		names = []string{"etcd", "db"}
	}
	for _, name := range names {
		out = append(out, path.Join(dataDir, name))
	}
	return out
}

// EtcdDir returns the data directory of a distribution's own etcd.
func EtcdDir(d *hostfacts.Distribution) string {
	if d.Kind == K0s {
		return path.Join(d.DataDir, "etcd")
	}
	return path.Join(d.DataDir, "server", "db", "etcd")
}

// PodManifests returns where a distribution's kubelet looks for static pods; empty:
// nowhere.
func PodManifests(d *hostfacts.Distribution) string {
	if d.Kind == K0s {
		return ""
	}
	return path.Join(d.DataDir, "agent", "pod-manifests")
}

// EncryptionConfigs names the encryption configurations that a distribution's API
// server reads; none where nothing tells.
func EncryptionConfigs(h Host, d *hostfacts.Distribution) []string {
	const option = "encryption-provider-config"
	if d.Kind == K0s {
		if file, _ := readK0s(h, d.Configs).Spec.API.ExtraArgs[option].(string); path.IsAbs(file) {
			return []string{path.Clean(file)}
		}
		return nil
	}
	var named []string
	for arg := range strings.SplitSeq(rancherOptions(h, d.Kind).value("kube-apiserver-arg"), ",") {
		if file, ok := strings.CutPrefix(strings.TrimLeft(arg, "-"), option+"="); ok && path.IsAbs(file) {
			named = append(named, path.Clean(file))
		}
	}
	if len(named) > 0 {
		return named
	}
	return []string{path.Join(d.DataDir, "server", "cred", "encryption-config.json")}
}

// rancherOptions are those of k3s's or rke2's server.
func rancherOptions(h Host, kind string) *options {
	r := k3s
	if kind == RKE2 {
		r = rke2
	}
	return r.options(h, etcdhost.ReadService(h, r.unit))
}

// EtcdClient returns how a distribution's etcd is reached: the endpoints, and the
// files of the authority, the client's certificate and its key. There are no
// endpoints where the datastore is no etcd.
func EtcdClient(h Host, d *hostfacts.Distribution) (endpoints []string, ca, cert, key string) {
	switch {
	case d.Datastore == Etcd && d.Kind == K0s:
		pki := path.Join(d.DataDir, "pki")
		return local, path.Join(pki, "etcd", "ca.crt"), path.Join(pki, "apiserver-etcd-client.crt"), path.Join(pki, "apiserver-etcd-client.key")
	case d.Datastore == Etcd:
		tls := path.Join(d.DataDir, "server", "tls", "etcd")
		return local, path.Join(tls, "server-ca.crt"), path.Join(tls, "client.crt"), path.Join(tls, "client.key")
	case d.Datastore == ExternalEtcd && d.Kind == K0s:
		e := readK0s(h, d.Configs).Spec.Storage.Etcd.External
		return e.Endpoints, e.CAFile, e.CertFile, e.KeyFile
	case d.Datastore == ExternalEtcd:
		o := rancherOptions(h, d.Kind)
		return split(o.value("datastore-endpoint")), o.value("datastore-cafile"), o.value("datastore-certfile"), o.value("datastore-keyfile")
	}
	return nil, "", "", ""
}

// local is where each of them has its etcd listen for its own API server.
var local = []string{"https://127.0.0.1:2379"}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// isEtcd says whether the URLs of a datastore are an etcd's: kine takes any other
// scheme for a database's.
func isEtcd(endpoint string) bool {
	urls := split(endpoint)
	for _, u := range urls {
		if !strings.HasPrefix(u, "http://") && !strings.HasPrefix(u, "https://") {
			return false
		}
	}
	return len(urls) > 0
}

// parseYAML reads a mapping; nil: it is none.
func parseYAML(text string) (out map[string]any) {
	if yaml.Unmarshal([]byte(text), &out) != nil {
		return nil
	}
	return out
}
