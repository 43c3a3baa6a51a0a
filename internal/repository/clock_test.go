package repository

import (
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

// ahead is a repository on a machine whose clock runs ahead.
func (w *world) ahead(by time.Duration) *Repository {
	return w.open(func(o *Options) { o.Now = func() time.Time { return w.clock.now().Add(by) } })
}

func TestAClockThatRunsAheadDeletesNothingEarly(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	fulls := w.fulls(r, 3)
	w.prune(r, etcdMain, fulls[0].Manifest.ID)
	for range 3 {
		w.clock.forward(ObjectGrace / 4)
		w.full(r)
		if s := w.sweep(w.ahead(365 * 24 * time.Hour)); s.Objects+s.Manifests != 0 || s.Waiting != 2 {
			t.Fatalf("swept too early: %+v", s)
		}
	}
	w.clock.forward(ObjectGrace/4 + skewMargin)
	w.full(r)
	if s := w.sweep(w.ahead(365 * 24 * time.Hour)); s.Objects != 1 || s.Manifests != 0 || s.Waiting != 1 {
		t.Errorf("swept %+v", s)
	}
	w.clean(w.open())
}

func TestAClockThatRunsAheadGivesNoWriterUp(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r)
	m, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(t.Context(), r, m, data); err != nil {
		t.Fatal(err)
	}
	if p := w.prune(w.ahead(365*24*time.Hour), etcdMain); p.Commit != nil {
		t.Errorf("a writer's data was taken for garbage: %+v", p)
	}
	if _, err := r.Commit(t.Context(), m); err != nil {
		t.Error(err)
	}
	w.clean(w.open())
}

func TestAClockThatRunsBehindOnlyDelays(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	fulls := w.fulls(r, 3)
	w.prune(r, etcdMain, fulls[0].Manifest.ID)
	w.clock.forward(ManifestGrace + time.Hour)
	if s := w.sweep(w.ahead(-ManifestGrace)); s.Objects+s.Manifests != 0 || s.Waiting != 2 {
		t.Errorf("swept %+v", s)
	}
	if s := w.sweep(w.open()); s.Objects != 1 || s.Manifests != 1 {
		t.Errorf("swept %+v", s)
	}
}
