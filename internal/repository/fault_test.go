package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
	"lifeboat/storage/local"
	"lifeboat/storage/memory"
)

var errStopped = errors.New("stopped")

// stopping is a store whose n-th operation fails, before or after it took
// effect. If it dies, so do all later ones, as if the process had been killed.
type stopping struct {
	storage.Store
	mu    sync.Mutex
	at    int // 0: never
	after bool
	dies  bool
	count int
}

func (s *stopping) op(do func() error) error {
	s.mu.Lock()
	s.count++
	n, hit := s.count, s.count == s.at
	s.mu.Unlock()
	if s.dies && s.at > 0 && n > s.at || hit && !s.after {
		return errStopped
	}
	if err := do(); err != nil {
		return err
	}
	if hit {
		return errStopped
	}
	return nil
}

func (s *stopping) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	return s.op(func() error { return s.Store.Put(ctx, name, r, opts) })
}

func (s *stopping) Delete(ctx context.Context, name string) error {
	return s.op(func() error { return s.Store.Delete(ctx, name) })
}

func (s *stopping) Open(ctx context.Context, name string, rng storage.Range) (body io.ReadCloser, info storage.Info, err error) {
	err = s.op(func() error { body, info, err = s.Store.Open(ctx, name, rng); return err })
	return body, info, err
}

func (s *stopping) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		if err := s.op(func() error { return nil }); err != nil {
			yield(storage.Info{}, err)
			return
		}
		s.Store.List(ctx, prefix)(yield)
	}
}

// everyStop runs one action with every operation stopped in every way. The
// action gets a store to work on; check looks at what it left behind.
func everyStop(t *testing.T, prepare func(t *testing.T) *world, act func(w *world, s storage.Store) error, check func(t *testing.T, w *world, err error)) {
	for _, after := range []bool{false, true} {
		for _, dies := range []bool{false, true} {
			for at := 1; ; at++ {
				w := prepare(t)
				s := &stopping{Store: w.store, at: at, after: after, dies: dies}
				err := act(w, s)
				if at > s.count {
					if at == 1 || err != nil {
						t.Fatalf("after %d operations: %v", s.count, err)
					}
					break // no operation is left to stop
				}
				name := fmt.Sprintf("operation %d, took effect: %v, process died: %v", at, after, dies)
				t.Run(name, func(t *testing.T) { w.t = t; check(t, w, err) })
			}
		}
	}
}

func stores(t *testing.T, run func(t *testing.T, prepare func(t *testing.T) *world)) {
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		run(t, func(t *testing.T) *world { return newWorld(t, nil) })
	})
	t.Run("versioned", func(t *testing.T) {
		t.Parallel()
		run(t, func(t *testing.T) *world {
			w := newWorld(t, nil)
			w.store = memory.New(memory.WithClock(w.clock.now), memory.WithVersioning())
			return w
		})
	})
	t.Run("local", func(t *testing.T) {
		t.Parallel()
		run(t, func(t *testing.T) *world {
			s, err := local.New(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			return newWorld(t, s)
		})
	})
}

func TestACommitMayStopAfterAnyOperation(t *testing.T) {
	stores(t, func(t *testing.T, prepare func(t *testing.T) *world) {
		var draft *manifest.Manifest
		everyStop(t,
			func(t *testing.T) *world {
				w := prepare(t)
				w.backup(w.open(), drills, manifest.KindDrill)
				w.full(w.open())
				return w
			},
			func(w *world, s storage.Store) error { // two data objects and a manifest
				m, data := w.draft(drills, manifest.KindDrill)
				draft = m
				r := on(w.open(), s)
				if err := put(w.t.Context(), r, m, data); err != nil {
					return err
				}
				_, err := r.Commit(w.t.Context(), m)
				return err
			},
			func(t *testing.T, w *world, err error) {
				fresh := w.open()
				w.clean(fresh)
				v, loadErr := fresh.Load(t.Context(), drills)
				if loadErr != nil {
					t.Fatal(loadErr)
				}
				visible := v.Find(draft.ID) != nil
				if err == nil && !visible {
					t.Error("a commit that succeeded is not visible")
				}
				again, commitErr := fresh.Commit(t.Context(), draft) // the same once more, where its objects made it
				if commitErr == nil && visible && again.Sequence != 2 || commitErr != nil && visible {
					t.Errorf("again: %v, %v", again, commitErr)
				}
				w.backup(fresh, drills, manifest.KindDrill)
				w.clean(w.open())
			})
	})
}

