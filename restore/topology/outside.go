package topology

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"lifeboat/internal/etcdhost"
	"lifeboat/internal/hostfacts"
)

// Text and Names make a tree what etcdhost reads.
func (t *tree) Text(name string) string { return t.read(name) }

// Names implements etcdhost.Host.
func (t *tree) Names(folder string) []string { return t.list(folder) }

// etcdOutside finds the etcd that this host runs outside of Kubernetes. What its
// files don't tell any more the backup may.
func etcdOutside(t *tree, api *container, facts *hostfacts.Facts) (setup, bool) {
	var was []hostfacts.EtcdServer
	var main *hostfacts.Discovery
	if facts != nil {
		was, main = facts.EtcdServers, facts.Etcd
	}
	found := etcdhost.Find(t)
	server := mainServer(found, api, main)
	if server == nil {
		return setup{}, false
	}
	file := "a process"
	if len(server.Files) > 0 {
		file = server.Files[0]
	}
	s := setup{
		here: true, name: server.Name, dataDir: server.DataDir, dataHow: "data-dir in the files of " + file, file: file, unit: server.Unit,
		endpoints: dialled(server.ListenClientURLs), peerURLs: server.PeerURLs,
	}
	lost := slices.ContainsFunc(server.Files, func(name string) bool { return !t.exists(name) })
	if s.dataDir != "" && !lost && !strings.HasSuffix(s.dataDir, "/default.etcd") || t.exists(path.Join(s.dataDir, "member")) {
		return s, true
	}
	i := slices.IndexFunc(was, func(w hostfacts.EtcdServer) bool { return w.Unit == server.Unit })
	if i >= 0 && was[i].DataDir != "" {
		s.name, s.dataDir, s.dataHow = was[i].Name, was[i].DataDir, "what the backup says of "+was[i].String()
		return s, true
	}
	s.dataDir, s.dataHow = usualDataDir, "the usual place: the files of "+file+" name none"
	return s, true
}

// mainServer is the one of several that holds what no separate etcd holds: to
// which the API server's URLs lead, else the first that no override names.
func mainServer(servers []hostfacts.EtcdServer, api *container, known *hostfacts.Discovery) *hostfacts.EtcdServer {
	var dial []string
	var separate []hostfacts.Separate
	if known != nil {
		dial, separate = known.EtcdEndpoints, known.Separate
	}
	if api != nil {
		dial, separate = words(api.flag("etcd-servers")), hostfacts.Overrides(strings.Split(api.flag("etcd-servers-overrides"), ","))
	}
	var first *hostfacts.EtcdServer
	for i := range servers {
		s := &servers[i]
		if len(dial) > 0 && s.ReachedBy(dial) {
			return s
		}
		if first == nil && !slices.ContainsFunc(separate, func(other hostfacts.Separate) bool { return s.ReachedBy(other.Servers) }) {
			first = s
		}
	}
	return first
}

// Separate is an etcd that the API server uses for some resources alone, and what
// of it lives. A restore of the main etcd does not bring it back.
type Separate struct {
	Resources  []string `json:"resources"`
	Servers    []string `json:"servers"`
	EventsOnly bool     `json:"eventsOnly"`     // it may begin empty: nothing but events is lost
	Here       string   `json:"here,omitempty"` // what runs a member of it on this node; empty: nothing
	DataDir    string   `json:"dataDir,omitempty"`
	Living     Living   `json:"living"`
	How        string   `json:"how"`
}

func (s Separate) String() string {
	return fmt.Sprintf("the etcd of %s at %s", strings.Join(s.Resources, ", "), strings.Join(s.Servers, ", "))
}

// separates finds them by the API server's manifest, on disk or else in the
// backup, and asks each as the main one is asked.
func (h *Host) separates(ctx context.Context, in Inputs, pods []pod) {
	h.Separate = []Separate{}
	var found []hostfacts.Separate
	how := "the backup's facts of the API server"
	if in.Facts != nil && in.Facts.Etcd != nil {
		found = in.Facts.Etcd.Separate
		if found == nil {
			found = hostfacts.Overrides(in.Facts.Etcd.EtcdServersOverrides)
		}
	} else if api := find(pods, "kube-apiserver"); api != nil {
		found, how = hostfacts.Overrides(strings.Split(api.flag("etcd-servers-overrides"), ",")), "--etcd-servers-overrides of the API server on disk"
	}
	for _, f := range found {
		s := Separate{Resources: f.Resources, Servers: f.Servers, EventsOnly: f.EventsOnly(), DataDir: f.DataDir, How: how}
		switch {
		case f.Pod != "":
			s.Here = "static pod " + f.Pod
		case f.Server != "":
			s.Here = cmp.Or(f.Name, "a member") + " outside of Kubernetes"
		}
		alone := in
		alone.Etcd, alone.Facts = nil, nil
		ask := Host{endpoints: f.Servers}
		ask.living(ctx, alone)
		s.Living = ask.Living
		h.Separate = append(h.Separate, s)
	}
}

func (h *Host) printSeparate(p *page) {
	if len(h.Separate) == 0 {
		return
	}
	p.title("Separate etcd")
	for _, s := range h.Separate {
		state := fmt.Sprintf("%d of %d voters answer, without a quorum", s.Living.Answering, s.Living.Voters)
		switch {
		case s.Living.Quorum:
			state = "a quorum of it lives"
		case len(s.Living.Members) == 0:
			state = "nothing of it answers"
		}
		p.line(s.How, "%s: %s; runs here: %s", s, state, cmp.Or(s.Here, "no"))
	}
}
