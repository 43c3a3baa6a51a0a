package record

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/repository"
)

// hungChain is one whose requests never come back, as on a dead NFS server.
type hungChain struct {
	*fakeChain
	head, prune, sweeps atomic.Bool
	release             chan struct{}
	calls               atomic.Int64
}

func (c *hungChain) Head(ctx context.Context) (*repository.Tip, error) {
	if c.head.Load() {
		c.calls.Add(1)
		<-c.release
	}
	return c.fakeChain.Head(ctx)
}

func (c *hungChain) Prune(ctx context.Context) error {
	if c.prune.Load() {
		c.calls.Add(1)
		<-c.release
	}
	return c.fakeChain.Prune(ctx)
}

func (c *hungChain) Sweep(ctx context.Context) error {
	if c.sweeps.Load() {
		c.calls.Add(1)
		<-c.release
	}
	return c.fakeChain.Sweep(ctx)
}

func hungWorld(t *testing.T, change func(*Options)) (*world, *hungChain, func()) {
	w := newWorld(t, 1)
	w.etcd.puts(t, 10, "before")
	w.chains[0].addFull(w.etcd, 0, "")
	hung := &hungChain{fakeChain: w.chains[0], release: make(chan struct{})}
	w.prepare = func(r *Recorder) { r.committers[0].chain = hung }
	_, stop := w.start(change)
	return w, hung, stop
}

func TestAStoreThatHangsForWeeksHoldsNoMoreThanAFewRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, hung, stop := hungWorld(t, func(*Options) {})
		time.Sleep(5 * time.Second)
		hung.head.Store(true)
		for range 24 {
			w.etcd.puts(t, 10, "in the spool")
			time.Sleep(time.Hour)
		}
		if n := hung.calls.Load(); n > 5 {
			t.Errorf("%d requests hang after a day", n)
		}
		hung.head.Store(false)
		close(hung.release)
		time.Sleep(time.Minute)
		w.replay(w.chains[0], 12, w.etcd.head())
		stop()
	})
}

func TestAPruneThatHangsHoldsUpNoSegments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, hung, stop := hungWorld(t, func(o *Options) { o.RollUp = time.Minute })
		hung.prune.Store(true)
		for range 30 {
			w.etcd.puts(t, 10, "value")
			time.Sleep(time.Minute)
		}
		time.Sleep(15 * time.Minute) // the third that hangs is given up
		if hung.calls.Load() == 0 {
			t.Fatal("nothing was pruned")
		}
		w.replay(w.chains[0], 12, w.etcd.head())
		stop()
		close(hung.release)
		synctest.Wait()
	})
}
