package backup_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/backup"
	"lifeboat/backup/host"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/storage"
	"lifeboat/storage/fault"
	"lifeboat/storage/memory"
)

// TestOneStoreMayFailAtAnyOperation crashes one of two stores at each of its
// operations: the other commits, and minStores alone decides what that is worth.
func TestOneStoreMayFailAtAnyOperation(t *testing.T) {
	t.Parallel()
	config := sharedEtcd(t)
	w := newWorld(t)
	before := memory.New()
	first := mustEtcd(t, w.runner(t, before), config)
	for i, when := range fault.Moments {
		for n := 1; ; n++ {
			bad, good := fault.New(memory.New()), memory.New()
			duplicate(t, before, bad.Inner())
			duplicate(t, before, good)
			bad.CrashAt(n, when)
			r := w.runner(t, bad, good)
			r.MinStores = 1 + (n+i)%2 // each once at every operation
			result, err := r.Etcd(t.Context(), config, limits)
			if !bad.Crashed() {
				if err != nil || n < 8 {
					t.Fatalf("a backup of only %d operations, error %v", bad.Count(), err)
				}
				break
			}
			t.Run(fmt.Sprintf("operation %d, %s, %d of 2 needed", n, when, r.MinStores), func(t *testing.T) {
				if result == nil || len(result.Commits) != 2 {
					t.Fatalf("result %+v, error %v", result, err)
				}
				a, b := result.Commits[0], result.Commits[1]
				if a.Store != "a" || b.Store != "b" || b.Err != nil || b.Manifest == nil {
					t.Fatalf("commits %+v", result.Commits)
				}
				failed := a.Err != nil
				if failed != (a.Manifest == nil) || failed && !errors.Is(a.Err, fault.ErrCrashed) {
					t.Errorf("the crashed store has manifest %v, error %v", a.Manifest, a.Err)
				}
				if want := failed && r.MinStores == 2; (err != nil) != want || want && !errors.Is(err, backup.ErrTooFewStores) {
					t.Errorf("store a failed: %v, needed: %d, error: %v", failed, r.MinStores, err)
				}
				if err != nil && !errors.Is(err, fault.ErrCrashed) {
					t.Errorf("the error does not tell the store's: %v", err)
				}
				if result.Manifest.ID != b.Manifest.ID {
					t.Errorf("the result's manifest is %s, committed was %s", result.Manifest.ID, b.Manifest.ID)
				}
				w.verified(t, good)
				if list := w.backups(t, good); len(list) != 2 || list[0].ID != b.Manifest.ID {
					t.Errorf("in the good store: %v", ids(list))
				}
				w.verified(t, bad.Inner())
				list := w.backups(t, bad.Inner())
				if list[len(list)-1].ID != first.ID || len(list) > 2 || !failed && len(list) != 2 || len(list) == 2 && list[0].ID != b.Manifest.ID {
					t.Errorf("in the crashed store: %v", ids(list))
				}
				w.noScratch(t)
			})
		}
	}
}

// hanging is a store that stops answering.
type hanging struct {
	storage.Store
	hang func(op fault.Op, name string) bool
	deaf chan struct{} // not nil: the context is ignored until it is closed, as by a dead NFS server
}

func (h *hanging) wait(ctx context.Context, op fault.Op, name string) error {
	if !h.hang(op, name) {
		return nil
	}
	if h.deaf != nil {
		<-h.deaf
		return errors.New("the server is gone")
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func (h *hanging) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	if err := h.wait(ctx, fault.Put, name); err != nil {
		return err
	}
	return h.Store.Put(ctx, name, r, opts)
}

func (h *hanging) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, storage.Info, error) {
	if err := h.wait(ctx, fault.Open, name); err != nil {
		return nil, storage.Info{}, err
	}
	return h.Store.Open(ctx, name, rng)
}

func (h *hanging) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		if err := h.wait(ctx, fault.List, prefix); err != nil {
			yield(storage.Info{}, err)
			return
		}
		h.Store.List(ctx, prefix)(yield)
	}
}

