package watch_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/backup/watch"
	"lifeboat/internal/etcdtest"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
)

// mixed writes what makes revisions differ in shape, and gives the last one.
func mixed(t testing.TB, c *clientv3.Client) int64 {
	t.Helper()
	put(t, c, "empty", "")
	put(t, c, "big", strings.Repeat("x", 1<<20))
	lease := must(c.Grant(t.Context(), 1000))(t).ID
	for i := range 300 {
		put(t, c, fmt.Sprintf("key/%03d", i), fmt.Sprint(i), clientv3.WithLease(lease))
	}
	var ops []clientv3.Op
	for i := range 100 {
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("txn/%03d", i), strings.Repeat("y", 1000)))
	}
	ops = append(ops, clientv3.OpDelete("key/1", clientv3.WithPrefix()), clientv3.OpDelete("big"))
	must(c.Txn(t.Context()).Then(ops...).Commit())(t)
	put(t, c, "key/000", "again")
	must(c.Delete(t.Context(), "nothing"))(t) // makes no revision
	must(c.Txn(t.Context()).If(clientv3.Compare(clientv3.Version("none"), ">", 0)).Then(clientv3.OpPut("a", "b")).Else(clientv3.OpGet("a")).Commit())(t)
	must(c.Revoke(t.Context(), lease))(t) // deletes 200 keys in one revision
	return put(t, c, "last", "\x00\xff")
}

// long fills the keyspace and deletes it in one revision whose events take
// more than one message.
func long(t testing.TB, c *clientv3.Client) int64 {
	t.Helper()
	for i := range 30 {
		var ops []clientv3.Op
		for j := range 100 {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("long/%03d/%03d/%s", i, j, strings.Repeat("k", 1000)), ""))
		}
		must(c.Txn(t.Context()).Then(ops...).Commit())(t)
	}
	return must(c.Delete(t.Context(), "long/", clientv3.WithPrefix()))(t).Header.Revision
}

func TestWhatIsWatchedHashesLikeTheMembersOwnDatabase(t *testing.T) {
	t.Parallel()
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, version, cluster.Options{TLS: version == "3.6"})
			client, s := c.Client(), source(t, c)
			live := run(t, s, quick(1))
			live.waitFor("a time", func() bool { return len(live.of(segment.KindTime)) > 0 })
			mixed(t, client)
			long(t, client)
			if _, err := etcdtest.Fill(t.Context(), client, etcdtest.FillOptions{Objects: 1500, Seed: 7}); err != nil {
				t.Fatal(err)
			}
			head := mixed(t, client)
			live.waitRevision(head)
			late := run(t, s, quick(1)) // in batches of a thousand revisions, in fragments
			late.waitRevision(head)
			want := hashKV(t, s, head)
			if got := live.hash(); got != want.Hash {
				t.Errorf("watched live: HashKV %08x, the member says %08x", got, want.Hash)
			}
			if got := late.hash(); got != want.Hash {
				t.Errorf("watched afterwards: HashKV %08x, the member says %08x", got, want.Hash)
			}
			for _, r := range []*running{live, late} {
				if err := r.end(); !errors.Is(err, errStopped) {
					t.Errorf("stopped, Run returned %v", err)
				}
				if r.complete != head {
					t.Errorf("complete up to %d, etcd is at %d", r.complete, head)
				}
			}
		})
	}
}

func TestATimeIsBoundedFromBothSides(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{})
	client := c.Client()
	r := run(t, source(t, c), quick(1))
	// acknowledged holds the wall clock after a write was acknowledged; begun
	// before it was sent.
	type write struct {
		revision            int64
		begun, acknowledged time.Time
	}
	var writes []write
	for i := range 200 {
		w := write{begun: time.Now()}
		w.revision = put(t, client, "k", fmt.Sprint(i))
		w.acknowledged = time.Now()
		writes = append(writes, w)
		time.Sleep(2 * time.Millisecond)
	}
	head := writes[len(writes)-1].revision
	r.waitFor("a time that knows all", func() bool {
		times := r.of(segment.KindTime)
		return len(times) > 0 && times[len(times)-1].Time.AtLeast == head
	})
	r.end()
	times := r.of(segment.KindTime)
	if len(times) < 5 {
		t.Fatalf("%d times while revisions were made", len(times))
	}
	for _, moment := range times {
		m := moment.Time
		if m.AtMost < m.AtLeast {
			t.Errorf("at most %d, at least %d", m.AtMost, m.AtLeast)
		}
		for _, w := range writes {
			if w.acknowledged.UnixMilli() < m.At && w.revision > m.AtMost {
				t.Errorf("revision %d was acknowledged before a time that says at most %d", w.revision, m.AtMost)
			}
			if w.begun.UnixMilli() > m.At && w.revision <= m.AtLeast {
				t.Errorf("revision %d was begun after a time that says at least %d", w.revision, m.AtLeast)
			}
		}
	}
	if last := times[len(times)-1].Time; last.AtMost != head {
		t.Errorf("the last time says at most %d, nothing was written after %d", last.AtMost, head)
	}
}

