package backup_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lifeboat/backup"
	"lifeboat/backup/host"
	"lifeboat/internal/manifest"
	"lifeboat/storage"
	"lifeboat/storage/fault"
	"lifeboat/storage/memory"
)

// crashStores are the kinds of stores that a backup is crashed over.
var crashStores = map[string]func(t testing.TB) storage.Store{
	"memory":    func(testing.TB) storage.Store { return memory.New(memory.WithVersioning()) },
	"directory": func(t testing.TB) storage.Store { return directory(t) },
}

// TestABackupOfEtcdMayStopAfterAnyOperation crashes the second backup at each
// of its operations on the store in turn, in every way that the operation can
// end. fault.Store fails all that comes after, as for a process that is dead.
func TestABackupOfEtcdMayStopAfterAnyOperation(t *testing.T) {
	config := sharedEtcd(t)
	everyCrash(t, func(t *testing.T, r *backup.Runner) (*backup.Result, error) {
		return r.Etcd(t.Context(), config, limits)
	}, func(t *testing.T, w *world, store storage.Store, newest *manifest.Manifest) {
		w.restored(t, store, newest)
	})
}

func TestABackupOfFilesMayStopAfterAnyOperation(t *testing.T) {
	root := smallNode(t)
	everyCrash(t, func(t *testing.T, r *backup.Runner) (*backup.Result, error) {
		return r.Files(t.Context(), host.Options{Root: root, Node: node, Now: time.Now}, nil)
	}, func(t *testing.T, w *world, store storage.Store, newest *manifest.Manifest) {
		if report := w.opened(t, store, newest); report.Files == 0 {
			t.Error("the archive holds no file")
		}
	})
}

// smallNode is the root of a node with next to nothing on it.
func smallNode(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	folder := filepath.Join(root, "etc/kubernetes")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "admin.conf"), []byte("apiVersion: v1\nkind: Config\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return root
}

// everyCrash checks the promise of a crash: whatever is listed is whole and
// comes back, and the next backup does not mind.
func everyCrash(t *testing.T, act func(*testing.T, *backup.Runner) (*backup.Result, error), comesBack func(*testing.T, *world, storage.Store, *manifest.Manifest)) {
	for name, empty := range crashStores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			before := empty(t)
			first, err := act(t, w.runner(t, before))
			if err != nil {
				t.Fatal(err)
			}
			for _, when := range fault.Moments {
				for n := 1; ; n++ {
					store := fault.New(empty(t))
					duplicate(t, before, store.Inner())
					store.CrashAt(n, when)
					second, err := act(t, w.runner(t, store))
					if !store.Crashed() {
						if err != nil || n < 8 {
							t.Fatalf("a backup of only %d operations, error %v", store.Count(), err)
						}
						break // that was one more than a backup has
					}
					t.Run(fmt.Sprintf("operation %d, %s", n, when), func(t *testing.T) {
						t.Logf("stopped at %v", store.Trace()[n-1])
						afterCrash(t, w, store.Inner(), first.Manifest, second, err, act, comesBack)
					})
				}
			}
		})
	}
}

func afterCrash(t *testing.T, w *world, store storage.Store, first *manifest.Manifest, second *backup.Result, err error,
	act func(*testing.T, *backup.Runner) (*backup.Result, error), comesBack func(*testing.T, *world, storage.Store, *manifest.Manifest)) {
	w.noScratch(t)
	w.verified(t, store)
	list := w.backups(t, store)
	switch {
	case err != nil && !errors.Is(err, fault.ErrCrashed):
		t.Errorf("the error does not tell the store's: %v", err)
	case err == nil && (len(list) != 2 || list[0].ID != second.Manifest.ID):
		t.Errorf("a backup that succeeded is not listed first: %v", ids(list))
	case len(list) != 1 && len(list) != 2, list[len(list)-1].ID != first.ID:
		t.Fatalf("%v are listed, want %s and at most one more", ids(list), first.ID)
	}
	comesBack(t, w, store, list[0].Manifest)

	third, err := act(t, w.runner(t, store))
	if err != nil {
		t.Fatalf("the next backup: %v", err)
	}
	w.noScratch(t)
	w.verified(t, store)
	after := w.backups(t, store)
	if len(after) != len(list)+1 || after[0].ID != third.Manifest.ID {
		t.Fatalf("after the next backup %s, %v are listed, before %v", third.Manifest.ID, ids(after), ids(list))
	}
}

// TestOneFailureIsOutlivedOrReported fails one operation of a process that
// lives on. It may try again, and must know in the end whether it has
// committed.
func TestOneFailureIsOutlivedOrReported(t *testing.T) {
	t.Parallel()
	config := sharedEtcd(t)
	w := newWorld(t)
	before := memory.New()
	first := mustEtcd(t, w.runner(t, before), config)
	for _, when := range fault.Moments {
		outlived := 0
		for n := 1; ; n++ {
			store := fault.New(memory.New())
			duplicate(t, before, store.Inner())
			store.FailAt(n, when, nil)
			result, err := w.runner(t, store).Etcd(t.Context(), config, limits)
			if store.Count() < n {
				break
			}
			t.Run(fmt.Sprintf("operation %d, %s", n, when), func(t *testing.T) {
				w.noScratch(t)
				w.verified(t, store.Inner())
				list := w.backups(t, store.Inner())
				switch {
				case err == nil && (len(list) != 2 || list[0].ID != result.Manifest.ID):
					t.Errorf("a backup that succeeded is not listed first: %v", ids(list))
				case err == nil:
					outlived++
				case !errors.Is(err, fault.ErrInjected):
					t.Errorf("the error does not tell the store's: %v", err)
				case len(list) != 1 && len(list) != 2, list[len(list)-1].ID != first.ID:
					t.Errorf("listed: %v", ids(list))
				}
			})
		}
		if outlived == 0 {
			t.Errorf("no failure %s an operation was outlived", when)
		}
	}
}