func TestAHangingStoreIsLeftBehind(t *testing.T) {
	t.Parallel()
	config := sharedEtcd(t)
	cases := map[string]func(op fault.Op, name string) bool{
		"from the first byte": func(op fault.Op, name string) bool { return true },
		"at the snapshot":     func(op fault.Op, name string) bool { return op == fault.Put && strings.HasSuffix(name, ".age") },
		"at the commit":       func(op fault.Op, name string) bool { return op == fault.Put && strings.Contains(name, "/manifests/") },
		"at reading":          func(op fault.Op, name string) bool { return op == fault.Open },
		"at listing":          func(op fault.Op, name string) bool { return op == fault.List },
	}
	for name, hang := range cases {
		for _, deaf := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, deaf: %v", name, deaf), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				good, inner := memory.New(), memory.New()
				first := mustEtcd(t, w.runner(t, inner, good), config)
				bad := &hanging{Store: inner, hang: hang}
				if deaf {
					bad.deaf = make(chan struct{})
					t.Cleanup(func() { close(bad.deaf) })
				}
				r := w.runner(t, bad, good) // the hanging one first
				r.StoreStall = time.Second
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				result, err := r.Etcd(ctx, config, limits)
				if err != nil {
					t.Fatal(err)
				}
				if ctx.Err() != nil {
					t.Error("it waited for the hanging store")
				}
				if a, b := result.Commits[0], result.Commits[1]; b.Err != nil || !errors.Is(a.Err, storage.ErrStalled) {
					t.Errorf("the hanging store's error: %v; the other's: %v", a.Err, b.Err)
				}
				w.noScratch(t)
				w.verified(t, good)
				if list := w.backups(t, good); len(list) != 2 || list[1].ID != first.ID {
					t.Errorf("in the good store: %v", ids(list))
				}
				if !deaf { // a deaf one may still be at it
					w.verified(t, inner)
					if list := w.backups(t, inner); len(list) != 1 {
						t.Errorf("in the hanging store: %v", ids(list))
					}
				}
			})
		}
	}
}

func TestAllStoresDownIsAnErrorThatLeavesNothing(t *testing.T) {
	t.Parallel()
	config := sharedEtcd(t)
	for _, when := range fault.Moments {
		t.Run(when.String(), func(t *testing.T) {
			w := newWorld(t)
			a, b := fault.New(memory.New()), fault.New(memory.New())
			r := w.runner(t, a, b)
			a.CrashAt(1, when)
			b.CrashAt(1, fault.Before)
			_, err := r.Etcd(t.Context(), config, limits)
			if !errors.Is(err, fault.ErrCrashed) {
				t.Errorf("got %v, want the stores' error", err)
			}
			if a.Count() > 2 || b.Count() > 2 { // a Put, and the look whether it took effect
				t.Errorf("the stores were asked again:\n%v\n%v", a.Trace(), b.Trace())
			}
			w.noScratch(t)
			if n := len(objects(t, a.Inner())); n > 0 && when != fault.After {
				t.Errorf("%d objects are left", n)
			}
			for _, store := range []storage.Store{a.Inner(), b.Inner()} {
				w.verified(t, store)
				if list := w.backups(t, store); len(list) != 0 {
					t.Errorf("listed: %v", ids(list))
				}
				mustEtcd(t, w.runner(t, store), config)
				w.verified(t, store)
			}
		})
	}
}

