package work

import (
	"strings"
	"testing"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/manifest"
	"lifeboat/internal/session"
)

// TestWithoutQuorumAnAgentBacksUpItsOwnMember: two of four members are left, and
// could serve both. Each agent takes the one beside it, as a degraded full.
func TestWithoutQuorumAnAgentBacksUpItsOwnMember(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	etcd := cluster.StartBinary(t, "3.6", cluster.Options{Members: 4})
	ids := map[int]manifest.EtcdID{}
	for i := range 2 {
		s, err := etcd.Client(i).Status(t.Context(), etcd.Members[i].Endpoint)
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = manifest.EtcdID(s.Header.MemberId)
	}
	etcd.Kill(2)
	etcd.Kill(3)
	for own := range 2 {
		other := 1 - own
		c := *w.config
		c.Etcd = []config.Etcd{{Name: "main", Endpoints: []string{
			// The same machine, by an address that is none of its own.
			strings.Replace(etcd.Members[other].Endpoint, "127.0.0.1", "0.0.0.0", 1), etcd.Members[own].Endpoint,
		}}}
		w.Work = w.works(&c)
		did, err := w.Full(t.Context(), "main")
		if err != nil || did.ID == "" || !strings.Contains(strings.Join(did.Degraded, "\n"), "no linearizable read") {
			t.Fatalf("beside member %d: %+v, %v", own, did, err)
		}
		if got := w.member(did.ID); got != ids[own] {
			t.Errorf("the agent beside member %d, %s, has backed up %s", own, ids[own], got)
		}
		w.forward(time.Minute)
	}
}

// member is the one that a full was taken of.
func (w *world) member(id manifest.ID) manifest.EtcdID {
	w.t.Helper()
	trust, err := session.LoadTrust(w.config.Signing.TrustFile, w.config.Cluster)
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := session.Open(w.t.Context(), w.config, trust, nil, "", w.session)
	if err != nil || s.Stores[0].Err != nil {
		w.t.Fatal(err, s)
	}
	backups, _, err := s.Stores[0].Repository.Backups(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, b := range backups {
		if b.ID == id {
			return b.Etcd.MemberID
		}
	}
	w.t.Fatalf("%s is not in the store", id)
	return 0
}
