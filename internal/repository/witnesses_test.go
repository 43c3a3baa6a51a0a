package repository

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
	"lifeboat/storage/memory"
)

// named opens the world's store as a machine would that has never seen it.
func (w *world) named(name string) *Repository {
	return w.open(func(o *Options) { o.Name = name })
}

// rounds backs up etcd and a node's files n times.
func (w *world) rounds(r *Repository, n int) (fulls []*Committed) {
	for range n {
		fulls = append(fulls, w.full(r))
		w.backup(r, hostsCP1, manifest.KindFiles)
	}
	return fulls
}

// refusedFor checks that the latest is refused because of an object, that the
// error says what can be had instead, and that it can be had.
func (w *world) refusedFor(r *Repository, object string, instead *Committed) {
	w.t.Helper()
	m, err := r.Resolve(w.t.Context(), etcdMain, Point{})
	if !errors.Is(err, ErrVerification) || !strings.Contains(err.Error(), object) {
		w.t.Fatalf("the latest is %v, %v", m, err)
	}
	if instead == nil {
		return
	}
	if id := instead.Manifest.ID; !strings.Contains(err.Error(), string(id)) {
		w.t.Errorf("no way out in %v", err)
	} else if m, err := r.Resolve(w.t.Context(), etcdMain, Point{Backup: id}); err != nil || m.ID != id {
		w.t.Errorf("by its id: %v, %v", m, err)
	}
}

func TestAFreshMachineMissesARemovedNewestManifest(t *testing.T) {
	for name, rounds := range map[string]int{"of a short chain": 2, "of a long one": 30} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			fulls := w.rounds(r, rounds)
			newest := w.stored(r, etcdMain, manifest.Sequence(rounds))
			kept := get(t, w.store, newest)
			remove(t, w.store, newest)
			w.refusedFor(w.open(), newest, fulls[rounds-2])
			wantProblem(t, w.failures(w.open()), newest, RolledBack)

			// Junk that lies far ahead doesn't cover the witnesses.
			for i := range 20 {
				set(t, w.store, w.stored(r, hostsCP1, manifest.Sequence(1000+i)), []byte("junk"))
			}
			w.refusedFor(w.open(), newest, fulls[rounds-2])
			set(t, w.store, newest, kept)
			if m, err := w.open().Resolve(t.Context(), etcdMain, Point{}); err != nil || m.ID != fulls[rounds-1].Manifest.ID {
				t.Errorf("whole again: %v, %v", m, err)
			}
		})
	}
}

func TestAFreshMachineMissesARemovedChain(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.rounds(r, 6)
	for _, name := range names(t, w.store, testCluster+"/etcd/") {
		remove(t, w.store, name)
	}
	w.refusedFor(w.open(), testCluster+"/etcd/main/manifests/", nil)
	wantProblem(t, w.failures(w.open()), w.stored(r, etcdMain, 6), RolledBack)
}

// busy runs something whenever a listing has ended.
type busy struct {
	storage.Store
	once *sync.Once
	then func()
}

func (b busy) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		for info, err := range b.Store.List(ctx, prefix) {
			if !yield(info, err) {
				return
			}
		}
		b.once.Do(b.then)
	}
}

func TestCommitsWhileResolvingAreNoRollback(t *testing.T) {
	w := newWorld(t, nil)
	w.rounds(w.open(), 6)
	r := on(w.open(), busy{w.store, new(sync.Once), func() { w.rounds(w.open(), 3) }})
	if m, err := r.Resolve(t.Context(), etcdMain, Point{}); err != nil || m.Sequence < 6 {
		t.Errorf("got %v, %v", m, err)
	}
}