func TestAPruneAndASweepMayStopAfterAnyOperation(t *testing.T) {
	prepare := func(t *testing.T) *world {
		w := newWorld(t, nil)
		for range 4 {
			w.full(w.open())
		}
		return w
	}
	oldest := func(w *world) []manifest.ID {
		v, err := w.open().Load(w.t.Context(), etcdMain)
		if err != nil {
			w.t.Fatal(err)
		}
		return []manifest.ID{v.Backups()[0].ID, v.Backups()[1].ID}
	}
	t.Run("prune", func(t *testing.T) {
		everyStop(t, prepare,
			func(w *world, s storage.Store) error {
				_, err := on(w.open(), s).Prune(w.t.Context(), etcdMain, oldest(w), PruneOptions{})
				return err
			},
			func(t *testing.T, w *world, err error) {
				fresh := w.open()
				w.clean(fresh)
				if n := len(w.ids(fresh)); n != 2 && (n != 4 || err == nil) {
					t.Errorf("%d backups after %v", n, err)
				}
				w.full(fresh)
				w.clean(w.open())
			})
	})
	t.Run("sweep", func(t *testing.T) {
		everyStop(t,
			func(t *testing.T) *world {
				w := prepare(t)
				if _, err := w.open().Prune(t.Context(), etcdMain, oldest(w), PruneOptions{}); err != nil {
					t.Fatal(err)
				}
				w.clock.forward(ManifestGrace + time.Hour)
				return w
			},
			func(w *world, s storage.Store) error {
				_, err := on(w.open(), s).Sweep(w.t.Context(), SweepOptions{})
				return err
			},
			func(t *testing.T, w *world, _ error) {
				fresh := w.open()
				w.clean(fresh)
				w.full(fresh)
				if _, err := fresh.Sweep(t.Context(), SweepOptions{}); err != nil {
					t.Error(err)
				}
				w.clean(w.open())
				if got := names(t, w.store, testCluster+"/etcd/main/manifests/"); len(got) != 4 {
					t.Errorf("left %v", got)
				}
				if n := len(w.ids(fresh)); n != 3 {
					t.Errorf("%d backups", n)
				}
			})
	})
}

func TestAnUnansweredCreateIsFoundByItsID(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r)
	m, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(t.Context(), r, m, data); err != nil {
		t.Fatal(err)
	}
	unanswered := &failingCreate{Store: w.store, after: true, times: 1}
	c, err := on(r, unanswered).Commit(t.Context(), m)
	if err != nil || c.Sequence != 2 {
		t.Fatalf("%+v, %v", c, err)
	}
	if got := names(t, w.store, testCluster+"/etcd/main/manifests/"); len(got) != 2 {
		t.Errorf("manifests %v", got)
	}
	w.clean(w.open())
}

func TestACreateThatFailsIsTriedAgainAndThenReported(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	m, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(t.Context(), r, m, data); err != nil {
		t.Fatal(err)
	}
	if _, err := on(r, &failingCreate{Store: w.store, times: 100}).Commit(t.Context(), m); !errors.Is(err, errStopped) {
		t.Errorf("always failing: %v", err)
	}
	full := &failingCreate{Store: w.store, times: 1, err: storage.ErrFull}
	if _, err := on(r, full).Commit(t.Context(), m); !errors.Is(err, storage.ErrFull) {
		t.Errorf("no space: %v", err)
	}
	if _, err := on(r, &failingCreate{Store: w.store, times: 2}).Commit(t.Context(), m); err != nil {
		t.Errorf("twice: %v", err)
	}
	w.clean(w.open())
}

// failingCreate fails the first creates of manifests.
type failingCreate struct {
	storage.Store
	after bool
	times int
	err   error
}

func (f *failingCreate) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	p, _ := locate(name[len(testCluster)+1:])
	if !p.manifest || f.times == 0 {
		return f.Store.Put(ctx, name, r, opts)
	}
	f.times--
	if f.after {
		if err := f.Store.Put(ctx, name, r, opts); err != nil {
			return err
		}
	}
	if f.err != nil {
		return f.err
	}
	return errStopped
}

// staleList leaves the newest manifests out of lists.
type staleList struct {
	storage.Store
	hide int
}

func (s *staleList) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	var infos []storage.Info
	for info, err := range s.Store.List(ctx, prefix) {
		if err != nil {
			break
		}
		infos = append(infos, info)
	}
	return func(yield func(storage.Info, error) bool) {
		hidden := 0
		for _, info := range slices.Backward(infos) {
			if p, ok := locate(info.Name[len(testCluster)+1:]); ok && p.manifest && hidden < s.hide {
				hidden++
				infos = slices.DeleteFunc(infos, func(i storage.Info) bool { return i.Name == info.Name })
			}
		}
		for _, info := range infos {
			if !yield(info, nil) {
				return
			}
		}
	}
}

func TestAStaleListHidesNothing(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	for range 4 {
		w.full(r)
	}
	stale := on(r, &staleList{Store: w.store, hide: 2})
	if ids := w.ids(stale); len(ids) != 4 {
		t.Errorf("backups %v", ids)
	}
	if c := w.full(stale); c.Sequence != 5 {
		t.Errorf("committed %d", c.Sequence)
	}
	w.clean(w.open())
}

// flipping flips a bit of every n-th read of a manifest.
type flipping struct {
	storage.Store
	mu    sync.Mutex
	every int
	count int
}

func (f *flipping) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, storage.Info, error) {
	body, info, err := f.Store.Open(ctx, name, rng)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.count++; err == nil && f.count%f.every == 0 {
		return &flippedBody{ReadCloser: body, at: f.count % 100}, info, nil
	}
	return body, info, err
}

type flippedBody struct {
	io.ReadCloser
	at   int
	done bool
}

func (f *flippedBody) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if n > f.at && !f.done {
		p[f.at] ^= 4
		f.done = true
	}
	return n, err
}

func TestABitThatFlipsOnTheWayCondemnsNoManifest(t *testing.T) {
	w := newWorld(t, nil)
	r := on(w.open(), &flipping{Store: w.store, every: 3})
	for range 10 {
		m, data := w.draft(etcdMain, manifest.KindFull)
		if err := put(t.Context(), r, m, data); err != nil {
			t.Fatal(err)
		}
		if c, err := r.Commit(t.Context(), m); err != nil || len(c.Manifest.Skipped) > 0 {
			t.Fatalf("%+v, %v", c, err)
		}
	}
	w.clean(w.open())
}