func TestIdleTimesAreFew(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{})
	put(t, c.Client(), "k", "v")
	options := quick(1)
	options.Tick, options.Idle = 5*time.Millisecond, time.Minute
	r := run(t, source(t, c), options)
	r.waitFor("a time that knows all", func() bool {
		times := r.of(segment.KindTime)
		return len(times) > 0 && times[len(times)-1].Time.AtLeast == 2
	})
	before := len(r.of(segment.KindTime))
	time.Sleep(200 * time.Millisecond)
	if now := len(r.of(segment.KindTime)); now > before+1 {
		t.Errorf("%d more times while nothing changed", now-before)
	}
}

func TestCompactionsAndTheHashesThatMembersKeepAreSeen(t *testing.T) {
	t.Parallel()
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, version, cluster.Options{Members: 3})
			client, s := c.Client(), source(t, c)
			var compactions []int64
			head := int64(0)
			write := func(n int) {
				for i := range n {
					head = put(t, client, fmt.Sprintf("k%d", i%7), fmt.Sprint(i))
				}
			}
			write(50)
			compact(t, client, head-20)
			r := run(t, s, quick(head-19))
			for range 3 {
				compactions = append(compactions, head-20)
				r.waitRevision(head)
				r.waitFor("the compaction", func() bool { return len(r.of(segment.KindCompaction)) == len(compactions) })
				write(40)
				compact(t, client, head-20)
			}
			compactions = append(compactions, head-20)
			r.waitFor("all compactions and hashes", func() bool {
				return len(r.of(segment.KindCompaction)) == len(compactions) && len(r.of(segment.KindHash)) >= 3*3
			})
			r.end()
			for i, found := range r.of(segment.KindCompaction) {
				if found.Compaction.Revision != compactions[i] || found.Compaction.Head < compactions[i] {
					t.Errorf("compaction %d: %+v, etcd was compacted at %d", i, found.Compaction, compactions[i])
				}
			}
			for i, found := range r.of(segment.KindHash) {
				h, asOf := found.Hash, int64(0)
				if i/3 > 0 {
					asOf = compactions[i/3-1]
				}
				if h.Revision != compactions[i/3] || h.Compact != asOf {
					t.Errorf("hash %d is of revision %d as of %d, wanted %d as of %d", i, h.Revision, h.Compact, compactions[i/3], asOf)
				}
				if i%3 > 0 && h.HashKV != r.of(segment.KindHash)[i-1].Hash.HashKV {
					t.Errorf("members' hashes at revision %d differ", h.Revision)
				}
			}
		})
	}
}

func TestWhatIsCompactedCantBeWatched(t *testing.T) {
	t.Parallel()
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, version, cluster.Options{})
			client, s := c.Client(), source(t, c)
			head := mixed(t, client)
			compact(t, client, head-10)
			e := run(t, s, quick(head-11)).waitEnd()
			if !errors.Is(e, watch.ErrCompacted) || e.Compact != head-10 || e.Last != head-12 {
				t.Errorf("%v: compacted at %d, last %d", e, e.Compact, e.Last)
			}
			// From the compact revision on, etcd has all since 3.5.16.
			r := run(t, s, quick(head-9))
			r.waitRevision(head)
			r.end()
			if got := r.of(segment.KindPut, segment.KindDelete)[0].Main; got != head-9 {
				t.Errorf("began at %d", got)
			}
			for _, known := range []int64{0, 1, head - 11, head - 10, head - 9} {
				if got := must(s.Compacted(t.Context(), known))(t); got != max(known, head-10) {
					t.Errorf("Compacted, knowing %d: %d, etcd is compacted at %d", known, got, head-10)
				}
			}
		})
	}
}

func TestNothingCompactedIsZero(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{})
	if got, err := source(t, c).Compacted(t.Context(), 0); got != 0 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
}

