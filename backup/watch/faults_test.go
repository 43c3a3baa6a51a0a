package watch_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/backup/watch"
	"lifeboat/internal/etcdtest"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/segment"
)

// writer puts without end through some members, until stop gives the last
// revision that was acknowledged.
func writer(t testing.TB, client *clientv3.Client) (stop func() int64) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var last atomic.Int64
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			call, cancel := context.WithTimeout(ctx, time.Second)
			if response, err := client.Put(call, fmt.Sprintf("writer/%d", i%100), fmt.Sprint(i)); err == nil {
				last.Store(response.Header.Revision)
			}
			cancel()
		}
	}()
	stop = func() int64 { cancel(); <-done; return last.Load() }
	t.Cleanup(func() { stop() })
	return stop
}

// followers are the members that do not lead.
func followers(t testing.TB, c *cluster.Cluster) []int {
	lead := leader(t, c)
	var list []int
	for i := range c.Members {
		if i != lead {
			list = append(list, i)
		}
	}
	return list
}

// next goes on with the tape of a drain that ended, at another member.
func (r *running) next(source watch.Source) *running {
	r.t.Helper()
	e := r.waitEnd()
	if e.Last != r.reached() {
		r.t.Errorf("the error says that all up to %d was given, the sink was told %d", e.Last, r.reached())
	}
	r.cut(e.Last)
	return onto(r.t, source, quick(e.Last+1), r.tape)
}

// cut drops the events of a revision that was not completed.
func (s *tape) cut(last int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.records) > 0 && s.records[len(s.records)-1].IsEvent() && s.records[len(s.records)-1].Main > last {
		s.records = s.records[:len(s.records)-1]
	}
}

// whole holds what came, over all members, against one member's own database.
func (r *running) whole(s watch.Source, head int64) {
	r.t.Helper()
	r.waitRevision(head)
	r.end()
	if got, want := r.hash(), hashKV(r.t, s, r.reached()); got != want.Hash {
		r.t.Errorf("HashKV at revision %d: %08x, member %s says %08x", r.reached(), got, s.Member, want.Hash)
	}
}

func TestAnotherMemberGoesOnWhereOneWasLost(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, version, cluster.Options{Members: 3})
			f := followers(t, c)
			first, second, third := at(t, c, f[0]), at(t, c, f[1]), at(t, c, leader(t, c))
			stop := writer(t, c.Client(leader(t, c)))
			r := run(t, first, quick(1))
			r.waitRevision(200)
			c.Kill(f[0])
			if e := r.waitEnd(); !errors.Is(e, watch.ErrLost) {
				t.Errorf("the member was killed: %v", e)
			}
			r = r.next(second)
			r.waitRevision(r.reached() + 200)
			c.Restart(f[0])
			c.Stop(f[1])
			r = r.next(third)
			r.waitRevision(r.reached() + 200)
			r.whole(third, stop())
		})
	}
}

func TestAMemberThatFallsSilentIsGivenUp(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3})
	f := followers(t, c)
	stop := writer(t, c.Client(leader(t, c)))
	options := quick(1)
	options.Call, options.Stall = time.Second, 3*time.Second
	r := run(t, at(t, c, f[0]), options)
	r.waitRevision(100)
	other := at(t, c, f[1])
	c.Pause(f[0])
	began := time.Now()
	if e := r.waitEnd(); !errors.Is(e, watch.ErrNoLeader) && !errors.Is(e, watch.ErrStalled) {
		t.Errorf("the member was stopped: %v", e)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("given up after %s", took)
	}
	r = r.next(other)
	c.Resume(f[0])
	r.whole(other, stop())
}

func TestWithoutQuorumTheWatchEnds(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{Members: 3})
	put(t, c.Client(), "a", "b")
	lead := leader(t, c)
	f := followers(t, c)
	s := at(t, c, lead)
	options := quick(1)
	options.Stall = 10 * time.Minute // the member itself says so, long before
	r := run(t, s, options)
	r.waitRevision(2)
	c.Kill(f[0])
	c.Kill(f[1])
	if e := r.waitEnd(); !errors.Is(e, watch.ErrNoLeader) {
		t.Errorf("without quorum: %v", e)
	}
}

func TestALeaderThatChangesLosesNothing(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{Members: 3})
	f := followers(t, c)
	s := at(t, c, f[0])
	client := c.Client()
	r := run(t, s, quick(1))
	stop := writer(t, c.Client())
	for i := range 3 {
		r.waitRevision(r.reached() + 100)
		lead := leader(t, c)
		to := at(t, c, (lead+1+i%2)%3)
		if _, err := c.Client(lead).MoveLeader(t.Context(), uint64(to.Member)); err != nil {
			t.Fatal(err)
		}
	}
	r.whole(s, max(stop(), put(t, client, "last", "")))
}

// A follower that fell far behind is sent the leader's whole database instead
// of the changes. Its watch must go on without a hole, or end.
func TestAFollowerThatIsSentASnapshotLosesNothing(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			catchUp := "--experimental-snapshot-catchup-entries=10"
			if version == "3.7" {
				catchUp = "--snapshot-catchup-entries=10"
			}
			c := cluster.StartBinary(t, version, cluster.Options{Members: 3, Args: []string{"--snapshot-count=50", catchUp}})
			f := followers(t, c)
			lead := leader(t, c)
			s, other := at(t, c, f[0]), at(t, c, lead)
			client := c.Client(lead)
			options := quick(1)
			options.Call, options.Stall = 10*time.Second, 20*time.Second
			r := run(t, s, options)
			r.waitRevision(put(t, client, "before", ""))
			c.Pause(f[0])
			head := int64(0)
			for i := range 1000 {
				head = put(t, client, fmt.Sprint(i%10), strings.Repeat("v", 100))
			}
			c.Resume(f[0])
			for deadline := time.Now().Add(20 * time.Second); r.reached() < head && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
				select {
				case <-r.done:
					r = r.next(other)
				default:
				}
			}
			r.whole(other, head)
		})
	}
}

