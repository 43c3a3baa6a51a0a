package replay

import (
	"context"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// trouble is one thing that happens to etcd while it works. It must be called
// by the test's own goroutine.
type trouble struct {
	name string
	do   func(w *workload)
}

// troubles are all kinds, each with how often a short run meets it.
var troubles = []struct {
	trouble
	times int
}{
	{trouble{"compact", (*workload).compactSomewhere}, 4},
	{trouble{"compact at the head", (*workload).compactAtHead}, 2},
	{trouble{"defragment", (*workload).defragment}, 2},
	{trouble{"move the leader", (*workload).moveLeader}, 1},
	{trouble{"stop the leader", (*workload).stopLeader}, 1},
	{trouble{"stop a follower", (*workload).stopFollower}, 1},
	{trouble{"burst", (*workload).burst}, 2},
}

// meet lets every kind of trouble happen, in random order, with random pauses
// of at most pause before each.
func (w *workload) meet(pause time.Duration) {
	w.t.Helper()
	var all []trouble
	for _, one := range troubles {
		for range one.times {
			all = append(all, one.trouble)
		}
	}
	w.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, one := range all {
		time.Sleep(time.Duration(w.rng.Int64N(int64(pause))))
		w.t.Logf("at revision %d: %s", w.oracle.seen(), one.name)
		one.do(w)
		w.oracle.check(w.t)
	}
}

// insist calls f until it succeeds: trouble overlaps with the work.
func (w *workload) insist(what string, f func(context.Context) error) {
	w.t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err = f(ctx)
		cancel()
		if err == nil {
			return
		}
	}
	w.t.Fatalf("%s: %v", what, err)
}

// compactSomewhere compacts at a random revision that was not compacted yet.
func (w *workload) compactSomewhere() {
	w.t.Helper()
	w.insist("compact", func(ctx context.Context) error {
		head := w.oracle.seen()
		if head <= w.compacted()+1 {
			return fmt.Errorf("nothing to compact at %d", head)
		}
		return w.compact(ctx, w.compacted()+1+w.rng.Int64N(head-w.compacted()))
	})
}

func (w *workload) compacted() int64 {
	w.oracle.mu.Lock()
	defer w.oracle.mu.Unlock()
	return w.oracle.compact
}

func (w *workload) compact(ctx context.Context, rev int64) error {
	if _, err := w.client.Compact(ctx, rev); err != nil && !strings.Contains(err.Error(), "has been compacted") {
		return err
	}
	w.oracle.mu.Lock()
	defer w.oracle.mu.Unlock()
	w.oracle.compact = max(w.oracle.compact, rev)
	return nil
}

// compactAtHead stops the work and compacts at the newest revision of all,
// which may be a deletion's.
func (w *workload) compactAtHead() {
	w.t.Helper()
	w.gate.Lock()
	defer w.gate.Unlock()
	w.insist("compact at the head", func(ctx context.Context) error {
		var head int64
		if w.rng.IntN(2) == 0 {
			resp, err := w.client.Delete(ctx, folder(w.rng.IntN(folders)), clientv3.WithPrefix())
			if err != nil {
				return err
			}
			head = resp.Header.Revision
		} else {
			resp, err := w.client.Get(ctx, "x")
			if err != nil {
				return err
			}
			head = resp.Header.Revision
		}
		w.oracle.wait(w.t, head)
		return w.compact(ctx, head)
	})
}

func (w *workload) defragment() {
	w.t.Helper()
	m := w.etcd.Members[w.rng.IntN(len(w.etcd.Members))]
	w.insist("defragment", func(ctx context.Context) error {
		_, err := w.client.Defragment(ctx, m.Endpoint)
		return err
	})
}

// leader is the index of the member that leads.
func (w *workload) leader() (leads int) {
	w.t.Helper()
	w.insist("find the leader", func(ctx context.Context) error {
		for i, m := range w.etcd.Members {
			status, err := w.client.Status(ctx, m.Endpoint)
			if err != nil {
				return err
			}
			if status.Leader == status.Header.MemberId {
				leads = i
				return nil
			}
		}
		return fmt.Errorf("no member leads")
	})
	return leads
}

func (w *workload) moveLeader() {
	w.t.Helper()
	w.insist("move the leader", func(ctx context.Context) error {
		leads := w.leader()
		to := (leads + 1 + w.rng.IntN(len(w.etcd.Members)-1)) % len(w.etcd.Members)
		status, err := w.client.Status(ctx, w.etcd.Members[to].Endpoint)
		if err != nil {
			return err
		}
		client := w.etcd.Client(leads)
		defer client.Close()
		_, err = client.MoveLeader(ctx, status.Header.MemberId)
		return err
	})
}

func (w *workload) stopLeader() {
	w.t.Helper()
	w.away(w.leader(), w.etcd.Stop)
}

func (w *workload) stopFollower() {
	w.t.Helper()
	w.away((w.leader()+1)%len(w.etcd.Members), w.etcd.Kill)
}

// away takes a member out for a moment.
func (w *workload) away(i int, end func(int)) {
	w.t.Helper()
	from := time.Now()
	end(i)
	time.Sleep(time.Duration(w.rng.Int64N(int64(1500 * time.Millisecond))))
	w.etcd.Restart(i)
	w.book.disturbed(from, time.Now())
}

// burst writes more than one watch response takes, then deletes all of it in
// one revision.
func (w *workload) burst() {
	w.t.Helper()
	value := strings.Repeat("v", 20<<10)
	for i := range 4 {
		w.insist("burst", func(ctx context.Context) error {
			var ops []clientv3.Op
			for j := range 60 {
				ops = append(ops, clientv3.OpPut(fmt.Sprintf("burst/%d/%d", i, j), value))
			}
			_, err := w.client.Txn(ctx).Then(ops...).Commit()
			return err
		})
	}
	w.insist("end a burst", func(ctx context.Context) error {
		_, err := w.client.Delete(ctx, "burst/", clientv3.WithPrefix())
		return err
	})
}
