package topology

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"lifeboat/internal/manifest"
)

// State is what a member does when it is asked.
type State string

// The states.
const (
	Answers State = "answers"
	Accepts State = "accepts" // somebody takes the connection, and says nothing of use: no certificates, a foreign one, a hang
	Refuses State = "refuses" // nobody listens there, on a machine that lives
	Silent  State = "silent"  // nothing comes back: the machine is dead, or cut off from this one
)

// Member is one of etcd's, in the backup or found through one that lives.
type Member struct {
	ID         manifest.EtcdID   `json:"id"` // 0: nobody has told it
	Name       string            `json:"name"`
	Learner    bool              `json:"learner,omitempty"`
	InBackup   bool              `json:"inBackup"`
	Own        bool              `json:"own,omitempty"` // of the cluster that this restore makes: see Inputs.Becomes
	ClientURLs []string          `json:"clientURLs"`
	State      State             `json:"state"`
	Endpoint   string            `json:"endpoint,omitempty"` // that answered
	ClusterID  manifest.EtcdID   `json:"clusterID,omitempty"`
	Leader     manifest.EtcdID   `json:"leader,omitempty"` // 0: it knows none
	Term       uint64            `json:"term,omitempty"`
	Index      uint64            `json:"index,omitempty"`
	Revision   int64             `json:"revision,omitempty"`
	Version    string            `json:"version,omitempty"`
	Errors     []string          `json:"errors,omitempty"` // what it says of itself
	How        string            `json:"how"`
	members    []manifest.Member // of the cluster, as it knows them
	instead    []Member          // that answered where it was looked for: it has not been seen
	peerURLs   []string          // to ask it at while it tells clients nothing
}

func (m Member) String() string {
	name := cmp.Or(m.Name, "a member")
	if m.ID != 0 {
		name += " (" + m.ID.String() + ")"
	}
	return name
}

// Living is what of the cluster answers.
type Living struct {
	Members   []Member        `json:"members"` // those of the backup first
	ClusterID manifest.EtcdID `json:"clusterID,omitempty"`
	Voters    int             `json:"voters"`    // of that cluster
	VotersHow string          `json:"votersHow"` //
	Answering int             `json:"answering"` // voters that answer
	Agreeing  int             `json:"agreeing"`  // of those, that name one leader
	Leader    manifest.EtcdID `json:"leader"`    // that most of them name; 0: none
	Quorum    bool            `json:"quorum"`    // a majority agrees on a leader
	Foreign   []string        `json:"foreign"`   // members that answer for another cluster than the backup's
	Same      *bool           `json:"sameAsBackup,omitempty"`
	How       string          `json:"how"`
}

// living asks the members of the backup, what this host and the backup's files
// call etcd, and those members that a living one names besides.
func (h *Host) living(ctx context.Context, in Inputs) {
	l := &h.Living
	l.How = "asked each client URL for its status, which no member writes anything for"
	l.Members, l.Foreign = []Member{}, []string{}
	var ask []Member
	if in.Etcd != nil {
		for _, m := range in.Etcd.Members {
			ask = append(ask, Member{ID: m.ID, Name: m.Name, Learner: m.Learner, InBackup: true, ClientURLs: m.ClientURLs, peerURLs: m.PeerURLs})
		}
	}
	known := func(url string) bool {
		return slices.ContainsFunc(ask, func(m Member) bool { return slices.Contains(m.ClientURLs, url) })
	}
	local := len(ask)
	if in.Becomes != nil {
		for _, m := range in.Becomes.Members { // where they have new addresses
			if new := slices.DeleteFunc(slices.Clone(m.ClientURLs), known); len(new) > 0 {
				ask = append(ask, Member{Name: m.Name, ClientURLs: new, peerURLs: m.PeerURLs})
			}
		}
	}
	for _, url := range h.endpoints {
		if !known(url) {
			ask = append(ask, Member{Name: "the etcd of this host's files at " + url, ClientURLs: []string{url}})
		}
	}
	askAll(ctx, in, ask)
	l.add(ask[:local])
	for _, m := range ask[local:] {
		// What nobody answers for is no member; one that is known by its id is there already.
		if m.State == Answers || m.State == Accepts {
			l.merge(m)
		}
	}
	if m, removed := l.served(in.Becomes); m != nil {
		h.before = fmt.Sprintf("%s knows this node's member as one that has served (%s)", m, m.How)
		if removed {
			h.before = fmt.Sprintf("%s no longer knows this node's member: it was removed (%s)", m, m.How)
		}
		h.remade, in.Becomes = in.Becomes.ClusterID, nil
		for i := range l.Members {
			l.Members[i].Own = false
		}
	}
	l.discover(ctx, in)
	h.count()
}

