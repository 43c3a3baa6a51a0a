package record

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/manifest"
)

func TestWhoRecords(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	self, other := manifest.Writer{Node: "cp1"}, manifest.Writer{Node: "cp2"}
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for name, test := range map[string]struct {
		rank   int
		began  time.Duration
		stores int
		tips   []tip
		head   int64
		want   bool
	}{
		"the first begins when the chains tell that nobody records":      {0, 0, 1, []tip{{last: 9, moved: now}}, 9, true},
		"the second lets the first begin":                                {1, 5 * time.Second, 1, []tip{{last: 9, moved: ago(5 * time.Second)}}, 12, false},
		"the second begins when the first does not":                      {1, 21 * time.Second, 1, []tip{{last: 9, moved: ago(21 * time.Second)}}, 12, true},
		"who recorded before goes on at once":                            {2, 0, 1, []tip{{last: 9, writer: self, moved: now}}, 12, true},
		"nobody disturbs who records":                                    {0, time.Hour, 1, []tip{{last: 9, writer: other, moved: ago(9 * time.Second)}}, 12, false},
		"the first takes over from one that stands still":                {0, time.Hour, 1, []tip{{last: 9, writer: other, moved: ago(11 * time.Second)}}, 12, true},
		"the third waits longer":                                         {2, time.Hour, 1, []tip{{last: 9, writer: other, moved: ago(29 * time.Second)}}, 12, false},
		"and then takes over":                                            {2, time.Hour, 1, []tip{{last: 9, writer: other, moved: ago(31 * time.Second)}}, 12, true},
		"nothing to record is no sign of death":                          {0, time.Hour, 1, []tip{{last: 9, writer: other, moved: ago(2 * time.Minute)}}, 9, false},
		"but no heartbeat for long is":                                   {0, time.Hour, 1, []tip{{last: 9, writer: other, moved: ago(4 * time.Minute)}}, 9, true},
		"unless heartbeats move nothing":                                 {0, time.Hour, 1, []tip{{last: 9, writer: other, moved: ago(4 * time.Minute), ahead: true}}, 9, false},
		"and then changes tell":                                          {0, time.Hour, 1, []tip{{last: 9, writer: other, moved: ago(4 * time.Minute), ahead: true}}, 12, true},
		"a store that the other does not reach is ours":                  {0, time.Hour, 2, []tip{{last: 9, writer: other, moved: now}, {last: 5, writer: other, moved: ago(time.Minute)}}, 9, true},
		"without an answer from any store it waits a little":             {0, time.Second, 1, nil, 9, false},
		"and then records into its spool":                                {0, 11 * time.Second, 1, nil, 9, true},
		"who does not reach all stores waits a little for the others":    {0, time.Second, 2, []tip{{last: 9, moved: now}}, 9, false},
		"and is not kept from recording by a store that does not answer": {0, 11 * time.Second, 2, []tip{{last: 9, moved: now}}, 9, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, why := sight{
				now: now, began: ago(test.began), rank: test.rank, writer: self, patience: 10 * time.Second, heartbeat: time.Minute,
				stores: test.stores, tips: test.tips, head: func() int64 { return test.head },
			}.turn()
			if got != test.want || got == (why != "") {
				t.Errorf("record: %v, %q", got, why)
			}
		})
	}
}

func TestTwoRecordersThroughAChangeOfTurnLoseNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		second := w.another("cp2", 1)
		w.etcd.puts(t, 10, "before")
		for _, c := range w.chains {
			c.addFull(w.etcd, 0, "")
		}
		_, stopFirst := w.start()
		other, stopSecond := second.start()
		change := func(d time.Duration) {
			for range d / time.Second {
				w.etcd.puts(t, 20, "value")
				time.Sleep(time.Second)
			}
		}
		change(40 * time.Second)
		if other.Status().Active {
			t.Fatal("both record")
		}
		stopFirst()
		change(40 * time.Second)
		if s := other.Status(); !s.Active || time.Since(s.RecoveryPoint) > 5*time.Second {
			t.Fatalf("the second did not take over: %+v", s)
		}
		first, stopFirst := w.start()
		change(40 * time.Second)
		if first.Status().Active || !other.Status().Active {
			t.Error("the first one back disturbs the one that records")
		}
		// One that was frozen and does not know that it was replaced.
		first.doing(true, "frozen before")
		stopSecond()
		change(40 * time.Second)
		time.Sleep(5 * time.Second)
		for _, c := range w.chains {
			w.replay(c, 12, w.etcd.head())
		}
		if len(w.all())+len(second.all()) > 0 {
			t.Errorf("asked for %v, %v", w.all(), second.all())
		}
		stopFirst()
	})
}

func TestOfTwoWhoRecordOneStandsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		second := w.another("cp2", 0) // they see different turns
		w.chains[0].addFull(w.etcd, 0, "")
		a, stopA := w.start()
		b, stopB := second.start()
		for range 60 {
			w.etcd.puts(t, 20, "value")
			time.Sleep(time.Second)
		}
		if a.Status().Active == b.Status().Active {
			t.Errorf("active: %v and %v", a.Status().Active, b.Status().Active)
		}
		time.Sleep(5 * time.Second)
		w.replay(w.chains[0], 12, w.etcd.head())
		stopA()
		stopB()
	})
}

func TestWhoStandsByGivesWhatItHasToAStoreThatWasDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		second := w.another("cp2", 1)
		w.etcd.puts(t, 10, "before")
		for _, c := range w.chains {
			c.addFull(w.etcd, 0, "")
		}
		r, stop := w.start()
		time.Sleep(10 * time.Second)
		w.chains[1].fail(errors.New("no route"))
		w.etcd.puts(t, 500, "in the first one's spool")
		time.Sleep(10 * time.Second)
		_, stopSecond := second.start()
		r.stopWatch(errStoodDown)
		time.Sleep(100 * time.Millisecond)
		w.chains[1].fail(nil)
		time.Sleep(time.Minute)
		w.replay(w.chains[1], 12, w.etcd.head())
		stop()
		stopSecond()
	})
}

func TestADeadStoreIsNoReasonToTakeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		second := w.another("cp2", 1)
		w.etcd.puts(t, 10, "before")
		for _, c := range w.chains {
			c.addFull(w.etcd, 0, "")
		}
		first, stop := w.start()
		other, stopSecond := second.start()
		for i := range 200 {
			if i == 20 {
				w.chains[1].fail(errors.New("no route"))
			}
			w.etcd.puts(t, 5, "value")
			time.Sleep(time.Second)
			if !first.Status().Active && i > 2 || other.Status().Active {
				t.Fatalf("after %d s the first records: %v, the second: %v (%s)", i, first.Status().Active, other.Status().Active, other.Status().Doing)
			}
		}
		stop()
		stopSecond()
	})
}

// heard adds a segment of another recorder that holds all there is.
func (c *fakeChain) heard(f *fakeEtcd, node string) {
	head := manifest.Revision(f.head())
	c.mu.Lock()
	defer c.mu.Unlock()
	tip := c.tipLocked()
	c.list = append(c.list, &manifest.Manifest{
		Kind: manifest.KindSegment, Epoch: tip.Epoch, Writer: manifest.Writer{Node: node, Version: "test"},
		Span: &manifest.Span{First: tip.Last, Last: head, LastTime: whole(time.Now())},
	})
}

// Who stands down must not take the turn again by what a store said long ago.
func TestWhoStoodDownDoesNotBeginAgainByAnOldAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		w.etcd.puts(t, 10, "before")
		for _, c := range w.chains {
			c.addFull(w.etcd, 0, "")
		}
		slow := &hungChain{fakeChain: w.chains[1], release: make(chan struct{})}
		w.prepare = func(r *Recorder) { r.committers[1].chain = slow }
		r, stop := w.start(func(o *Options) { o.StoreStall = 10 * time.Minute })
		time.Sleep(5 * time.Second)
		if !r.Status().Active {
			t.Fatal("nobody records")
		}
		for i := 0; r.Status().Active; i++ {
			if i == 60 {
				t.Fatal("another recorder is ahead in both stores, and this one goes on")
			}
			w.etcd.puts(t, 10, "value")
			for _, c := range w.chains {
				c.heard(w.etcd, "cp2")
			}
			time.Sleep(time.Second)
		}
		slow.head.Store(true)
		watches := func() (n int) {
			w.etcd.change(func() { n = w.etcd.watches })
			return n
		}
		began := watches()
		for range 60 {
			w.etcd.puts(t, 10, "value")
			w.chains[0].heard(w.etcd, "cp2")
			time.Sleep(time.Second)
		}
		if n := watches() - began; n > 1 {
			t.Errorf("%d watches began in a minute in which another recorder records", n)
		}
		if s := r.Status(); s.Active {
			t.Errorf("both record: %+v", s)
		}
		slow.head.Store(false)
		close(slow.release)
		stop()
	})
}
