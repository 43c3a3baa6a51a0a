package record

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"lifeboat/internal/manifest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWhatChangesIsInTheChainAnIntervalLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		w.chains[1].addFull(w.etcd, 0, "")
		r, stop := w.start()
		time.Sleep(5 * time.Second)
		for range 20 {
			w.etcd.puts(t, 50, "value")
			time.Sleep(time.Second)
		}
		time.Sleep(4 * time.Second)
		s := r.Status()
		if !s.Active || int64(s.Revision) != w.etcd.head() {
			t.Errorf("status says %+v, etcd is at %d", s, w.etcd.head())
		}
		if lag := time.Since(s.RecoveryPoint); lag > 5*time.Second {
			t.Errorf("the recovery point is %s behind", lag)
		}
		for i, c := range w.chains {
			w.replay(c, 12, w.etcd.head())
			if n := len(c.segments(false)); n < 9 || n > 16 {
				t.Errorf("store %d: %d segments for 20 s of changes", i, n)
			}
			if got := s.Stores[i]; got.Err != "" || got.Waiting != "" || int64(got.Revision) != w.etcd.head() {
				t.Errorf("store %d is told to be %+v", i, got)
			}
		}
		if len(w.all()) > 0 || len(w.warnings()) > 0 {
			t.Errorf("asked for %v, told %q", w.all(), w.warnings())
		}
		stop()
	})
}

func TestWhileNothingChangesTheRecoveryPointMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		r, stop := w.start()
		time.Sleep(10 * time.Minute)
		if lag := time.Since(r.Status().RecoveryPoint); lag > 70*time.Second {
			t.Errorf("the recovery point is %s behind", lag)
		}
		segments := w.chains[0].segments(false)
		if len(segments) < 9 || len(segments) > 12 {
			t.Errorf("%d segments in ten minutes without changes", len(segments))
		}
		for _, m := range segments[1:] {
			if m.Span.Last != m.Span.First-1 || m.Span.Events != 0 {
				t.Errorf("a segment of revisions %d to %d", m.Span.First, m.Span.Last)
			}
		}
		stop()
		w.replay(w.chains[0], 12, w.etcd.head())
	})
}

func TestTheLastChangesAreCommittedAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		_, stop := w.start()
		time.Sleep(7 * time.Second)
		w.etcd.puts(t, 10, "last")
		time.Sleep(50 * time.Millisecond)
		stop()
		w.replay(w.chains[0], 12, w.etcd.head())
	})
}

func TestAStoreThatWasDownIsCaughtUpFromTheSpool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		w.etcd.puts(t, 10, "before")
		for _, c := range w.chains {
			c.addFull(w.etcd, 0, "")
		}
		r, stop := w.start()
		time.Sleep(5 * time.Second)
		w.chains[1].fail(errors.New("no route"))
		for range 600 {
			w.etcd.puts(t, 20, "value")
			time.Sleep(time.Second)
		}
		w.etcd.compact(w.etcd.head()) // etcd can't help any more
		time.Sleep(3 * time.Second)
		s := r.Status()
		if s.Stores[1].Err == "" || s.Stores[1].Behind == 0 || time.Since(s.Stores[1].RecoveryPoint) < 9*time.Minute {
			t.Errorf("a dead store is told to be %+v", s.Stores[1])
		}
		if time.Since(s.RecoveryPoint) > 5*time.Second {
			t.Errorf("the recovery point of the living store is %s behind", time.Since(s.RecoveryPoint))
		}
		w.chains[1].fail(nil)
		time.Sleep(time.Minute)
		for _, c := range w.chains {
			w.replay(c, 12, w.etcd.head())
		}
		if s := r.Status(); s.Stores[1].Err != "" || s.Stores[1].Behind > 4096 || len(s.Gaps) > 0 || len(w.all()) > 0 {
			t.Errorf("afterwards: %+v, gaps %v, asked %v", s.Stores[1], s.Gaps, w.all())
		}
		if n := len(w.chains[1].segments(false)); n > len(w.chains[0].segments(false))/2 {
			t.Errorf("caught up in %d segments, the other store has %d", n, len(w.chains[0].segments(false)))
		}
		stop()
	})
}

