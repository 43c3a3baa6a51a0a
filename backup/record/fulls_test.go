package record

import (
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/manifest"
)

// Two changes that leave no events came within a minute, and the second was not
// told until the next.
func TestAFullIsAskedForWithAllThatCameUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFulls(func() manifest.Revision { return 10 }, time.Now)
		asked := make(chan string, 10)
		go f.run(t.Context(), func() bool { return true }, func(why string, _ uint64) { asked <- why })
		for _, step := range []struct{ why, want string }{{"the version", "the version"}, {"no leader", "no leader; the version"}} {
			f.once(step.why, time.Now())
			synctest.Wait()
			if got := <-asked; got != step.want {
				t.Errorf("asked for %q, want %q", got, step.want)
			}
		}
		f.seen(11, time.Now())
		if r, ok := f.wanted(); ok {
			t.Errorf("%q is still wanted", r.why)
		}
	})
}

// Manifests tell seconds. A full that was begun in the second of the change was
// asked for in vain, and another a minute later.
func TestAFullIsAskedForWhenItCanBeSeenToHoldTheChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFulls(func() manifest.Revision { return 10 }, time.Now)
		asked := make(chan time.Time, 10)
		go f.run(t.Context(), func() bool { return true }, func(string, uint64) { asked <- time.Now() })
		time.Sleep(300 * time.Millisecond)
		change := time.Now()
		f.once("an alarm", change)
		f.seen(10, change.Truncate(time.Second))
		if !f.pending() {
			t.Error("a full that may have been begun before the change settles it")
		}
		at := <-asked
		if waited := at.Sub(change); waited > time.Second {
			t.Errorf("asked after %s", waited)
		}
		f.seen(10, at.Truncate(time.Second))
		if f.pending() {
			t.Error("a full of the same revision that was begun afterwards settles nothing")
		}
		f.want("store", "there is no full backup", 0)
		synctest.Wait()
		if at := <-asked; at.Nanosecond() != 0 {
			t.Errorf("asked at %s", at)
		}
		f.settled("store")
		time.Sleep(200 * time.Millisecond)
		f.once("an alarm", time.Now().Add(time.Hour)) // a clock that was set back
		before := time.Now()
		if at := <-asked; at.After(before) {
			t.Errorf("waited for %s", at.Sub(before))
		}
	})
}

func TestWhatNoEventTellsIsSettledSoonWhileNothingChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		r, stop := w.start(func(o *Options) {
			ask := o.AskFull
			o.AskFull = func(why string, epoch uint64) {
				ask(why, epoch)
				w.chains[0].addFull(w.etcd, epoch, "")
			}
		})
		time.Sleep(10*time.Second + 400*time.Millisecond)
		(&sink{r: r}).Changed("an alarm")
		time.Sleep(5 * time.Second)
		if want := r.Status().FullWanted; want != "" || len(w.all()) != 1 {
			t.Errorf("wanted: %q; asked %v", want, w.all())
		}
		stop()
	})
}