func TestACopyOfAStoreHasTheSameWitnesses(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	fulls := w.rounds(r, 12)
	w.clean(w.named("file:///mnt/copy"))
	newest := w.stored(r, etcdMain, 12)
	remove(t, w.store, newest)
	w.refusedFor(w.named("file:///mnt/copy"), newest, fulls[10])
	wantProblem(t, w.failures(w.named("file:///mnt/copy")), newest, RolledBack)
	for _, seq := range []manifest.Sequence{10, 11, 12} {
		remove(t, w.store, w.stored(r, hostsCP1, seq))
	}
	wantProblem(t, w.failures(w.named("file:///mnt/copy")), w.stored(r, hostsCP1, 10), RolledBack) // as full 11 saw it
}

func TestASiblingStoresHeadsAreNoWitnesses(t *testing.T) {
	// Each store's manifests carry the other's heads, and the two differ in
	// length: one of them was away for a while.
	for name, chains := range map[string][]manifest.Chain{"of two chains": {etcdMain, hostsCP1}, "of one chain": {etcdMain}} {
		t.Run(name, func(t *testing.T) {
			one := newWorld(t, nil)
			two := newWorld(t, memory.New(memory.WithClock(one.clock.now)))
			two.clock, two.rand, two.signer, two.trust = one.clock, one.rand, one.signer, one.trust
			a, b := one.named("s3://a"), two.named("s3://b")
			both := func(to ...*Repository) {
				for _, chain := range chains {
					kind := manifest.KindFull
					if chain == hostsCP1 {
						kind = manifest.KindFiles
					}
					draft, data := one.draft(chain, kind)
					known := append(a.Heads(), b.Heads()...)
					for _, r := range to {
						m := *draft
						m.Heads = slices.DeleteFunc(slices.Clone(known), func(h manifest.Head) bool { return h.Store == r.Name() && h.Chain == chain })
						if err := put(t.Context(), r, &m, data); err != nil {
							t.Fatal(err)
						}
						if _, err := r.Commit(t.Context(), &m); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			for i := range 12 {
				switch {
				case i >= 4 && i < 8:
					both(a)
				default:
					both(a, b)
				}
				for _, w := range []*world{one, two} {
					for _, name := range []string{"s3://a", "s3://b", "file:///copy"} {
						if name == "s3://b" && w == one || name == "s3://a" && w == two {
							continue
						}
						w.clean(w.named(name))
						if m, err := w.named(name).Resolve(t.Context(), etcdMain, Point{}); err != nil {
							t.Errorf("round %d, %s: %v, %v", i, name, m, err)
						}
					}
				}
			}
			if len(chains) == 2 {
				remove(t, two.store, two.stored(b, etcdMain, 8))
				two.refusedFor(two.named("file:///copy"), two.stored(b, etcdMain, 8), nil)
				remove(t, one.store, one.stored(a, etcdMain, 12))
				one.refusedFor(one.named("file:///copy"), one.stored(a, etcdMain, 12), nil)
			}
		})
	}
}

func TestCommitsWhileListingAreNoRollback(t *testing.T) {
	w := newWorld(t, nil)
	w.rounds(w.open(), 6)
	for _, after := range []string{"/etcd/main/manifests/", "/hosts/cp1/data/"} {
		r := on(w.open(), &midway{Store: w.store, after: after, then: func() { w.rounds(w.open(), 3) }})
		backups, problems, err := r.Backups(t.Context())
		if err != nil || len(Failures(problems)) > 0 {
			t.Errorf("after %s: %d backups, %v, %v", after, len(backups), problems, err)
		}
	}
}

// midway runs something when a listing has passed a name.
type midway struct {
	storage.Store
	after string
	once  sync.Once
	then  func()
}

func (m *midway) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		var all []storage.Info
		passed := false
		for info, err := range m.Store.List(ctx, prefix) {
			if err != nil {
				yield(storage.Info{}, err)
				return
			}
			all = append(all, info)
		}
		for _, info := range all {
			at := strings.Contains(info.Name, m.after)
			if passed && !at {
				m.once.Do(m.then)
			}
			passed = passed || at
			if !yield(info, nil) {
				return
			}
		}
	}
}
