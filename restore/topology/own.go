package topology

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"lifeboat/internal/manifest"
)

// A restore of several nodes from one order makes one new cluster, whose id is
// known before (Inputs.Becomes). On the nodes that are done already its members live
// while it is under way on the others: they are the restore's own, and count for nothing
// of the cluster that was lost. That ends when this node's member has been one of
// them: then they are the cluster, and what is lost of it is replaced.

// makes says whether the restore makes this cluster.
func (in *Inputs) makes(id manifest.EtcdID) bool {
	return in.Becomes != nil && in.Becomes.ClusterID != 0 && id == in.Becomes.ClusterID
}

// recognize says whether a member is the restore's own. One that waits for the
// others tells no client anything, but its peers which cluster it is of.
func (m *Member) recognize(ctx context.Context, in Inputs) {
	if in.Becomes == nil {
		return
	}
	switch m.State {
	case Answers:
		m.Own = in.makes(m.ClusterID)
	case Accepts:
		for _, peer := range m.peerURLs {
			if id, members := askPeer(ctx, in, peer); in.makes(id) {
				m.Own, m.ClusterID, m.members = true, id, members
				break
			}
		}
	}
	if m.Own {
		m.How += "; it is of the cluster that this restore makes"
	}
}

// served returns a member that knows this node's as one that has served, and
// whether it was removed since. A member publishes its client URLs when it starts for
// the first time, and before that the others know none (etcd:
// server/etcdserver/server.go, publishV3). From the beginning all are in the list: one
// that is not has been removed, and the others never talk to it again.
func (l *Living) served(becomes *manifest.Etcd) (by *Member, removed bool) {
	for i, m := range l.Members {
		if !m.Own || len(m.members) == 0 {
			continue
		}
		at := slices.IndexFunc(m.members, func(named manifest.Member) bool { return named.ID == becomes.MemberID })
		if at < 0 || len(m.members[at].ClientURLs) > 0 {
			return &l.Members[i], at < 0
		}
	}
	return nil, false
}

// maxMembers is how much of a member list is read, in bytes.
const maxMembers = 1 << 20

// askPeer asks at a peer URL for the member list, as members do when they start, and
// returns the cluster's id and what the member knows of the others (etcd:
// server/etcdserver/api/etcdhttp/peer.go); 0: it is not told.
func askPeer(ctx context.Context, in Inputs, peer string) (manifest.EtcdID, []manifest.Member) {
	u, err := url.Parse(peer)
	if err != nil || u.Host == "" || u.Scheme == "https" && in.TLS == nil {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, in.Limits.Call)
	defer cancel()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return in.Dial(ctx, network, address)
		},
		DisableKeepAlives: true,
	}
	if u.Scheme == "https" {
		transport.TLSClientConfig = in.TLS.Clone()
		transport.TLSClientConfig.ServerName = cmp.Or(transport.TLSClientConfig.ServerName, u.Hostname())
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(peer, "/")+"/members", nil)
	if err != nil {
		return 0, nil
	}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return 0, nil
	}
	defer answer.Body.Close()
	var id manifest.EtcdID
	if id.UnmarshalText([]byte(answer.Header.Get("X-Etcd-Cluster-ID"))) != nil {
		return 0, nil
	}
	var list []struct {
		ID         uint64   `json:"id"`
		Name       string   `json:"name"`
		PeerURLs   []string `json:"peerURLs"`
		ClientURLs []string `json:"clientURLs"`
		IsLearner  bool     `json:"isLearner"`
	}
	if json.NewDecoder(io.LimitReader(answer.Body, maxMembers)).Decode(&list) != nil {
		return 0, nil // whether this node's member has served is not known: it can't count as the restore's own
	}
	var members []manifest.Member
	for _, m := range list {
		members = append(members, manifest.Member{ID: manifest.EtcdID(m.ID), Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, Learner: m.IsLearner})
	}
	return id, members
}
