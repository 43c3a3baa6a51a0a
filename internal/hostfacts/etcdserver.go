package hostfacts

import (
	"net/netip"
	"net/url"
	"slices"
)

// EtcdServer is an etcd that a host runs outside of Kubernetes: by a systemd unit,
// or as a process that something else has started. File names are the host's own,
// absolute. What nothing sets has etcd's own default.
type EtcdServer struct {
	Unit       string `json:"unit,omitempty"`       // without ".service"; empty: no unit is known to run it
	Program    string `json:"program,omitempty"`    // as it is called
	WorkingDir string `json:"workingDir,omitempty"` // empty: /
	User       string `json:"user,omitempty"`       // empty: root
	Group      string `json:"group,omitempty"`
	// Args and Environment are of a process that no unit runs: its argv, and
	// etcd's own among its variables, each NAME=value.
	Args        []string `json:"args"`
	Environment []string `json:"environment"`
	Files       []string `json:"files"` // that set it up: unit, drop-ins, environment files, configuration

	Name             string   `json:"name"`
	DataDir          string   `json:"dataDir"`
	WALDir           string   `json:"walDir,omitempty"` // of its own; empty: in DataDir
	ListenClientURLs []string `json:"listenClientURLs"`
	ListenPeerURLs   []string `json:"listenPeerURLs"`
	ClientURLs       []string `json:"clientURLs"`               // that it advertises
	PeerURLs         []string `json:"peerURLs"`                 // that it advertises
	InitialCluster   string   `json:"initialCluster,omitempty"` // as when it first started: may be out of date

	CAFile       string `json:"caFile,omitempty"` // by which clients are known
	CertFile     string `json:"certFile,omitempty"`
	KeyFile      string `json:"keyFile,omitempty"`
	PeerCAFile   string `json:"peerCAFile,omitempty"`
	PeerCertFile string `json:"peerCertFile,omitempty"`
	PeerKeyFile  string `json:"peerKeyFile,omitempty"`

	// Of the data directory when it was seen; nil: it was not there.
	Owner *Owner `json:"owner,omitempty"`
}

// Owner is a numeric user and group.
type Owner struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
}

// EtcdOnly says whether the host runs an etcd and nothing of Kubernetes'
// control plane.
func (f *Facts) EtcdOnly() bool { return len(f.EtcdServers) > 0 && f.Etcd == nil }

// PKI names the server's files of keys and certificates.
func (s *EtcdServer) PKI() (files []string) {
	for _, file := range []string{s.CAFile, s.CertFile, s.KeyFile, s.PeerCAFile, s.PeerCertFile, s.PeerKeyFile} {
		if file != "" && !slices.Contains(files, file) {
			files = append(files, file)
		}
	}
	return files
}

// ReachedBy says whether one of the client URLs leads to the server from its own
// host or by what it advertises.
func (s *EtcdServer) ReachedBy(urls []string) bool {
	return LeadsTo(urls, s.ListenClientURLs, slices.Concat(s.ClientURLs, s.PeerURLs))
}

// LeadsTo says whether one of the URLs to dial leads to an etcd that listens there
// and is known to others by these.
func LeadsTo(dial, listen, known []string) bool {
	hosts, ports := map[string]bool{}, map[string]bool{}
	for _, text := range slices.Concat(listen, known) {
		u, err := url.Parse(text)
		if err != nil {
			continue
		}
		hosts[u.Hostname()] = true
		if a, err := netip.ParseAddr(u.Hostname()); u.Hostname() == "localhost" || err == nil && (a.IsLoopback() || a.IsUnspecified()) {
			hosts["localhost"], hosts["127.0.0.1"], hosts["::1"] = true, true, true
		}
	}
	for _, text := range listen {
		if u, err := url.Parse(text); err == nil && u.Port() != "" {
			ports[u.Port()] = true
		}
	}
	return slices.ContainsFunc(dial, func(text string) bool {
		u, err := url.Parse(text)
		return err == nil && hosts[u.Hostname()] && ports[u.Port()]
	})
}

// String is how the server is called in messages.
func (s *EtcdServer) String() string {
	if s.Unit != "" {
		return "the unit " + s.Unit + ".service"
	}
	return "the etcd process of " + s.DataDir
}
