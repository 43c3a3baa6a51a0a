package hostfacts

import (
	"slices"
	"strings"
)

// Separate is an etcd that the API server uses for some resources alone
// (--etcd-servers-overrides), such as events, and the member of it that the node
// runs, if it does.
type Separate struct {
	Resources []string `json:"resources"` // as the API server names them: "/events", "apps/deployments"
	Servers   []string `json:"servers"`   // client URLs

	// The API server's own client certificate for all its etcds.
	CAFile   string `json:"caFile,omitempty"`
	CertFile string `json:"certFile,omitempty"`
	KeyFile  string `json:"keyFile,omitempty"`

	// The member on this node, in a static pod or by one of EtcdServers; with
	// neither all that follows is empty.
	Pod            string   `json:"pod,omitempty"`     // the static pod's name in its manifest
	Server         string   `json:"server,omitempty"`  // the data directory of the EtcdServer
	Name           string   `json:"name,omitempty"`    // of the member
	DataDir        string   `json:"dataDir,omitempty"` // as the host sees it
	PeerURLs       []string `json:"peerURLs,omitempty"`
	InitialCluster string   `json:"initialCluster,omitempty"` // as when it joined: may be out of date
	Image          string   `json:"image,omitempty"`
}

// Here says whether the node runs a member of it.
func (s *Separate) Here() bool { return s.Pod != "" || s.Server != "" }

// EventsOnly says whether nothing is lost for good where it begins empty.
func (s *Separate) EventsOnly() bool {
	return len(s.Resources) > 0 && !slices.ContainsFunc(s.Resources, func(r string) bool {
		return r != "/events" && r != "events.k8s.io/events"
	})
}

// Overrides takes apart what the API server is told, each "group/resource#url;url":
// one Separate for all resources that the same servers hold, in their order. What
// is no such text is left out, as the API server would not start with it.
func Overrides(texts []string) (out []Separate) {
	for _, text := range texts {
		resource, servers, ok := strings.Cut(strings.TrimSpace(text), "#")
		urls := strings.FieldsFunc(servers, func(r rune) bool { return r == ';' || r == ' ' })
		if !ok || len(urls) == 0 || !strings.Contains(resource, "/") {
			continue
		}
		same := func(s Separate) bool { return sameSet(s.Servers, urls) }
		if i := slices.IndexFunc(out, same); i >= 0 {
			if !slices.Contains(out[i].Resources, resource) {
				out[i].Resources = append(out[i].Resources, resource)
			}
			continue
		}
		out = append(out, Separate{Resources: []string{resource}, Servers: urls})
	}
	return out
}

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}
