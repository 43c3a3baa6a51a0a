package repository

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

func TestGarbageIsNamedBeforeItIsDeletedAndOnlyWhenNoWriterCanBeAlive(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r)
	m, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(t.Context(), r, m, data); err != nil {
		t.Fatal(err)
	}
	w.clock.forward(GiveUpAfter)
	if p := w.prune(r, etcdMain); p.Commit != nil {
		t.Fatalf("young garbage was named: %+v", p)
	}
	w.clock.forward(2 * skewMargin)
	p := w.prune(r, etcdMain)
	if !slices.Equal(p.Dropped, []manifest.ID{m.ID}) || !slices.Equal(p.Objects, []string{m.Objects[0].Name}) {
		t.Fatalf("pruned %+v", p)
	}
	w.clock.forward(ObjectGrace + time.Hour)
	if s := w.sweep(r); s.Objects != 1 {
		t.Errorf("swept %+v", s)
	}
	w.clean(w.open())
	if n := len(names(t, w.store, testCluster+"/etcd/main/data/")); n != 1 {
		t.Errorf("%d data objects", n)
	}
}

// paused is a repository of a process that was stopped: its clock stands still.
func (w *world) paused() *Repository {
	then := w.clock.now()
	return w.open(func(o *Options) { o.Now = func() time.Time { return then } })
}

func TestAWriterPausedAcrossAPruneGivesUp(t *testing.T) {
	// A week later the prune that dropped it may be gone itself; then so are the
	// writer's data objects.
	gaveUp := func(err error) bool {
		return errors.Is(err, ErrSuperseded) || err != nil && strings.Contains(err.Error(), "is not in the store")
	}
	for name, between := range map[string]func(w *world){
		"and nothing more": func(w *world) {},
		"and another commit behind it, whose index hides the prune": func(w *world) { w.full(w.open()) },
		"and many": func(w *world) { w.fulls(w.open(), 12) },
		"and the sweep": func(w *world) {
			w.clock.forward(ObjectGrace + time.Hour)
			w.sweep(w.open())
		},
		"and another prune with its sweeps": func(w *world) {
			r := w.open()
			fulls := w.fulls(r, 3)
			w.clock.forward(ManifestGrace + time.Hour)
			w.sweep(r)
			w.prune(r, etcdMain, fulls[0].Manifest.ID)
			w.full(r)
		},
	} {
		t.Run("before it reads the head, "+name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.full(w.open())
			writer := w.paused()
			m, data := w.draft(etcdMain, manifest.KindFull)
			if err := put(t.Context(), writer, m, data); err != nil {
				t.Fatal(err)
			}
			w.clock.forward(2 * time.Hour)
			if p := w.prune(w.open(), etcdMain); !slices.Contains(p.Dropped, m.ID) {
				t.Fatalf("pruned %+v", p)
			}
			between(w)
			if _, err := writer.Commit(t.Context(), m); !gaveUp(err) {
				t.Errorf("commit: %v", err)
			}
			w.clean(w.open())
			if slices.Contains(w.ids(w.open()), m.ID) {
				t.Error("the dropped backup is listed")
			}
		})
		t.Run("between reading the head and the create, "+name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.full(w.open())
			paused := w.paused()
			m, data := w.draft(etcdMain, manifest.KindFull)
			writer := on(paused, &beforePut{Store: w.store, f: func(string) {
				w.clock.forward(2 * time.Hour)
				if p := w.prune(w.open(), etcdMain); !slices.Contains(p.Dropped, m.ID) {
					t.Errorf("pruned %+v", p)
				}
				between(w)
			}})
			if err := put(t.Context(), writer, m, data); err != nil {
				t.Fatal(err)
			}
			if _, err := writer.Commit(t.Context(), m); !gaveUp(err) {
				t.Errorf("commit: %v", err)
			}
			w.clean(w.open())
			if slices.Contains(w.ids(w.open()), m.ID) {
				t.Error("the dropped backup is listed")
			}
		})
	}
}

