package repository

import (
	"errors"
	"slices"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
	broken "lifeboat/storage/fault"
	"lifeboat/storage/memory"
)

func TestJunkInAnAppendersWay(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(100))
	a := w.open().Appender(etcdMain)
	w.append(a, 101, 101)                                            // place 2
	set(t, w.store, w.stored(r, etcdMain, 3), []byte("junk"))        // in its way
	set(t, w.store, w.stored(r, etcdMain, 6), []byte("ahead"))       // and ahead
	set(t, w.store, w.stored(r, etcdMain, 1<<40), []byte("further")) // of it
	var places []manifest.Sequence
	for rev := manifest.Revision(102); rev < 106; rev++ {
		c := w.append(a, rev, rev)
		places = append(places, c.Sequence)
	}
	if want := []manifest.Sequence{4, 5, 7, 8}; !slices.Equal(places, want) {
		t.Errorf("committed to %v, want %v", places, want)
	}
	remove(t, w.store, w.stored(r, etcdMain, 1<<40))
	w.clean(w.open())
	report, _ := w.open().Verify(t.Context(), VerifyOptions{})
	wantProblem(t, report.Problems, w.stored(r, etcdMain, 3), Skipped)
	wantProblem(t, report.Problems, w.stored(r, etcdMain, 6), Skipped)
}

func TestAReplayBehindAnAppendersHeadIsJunk(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(100))
	a := w.open().Appender(etcdMain)
	w.append(a, 101, 101)
	set(t, w.store, w.stored(r, etcdMain, 3), get(t, w.store, w.stored(r, etcdMain, 2)))
	if tip := w.head(a); tip.Sequence != 2 || tip.Last != 101 {
		t.Errorf("tip %+v", tip)
	}
	if c := w.append(a, 102, 102); c.Sequence != 4 || len(c.Manifest.Skipped) != 1 {
		t.Errorf("committed %d, skipped %v", c.Sequence, c.Manifest.Skipped)
	}
	w.clean(w.open())
}

func TestARemovedTailShows(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(100))
	a := w.open().Appender(etcdMain)
	w.append(a, 101, 101)
	w.append(a, 102, 102)
	remove(t, w.store, w.stored(r, etcdMain, 3))
	w.append(a, 103, 103) // goes on from the head that it knows
	wantProblem(t, w.failures(w.open()), w.stored(r, etcdMain, 3), Hole)

	// One that looks again is told, and so is everybody by its next manifest.
	remove(t, w.store, w.stored(r, etcdMain, 4))
	w.clock.forward(headAge / 2)
	if tip := w.head(a); tip.Sequence != 2 {
		t.Errorf("tip %+v", tip)
	}
	c := w.append(a, 103, 103)
	if c.Sequence != 3 {
		t.Errorf("committed %d", c.Sequence)
	}
	wantProblem(t, c.Problems, w.stored(r, etcdMain, 4), RolledBack)
	wantProblem(t, w.failures(w.open()), w.stored(r, etcdMain, 4), RolledBack)
}

// A hole stays until somebody decides what to do about it. Meanwhile segments
// come as cheaply as before, and opening the chain does not get slower by each.
func TestAChainWithAHoleIsStillRecordedAtSpeed(t *testing.T) {
	w := newWorld(t, nil)
	f := broken.New(w.store)
	r := on(w.open(), f)
	r.listEvery = 16
	w.full(r, at(100))
	a := r.Appender(etcdMain)
	for rev := manifest.Revision(101); rev < 110; rev++ {
		w.append(a, rev, rev)
	}
	remove(t, w.store, w.stored(r, etcdMain, 5))
	a = r.Appender(etcdMain)
	w.append(a, 110, 110)
	for rev := manifest.Revision(111); rev < 200; rev++ {
		m, data := w.segmentDraft(rev, rev)
		if err := put(t.Context(), r, m, data); err != nil {
			t.Fatal(err)
		}
		f.Reset()
		c, err := a.Commit(t.Context(), m)
		if err != nil || f.Count() != 2 {
			t.Fatalf("revision %d: %v, after %d operations", rev, err, f.Count())
		}
		wantProblem(t, c.Problems, w.stored(r, etcdMain, 5), Hole)
	}
	f.Reset()
	v, err := on(w.open(), f).Load(t.Context(), etcdMain)
	if err != nil || f.Count() > 60 {
		t.Errorf("%v; opened by %d operations", err, f.Count())
	}
	wantProblem(t, v.Problems, w.stored(r, etcdMain, 5), Hole)
	wantProblem(t, w.failures(w.open()), w.stored(r, etcdMain, 5), Hole)
}

func TestAHiddenTailIsFoundAmongOlderVersions(t *testing.T) {
	c := &clock{t: time.Now()}
	w := newWorld(t, memory.New(memory.WithClock(c.now), memory.WithVersioning()))
	w.clock = c
	r := w.open()
	w.full(r, at(100))
	a := w.open().Appender(etcdMain)
	w.append(a, 101, 101)
	hidden := w.append(w.open().Appender(etcdMain), 102, 105)
	remove(t, w.store, w.stored(r, etcdMain, hidden.Sequence))
	w.clock.forward(2 * hiddenEvery)
	if tip := w.head(a); tip.Sequence != hidden.Sequence || tip.Last != 105 {
		t.Errorf("tip %+v", tip)
	}
	if done := w.append(a, 106, 106); done.Sequence != hidden.Sequence+1 {
		t.Errorf("committed %d", done.Sequence)
	}
	wantProblem(t, w.failures(w.open()), w.stored(r, etcdMain, hidden.Sequence), Overwritten)
}

func TestAnAppenderTakesOnlyWhatItIsFor(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(100))
	a := r.Appender(etcdMain)
	full, _ := w.draft(etcdMain, manifest.KindFull)
	if _, err := a.Commit(t.Context(), full); err == nil {
		t.Error("it took a full")
	}
	readOnly := w.open(func(o *Options) { o.Signer = nil }).Appender(etcdMain)
	m, data := w.segmentDraft(101, 101)
	if _, err := readOnly.Commit(t.Context(), m); !errors.Is(err, ErrNoSigner) {
		t.Errorf("without a key: %v", err)
	}
	for _, known := range []bool{false, true} {
		if known {
			w.append(a, 102, 102)
		}
		if _, err := a.Commit(t.Context(), m); err == nil {
			t.Error("it committed what is not stored")
		}
		short := *m
		short.Objects = slices.Clone(m.Objects)
		short.Objects[0].Size++
		if err := put(t.Context(), r, m, data); err != nil && !errors.Is(err, storage.ErrExist) {
			t.Fatal(err)
		}
		if _, err := a.Commit(t.Context(), &short); err == nil {
			t.Error("it committed what is shorter than it says")
		}
		remove(t, w.store, r.stored(m.Objects[0].Name))
		old, data := w.segmentDraft(101, 101)
		old.Created = w.clock.now().Add(-GiveUpAfter - time.Second)
		if err := put(t.Context(), r, old, data); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Commit(t.Context(), old); !errors.Is(err, ErrTooOld) {
			t.Errorf("too old: %v", err)
		}
	}
}