func TestACommitThatFailedAndIsThereIsHarmless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		_, stop := w.start()
		time.Sleep(5 * time.Second)
		w.chains[0].mu.Lock()
		w.chains[0].lies = errors.New("the answer was lost")
		w.chains[0].mu.Unlock()
		w.etcd.puts(t, 10, "value")
		time.Sleep(20 * time.Second)
		w.chains[0].mu.Lock()
		w.chains[0].lies = nil
		w.chains[0].mu.Unlock()
		w.etcd.puts(t, 10, "value")
		time.Sleep(40 * time.Second)
		stop()
		w.replay(w.chains[0], 12, w.etcd.head())
	})
}

func TestWithoutAFullOneIsAskedForAndNothingLiesBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		r, stop := w.start()
		time.Sleep(5 * time.Second)
		began := w.etcd.head()
		w.etcd.puts(t, 10, "meanwhile")
		if _, ok := w.asked("no full"); !ok {
			t.Fatalf("asked for %v", w.all())
		}
		if s := r.Status(); s.FullWanted == "" || s.Stores[0].Waiting == "" {
			t.Errorf("status %+v", s)
		}
		w.chains[0].addFull(w.etcd, 0, "")
		w.etcd.puts(t, 10, "afterwards")
		time.Sleep(10 * time.Second)
		full := w.chains[0].firstFull()
		if full < began {
			t.Fatalf("a full at %d", full)
		}
		w.replay(w.chains[0], full+1, w.etcd.head())
		asks := len(w.all())
		time.Sleep(5 * time.Minute)
		if len(w.all()) != asks || r.Status().FullWanted != "" {
			t.Errorf("asked for more fulls: %v", w.all())
		}
		stop()
	})
}

func TestARecorderGoesOnWhereTheChainIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		_, stop := w.start()
		time.Sleep(5 * time.Second)
		w.etcd.puts(t, 100, "first run")
		time.Sleep(5 * time.Second)
		stop()
		w.etcd.puts(t, 100, "while nobody ran")
		for name, dir := range map[string]string{"with its spool": w.dir, "without a spool": w.dir + "-new"} {
			w.dir = dir
			r, stop := w.start()
			time.Sleep(15 * time.Second)
			w.etcd.puts(t, 100, "second run")
			time.Sleep(5 * time.Second)
			w.replay(w.chains[0], 12, w.etcd.head())
			if s := r.Status(); len(s.Gaps) > 0 || len(w.all()) > 0 {
				t.Errorf("%s: gaps %v, asked for %v", name, s.Gaps, w.all())
			}
			stop()
		}
	})
}

func TestARestartKeepsWhatTheSpoolHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		_, stop := w.start()
		time.Sleep(5 * time.Second)
		w.chains[0].fail(errors.New("no route"))
		w.etcd.puts(t, 1000, "only in the spool")
		time.Sleep(time.Minute)
		stop()
		w.etcd.compact(w.etcd.head())
		w.chains[0].fail(nil)
		r, stop := w.start()
		time.Sleep(time.Minute)
		w.etcd.puts(t, 10, "afterwards")
		time.Sleep(5 * time.Second)
		w.replay(w.chains[0], 12, w.etcd.head())
		if s := r.Status(); len(s.Gaps) > 0 || len(w.all()) > 0 {
			t.Errorf("gaps %v, asked for %v", s.Gaps, w.all())
		}
		stop()
	})
}

func TestWhatWasCompactedBeforeItWasRecordedIsAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		_, stop := w.start()
		time.Sleep(5 * time.Second)
		w.etcd.puts(t, 10, "recorded")
		time.Sleep(5 * time.Second)
		stop()
		last := w.etcd.head()
		w.etcd.puts(t, 50, "lost")
		w.etcd.compact(w.etcd.head() - 10)
		r, stop := w.start()
		time.Sleep(15 * time.Second)
		if _, ok := w.asked("not recorded"); !ok {
			t.Errorf("asked for %v", w.all())
		}
		gaps := r.Status().Gaps
		if len(gaps) != 1 || int64(gaps[0].From) != last+1 || int64(gaps[0].To) < w.etcd.head()-10 {
			t.Fatalf("gaps %+v, the last recorded is %d", gaps, last)
		}
		w.chains[0].addFull(w.etcd, 0, "")
		w.etcd.puts(t, 10, "afterwards")
		time.Sleep(10 * time.Second)
		w.replay(w.chains[0], w.etcd.head()-9, w.etcd.head())
		s := r.Status()
		if s.FullWanted != "" || s.Stores[0].Waiting != "" || time.Since(s.RecoveryPoint) > 10*time.Second {
			t.Errorf("after the full: %+v", s)
		}
		if len(s.Gaps) != 1 {
			t.Errorf("the gap is no longer told: %+v", s.Gaps)
		}
		stop()
	})
}

