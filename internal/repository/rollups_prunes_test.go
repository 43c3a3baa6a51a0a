package repository

import (
	"slices"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

func TestARecordersPruneStaysUntilAllThatItNamesIsGone(t *testing.T) {
	w, r, _ := rolledUp(t)
	first := w.pruneRolledUp(r)
	w.clock.forward(RolledUpGrace + skewMargin + time.Second)
	next := func(rev manifest.Revision) *Pruned {
		w.segment(r, rev, rev)
		w.segment(r, rev, rev, rollUp)
		return w.pruneRolledUp(w.open())
	}
	takes := func(p *Pruned) bool {
		return slices.ContainsFunc(p.Commit.Manifest.Prune.Manifests, func(e manifest.Entry) bool { return e.ID == first.Commit.Manifest.ID })
	}
	if p := next(141); p.Segments != 1 || takes(p) {
		t.Errorf("before the sweep: %+v", p)
	}
	for _, name := range first.Objects {
		remove(t, w.store, r.stored(name))
	}
	if p := next(142); p.Segments != 1 || takes(p) {
		t.Errorf("with the manifests still there: %+v", p)
	}
	for _, seq := range []manifest.Sequence{2, 3, 6} {
		remove(t, w.store, w.stored(r, etcdMain, seq))
	}
	if p := next(143); p.Segments != 1 || !takes(p) {
		t.Errorf("with nothing left: %+v", p)
	}
	w.clean(w.open())
	w.wantWay(w.open(), Point{Revision: 135}, "1/120: 121-130r 131-140 = 135")
}

func TestARecorderLeavesAPolicysPruneAlone(t *testing.T) {
	w, r, made := rolledUp(t)
	heavy, err := r.Prune(t.Context(), etcdMain, []manifest.ID{made[1].Manifest.ID}, PruneOptions{})
	if err != nil || len(heavy.Removed) != 1 || heavy.Segments != 3 {
		t.Fatalf("%+v, %v", heavy, err)
	}
	w.clock.forward(ManifestGrace + skewMargin + time.Second)
	w.segment(r, 141, 150)
	if s := w.sweepRolledUp(w.open()); s.Objects+s.Manifests+s.Waiting != 0 {
		t.Errorf("a recorder swept %+v", s)
	}
	if s := w.sweep(w.open()); s.Objects != 4 || s.Manifests != 4 {
		t.Errorf("swept %+v", s)
	}
	// It is done, and the next one of a policy takes it along, no recorder's.
	w.segment(r, 141, 150, rollUp)
	p := w.pruneRolledUp(w.open())
	if p.Segments != 1 || p.Manifests != 1 {
		t.Errorf("a recorder pruned %+v", p)
	}
	again, err := w.open().Prune(t.Context(), etcdMain, nil, PruneOptions{})
	if err != nil || again.Manifests != 1 || again.Commit.Manifest.Prune.Manifests[0].ID != heavy.Commit.Manifest.ID {
		t.Errorf("%+v, %v", again, err)
	}
	w.clean(w.open())
}

func TestARecordersPruneNamesWhatIsThereAndWhereTheChainBegins(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	gone := w.segment(r, 91, 95) // before the first full
	small := w.segment(r, 96, 100)
	w.segment(r, 91, 100, rollUp)
	w.full(r, at(100))
	remove(t, w.store, r.stored(gone.Manifest.Objects[0].Name))
	p := w.pruneRolledUp(w.open())
	want := small.Manifest.Objects[0]
	if p.Segments != 2 || len(p.Objects) != 1 || p.Objects[0] != want.Name || p.Bytes != want.Size {
		t.Errorf("%+v", p)
	}
	if base := p.Commit.Manifest.Prune.Base; base != 3 {
		t.Errorf("the chain begins at %d", base)
	}
	w.clean(w.open())
}
