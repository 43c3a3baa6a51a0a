package record

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A clock that was hours ahead leaves its times in the chain and on the tape.
// From when it is right on they must not hide whether recording goes on.
func TestAClockThatWasAheadHidesNothing(t *testing.T) {
	for name, restart := range map[string]bool{"while it records": false, "before it begins": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1)
				c := w.chains[0]
				w.etcd.puts(t, 10, "before")
				c.addFull(w.etcd, 0, "")
				var wrong atomic.Int64
				wrong.Store(int64(2 * time.Hour))
				// As a clock is that was set: it has no reading that only goes forward.
				clock := func(o *Options) {
					o.Now = func() time.Time { return time.Now().Add(time.Duration(wrong.Load())).Round(0) }
				}
				r, stop := w.start(clock)
				for range 10 {
					w.etcd.puts(t, 10, "while the clock is ahead")
					time.Sleep(2 * time.Second)
				}
				if restart {
					stop()
				}
				wrong.Store(0)
				if restart {
					r, stop = w.start(clock)
				}
				lag := func() time.Duration { return time.Since(r.Status().RecoveryPoint) }
				if !restart && lag() < 0 {
					t.Errorf("the recovery point is %s ahead when the clock is right", -lag())
				}
				time.Sleep(10 * time.Second)
				for range 10 {
					w.etcd.puts(t, 10, "afterwards")
					time.Sleep(3 * time.Second)
					if lag := lag(); lag < 0 || lag > 5*time.Second {
						t.Errorf("with changes: the recovery point is %s behind", lag)
					}
				}
				objects := c.stored()
				for range 30 {
					time.Sleep(20 * time.Second)
					if lag := lag(); lag < 0 || lag > 70*time.Second {
						t.Errorf("without changes: the recovery point is %s behind", lag)
					}
				}
				if n := c.stored() - objects; n > 2 {
					t.Errorf("%d objects for segments that the chain does not take", n)
				}
				w.etcd.fail(errors.New("no route"))
				time.Sleep(10 * time.Minute)
				if lag := lag(); lag < 9*time.Minute {
					t.Errorf("nothing is recorded for ten minutes and the recovery point is %s behind", lag)
				}
				time.Sleep(2 * time.Hour)
				if lag := lag(); lag < 2*time.Hour {
					t.Errorf("what was the future makes it %s behind", lag)
				}
				w.etcd.fail(nil)
				time.Sleep(10 * time.Minute)
				if tip, err := c.Head(t.Context()); err != nil {
					t.Error(err)
				} else if lag := time.Since(tip.LastTime); lag < 0 || lag > 70*time.Second {
					t.Errorf("when that has passed the chain is %s behind", lag)
				}
				told := 0
				for _, line := range w.warnings() {
					if strings.Contains(line, "in the future") {
						told++
					}
				}
				if told != 1 {
					t.Errorf("told %d times: %q", told, w.warnings())
				}
				moments := 0
				for _, m := range c.segments(false) {
					for _, at := range m.Span.Moments() {
						if moments++; at.At.After(m.Created.Add(farAhead)) {
							t.Errorf("the segment of %s knows of %s", m.Created, at.At)
						}
					}
				}
				stop()
				w.replay(c, 12, w.etcd.head())
			})
		})
	}
}

func TestOneThatStandsByToldTheTimeOfAClockThatIsAheadGoesByItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		_, stop := w.start(func(o *Options) { o.Now = func() time.Time { return time.Now().Add(time.Hour) } })
		w.etcd.puts(t, 10, "value")
		time.Sleep(10 * time.Second)
		other, stopOther := w.another("cp2", 1).start()
		for range 20 {
			time.Sleep(5 * time.Second)
			w.etcd.puts(t, 10, "value")
		}
		s := other.Status()
		if lag := time.Since(s.RecoveryPoint); s.Active || lag < 0 || lag > 15*time.Second {
			t.Errorf("%s behind: %+v", lag, s)
		}
		time.Sleep(20 * time.Minute)
		if s := other.Status(); s.Active {
			t.Errorf("it took over from one that lives: %+v", s)
		}
		stop()
		stopOther()
	})
}

func (c *fakeChain) stored() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.objects)
}
