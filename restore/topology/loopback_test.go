package topology_test

import (
	"strings"
	"testing"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/manifest"
	"lifeboat/restore/topology"
)

// k0s has each member tell clients the loopback address of its own host: who asks
// there for another one gets the same answer.
func TestAMemberThatAnswersForOthersCountsOnce(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3})
	whole := backupOf(t, c)
	write1(t, c)
	c.WaitHealthy(0)
	local := *whole
	local.Members = nil
	for _, m := range whole.Members {
		m.ClientURLs = whole.Members[0].ClientURLs
		local.Members = append(local.Members, m)
	}
	h := look(t, c, &local)
	l := h.Living
	if len(l.Members) != 3 || l.Answering != 1 || l.Agreeing != 1 || l.Quorum || l.Members[0].State != topology.Answers {
		t.Fatalf("%d of %d voters answer: %+v", l.Answering, l.Voters, l.Members)
	}
	for _, i := range []int{1, 2} {
		m := l.Members[i]
		if m.ID != whole.Members[i].ID || m.Name != whole.Members[i].Name || !m.InBackup || m.State != topology.Silent || !strings.Contains(m.How, whole.Members[0].ID.String()+") answers there") {
			t.Errorf("%+v", m)
		}
	}

	// The one that answers is none of those that were looked for.
	local.Members = local.Members[1:]
	if l := look(t, c, &local).Living; len(l.Members) != 3 || l.Answering != 1 || l.Members[2].ID != whole.Members[0].ID || l.Members[2].InBackup {
		t.Errorf("%d of %d voters answer: %+v", l.Answering, l.Voters, l.Members)
	}

	// At its second address it is itself.
	both := *whole
	both.Members = append([]manifest.Member{}, whole.Members...)
	both.Members[1].ClientURLs = append([]string{whole.Members[0].ClientURLs[0]}, whole.Members[1].ClientURLs...)
	if l := look(t, c, &both).Living; len(l.Members) != 3 || l.Answering != 3 || !l.Quorum {
		t.Errorf("%d of %d voters answer: %+v", l.Answering, l.Voters, l.Members)
	}
}
