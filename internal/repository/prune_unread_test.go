package repository

import (
	"errors"
	"slices"
	"testing"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
)

// Data whose manifest the pruner can't read, or does not find, is not garbage
// because of that.

// pruneAndSweep prunes as often as it takes to delete all that may go.
func (w *world) pruneAndSweep(r *Repository) {
	w.t.Helper()
	for range 3 {
		w.clock.forward(ManifestGrace + time.Hour)
		w.prune(r, etcdMain)
		w.clock.forward(ObjectGrace + time.Hour)
		w.sweep(r)
	}
}

func (w *world) holds(m *manifest.Manifest) bool {
	w.t.Helper()
	return slices.Contains(names(w.t, w.store, testCluster+"/etcd/main/data/"), testCluster+"/"+m.Objects[0].Name)
}

// garbage is a backup that is put and never committed.
func (w *world) garbage(r *Repository) *manifest.Manifest {
	w.t.Helper()
	m, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(w.t.Context(), r, m, data); err != nil {
		w.t.Fatal(err)
	}
	return m
}

func TestABackupByAKeyThatThePrunerDoesNotKnowIsKept(t *testing.T) {
	w := newWorld(t, nil)
	renewed := w.newSigner("cp2")
	both := w.trusting(testCluster, w.signer, renewed)
	stale := w.open()
	current := w.open(func(o *Options) { o.Trust, o.Signer = both, renewed })
	w.full(stale)
	theirs := w.full(current)
	w.full(stale) // skips it
	w.full(stale) // and its index leaves it out
	w.clock.forward(time.Hour)
	later := w.garbage(stale)
	w.pruneAndSweep(stale)
	if !w.holds(theirs.Manifest) {
		t.Error("a pruner without the key deleted it")
	}
	if w.holds(later) {
		t.Error("what was put after the chain had gone on is kept for nothing")
	}
	knowing := w.open(func(o *Options) { o.Trust = both })
	w.pruneAndSweep(knowing)
	if !w.holds(theirs.Manifest) {
		t.Error("a pruner that has the key deleted what another's index had left out")
	}
	wantProblem(t, w.failures(knowing), w.stored(knowing, etcdMain, theirs.Sequence), Fork)

	remove(t, w.store, w.stored(stale, etcdMain, theirs.Sequence)) // by a person, who has looked
	w.pruneAndSweep(stale)
	if w.holds(theirs.Manifest) {
		t.Error("it stays though nothing is left of its manifest")
	}
}

func TestTheDataOfADamagedManifestIsKept(t *testing.T) {
	w := newWorld(t, nil)
	w.fulls(w.open(), 2)
	last := w.full(w.open())
	name := w.stored(w.open(), etcdMain, last.Sequence)
	data := get(t, w.store, name)
	data[200] ^= 1
	set(t, w.store, name, data)
	w.full(w.open()) // skips it
	w.pruneAndSweep(w.open())
	if !w.holds(last.Manifest) {
		t.Error("its data is deleted")
	}
}

func TestTheDataOfAManifestThatAnotherChainSawIsKept(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.fulls(r, 2)
	last := w.full(r)
	w.backup(r, hostsCP1, manifest.KindFiles) // by one who saw it
	remove(t, w.store, w.stored(r, etcdMain, last.Sequence))
	w.pruneAndSweep(w.open())
	if !w.holds(last.Manifest) {
		t.Error("its data is deleted")
	}
	w.full(w.open()) // in its place
	w.pruneAndSweep(w.open())
	if !w.holds(last.Manifest) {
		t.Error("its data is deleted after its place was taken")
	}
}

func TestASweepThatSleptDeletesNothing(t *testing.T) {
	w := newWorld(t, nil)
	from, to := w.open(), w.second()
	w.full(from)
	if _, err := copyAll(t, from, to, etcdMain); err != nil {
		t.Fatal(err)
	}
	m, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(t.Context(), to, m, data); err != nil { // of a copy that is interrupted
		t.Fatal(err)
	}
	if err := put(t.Context(), from, m, data); err != nil {
		t.Fatal(err)
	}
	if _, err := from.Commit(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	w.clock.forward(2 * time.Hour)
	if p := w.prune(to, etcdMain); !slices.Contains(p.Dropped, m.ID) {
		t.Fatalf("pruned %+v", p)
	}
	w.clock.forward(ObjectGrace + time.Hour)
	opts := to.opts
	opts.Events = func(e events.Event) {
		if e, ok := e.(events.StageStarted); !ok || e.Stage != "sweep" {
			return
		}
		w.clock.forward(ManifestGrace) // it sleeps while others go on
		w.sweep(to)
		w.prune(to, etcdMain)
		if fates, err := copyAll(t, from, to, etcdMain); err != nil || fates[m.ID] != FateCopied {
			t.Errorf("copied again: %v, %v", fates[m.ID], err)
		}
	}
	slept, err := Open(to.store, opts)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := slept.Sweep(t.Context(), SweepOptions{}); !errors.Is(err, ErrStale) || s.Objects != 0 {
		t.Errorf("swept %+v, %v", s, err)
	}
	w.clean(on(w.open(), to.store))
}

func TestWhatARekeyReplacedStaysIfTheRekeysDataIsLost(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	b := w.full(r)
	w.full(r)
	rekey := w.mustRekey(r, b.Manifest)
	w.clock.forward(2 * time.Hour)
	if p := w.prune(r, etcdMain); !slices.Contains(p.Objects, b.Manifest.Objects[0].Name) {
		t.Fatalf("pruned %+v", p)
	}
	remove(t, w.store, r.stored(rekey.Manifest.Objects[0].Name))
	w.clock.forward(ObjectGrace + time.Hour)
	w.sweep(r)
	if !w.holds(b.Manifest) {
		t.Error("the last of its data is deleted")
	}
}