func TestLeasesAreRecordedAsGranted(t *testing.T) {
	t.Parallel()
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, version, cluster.Options{Members: 3})
			client := c.Client()
			r := run(t, source(t, c), quick(1))
			kept := must(client.Grant(t.Context(), 700))(t).ID
			first := put(t, client, "a", "1", clientv3.WithLease(kept))
			put(t, client, "b", "2", clientv3.WithLease(kept))
			negative := clientv3.LeaseID(-5)
			must(pb.NewLeaseClient(client.ActiveConnection()).LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: int64(negative), TTL: 900}))(t)
			head := put(t, client, "c", "3", clientv3.WithLease(negative))
			r.waitRevision(head)
			r.waitFor("the leases", func() bool { return !r.drain.LeasesPending(head) })
			gone := must(client.Grant(t.Context(), 800))(t).ID
			before := put(t, client, "d", "4", clientv3.WithLease(gone))
			head = must(client.Revoke(t.Context(), gone))(t).Header.Revision
			r.waitRevision(head)
			late := run(t, source(t, c), quick(before)) // can't ask it any more
			late.waitRevision(head)
			late.waitFor("the gone lease", func() bool { return !late.drain.LeasesPending(head) })
			late.end()
			r.end()
			want := map[int64]segment.Lease{
				int64(kept):     {ID: int64(kept), TTL: 700, Revision: first},
				int64(negative): {ID: int64(negative), TTL: 900, Revision: first + 2},
			}
			for _, got := range r.of(segment.KindLease) {
				if got.Lease.ID == int64(gone) {
					continue // asked in time or not
				}
				if got.Lease != want[got.Lease.ID] {
					t.Errorf("lease %+v, wanted %+v", got.Lease, want[got.Lease.ID])
				}
				delete(want, got.Lease.ID)
			}
			if len(want) > 0 {
				t.Errorf("leases that were not recorded: %v", want)
			}
			leases := late.of(segment.KindLease)
			if len(leases) != 1 || leases[0].Lease != (segment.Lease{ID: int64(gone), TTL: 60, Synthetic: true, Revision: before}) {
				t.Errorf("a lease that was gone before it could be asked for: %+v", leases)
			}
		})
	}
}

func TestLeasesArePendingUntilTheirRecordIsGiven(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{})
	client := c.Client()
	head := int64(0)
	for i := range 300 {
		lease := must(client.Grant(t.Context(), int64(1000+i)))(t).ID
		head = put(t, client, fmt.Sprint(i), "", clientv3.WithLease(lease))
	}
	s := &tape{t: t}
	r := onto(t, source(t, c), quick(1), s)
	r.waitRevision(head)
	r.waitFor("all leases", func() bool { return !r.drain.LeasesPending(head) })
	r.end()
	var ttls []int64
	for _, l := range r.of(segment.KindLease) {
		ttls = append(ttls, l.Lease.TTL)
	}
	slices.Sort(ttls)
	if len(ttls) != 300 || ttls[0] != 1000 || ttls[299] != 1299 {
		t.Errorf("%d leases: %v", len(ttls), ttls)
	}
}

func TestAnotherHistoryIsToldApart(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.6", cluster.Options{})
	head := mixed(t, c.Client())
	s := source(t, c)
	if e := run(t, s, quick(head+2)).waitEnd(); !errors.Is(e, watch.ErrLower) || e.Head != head || e.Last != head+1 {
		t.Errorf("a lower head: %v", e)
	}
	ahead := run(t, s, quick(head+1))
	ahead.waitRevision(put(t, c.Client(), "next", ""))
	ahead.end()

	other := cluster.StartBinary(t, "3.6", cluster.Options{Token: "another"})
	strange := source(t, other)
	strange.ClusterID = s.ClusterID
	if e := run(t, strange, quick(1)).waitEnd(); !errors.Is(e, watch.ErrOtherCluster) {
		t.Errorf("another cluster: %v", e)
	}
}

func TestFarBehindIsGivenUpBeforeItHurts(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{})
	head := mixed(t, c.Client())
	options := quick(head - 100)
	options.MaxLag = 100
	if e := run(t, source(t, c), options).waitEnd(); !errors.Is(e, watch.ErrBehind) || e.Head != head {
		t.Errorf("%v", e)
	}
	options.From++
	run(t, source(t, c), options).waitRevision(head)
}

func TestALagThatGrowsIsGivenUp(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{})
	head := mixed(t, c.Client())
	options := quick(head + 1)
	options.MaxLag = 20
	r := onto(t, source(t, c), options, &tape{t: t, complete: head, slow: 50 * time.Millisecond})
	for range 100 {
		put(t, c.Client(), "burst", "")
	}
	if e := r.waitEnd(); !errors.Is(e, watch.ErrBehind) || e.Last >= head+80 {
		t.Errorf("%v", e)
	}
}