func TestAForkOfHistoryBeginsANewEpoch(t *testing.T) {
	for name, fork := range map[string]func(w *world, t *testing.T){
		"other changes at the last revision": func(w *world, t *testing.T) {
			head := w.etcd.head()
			w.etcd.rewind(head - 5)
			w.etcd.puts(t, 30, "another history")
		},
		"a lower head": func(w *world, t *testing.T) { w.etcd.rewind(w.etcd.head() - 5) },
		"a new cluster id": func(w *world, t *testing.T) {
			w.etcd.change(func() { w.etcd.cluster = 8 })
			w.etcd.puts(t, 5, "bumped")
		},
	} {
		for how, spooled := range map[string]bool{"with the spool": true, "without a spool": false} {
			t.Run(name+" "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, 1)
					w.etcd.puts(t, 10, "before")
					w.chains[0].addFull(w.etcd, 0, "")
					_, stop := w.start()
					time.Sleep(5 * time.Second)
					w.etcd.puts(t, 20, "recorded")
					time.Sleep(5 * time.Second)
					stop()
					before := len(w.chains[0].segments(false))
					fork(w, t)
					if !spooled {
						w.dir += "-new"
					}
					r, stop := w.start()
					time.Sleep(15 * time.Second)
					w.etcd.puts(t, 10, "not anchored yet")
					time.Sleep(5 * time.Second)
					if n := len(w.chains[0].segments(false)); n != before {
						t.Errorf("%d segments of the new history in the old epoch", n-before)
					}
					epoch := uint64(0)
					for _, a := range w.all() {
						epoch = max(epoch, a.epoch)
					}
					if epoch != 2 {
						t.Fatalf("asked for %v", w.all())
					}
					w.chains[0].addFull(w.etcd, epoch, "")
					from := w.etcd.head() + 1
					w.etcd.puts(t, 10, "afterwards")
					time.Sleep(10 * time.Second)
					w.replay(w.chains[0], from, w.etcd.head())
					if s := r.Status(); s.Stores[0].Epoch != 2 || s.FullWanted != "" {
						t.Errorf("afterwards: %+v", s)
					}
					asks := len(w.all())
					stop()
					// And a restart finds nothing new in it.
					_, stop = w.start()
					time.Sleep(15 * time.Second)
					w.etcd.puts(t, 10, "later")
					time.Sleep(5 * time.Second)
					w.replay(w.chains[0], from, w.etcd.head())
					if len(w.all()) != asks {
						t.Errorf("asked again: %v", w.all()[asks:])
					}
					stop()
				})
			})
		}
	}
}

func TestAForkIsSeenWhileTheWatchIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		_, stop := w.start()
		time.Sleep(5 * time.Second)
		w.etcd.puts(t, 20, "recorded")
		time.Sleep(5 * time.Second)
		w.etcd.fail(errors.New("all down"))
		time.Sleep(time.Second)
		w.etcd.rewind(w.etcd.head() - 3)
		w.etcd.puts(t, 40, "restored without a bump")
		w.etcd.fail(nil)
		time.Sleep(15 * time.Second)
		if epoch, ok := w.asked("history"); !ok || epoch != 2 {
			t.Errorf("asked for %v", w.all())
		}
		stop()
	})
}

func TestALostEtcdIsGoneOnWithWithoutAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		r, stop := w.start()
		time.Sleep(5 * time.Second)
		for range 10 {
			w.etcd.puts(t, 100, "value")
			time.Sleep(1500 * time.Millisecond)
			w.etcd.fail(errors.New("down"))
			time.Sleep(6300 * time.Millisecond) // it tries again 1, 3 and 7 s later
			if s := r.Status(); s.LastError == "" || !strings.Contains(s.Doing, "not recording") {
				t.Errorf("while etcd is down: %+v", s)
			}
			w.etcd.fail(nil)
		}
		time.Sleep(15 * time.Second)
		w.replay(w.chains[0], 12, w.etcd.head())
		if len(w.all()) > 0 || len(r.Status().Gaps) > 0 {
			t.Errorf("asked for %v, gaps %v", w.all(), r.Status().Gaps)
		}
		stop()
	})
}