func TestAStoreThatCouldNotBeOpenedIsReported(t *testing.T) {
	t.Parallel()
	config := sharedEtcd(t)
	closed := errors.New("no such bucket")
	for _, test := range []struct {
		name          string
		open, min     int
		works, commit bool
	}{
		{name: "one of two is enough", open: 1, min: 1, works: true, commit: true},
		{name: "two of two are needed", open: 1, min: 2, commit: true},
		{name: "none could be opened", open: 0, min: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			store := memory.New()
			r := w.runner(t, store)
			if test.open == 0 {
				r.Stores = nil
			}
			r.Stores = append([]backup.Store{{URL: "s3://closed", Err: closed}}, r.Stores...)
			r.MinStores = test.min
			result, err := r.Etcd(t.Context(), config, limits)
			if test.works != (err == nil) || err != nil && !errors.Is(err, closed) {
				t.Errorf("error %v", err)
			}
			if list := w.backups(t, store); (len(list) == 1) != test.commit {
				t.Errorf("listed: %v", ids(list))
			}
			if test.commit && (!errors.Is(result.Commits[0].Err, closed) || result.Commits[0].Store != "s3://closed" || result.Commits[1].Err != nil) {
				t.Errorf("commits %+v", result.Commits)
			}
			if told := w.events.all(); test.commit && !strings.Contains(told, "s3://closed: no such bucket") {
				t.Errorf("told: %s", told)
			}
			w.noScratch(t)
		})
	}
}

func TestABackupOfFilesThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	options := host.Options{Root: smallNode(t), Node: node, Now: time.Now}
	t.Run("all stores down", func(t *testing.T) {
		w, store := newWorld(t), fault.New(memory.New())
		store.Crash()
		if _, err := w.runner(t, store).Files(t.Context(), options, nil); !errors.Is(err, fault.ErrCrashed) {
			t.Errorf("got %v", err)
		}
		if left := objects(t, store.Inner()); len(left) != 0 {
			t.Errorf("left %q", left)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		w, store := newWorld(t), directory(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w.events.hook = func(e events.Event) {
			if started, ok := e.(events.StageStarted); ok && started.Stage == "seal" {
				cancel()
			}
		}
		if _, err := w.runner(t, store).Files(ctx, options, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if left := objects(t, store); len(left) != 0 {
			t.Errorf("left %q", left)
		}
	})
	t.Run("one of two hangs", func(t *testing.T) {
		w, good := newWorld(t), memory.New()
		bad := &hanging{Store: memory.New(), hang: func(fault.Op, string) bool { return true }}
		r := w.runner(t, bad, good)
		r.StoreStall = time.Second
		result, err := r.Files(t.Context(), options, nil)
		if err != nil || !errors.Is(result.Commits[0].Err, storage.ErrStalled) || result.Commits[1].Err != nil {
			t.Errorf("%+v, %v", result, err)
		}
		w.verified(t, good)
	})
	t.Run("no such root", func(t *testing.T) {
		w, store := newWorld(t), memory.New()
		gone := options
		gone.Root = filepath.Join(t.TempDir(), "gone")
		if _, err := w.runner(t, store).Files(t.Context(), gone, nil); err == nil {
			t.Error("a backup of nothing succeeded")
		}
		if left := objects(t, store); len(left) != 0 {
			t.Errorf("left %q", left)
		}
	})
}

func TestWhatIsMissingIsToldInAFewLines(t *testing.T) {
	t.Parallel()
	for _, reasons := range []int{1, 4, 5, 40} {
		w, store := newWorld(t), memory.New()
		options := host.Options{Root: smallNode(t), Node: node, Now: time.Now}
		uses := []manifest.KeyUse{} // of keys that no file holds
		for i := range reasons {
			uses = append(uses, manifest.KeyUse{Provider: "aescbc", Key: fmt.Sprintf("key%d", i), Objects: 1, Example: "/registry/secrets/a/b"})
		}
		result, err := w.runner(t, store).Files(t.Context(), options, uses)
		if err != nil || len(result.Manifest.Degraded) < reasons {
			t.Fatalf("%d reasons: %+v, %v", reasons, result, err)
		}
		told, all := strings.Split(w.events.all(), "\n"), len(result.Manifest.Degraded)
		if len(told) != min(all, 4) {
			t.Errorf("%d reasons: told %q", all, told)
		}
		if more := fmt.Sprintf("degraded for %d more reasons: lifeboat show %s", all-3, result.Manifest.ID); strings.Contains(told[len(told)-1], more) != (all > 4) {
			t.Errorf("%d reasons: the last line is %q", all, told[len(told)-1])
		}
	}
}