func TestProgressNotificationsAgreeWithTheEvents(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			flag := "--experimental-watch-progress-notify-interval=100ms"
			if version == "3.7" {
				flag = "--watch-progress-notify-interval=100ms"
			}
			c := cluster.StartBinary(t, version, cluster.Options{Args: []string{flag}})
			client, s := c.Client(), source(t, c)
			head := mixed(t, client)
			r := run(t, s, quick(head+1))
			for range 5 {
				head = put(t, client, "k", "v")
				time.Sleep(150 * time.Millisecond)
			}
			r.waitRevision(head)
			sent := func() int { return counted(t, c.Members[0], "grpc_server_msg_sent_total", "Watch") }
			before := sent()
			r.waitFor("notifications while nothing changes", func() bool { return sent() > before+3 })
			if err := r.end(); !errors.Is(err, errStopped) {
				t.Errorf("Run returned %v", err)
			}
		})
	}
}

// What is slow is the recorder's disk at worst. etcd then holds back, and
// nothing is lost.
func TestASlowSinkGetsAll(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{})
	s := source(t, c)
	r := onto(t, s, quick(1), &tape{t: t, complete: 1, slow: time.Millisecond})
	stop := writer(t, c.Client())
	r.waitRevision(500)
	head := stop()
	r.waitFor("times meanwhile", func() bool { return len(r.of(segment.KindTime)) > 3 })
	r.whole(s, head)
}

func TestSourcesAreLocalFollowersBeforeTheLeaderAndNeverLearners(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3, Args: []string{"--strict-reconfig-check=false"}})
	client := c.Client()
	must(client.MemberAddAsLearner(t.Context(), []string{"http://127.0.0.1:1"}))(t)
	c.Kill(followers(t, c)[0])
	list := sources(t, open(t, c))
	if len(list) != 2 || list[0].Leader || !list[1].Leader {
		t.Fatalf("%+v", list)
	}
	if others := list[0].Others; len(others) != 1 || others[0].Member != list[1].Member || others[0].Conn != list[1].Conn {
		t.Errorf("the follower's others: %+v", others)
	}
	if got := must(list[0].Head(t.Context()))(t); got != 1 {
		t.Errorf("head %d of an empty cluster", got)
	}
}

// Far behind, many short watches read side by side.
func TestLanesGiveAllThatWasMissedInOrder(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, version, cluster.Options{})
			client, s := c.Client(), source(t, c)
			result, err := etcdtest.Fill(t.Context(), client, etcdtest.FillOptions{Objects: 6000, ValueBytes: 3000, Seed: 3})
			if err != nil {
				t.Fatal(err)
			}
			stop := writer(t, client)
			r := run(t, s, quick(1))
			r.waitRevision(result.Revision)
			r.whole(s, stop())
		})
	}
}

// The leader is spared where there is a follower, and asked where that one is
// gone.
func TestALeaderIsCaughtUpWithThroughAFollower(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{Members: 3})
	lead := leader(t, c)
	s := at(t, c, lead)
	result, err := etcdtest.Fill(t.Context(), c.Client(lead), etcdtest.FillOptions{Objects: 4000, Seed: 3})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s, quick(1)).whole(s, result.Revision)
	if n := calls(t, c.Members[lead], "Watch"); n != 1 {
		t.Errorf("the leader was asked for %d watches, want the one that goes on", n)
	}
	for i := range c.Members {
		if i != lead {
			c.Kill(i)
			if s.Others[0].Endpoint == c.Members[i].Endpoint {
				run(t, s, quick(1)).whole(s, result.Revision)
			}
			c.Restart(i)
		}
	}
}

// Between its rounds a catch-up rests longer than any silence is borne, and is
// not taken for one.
func TestCompactedFarBehindIsTold(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{})
	client, s := c.Client(), source(t, c)
	if _, err := etcdtest.Fill(t.Context(), client, etcdtest.FillOptions{Objects: 4000, Seed: 3}); err != nil {
		t.Fatal(err)
	}
	compact(t, client, 2500)
	for _, from := range []int64{1, 1400, 2499} {
		if e := run(t, s, quick(from)).waitEnd(); !errors.Is(e, watch.ErrCompacted) || e.Compact != 2500 || e.Last != max(from, 2)-1 {
			t.Errorf("from %d: %v", from, e)
		}
	}
}

func TestASilentMemberIsGivenUpWhileCatchingUp(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.6", cluster.Options{})
	client, s := c.Client(), source(t, c)
	if _, err := etcdtest.Fill(t.Context(), client, etcdtest.FillOptions{Objects: 6000, Seed: 3}); err != nil {
		t.Fatal(err)
	}
	options := quick(1)
	options.Stall = 2 * time.Second
	r := onto(t, s, options, &tape{t: t, complete: 1, slow: time.Millisecond})
	r.waitRevision(100)
	c.Pause(0)
	if e := r.waitEnd(); !errors.Is(e, watch.ErrStalled) && !errors.Is(e, watch.ErrNoLeader) {
		t.Errorf("%v", e)
	}
	c.Resume(0)
}
