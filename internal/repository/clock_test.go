package repository

import (
	"context"
	"errors"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// ahead is a repository on a machine whose clock runs ahead.
func (w *world) ahead(by time.Duration) *Repository {
	return w.open(func(o *Options) { o.Now = func() time.Time { return w.clock.now().Add(by) } })
}

// clockless hides that a store tells the time.
type clockless struct{ storage.Store }

// withoutClock is the same repository on a store that tells no time.
func withoutClock(r *Repository) *Repository { return on(r, clockless{r.store}) }

// failingClock is a store that does not tell its time when it is asked.
type failingClock struct {
	storage.Store
	err error
}

func (c failingClock) Now(context.Context) (time.Time, error) { return time.Time{}, c.err }

// tick stores something in the cluster's folder, as other chains' backups do
// all the time: where a store tells no time, deletion believes no later one
// than its newest object shows.
func (w *world) tick() {
	w.t.Helper()
	set(w.t, w.store, testCluster+"/elsewhere", []byte("x"))
}

const year = 365 * 24 * time.Hour

func TestNothingIsDeletedWhereTheClocksDiffer(t *testing.T) {
	w := newWorld(t, nil)
	fulls := w.fulls(w.open(), 3)
	w.prune(w.open(), etcdMain, fulls[0].Manifest.ID)
	w.clock.forward(ObjectGrace + time.Hour)
	for name, test := range map[string]struct {
		by     time.Duration
		refuse bool
	}{
		"ours is a year ahead":                   {year, true},
		"ours is a year behind":                  {-year, true},
		"ours is ahead by more than the limit":   {maxSkew + time.Second, true},
		"ours is behind by more than the limit":  {-maxSkew - time.Second, true},
		"ours is ahead by as much as it may be":  {maxSkew, false},
		"ours is behind by as much as it may be": {-maxSkew, false},
		"they agree to the second":               {time.Second, false},
		"they agree":                             {0, false},
	} {
		r := w.ahead(test.by)
		want := error(nil)
		if test.refuse {
			want = ErrClock
		}
		if s, err := r.Sweep(t.Context(), SweepOptions{DryRun: true}); !errors.Is(err, want) || (s.Objects == 1) == test.refuse {
			t.Errorf("%s: a sweep would delete %+v, %v", name, s, err)
		}
		if p, err := r.Prune(t.Context(), etcdMain, []manifest.ID{fulls[1].Manifest.ID}, PruneOptions{DryRun: true}); !errors.Is(err, want) || (p != nil) == test.refuse {
			t.Errorf("%s: a prune would name %+v, %v", name, p, err)
		}
		if !test.refuse {
			continue
		}
		head := w.manifests()
		if _, err := r.Prune(t.Context(), etcdMain, []manifest.ID{fulls[1].Manifest.ID}, PruneOptions{}); !errors.Is(err, ErrClock) {
			t.Errorf("%s: pruned, %v", name, err)
		}
		if _, err := r.Sweep(t.Context(), SweepOptions{}); !errors.Is(err, ErrClock) {
			t.Errorf("%s: swept, %v", name, err)
		}
		if got := w.manifests(); len(got) != len(head) {
			t.Errorf("%s: manifests %v", name, got)
		}
	}
}

func TestTheSlowerOfTwoClocksThatNearlyAgreeCounts(t *testing.T) {
	for _, by := range []time.Duration{maxSkew, -maxSkew} {
		w := newWorld(t, nil)
		fulls := w.fulls(w.open(), 3)
		w.prune(w.open(), etcdMain, fulls[0].Manifest.ID) // and a minute passes
		slower := max(0, -by)
		w.clock.forward(ObjectGrace + skewMargin - time.Minute + slower - time.Second)
		s := w.sweep(w.ahead(by))
		if s.Objects != 0 || s.Waiting != 2 {
			t.Errorf("%s: a second too early: swept %+v", by, s)
		}
		if left := s.Next.Sub(w.clock.now().Add(min(0, by))); left <= 0 || left > 2*time.Second {
			t.Errorf("%s: the next is due in %s", by, left)
		}
		w.clock.forward(2 * time.Second)
		if s := w.sweep(w.ahead(by)); s.Objects != 1 {
			t.Errorf("%s: swept %+v", by, s)
		}
	}
}

func TestTimePassesWhereNobodyCommits(t *testing.T) {
	w := newWorld(t, nil)
	fulls := w.fulls(w.open(), 3)
	w.prune(w.open(), etcdMain, fulls[0].Manifest.ID)
	w.clock.forward(ManifestGrace + time.Hour)
	s, err := w.open().Sweep(t.Context(), SweepOptions{})
	if err != nil || s.Objects != 1 || s.Manifests != 1 {
		t.Errorf("swept %+v, %v", s, err)
	}
	w.clean(w.open())
}

func TestAStoreWhoseTimeCantBeHadDeletesNothing(t *testing.T) {
	w := newWorld(t, nil)
	fulls := w.fulls(w.open(), 2)
	w.clock.forward(time.Hour)
	broken := errors.New("no answer")
	r := on(w.open(), failingClock{w.store, broken})
	if _, err := r.Prune(t.Context(), etcdMain, []manifest.ID{fulls[0].Manifest.ID}, PruneOptions{}); !errors.Is(err, broken) {
		t.Errorf("prune: %v", err)
	}
	if _, err := r.Sweep(t.Context(), SweepOptions{}); !errors.Is(err, broken) {
		t.Errorf("sweep: %v", err)
	}
}

func TestWithoutAClockAClockThatRunsAheadDeletesNothingEarly(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	fulls := w.fulls(r, 3)
	w.prune(r, etcdMain, fulls[0].Manifest.ID)
	for range 3 {
		w.clock.forward(ObjectGrace / 4)
		w.full(r)
		if s := w.sweep(withoutClock(w.ahead(year))); s.Objects+s.Manifests != 0 || s.Waiting != 2 {
			t.Fatalf("swept too early: %+v", s)
		}
	}
	w.clock.forward(ObjectGrace/4 + skewMargin)
	w.full(r)
	if s := w.sweep(withoutClock(w.ahead(year))); s.Objects != 1 || s.Manifests != 0 || s.Waiting != 1 {
		t.Errorf("swept %+v", s)
	}
	w.clean(w.open())
	w.clock.forward(ManifestGrace) // and nobody commits: nothing says that time passes
	if s := w.sweep(withoutClock(w.ahead(year))); s.Manifests != 0 || s.Waiting != 1 {
		t.Errorf("swept %+v", s)
	}
	w.tick()
	if s := w.sweep(withoutClock(w.ahead(year))); s.Manifests != 1 {
		t.Errorf("swept %+v", s)
	}
}

func TestWithoutAClockAClockThatRunsAheadGivesNoWriterUp(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r)
	m, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(t.Context(), r, m, data); err != nil {
		t.Fatal(err)
	}
	if p := w.prune(withoutClock(w.ahead(year)), etcdMain); p.Commit != nil {
		t.Errorf("a writer's data was taken for garbage: %+v", p)
	}
	if _, err := r.Commit(t.Context(), m); err != nil {
		t.Error(err)
	}
	w.clean(w.open())
}

func TestWithoutAClockAClockThatRunsBehindHalts(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	fulls := w.fulls(r, 3)
	w.prune(r, etcdMain, fulls[0].Manifest.ID)
	w.clock.forward(ManifestGrace + time.Hour)
	w.tick()
	if s, err := withoutClock(w.ahead(-ManifestGrace)).Sweep(t.Context(), SweepOptions{}); !errors.Is(err, ErrClock) {
		t.Errorf("swept %+v, %v", s, err)
	}
	if s := w.sweep(withoutClock(w.ahead(-maxSkew))); s.Objects != 1 || s.Manifests != 1 {
		t.Errorf("swept %+v", s)
	}
}
