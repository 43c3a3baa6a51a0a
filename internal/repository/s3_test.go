package repository

import (
	"context"
	"iter"
	"sync"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/s3test"
	"lifeboat/storage"
	"lifeboat/storage/s3"
)

func TestTheProtocolHoldsOnARealS3(t *testing.T) {
	server := s3test.Start(t, s3test.Options{TLS: true, Versioning: true})
	server.Setenv(t)
	open := func() *world {
		store, err := s3.New(t.Context(), s3.Config{Bucket: server.Bucket, Prefix: "backups", Endpoint: server.Endpoint, CAFile: server.CAFile})
		if err != nil {
			t.Fatal(err)
		}
		return newWorld(t, store)
	}
	w := open()
	if err := w.open().Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	const writers, rounds = 2, 4
	var wg sync.WaitGroup
	for range writers {
		r := w.open()
		wg.Go(func() {
			for range rounds {
				m, data := w.draft(etcdMain, manifest.KindFull)
				if err := put(t.Context(), r, m, data); err != nil {
					t.Error(err)
				}
				if _, err := r.Commit(t.Context(), m); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	w.clean(w.open())
	ids := w.ids(w.open())
	if len(ids) != writers*rounds || len(w.manifests()) != writers*rounds {
		t.Fatalf("%d backups in %d manifests", len(ids), len(w.manifests()))
	}

	// An unanswered create, a prune with its sweeps.
	m, data := w.draft(etcdMain, manifest.KindFull)
	r := w.open()
	if err := put(t.Context(), r, m, data); err != nil {
		t.Fatal(err)
	}
	if c, err := on(r, &failingCreate{Store: w.store, after: true, times: 1}).Commit(t.Context(), m); err != nil || c.Sequence != 9 {
		t.Fatalf("%+v, %v", c, err)
	}
	v, err := r.Load(t.Context(), etcdMain)
	if err != nil {
		t.Fatal(err)
	}
	w.prune(r, etcdMain, v.Manifests[0].ID, v.Manifests[4].ID)
	w.clock.forward(ManifestGrace + ObjectGrace)
	w.tick()
	if s := w.sweep(on(r, later{w.store, ManifestGrace + ObjectGrace})); s.Objects != 2 || s.Manifests != 2 {
		t.Errorf("swept %+v", s)
	}
	w.clean(w.open())
	if n := len(w.ids(w.open())); n != 7 {
		t.Errorf("%d backups", n)
	}

	// Vandalism on a versioned bucket costs nothing and is reported.
	remove(t, w.store, w.stored(r, etcdMain, 10))
	set(t, w.store, w.stored(r, etcdMain, 7), []byte("junk"))
	object := r.stored(m.Objects[0].Name)
	remove(t, w.store, object)
	failures := w.failures(w.open())
	for _, name := range []string{w.stored(r, etcdMain, 10), w.stored(r, etcdMain, 7), object} {
		wantProblem(t, failures, name, Overwritten)
	}
	if c := w.full(w.open()); c.Sequence != 11 {
		t.Errorf("committed %d", c.Sequence)
	}
}

// later is a store whose newest object came later: no test can wait a week.
type later struct {
	storage.Store
	by time.Duration
}

func (l later) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		for info, err := range l.Store.List(ctx, prefix) {
			if info.Name == testCluster+"/elsewhere" {
				info.Modified = info.Modified.Add(l.by)
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

func TestAppendersRaceOnARealS3(t *testing.T) {
	server := s3test.Start(t, s3test.Options{Versioning: true})
	server.Setenv(t)
	store, err := s3.New(t.Context(), s3.Config{Bucket: server.Bucket, Endpoint: server.Endpoint})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, store)
	w.full(w.open(), at(100))
	const writers, rounds = 2, 20
	var wg sync.WaitGroup
	for n := range writers {
		r := shortPaged(w.open())
		a := r.Appender(etcdMain)
		wg.Go(func() {
			for i := range rounds {
				rev := manifest.Revision(101 + writers*i + n)
				m, data := w.segmentDraft(rev, rev)
				if err := put(t.Context(), r, m, data); err != nil {
					t.Error(err)
				}
				if _, err := a.Commit(t.Context(), m); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	w.clean(w.open())
	want := w.everything(w.open())
	if len(want.Manifests) != writers*rounds+1 {
		t.Errorf("%d manifests", len(want.Manifests))
	}
	got, err := shortPaged(w.open()).Load(t.Context(), etcdMain)
	if err != nil || len(got.Problems) > 0 {
		t.Fatal(err, got.Problems)
	}
	same(t, "opened from its end", got, want)
	if tip := w.head(w.open().Appender(etcdMain)); tip.Last != 100+writers*rounds {
		t.Errorf("tip %+v", tip)
	}
}
