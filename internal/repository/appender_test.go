package repository

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	broken "lifeboat/storage/fault"
	"lifeboat/storage/local"
)

// append commits one segment through an appender and moves the clock a second on.
func (w *world) append(a *Appender, first, last manifest.Revision, change ...func(*manifest.Manifest)) *Committed {
	w.t.Helper()
	done, err := w.tryAppend(a, first, last, change...)
	if err != nil {
		w.t.Fatal(err)
	}
	return done
}

func (w *world) tryAppend(a *Appender, first, last manifest.Revision, change ...func(*manifest.Manifest)) (*Committed, error) {
	w.t.Helper()
	m, data := w.segmentDraft(first, last, change...)
	if err := put(w.t.Context(), a.r, m, data); err != nil {
		w.t.Fatal(err)
	}
	done, err := a.Commit(w.t.Context(), m)
	w.clock.forward(time.Second)
	return done, err
}

func (w *world) head(a *Appender) *Tip {
	w.t.Helper()
	tip, err := a.Head(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return tip
}

// everything loads a chain by every manifest's own signature.
func (w *world) everything(r *Repository) *View {
	w.t.Helper()
	v, err := r.load(w.t.Context(), etcdMain, depth{signatures: true})
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

func TestAFastCommitIsOneLookAndOneConditionalCreate(t *testing.T) {
	w := newWorld(t, nil)
	f := broken.New(w.store)
	r := on(w.open(), f)
	r.listEvery = 16
	w.full(r, at(100))
	a := r.Appender(etcdMain)
	w.append(a, 101, 101)
	for rev := manifest.Revision(102); rev < 150; rev++ {
		m, data := w.segmentDraft(rev, rev)
		if err := put(t.Context(), r, m, data); err != nil {
			t.Fatal(err)
		}
		f.Reset()
		if tip := w.head(a); tip.Last != rev-1 || tip.Sequence != manifest.Sequence(rev-100) {
			t.Fatalf("tip %+v before revision %d", tip, rev)
		}
		done, err := a.Commit(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		var ops []string
		for _, call := range f.Trace() {
			ops = append(ops, fmt.Sprintf("%s %s %v", call.Op, trimCluster(testCluster, call.Name), call.IfAbsent))
		}
		want := []string{
			"open " + ManifestName(etcdMain, done.Sequence) + " false", // what Head asks for
			"open " + m.Objects[0].Name + " false",
			"put " + ManifestName(etcdMain, done.Sequence) + " true",
		}
		if !slices.Equal(ops, want) {
			t.Fatalf("revision %d: %q, want %q", rev, ops, want)
		}
	}
	w.clean(w.open())
	if n := len(w.everything(w.open()).Manifests); n != 50 {
		t.Errorf("%d manifests", n)
	}
}

func TestRacingAppendersLoseNothingAndForkNothing(t *testing.T) {
	w := newWorld(t, nil)
	w.full(w.open(), at(1))
	total := int64(2000)
	if testing.Short() {
		total = 300
	}
	var next atomic.Int64
	var mu sync.Mutex
	places := map[manifest.Sequence]manifest.ID{}
	var wg sync.WaitGroup
	for range 3 {
		r := w.open()
		r.listEvery = 32
		a := r.Appender(etcdMain)
		wg.Go(func() {
			for {
				rev := manifest.Revision(1 + next.Add(1))
				if int64(rev) > total+1 {
					return
				}
				m, data := w.segmentDraft(rev, rev)
				if err := put(t.Context(), r, m, data); err != nil {
					t.Error(err)
					return
				}
				done, err := a.Commit(t.Context(), m)
				if err != nil {
					t.Error(rev, err)
					return
				}
				mu.Lock()
				if other, taken := places[done.Sequence]; taken {
					t.Errorf("%s and %s are both in place %d", other, m.ID, done.Sequence)
				}
				places[done.Sequence] = m.ID
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	v := w.everything(w.open())
	if len(v.Problems) > 0 {
		t.Fatal(v.Problems)
	}
	if len(v.Manifests) != int(total)+1 || len(places) != int(total) {
		t.Fatalf("%d manifests, %d commits", len(v.Manifests), len(places))
	}
	for _, m := range v.Manifests[1:] {
		if places[m.Sequence] != m.ID {
			t.Fatalf("place %d holds %s, and %s was told that it does", m.Sequence, m.ID, places[m.Sequence])
		}
	}
	if tip := w.head(w.open().Appender(etcdMain)); tip.Last != manifest.Revision(total+1) || tip.Recorded != tip.Last {
		t.Errorf("tip %+v", tip)
	}
}

func TestAppendersAndPrunersRace(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	fulls := w.fulls(r, 7)
	var wg sync.WaitGroup
	var mu sync.Mutex
	told := map[manifest.ID]bool{}
	for n := range 2 {
		a := w.open().Appender(etcdMain)
		wg.Go(func() {
			for i := range 60 {
				rev := manifest.Revision(1000 + 2*i + n)
				m, data := w.segmentDraft(rev, rev)
				if err := put(t.Context(), a.r, m, data); err != nil {
					t.Error(err)
					return
				}
				if _, err := a.Commit(t.Context(), m); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				told[m.ID] = true
				mu.Unlock()
			}
		})
	}
	wg.Go(func() {
		for _, full := range fulls[:5] {
			if _, err := w.open().Prune(t.Context(), etcdMain, []manifest.ID{full.Manifest.ID}, PruneOptions{}); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	v := w.everything(w.open())
	if f := v.Failures(); len(f) > 0 {
		t.Fatal(f)
	}
	for _, e := range v.st.live {
		delete(told, e.ID)
	}
	if len(told) > 0 {
		t.Errorf("%d segments that were acknowledged do not count", len(told))
	}
}

func TestACreateWhoseAnswerIsLostIsFoundByItsID(t *testing.T) {
	for _, when := range []broken.When{broken.Before, broken.After, broken.Partial} {
		for times := 1; times <= 4; times++ {
			t.Run(fmt.Sprintf("%s %d times", when, times), func(t *testing.T) {
				w := newWorld(t, nil)
				f := broken.New(w.store)
				r := on(w.open(), f)
				w.full(r, at(100))
				a := r.Appender(etcdMain)
				w.append(a, 101, 105)
				m, data := w.segmentDraft(106, 110)
				if err := put(t.Context(), r, m, data); err != nil {
					t.Fatal(err)
				}
				f.Reset()
				for i := range times {
					f.FailOn(broken.Put, i+1, when, nil)
				}
				done, err := a.Commit(t.Context(), m)
				if err != nil {
					if when == broken.After || times < failedAttempts {
						t.Fatal(err)
					}
					if !errors.Is(err, broken.ErrInjected) {
						t.Errorf("error %v", err)
					}
					f.Reset()
					if done, err = a.Commit(t.Context(), m); err != nil {
						t.Fatal(err)
					}
				}
				f.Reset()
				if again, err := a.Commit(t.Context(), m); err != nil || again.Sequence != done.Sequence || again.Hash != done.Hash {
					t.Errorf("committed again: %+v, %v", again, err)
				}
				if done.Sequence != 3 || len(w.manifests()) != 3 {
					t.Errorf("in place %d of %v", done.Sequence, w.manifests())
				}
				if c := w.append(a, 111, 111); c.Sequence != 4 {
					t.Errorf("the next went to place %d", c.Sequence)
				}
				w.clean(w.open())
			})
		}
	}
}

// Every operation of a commit fails once, before and after it took effect, on
// the plain way and on the whole one; then the same draft is committed again.
func TestEveryFailureOfAFastCommitCanBeTriedAgain(t *testing.T) {
	for _, foreign := range []bool{false, true} { // somebody else committed in between
		for _, when := range []broken.When{broken.Before, broken.After} {
			for n := 1; ; n++ {
				w := newWorld(t, nil)
				f := broken.New(w.store)
				r := on(w.open(), f)
				w.full(r, at(100))
				a := r.Appender(etcdMain)
				w.append(a, 101, 105)
				if foreign {
					w.segment(w.open(), 300, 301)
				}
				m, data := w.segmentDraft(106, 110)
				if err := put(t.Context(), r, m, data); err != nil {
					t.Fatal(err)
				}
				f.Reset()
				f.FailAt(n, when, nil)
				_, err := a.Commit(t.Context(), m)
				reached := f.Count() >= n
				f.Reset()
				done, again := a.Commit(t.Context(), m)
				if again != nil {
					t.Fatalf("operation %d, %s: first %v, then %v", n, when, err, again)
				}
				v := w.everything(w.open())
				want := manifest.Sequence(3)
				if foreign {
					want = 4
				}
				if len(v.Problems) > 0 || done.Sequence != want || len(v.Manifests) != int(want) {
					t.Fatalf("operation %d, %s: %v; in place %d of %d", n, when, v.Problems, done.Sequence, len(v.Manifests))
				}
				if !reached {
					break
				}
			}
		}
	}
}

func TestAPruneBetweenTwoFastCommits(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	fulls := w.fulls(r, 3)
	a := w.open().Appender(etcdMain)
	w.append(a, 1001, 1001)
	w.prune(r, etcdMain, fulls[0].Manifest.ID)
	if c := w.append(a, 1002, 1002); c.Sequence != 6 || c.Manifest.Previous == (manifest.Hash{}) {
		t.Errorf("committed %d", c.Sequence)
	}
	if c := w.append(a, 1003, 1003); c.Sequence != 7 {
		t.Errorf("committed %d", c.Sequence)
	}
	w.clean(w.open())
}

func TestAPruneThatDroppedASegmentWins(t *testing.T) {
	for _, looked := range []bool{false, true} {
		w := newWorld(t, nil)
		r := w.open()
		w.full(r, at(100))
		a := w.open().Appender(etcdMain)
		m, data := w.segmentDraft(200, 210)
		if err := put(t.Context(), r, m, data); err != nil {
			t.Fatal(err)
		}
		w.clock.forward(GiveUpAfter + skewMargin + time.Minute)
		m.Created, m.Span.LastTime = whole(w.clock.now()), whole(w.clock.now()) // cut again, with the same object
		w.append(a, 101, 105)
		if p := w.prune(r, etcdMain); !slices.Contains(p.Dropped, m.ID) {
			t.Fatalf("pruned %+v", p)
		}
		if looked {
			w.head(a)
		}
		if _, err := a.Commit(t.Context(), m); !errors.Is(err, ErrSuperseded) {
			t.Fatalf("committed what was dropped: %v", err)
		}
		w.append(a, 106, 110)
		if _, err := a.Commit(t.Context(), m); !errors.Is(err, ErrSuperseded) {
			t.Fatalf("committed what was dropped: %v", err)
		}
		w.clean(w.open())
	}
}

// An appender sleeps while what was committed behind its head is pruned and
// swept, before it looks at its clock or just before its create takes effect.
// A file system is unmounted below a directory's store, and mounted again: what
// is committed meanwhile must not be taken for a part of the chain, nor make a
// hole in it.
func TestAFolderThatIsAnotherOneForAWhileGetsNoHole(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	store, err := local.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, store)
	r := w.open(func(o *Options) { o.Folder = true })
	w.full(r, at(10))
	a := r.Appender(etcdMain)
	w.append(a, 11, 15)
	w.append(a, 16, 20)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if done, err := w.tryAppend(a, 21, 25); err == nil {
		t.Errorf("committed as %d to an empty folder", done.Sequence)
	}
	if _, err := a.Head(t.Context()); !errors.Is(err, errElsewhere) {
		t.Errorf("the empty folder's head: %v", err)
	}
	if err := errors.Join(os.Rename(dir, dir+".below"), os.Rename(dir+".away", dir)); err != nil {
		t.Fatal(err)
	}
	if tip := w.head(a); tip.Last != 20 {
		t.Errorf("%+v", tip)
	}
	w.append(a, 21, 30)
	if v := w.everything(w.open()); len(v.Problems) > 0 || v.Head.Sequence != 4 {
		t.Errorf("%v", v.Problems)
	}

	// One that stays empty is a new chain in the end.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	w.clock.forward(headAge)
	if tip := w.head(a); tip.Base != 0 {
		t.Errorf("%+v", tip)
	}
}

func TestAnAppenderThatSleptDoesNotGoOnFromItsOldHead(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprint("during the create: ", late), func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			w.full(r, at(100))
			sleep := func(string) {
				second, third := w.full(r, at(200)), w.full(r, at(300))
				w.prune(r, etcdMain, second.Manifest.ID)
				w.clock.forward(ManifestGrace + ObjectGrace)
				w.sweep(r)
				if slices.Contains(w.manifests(), second.Sequence) || !slices.Contains(w.manifests(), third.Sequence) {
					t.Fatalf("left %v", w.manifests())
				}
			}
			gate := &beforePut{Store: w.store, f: sleep}
			gate.once.Do(func() {}) // not before it is told
			a := on(w.open(), gate).Appender(etcdMain)
			w.append(a, 101, 105)
			m, data := w.segmentDraft(106, 110)
			if err := put(t.Context(), r, m, data); err != nil {
				t.Fatal(err)
			}
			if late {
				gate.once = sync.Once{}
				if _, err := a.Commit(t.Context(), m); !errors.Is(err, ErrTooOld) {
					t.Fatalf("error %v", err)
				}
			} else {
				sleep("")
			}
			m.Created = w.clock.now()
			done, err := a.Commit(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			v := w.everything(w.open())
			if v.Head.ID != m.ID || done.Sequence != v.Head.Sequence || done.Sequence < 6 {
				t.Errorf("committed in place %d; the head is %d", done.Sequence, v.Head.Sequence)
			}
			w.clean(w.open())
		})
	}
}

func TestAClockThatIsSetBackEndsWhatIsKnown(t *testing.T) {
	begin := time.Now()
	for name, c := range map[string]struct {
		to    time.Time
		fresh bool
	}{
		"a moment later":    {begin.Add(time.Second), true},
		"an hour later":     {begin.Add(time.Hour), false},
		"set back":          {begin.Round(0).Add(-time.Second), false},
		"no monotonic time": {begin.Round(0).Add(time.Second), true},
	} {
		if got := elapsed(begin, c.to) < headAge; got != c.fresh {
			t.Errorf("%s: fresh is %v", name, got)
		}
	}
}
