package record

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
)

// A cut may end wherever its limit is reached, also between the last event of a
// revision and what only the next event shows: that it was the last.
func TestWhereverACutEndsTheNextOneGoesOnThere(t *testing.T) {
	tape, err := openTape(t.TempDir(), 1<<30)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(err)
	defer func() { must(tape.close()) }()
	signer, err := manifest.GenerateSigner(rand.Reader, "cp1")
	must(err)
	marker := segment.NewMarker(signer.MarkKey())
	must(tape.begin(section{id: 1, clusterID: 7, memberID: 1}, 9))
	for main := int64(10); main < 40; main++ {
		must(tape.record(put(main, "key", "value")))
		must(tape.whole(main))
		must(tape.record(segment.Record{Kind: segment.KindLease, Lease: segment.Lease{ID: main, TTL: 60, Revision: main}}))
		must(tape.record(segment.Record{Kind: segment.KindTime, Time: segment.Moment{At: main * 1000, AtLeast: main, AtMost: main}}))
	}
	s, _ := tape.now()
	for limit := int64(1); limit < 160; limit++ {
		next, from := int64(10), s.start
		for cuts := 0; next <= s.last; cuts++ {
			if cuts > 200 {
				t.Fatalf("limit %d: revision %d never comes", limit, next)
			}
			c := &cut{section: s, from: from, first: next, limit: limit}
			done, err := c.write(io.Discard, tape, marker, time.Now())
			if err != nil {
				t.Fatalf("limit %d, from revision %d: %v", limit, next, err)
			}
			next, from = int64(done.span.Last)+1, done.end
		}
	}
}

// A roll-up releases all that is on the tape, with every note.
func TestARestartKeepsWhatTheSpoolHoldsBehindARollUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		short := func(o *Options) { o.RollUp = time.Minute }
		_, stop := w.start(short)
		for range 30 {
			w.etcd.puts(t, 10, "rolled up")
			time.Sleep(3 * time.Second)
		}
		time.Sleep(2 * time.Minute)
		if len(w.chains[0].segments(true)) == 0 {
			t.Fatal("nothing was rolled up")
		}
		w.chains[0].fail(errors.New("no route"))
		w.etcd.puts(t, 1000, "only in the spool")
		time.Sleep(time.Minute)
		stop()
		w.etcd.compact(w.etcd.head())
		w.chains[0].fail(nil)
		r, stop := w.start(short)
		time.Sleep(time.Minute)
		w.etcd.puts(t, 10, "afterwards")
		time.Sleep(5 * time.Second)
		if s := r.Status(); len(s.Gaps) > 0 || len(w.all()) > 0 {
			t.Errorf("gaps %v, asked for %v", s.Gaps, w.all())
		}
		w.replay(w.chains[0], 12, w.etcd.head())
		stop()
	})
}

func TestAClockThatIsSetBackHoldsNothingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		var back atomic.Int64 // nanoseconds
		_, stop := w.start(func(o *Options) {
			o.Now = func() time.Time { return time.Now().Add(-time.Duration(back.Load())) }
		})
		time.Sleep(5 * time.Second)
		w.etcd.puts(t, 10, "early")
		time.Sleep(5 * time.Second)
		back.Store(int64(time.Hour))
		for range 10 {
			w.etcd.puts(t, 10, "late")
			time.Sleep(time.Second)
		}
		time.Sleep(5 * time.Second)
		w.replay(w.chains[0], 12, w.etcd.head())
		stop()
	})
}

// slowMember is one where something happens between the questions before a watch.
type slowMember struct {
	fakeMember
	during func()
}

func (m slowMember) Compacted(ctx context.Context, n int64) (int64, error) {
	m.during()
	return m.fakeMember.Compacted(ctx, n)
}

func TestAChainThatGoesOnWhileAWatchBeginsIsNoFork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		first := true
		members := func(context.Context) ([]member, error) {
			return []member{slowMember{fakeMember{f: w.etcd}, func() {
				if first {
					first = false
					w.etcd.puts(t, 10, "meanwhile")
					w.chains[0].addFull(w.etcd, 0, "")
					time.Sleep(8 * time.Second)
				}
			}}}, nil
		}
		w.prepare = func(r *Recorder) { r.members = members }
		_, stop := w.start()
		time.Sleep(30 * time.Second)
		w.etcd.puts(t, 10, "meanwhile")
		time.Sleep(10 * time.Second)
		for _, a := range w.all() {
			t.Errorf("asked for %+v", a)
		}
		for _, a := range w.warnings() {
			t.Errorf("told %+v", a)
		}
		stop()
	})
}

func TestAStoreThatWasDownOverAGapIsCaughtUpToIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		_, stop := w.start()
		time.Sleep(5 * time.Second)
		w.chains[0].fail(errors.New("no route"))
		w.etcd.puts(t, 100, "only in the spool")
		last := w.etcd.head()
		time.Sleep(time.Minute)
		w.etcd.fail(errors.New("down"))
		time.Sleep(time.Minute)
		w.etcd.puts(t, 100, "lost")
		w.etcd.compact(w.etcd.head())
		w.etcd.fail(nil)
		time.Sleep(time.Minute)
		w.etcd.puts(t, 100, "behind")
		w.chains[0].fail(nil)
		time.Sleep(time.Minute)
		w.replay(w.chains[0], 12, last)
		c := w.chains[0]
		c.mu.Lock()
		if len(c.objects) > 50 {
			t.Errorf("%d objects for %d commits", len(c.objects), c.commits)
		}
		c.mu.Unlock()
		stop()
	})
}

// That a chain holds another history may be found while no watch is there to be
// ended. Then the next one is.
func TestAForkThatIsFoundBetweenWatchesBeginsOneEpoch(t *testing.T) {
	for name, recorded := range map[string]int{"little recorded before": 0, "more recorded before": 10} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1)
				c := w.chains[0]
				w.etcd.puts(t, 10, "before")
				c.addFull(w.etcd, 0, "")
				r, stop := w.start()
				marker := r.marker
				time.Sleep(600 * time.Millisecond) // the chain's place is known, and little recorded
				if recorded > 0 {
					w.etcd.puts(t, recorded, "in the store")
					time.Sleep(10 * time.Second)
				}
				c.fail(errors.New("no route"))
				w.etcd.puts(t, 10, "in the spool")
				time.Sleep(time.Minute)
				stop()
				w.etcd.fail(errors.New("down"))
				c.addFull(w.etcd, 0, marker.Of(w.etcd.head(), nil))
				c.fail(nil)
				r, stop = w.start()
				time.Sleep(time.Minute)
				w.etcd.fail(nil)
				answered := 0
				for range 20 {
					time.Sleep(30 * time.Second)
					w.etcd.puts(t, 10, "afterwards")
					if asks := w.all(); len(asks) > answered {
						answered = len(asks)
						c.addFull(w.etcd, asks[len(asks)-1].epoch, "")
					}
				}
				if epoch := r.Status().Stores[0].Epoch; epoch != 2 {
					t.Errorf("epoch %d after one fork: asked for %v", epoch, w.all())
				}
				stop()
			})
		})
	}
}
