package repository

import (
	"errors"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

func TestJunkAheadOfAChainFailsVerificationAndJamsNothing(t *testing.T) {
	for name, put := range map[string]func(w *world, r *Repository) (object string, kind Kind){
		"junk": func(w *world, r *Repository) (string, Kind) {
			set(w.t, w.store, w.stored(r, etcdMain, 1000), []byte("junk"))
			return w.stored(r, etcdMain, 1000), Stray
		},
		"junk in the last place of all": func(w *world, r *Repository) (string, Kind) {
			set(w.t, w.store, w.stored(r, etcdMain, 1<<64-1), []byte("junk"))
			return w.stored(r, etcdMain, 1<<64-1), Stray
		},
		"junk behind one empty place": func(w *world, r *Repository) (string, Kind) {
			set(w.t, w.store, w.stored(r, etcdMain, 9), []byte("junk"))
			return w.stored(r, etcdMain, 9), Stray
		},
		"a manifest by a stranger": func(w *world, r *Repository) (string, Kind) {
			m, err := manifest.Open(get(w.t, w.store, w.stored(r, etcdMain, 7)), w.trust)
			if err != nil {
				w.t.Fatal(err)
			}
			m.Sequence = 1000
			signed, err := manifest.Sign(m, w.newSigner("stranger"))
			if err != nil {
				w.t.Fatal(err)
			}
			set(w.t, w.store, w.stored(r, etcdMain, 1000), signed)
			return w.stored(r, etcdMain, 1000), Stray
		},
		"a replayed manifest": func(w *world, r *Repository) (string, Kind) {
			set(w.t, w.store, w.stored(r, etcdMain, 1000), get(w.t, w.store, w.stored(r, etcdMain, 7)))
			return w.stored(r, etcdMain, 1000), Stray
		},
		"an object with another name": func(w *world, r *Repository) (string, Kind) {
			object := testCluster + "/etcd/main/manifests/notes.txt"
			set(w.t, w.store, object, []byte("junk"))
			return object, Unknown
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			fulls := w.fulls(r, 7)
			object, kind := put(w, r)
			wantProblem(t, w.failures(w.open()), object, kind)
			if m, err := w.open().Resolve(t.Context(), etcdMain, Point{}); err != nil || m.Sequence != 7 {
				t.Errorf("the latest: %v, %v", m, err)
			}
			w.prune(w.open(), etcdMain, fulls[0].Manifest.ID)
			w.clock.forward(ObjectGrace)
			w.full(r)
			w.clock.forward(time.Hour)
			w.full(r)
			if s := w.sweep(w.open()); s.Objects != 1 {
				t.Errorf("swept %+v", s)
			}
			if m, err := w.open().Resolve(t.Context(), etcdMain, Point{}); err != nil || m.Created.Before(fulls[6].Manifest.Created) {
				t.Errorf("the latest: %v, %v", m, err)
			}
		})
	}
}

func TestJunkDirectlyBehindTheHeadStillStopsARestoreOfTheLatest(t *testing.T) {
	// It might be the newest manifest, damaged.
	w := newWorld(t, nil)
	r := w.open()
	fulls := w.fulls(r, 3)
	for _, seq := range []manifest.Sequence{4, 5} {
		set(t, w.store, w.stored(r, etcdMain, seq), []byte("junk"))
	}
	w.refusedFor(w.open(), w.stored(r, etcdMain, 4), fulls[2])
	wantProblem(t, w.failures(w.open()), w.stored(r, etcdMain, 5), Damaged)
	if _, err := r.Prune(t.Context(), etcdMain, nil, PruneOptions{}); !errors.Is(err, ErrVerification) {
		t.Errorf("prune: %v", err)
	}
	w.full(w.open())
	w.clean(w.open())
}
