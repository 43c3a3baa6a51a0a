package watch

import (
	"strings"
	"testing"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
)

func TestOnlyMembersThatAgreeAreRecorded(t *testing.T) {
	var warnings []events.Warning
	d := New(Source{}, Options{From: 1, Chain: "etcd/main", Events: func(e events.Event) { warnings = append(warnings, e.(events.Warning)) }}, &taken{})
	done, members := make(chan struct{}), []uint64(nil)
	go func() {
		defer close(done)
		for f := range d.found {
			h := f.record.Hash
			if h.Revision != 50 || h.Compact != 40 || h.HashKV != 7 {
				t.Errorf("recorded %+v", h)
			}
			members = append(members, h.Member)
		}
	}()
	a := &around{drain: d}
	a.giveHashes(t.Context(), hashOf{revision: 50, answers: []hashAnswer{
		{member: manifest.EtcdID(1), compact: 40, hash: 7},
		{member: manifest.EtcdID(2), compact: 30, hash: 8}, // as of another compaction: no comparison
		{member: manifest.EtcdID(3), compact: 40, hash: 7},
		{member: manifest.EtcdID(4), compact: 30, hash: 9},
	}})
	close(d.found)
	<-done
	if len(members) != 2 || members[0] != 1 || members[1] != 3 {
		t.Errorf("hashes of members %v were recorded", members)
	}
	if len(warnings) != 1 || warnings[0].Chain != "etcd/main" || !strings.Contains(warnings[0].Subject, "2 (00000008)") || !strings.Contains(warnings[0].Subject, "4 (00000009)") {
		t.Errorf("warnings: %+v", warnings)
	}
}

func TestOldHashesAreGivenUpForNewOnes(t *testing.T) {
	a := &around{}
	for revision := range int64(maxHashes + 3) {
		a.want(hashOf{revision: revision})
	}
	if len(a.ask) != maxHashes || a.ask[0].revision != 3 {
		t.Errorf("%d are wanted, the oldest of revision %d", len(a.ask), a.ask[0].revision)
	}
}

func TestMoreLeasesThanCanBeAskedAreTakenForGone(t *testing.T) {
	l := NewLeases()
	for id := range int64(maxLeases + 3) {
		l.seen(id+1, id+2)
		l.seen(id+1, id+3) // known: not queued twice
	}
	for i := range 4 {
		q, enough, ok := l.next()
		if !ok || q.id != int64(i+1) || enough != (i < 2) {
			t.Errorf("question %d: %+v, enough %v, %v", i, q, enough, ok)
		}
		if !l.Pending(q.revision) {
			t.Errorf("lease %d is not pending while it is asked for", q.id)
		}
		l.answered(q.id)
		if l.Pending(q.revision) {
			t.Errorf("lease %d is pending after its answer", q.id)
		}
	}
}