func TestARollUpIsCommittedBeforeTheSmallSegmentsArePruned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		w.etcd.puts(t, 10, "before")
		for _, c := range w.chains {
			c.addFull(w.etcd, 0, "")
		}
		r, stop := w.start()
		for range 130 {
			w.etcd.puts(t, 30, "value")
			time.Sleep(time.Minute)
		}
		for i, c := range w.chains {
			big := c.segments(true)
			if len(big) != 2 || c.prunes != 2 {
				t.Fatalf("store %d: %d roll-ups and %d prunes in 130 minutes", i, len(big), c.prunes)
			}
			last := manifest.Revision(0)
			for _, m := range big {
				if last != 0 && m.Span.First > last+1 {
					t.Errorf("a roll-up ends at %d, the next begins at %d", last, m.Span.First)
				}
				last = m.Span.Last
				if m.Span.Last-m.Span.First < 1000 || len(m.Span.Moments()) < 1000 {
					t.Errorf("a roll-up of revisions %d to %d with %d times", m.Span.First, m.Span.Last, len(m.Span.Moments()))
				}
			}
			w.replay(c, 12, w.etcd.head())
		}
		if held := r.Status().SpoolBytes; held > 1<<20 {
			t.Errorf("%d bytes are left in the spool", held)
		}
		stop()
	})
}

func TestWhatLeavesNoEventsAsksForAFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		r, stop := w.start()
		time.Sleep(5 * time.Second)
		(&sink{r: r}).Changed("etcd's version")
		time.Sleep(1500 * time.Millisecond)
		if _, ok := w.asked("version"); !ok || r.Status().FullWanted == "" {
			t.Errorf("asked for %v", w.all())
		}
		w.etcd.puts(t, 1, "value")
		w.chains[0].addFull(w.etcd, 0, "")
		w.etcd.puts(t, 1, "value")
		time.Sleep(5 * time.Second)
		if want := r.Status().FullWanted; want != "" {
			t.Errorf("after the full it still wants one: %s", want)
		}
		stop()
	})
}

func TestHowMuchMayFollowAFullBeforeTheNext(t *testing.T) {
	const gib = 1 << 30
	o := Options{FullBytes: gib}
	for bytes, want := range map[int64]int64{
		0: gib, gib: gib, gib + gib/2: gib / 2, 2*gib - 1: gib / 4, 2 * gib: gib / 4,
		2*gib + 1: gib, 7*gib + gib/2: gib / 2, 9 * gib: gib / 4,
	} {
		if got := o.mostBehind(&manifest.Etcd{DBBytes: bytes}); got != want {
			t.Errorf("behind a full of %d bytes: %d, want %d", bytes, got, want)
		}
	}
	if got := o.mostBehind(nil); got != gib {
		t.Errorf("behind no full: %d", got)
	}
}

func TestMuchToReplayAsksForAFull(t *testing.T) {
	for name, limit := range map[string]func(*Options){
		"many revisions": func(o *Options) { o.FullRevisions = 500 },
		"many bytes":     func(o *Options) { o.FullBytes = 4 << 20 },
		"near the quota": func(o *Options) { o.FullBytes = 16 << 20 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1)
				w.etcd.puts(t, 10, "before")
				if name == "near the quota" {
					w.chains[0].dbBytes = 2<<30 - 5<<20
				}
				w.chains[0].addFull(w.etcd, 0, "")
				r, stop := w.start(limit)
				time.Sleep(5 * time.Second)
				w.etcd.puts(t, 300, strings.Repeat("v", 10_000))
				time.Sleep(5 * time.Second)
				if len(w.all()) > 0 {
					t.Errorf("asked for %v", w.all())
				}
				w.etcd.puts(t, 300, strings.Repeat("v", 10_000))
				time.Sleep(5 * time.Second)
				if _, ok := w.asked("much was recorded"); !ok {
					t.Errorf("asked for %v", w.all())
				}
				w.chains[0].addFull(w.etcd, 0, "")
				w.etcd.puts(t, 10, "afterwards")
				time.Sleep(5 * time.Second)
				if want := r.Status().FullWanted; want != "" {
					t.Errorf("after the full it wants one because %s", want)
				}
				stop()
			})
		})
	}
}