func TestACreateInAPlaceThatWasPrunedDoesNotCount(t *testing.T) {
	// Stopped for longer than manifests live, between its last look and the
	// create: the place has been used, pruned and swept, so the create succeeds.
	w := newWorld(t, nil)
	w.full(w.open())
	paused := w.paused()
	m, data := w.draft(etcdMain, manifest.KindFull)
	writer := on(paused, &beforePut{Store: w.store, f: func(name string) {
		w.clock.forward(30 * time.Minute) // the objects are young: no prune names them yet
		r := w.open()
		fulls := w.fulls(r, 3)
		w.prune(r, etcdMain, fulls[0].Manifest.ID)
		w.clock.forward(ManifestGrace + time.Hour)
		if s := w.sweep(r); s.Manifests != 1 {
			t.Errorf("swept %+v", s)
		}
	}})
	if err := put(t.Context(), writer, m, data); err != nil {
		t.Fatal(err)
	}
	c, err := writer.Commit(t.Context(), m) // its own clock stands still, so it tries again
	if err != nil || c.Sequence != 6 {
		t.Fatalf("%+v, %v", c, err)
	}
	if got := w.manifests(); !slices.Contains(got, 2) {
		t.Fatalf("manifests %v", got)
	}
	w.clean(w.open())
	rep, _ := w.open().Verify(t.Context(), VerifyOptions{})
	wantProblem(t, rep.Problems, w.stored(writer, etcdMain, 2), Leftover)
	if n := len(w.ids(w.open())); n != 4 {
		t.Errorf("%d backups", n)
	}
	if p := w.prune(w.open(), etcdMain); p.Commit == nil {
		t.Error("the next prune leaves it there")
	}
	w.clock.forward(ManifestGrace + time.Hour)
	w.sweep(w.open())
	w.clean(w.open())
	if got := w.manifests(); slices.Contains(got, 2) {
		t.Errorf("manifests %v", got)
	}
}

func TestAPrunerThatLosesTheRaceReadsAgain(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	fulls := w.fulls(r, 2)
	m, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(t.Context(), r, m, data); err != nil {
		t.Fatal(err)
	}
	slow := w.paused()
	w.clock.forward(2 * time.Hour) // its objects look like garbage to the pruner
	pruner := on(w.open(), &beforePut{Store: w.store, f: func(string) {
		if _, err := slow.Commit(t.Context(), m); err != nil {
			t.Error(err)
		}
	}})
	p := w.prune(pruner, etcdMain, fulls[0].Manifest.ID)
	if p.Commit.Sequence != 4 || len(p.Dropped) != 0 || len(p.Objects) != 1 {
		t.Errorf("pruned %+v", p)
	}
	w.clock.forward(ManifestGrace + time.Hour)
	w.sweep(r)
	w.clean(w.open())
	if ids := w.ids(w.open()); len(ids) != 2 || !slices.Contains(ids, m.ID) {
		t.Errorf("backups %v", ids)
	}
}

func TestASweepLeavesAWriterInFlightAlone(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	fulls := w.fulls(r, 3)
	w.prune(r, etcdMain, fulls[0].Manifest.ID)
	w.clock.forward(ManifestGrace + time.Hour)
	m, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(t.Context(), r, m, data); err != nil {
		t.Fatal(err)
	}
	w.sweep(w.open())
	during := on(r, &beforePut{Store: w.store, f: func(string) { w.sweep(w.open()) }})
	if _, err := during.Commit(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	w.sweep(w.open())
	w.clean(w.open())
	if n := len(w.ids(w.open())); n != 3 {
		t.Errorf("%d backups", n)
	}
}

func TestACreateInAPlaceWhosePruneIsGoneIsClearedAway(t *testing.T) {
	w := newWorld(t, nil)
	w.full(w.open())
	paused := w.paused()
	m, data := w.draft(etcdMain, manifest.KindFull)
	writer := on(paused, &beforePut{Store: w.store, f: func(string) {
		r := w.takePlaceAndSweepIt()
		w.full(r)
		if p := w.prune(r, etcdMain); p.Manifests != 1 { // the prune that named the place
			t.Errorf("pruned %+v", p)
		}
	}})
	if err := put(t.Context(), writer, m, data); err != nil {
		t.Fatal(err)
	}
	if _, err := writer.Commit(t.Context(), m); err == nil {
		t.Fatal("it counts, though its data was given up")
	}
	if got := w.manifests(); !slices.Contains(got, 2) {
		t.Fatalf("manifests are %v", got)
	}
	w.prune(w.open(), etcdMain)
	w.clock.forward(ManifestGrace + time.Hour)
	w.sweep(w.open())
	if got := w.manifests(); slices.Contains(got, 2) {
		t.Errorf("manifests are %v", got)
	}
	w.clean(w.open())
}