func TestWhatLeavesNoEventsIsNoticed(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{})
	client := c.Client()
	r := run(t, source(t, c), quick(1))
	r.waitFor("a first look", func() bool { return len(r.of(segment.KindTime)) > 3 })
	member := must(client.MemberList(t.Context()))(t).Members[0].ID
	must(pb.NewMaintenanceClient(client.ActiveConnection()).Alarm(t.Context(), &pb.AlarmRequest{
		Action: pb.AlarmRequest_ACTIVATE, MemberID: member, Alarm: pb.AlarmType_NOSPACE,
	}))(t)
	r.waitFor("the alarm", r.said("NOSPACE"))
	must(client.AlarmDisarm(t.Context(), &clientv3.AlarmMember{}))(t)
	r.waitFor("its end", r.said("alarms: none"))
	must(client.MemberAddAsLearner(t.Context(), []string{"http://127.0.0.1:1"}))(t)
	r.waitFor("the learner", r.said("(learner)"))
	must(client.RoleAdd(t.Context(), "root"))(t)
	must(client.UserAdd(t.Context(), "root", "secret"))(t)
	must(client.UserGrantRole(t.Context(), "root", "root"))(t)
	must(client.AuthEnable(t.Context()))(t)
	refused := run(t, r.from, quick(1))
	if e := refused.waitEnd(); !errors.Is(e, watch.ErrLost) {
		t.Errorf("with authentication: %v", e)
	}
	if len(refused.changed) != 1 || !strings.Contains(refused.changed[0], "refuses") {
		t.Errorf("with authentication, changed: %q", refused.changed)
	}
}

func TestUsersAndRolesThatChangeAreNoticed(t *testing.T) {
	t.Parallel()
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, version, cluster.Options{TLS: version != "3.5"})
			c.Settle()
			client, s := c.Client(), source(t, c)
			before := must(s.AuthRevision(t.Context()))(t)
			options := quick(1)
			options.Facts = watch.NewFacts()
			r := run(t, s, options)
			r.waitFor("a first look", func() bool { return len(r.of(segment.KindTime)) > 3 })
			must(client.RoleAdd(t.Context(), "reader"))(t)
			r.waitFor("the role", r.said(fmt.Sprintf("users, roles or rights in etcd: revision %d, before: %d", before+1, before)))
			r.end()
			if len(r.changed) != 1 {
				t.Errorf("said: %q", r.changed)
			}
			if status := must(client.AuthStatus(t.Context()))(t); status.AuthRevision != before+1 {
				t.Errorf("AuthRevision told of %d, AuthStatus of %d", before+1, status.AuthRevision)
			}
			// Another process looks later, and knows the last full only.
			members := must(client.MemberList(t.Context()))(t).Members
			full := &manifest.Etcd{MemberID: manifest.EtcdID(members[0].ID), Version: s.Version, AuthRevision: before}
			for _, m := range members {
				full.Members = append(full.Members, manifest.Member{ID: manifest.EtcdID(m.ID), PeerURLs: m.PeerURLs})
			}
			options = quick(1)
			options.Facts = watch.NewFacts()
			options.Facts.Seed(full)
			later := run(t, s, options)
			later.waitFor("what changed since the full", later.said(fmt.Sprintf("revision %d, before: %d", before+1, before)))
			later.waitFor("another look", func() bool { return len(later.of(segment.KindTime)) > 3 })
			later.end()
			if len(later.changed) != 1 {
				t.Errorf("since the full: %q", later.changed)
			}
		})
	}
}

func TestWhatLeavesNoEventsIsNoticedBetweenTwoDrains(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{})
	c.Settle()
	client := c.Client()
	options := quick(1)
	options.Facts = watch.NewFacts()
	first := run(t, source(t, c), options)
	first.waitFor("a first look", func() bool { return len(first.of(segment.KindTime)) > 3 })
	first.end()
	member := must(client.MemberList(t.Context()))(t).Members[0].ID
	must(pb.NewMaintenanceClient(client.ActiveConnection()).Alarm(t.Context(), &pb.AlarmRequest{
		Action: pb.AlarmRequest_ACTIVATE, MemberID: member, Alarm: pb.AlarmType_NOSPACE,
	}))(t)
	second := run(t, first.from, options)
	second.waitFor("the alarm", func() bool {
		second.mu.Lock()
		defer second.mu.Unlock()
		return len(second.changed) == 1 && strings.Contains(second.changed[0], "NOSPACE")
	})
}

func TestTheSinksErrorEndsTheDrain(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{})
	head := mixed(t, c.Client())
	full := errors.New("full")
	r := onto(t, source(t, c), quick(head), &tape{t: t, complete: head - 1, refuse: full})
	<-r.done
	if r.err != full {
		t.Errorf("Run returned %v", r.err)
	}
}