// merge adds what answered at an address that belongs to no known member.
func (l *Living) merge(m Member) {
	i := slices.IndexFunc(l.Members, func(have Member) bool { return m.ID != 0 && have.ID == m.ID })
	if i < 0 {
		l.Members = append(l.Members, m)
		return
	}
	if have := &l.Members[i]; have.State != Answers {
		m.Name, m.InBackup, m.Learner = cmp.Or(have.Name, m.Name), have.InBackup, m.Learner || have.Learner
		m.ClientURLs = append(slices.Clone(have.ClientURLs), m.ClientURLs...)
		*have = m
	}
}

// discover asks those members that living ones name and nobody has asked yet: the
// backup may be older than the cluster's last change of members.
func (l *Living) discover(ctx context.Context, in Inputs) {
	var more []Member
	for _, m := range l.Members {
		if m.Own {
			continue
		}
		for _, named := range m.members {
			has := func(have Member) bool { return have.ID == named.ID }
			if !slices.ContainsFunc(l.Members, has) && !slices.ContainsFunc(more, has) {
				more = append(more, Member{ID: named.ID, Name: named.Name, Learner: named.Learner, ClientURLs: named.ClientURLs, peerURLs: named.PeerURLs})
			}
		}
	}
	askAll(ctx, in, more)
	l.add(more)
}

// add adds members that were asked, and once each who answered in the place of one.
func (l *Living) add(asked []Member) {
	l.Members = append(l.Members, asked...)
	for _, m := range asked {
		for _, other := range m.instead {
			l.merge(other)
		}
	}
}

// count finds the voters, and whether most of them agree on a leader.
func (h *Host) count() {
	l := &h.Living
	theirs := h.cluster()
	best := -1
	for i, m := range l.Members {
		if m.State != Answers || m.Own {
			continue
		}
		if theirs != 0 && m.ClusterID != theirs {
			l.Foreign = append(l.Foreign, fmt.Sprintf("%s at %s, of cluster %s", m, m.Endpoint, m.ClusterID))
		}
		// The cluster that counts comes before others, and of its members the furthest.
		if best < 0 || betterView(m, l.Members[best], theirs) {
			best = i
		}
	}
	voters := map[manifest.EtcdID]bool{}
	if best >= 0 {
		l.ClusterID = l.Members[best].ClusterID
		l.VotersHow = "the member list that " + l.Members[best].String() + " has"
		for _, m := range l.Members[best].members {
			if !m.Learner {
				voters[m.ID] = true
			}
		}
		if theirs != 0 {
			same := l.ClusterID == theirs
			l.Same = &same
		}
	}
	if len(voters) == 0 && h.backup != nil {
		l.VotersHow = "the members in the backup"
		for _, m := range h.backup.Members {
			if !m.Learner {
				voters[m.ID] = true
			}
		}
	}
	if len(voters) == 0 {
		l.VotersHow = "nobody names the members"
	}
	l.Voters = len(voters)
	agree := map[manifest.EtcdID]int{}
	for _, m := range l.Members {
		if m.State != Answers || m.Own || m.ClusterID != l.ClusterID || !voters[m.ID] {
			continue
		}
		l.Answering++
		if m.Leader != 0 {
			agree[m.Leader]++
		}
	}
	for leader, n := range agree {
		if n > l.Agreeing || n == l.Agreeing && leader < l.Leader {
			l.Agreeing, l.Leader = n, leader
		}
	}
	l.Quorum = l.Voters > 0 && l.Agreeing > l.Voters/2
}

// cluster is the one that counts: the backup's, or what this restore has made of it
// before; 0: not known.
func (h *Host) cluster() manifest.EtcdID {
	if h.remade != 0 || h.backup == nil {
		return h.remade
	}
	return h.backup.ClusterID
}

// betterView says whether a knows the members better than b.
func betterView(a, b Member, cluster manifest.EtcdID) bool {
	if (a.ClusterID == cluster) != (b.ClusterID == cluster) {
		return a.ClusterID == cluster
	}
	if (len(a.members) > 0) != (len(b.members) > 0) {
		return len(a.members) > 0
	}
	return a.Index > b.Index
}
