package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

func (w *world) prune(r *Repository, chain manifest.Chain, remove ...manifest.ID) *Pruned {
	w.t.Helper()
	p, err := r.Prune(w.t.Context(), chain, remove, PruneOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.clock.forward(time.Minute)
	return p
}

func (w *world) sweep(r *Repository) *Swept {
	w.t.Helper()
	s, err := r.Sweep(w.t.Context(), SweepOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	if len(s.Problems) > 0 {
		w.t.Fatalf("sweep found %v", s.Problems)
	}
	return s
}

func (w *world) fulls(r *Repository, n int) []*Committed {
	w.t.Helper()
	var list []*Committed
	for range n {
		list = append(list, w.full(r))
	}
	return list
}

// manifests lists the sequences that are stored of etcd/main.
func (w *world) manifests() []manifest.Sequence {
	var seqs []manifest.Sequence
	for _, name := range names(w.t, w.store, testCluster+"/etcd/main/manifests/") {
		p, _ := locate(strings.TrimPrefix(name, testCluster+"/"))
		seqs = append(seqs, p.seq)
	}
	return seqs
}

func TestAPruneIsAPromiseThatTheSweepKeepsInTime(t *testing.T) {
	for name, test := range map[string]struct {
		remove []int // of six fulls
		base   manifest.Sequence
		left   []manifest.Sequence // manifests, after all
	}{
		"the oldest":         {[]int{0, 1, 2}, 4, []manifest.Sequence{4, 5, 6, 7, 8}},
		"some in the middle": {[]int{1, 3, 4}, 1, []manifest.Sequence{1, 3, 6, 7, 8}},
		"the newest but one": {[]int{4}, 1, []manifest.Sequence{1, 2, 3, 4, 6, 7, 8}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			fulls := w.fulls(r, 6)
			var remove []manifest.ID
			for _, i := range test.remove {
				remove = append(remove, fulls[i].Manifest.ID)
			}
			objects := len(names(t, w.store, testCluster+"/etcd/main/data/"))
			p := w.prune(r, etcdMain, remove...)
			if p.Commit == nil || p.Commit.Manifest.Prune.Base != test.base || !slices.Equal(p.Removed, remove) || len(p.Objects) != len(remove) || len(p.Dropped) != 0 {
				t.Fatalf("pruned %+v", p)
			}
			if again := w.prune(r, etcdMain); again.Commit != nil {
				t.Errorf("nothing is left to prune, but %+v", again)
			}
			check := func(when string, wantObjects int) {
				t.Helper()
				fresh := w.open()
				w.clean(fresh)
				if ids := w.ids(fresh); len(ids) != 6-len(remove) || slices.ContainsFunc(ids, func(id manifest.ID) bool { return slices.Contains(remove, id) }) {
					t.Errorf("%s: backups %v", when, ids)
				}
				if _, err := fresh.Resolve(t.Context(), etcdMain, Point{Backup: remove[0]}); !errors.Is(err, ErrNothing) {
					t.Errorf("%s: a removed backup resolves: %v", when, err)
				}
				if m, err := fresh.Resolve(t.Context(), etcdMain, Point{}); err != nil || m.Sequence != 6 {
					t.Errorf("%s: the latest is %v, %v", when, m, err)
				}
				if n := len(names(t, w.store, testCluster+"/etcd/main/data/")); n != wantObjects {
					t.Errorf("%s: %d data objects", when, n)
				}
			}
			check("after the prune", objects)
			w.clock.forward(ObjectGrace - time.Minute)
			if s := w.sweep(r); s.Objects+s.Manifests != 0 || s.Waiting != 2*len(remove) {
				t.Errorf("swept too early: %+v", s)
			}
			w.clock.forward(2 * skewMargin)
			if s := w.sweep(r); s.Objects != len(remove) || s.Manifests != 0 || s.Bytes != p.Bytes {
				t.Errorf("objects: %+v", s)
			}
			check("after the first sweep", objects-len(remove))
			w.clock.forward(ManifestGrace)
			if s := w.sweep(r); s.Objects != 0 || s.Manifests != len(remove) || s.Waiting != 0 {
				t.Errorf("manifests: %+v", s)
			}
			check("after the second sweep", objects-len(remove))
			if c := w.full(w.open()); c.Sequence != 8 {
				t.Errorf("committed %d", c.Sequence)
			}
			w.clean(w.open())
			if got := w.manifests(); !slices.Equal(got, test.left) {
				t.Errorf("manifests %v, want %v", got, test.left)
			}
		})
	}
}

func TestAPruneRefusesToRemoveWhatMustStay(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	proved := w.full(r)
	unproved := w.full(r, func(m *manifest.Manifest) { m.Unproved = []string{"no scratch"} })
	try := func(want error, remove ...manifest.ID) {
		t.Helper()
		if _, err := r.Prune(t.Context(), etcdMain, remove, PruneOptions{}); !errors.Is(err, want) {
			t.Errorf("remove %v: %v", remove, err)
		}
	}
	try(ErrRefused, proved.Manifest.ID) // the newest proved, though not the newest
	try(ErrRefused, proved.Manifest.ID, unproved.Manifest.ID)
	try(ErrNothing, w.id())
	newer := w.full(r)
	try(ErrRefused, newer.Manifest.ID)
	try(nil, proved.Manifest.ID, unproved.Manifest.ID)
	try(ErrRefused, newer.Manifest.ID) // now the last
	w.clean(w.open())
	w.open(func(o *Options) { o.Signer = nil })
	if _, err := w.open(func(o *Options) { o.Signer = nil }).Prune(t.Context(), etcdMain, nil, PruneOptions{}); !errors.Is(err, ErrNoSigner) {
		t.Errorf("without a signer: %v", err)
	}
}

func TestYearsOfBackupsAndPrunesStaySmallAndClean(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	first := w.full(r)
	for day := range 40 {
		c := w.full(r)
		w.clock.forward(24 * time.Hour)
		v, err := w.open().Load(t.Context(), etcdMain)
		if err != nil || len(v.Failures()) > 0 {
			t.Fatal(err, v.Failures())
		}
		var remove []manifest.ID // keep the first for ever, and the last five
		backups := v.Backups()
		for _, b := range backups[1:max(1, len(backups)-5)] {
			remove = append(remove, b.ID)
		}
		w.prune(r, etcdMain, remove...)
		w.sweep(r)
		if day%10 == 9 {
			w.clean(w.open())
		}
		if head := w.ids(w.open())[0]; head != c.Manifest.ID {
			t.Fatalf("day %d: the newest is %s", day, head)
		}
	}
	ids := w.ids(w.open())
	if len(ids) != 6 || ids[5] != first.Manifest.ID {
		t.Errorf("backups %v", ids)
	}
	if n := len(w.manifests()); n > 35 { // a week of daily manifests, named by a week of prunes
		t.Errorf("%d manifests: %v", n, w.manifests())
	}
	if n := len(names(t, w.store, testCluster+"/etcd/main/data/")); n > 8 {
		t.Errorf("%d data objects", n)
	}
}

func TestAnObjectThatTheStoreProtectsIsLeftForLater(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	m, data := w.draft(etcdMain, manifest.KindFull)
	until := w.clock.now().Add(30 * 24 * time.Hour)
	for name, b := range data {
		if err := r.PutObject(t.Context(), name, strings.NewReader(string(b)), until); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Commit(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	w.full(r)
	w.prune(r, etcdMain, m.ID)
	w.clock.forward(ObjectGrace + time.Hour)
	if s := w.sweep(r); s.Objects != 0 || len(s.Protected) != 1 {
		t.Errorf("swept %+v", s)
	}
	w.clock.forward(30 * 24 * time.Hour)
	if s := w.sweep(r); s.Objects != 1 || len(s.Protected) != 0 {
		t.Errorf("swept %+v", s)
	}
	w.clean(w.open())
}

func TestALockedBackupIsNotPromisedForDeletion(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	until := w.clock.now().Add(30 * 24 * time.Hour)
	locked := w.full(r, func(m *manifest.Manifest) { m.RetainUntil = &until })
	w.fulls(r, 2)
	remove := []manifest.ID{locked.Manifest.ID}
	w.clock.forward(29 * 24 * time.Hour)
	for _, opts := range []PruneOptions{{}, {DryRun: true}, {AcceptLosses: true}} {
		if p, err := r.Prune(t.Context(), etcdMain, remove, opts); !errors.Is(err, ErrRefused) {
			t.Errorf("%+v: pruned %+v, %v", opts, p, err)
		}
	}
	w.clock.forward(24 * time.Hour)
	// The clock that is behind decides, whichever it is.
	if p, err := w.ahead(-4*time.Minute).Prune(t.Context(), etcdMain, remove, PruneOptions{}); !errors.Is(err, ErrRefused) {
		t.Errorf("by a clock that is behind: %+v, %v", p, err)
	}
	if p := w.prune(r, etcdMain, remove...); len(p.Removed) != 1 || p.Manifests != 1 {
		t.Errorf("pruned %+v", p)
	}
	w.clean(w.open())
}

// takePlaceAndSweepIt lets others go on while a writer sleeps: of their three
// backups the first, in the place that it is about to take, is pruned and swept.
func (w *world) takePlaceAndSweepIt() *Repository {
	w.t.Helper()
	w.clock.forward(30 * time.Minute)
	r := w.open()
	fulls := w.fulls(r, 3)
	w.prune(r, etcdMain, fulls[0].Manifest.ID)
	w.clock.forward(ManifestGrace + time.Hour)
	w.sweep(r)
	return r
}

func TestWhatLostItsPlaceInTheChainStaysWhileItIsLocked(t *testing.T) {
	w := newWorld(t, nil)
	until := w.clock.now().Add(30 * 24 * time.Hour)
	w.full(w.open())
	m, data := w.draft(etcdMain, manifest.KindFull)
	m.RetainUntil = &until
	writer := on(w.paused(), &beforePut{Store: w.store, f: func(string) {
		w.takePlaceAndSweepIt()
	}})
	if err := put(t.Context(), writer, m, data); err != nil {
		t.Fatal(err)
	}
	if _, err := writer.Commit(t.Context(), m); err != nil { // in place 2, in vain, and then in another
		t.Fatal(err)
	}
	if got := w.manifests(); !slices.Contains(got, 2) {
		t.Fatalf("manifests %v", got)
	}
	names := func(p *Pruned) bool {
		return p.Commit != nil && slices.ContainsFunc(p.Commit.Manifest.Prune.Manifests, func(e manifest.Entry) bool { return e.Sequence == 2 })
	}
	if p := w.prune(w.open(), etcdMain); names(p) || slices.Contains(p.Objects, m.Objects[0].Name) {
		t.Errorf("a locked one was promised for deletion: %+v", p)
	}
	w.clean(w.open())
	w.clock.forward(30 * 24 * time.Hour)
	if p := w.prune(w.open(), etcdMain); !names(p) || slices.Contains(p.Objects, m.Objects[0].Name) { // which the second place names
		t.Errorf("pruned %+v", p)
	}
	w.clean(w.open())
}

func TestADryRunDecidesAsAPruneDoesAndChangesNothing(t *testing.T) {
	w := newWorld(t, nil)
	fulls := w.fulls(w.open(), 4)
	garbage, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(t.Context(), w.open(), garbage, data); err != nil {
		t.Fatal(err)
	}
	w.clock.forward(2 * time.Hour)
	remove := []manifest.ID{fulls[0].Manifest.ID, fulls[2].Manifest.ID}
	reader := w.open(func(o *Options) { o.Signer = nil })
	before := names(t, w.store, "")
	dry, err := reader.Prune(t.Context(), etcdMain, remove, PruneOptions{DryRun: true})
	if err != nil || dry.Commit != nil {
		t.Fatalf("%+v, %v", dry, err)
	}
	if after := names(t, w.store, ""); !slices.Equal(after, before) {
		t.Errorf("a dry run left %v, not %v", after, before)
	}
	p := w.prune(w.open(), etcdMain, remove...)
	if !slices.Equal(dry.Removed, p.Removed) || !slices.Equal(dry.Dropped, p.Dropped) || !slices.Equal(dry.Objects, p.Objects) ||
		dry.Bytes != p.Bytes || dry.Manifests != p.Manifests || len(p.Objects) != 3 {
		t.Errorf("said %+v, did %+v", dry, p)
	}
	w.clock.forward(ManifestGrace + time.Hour)
	said, err := reader.Sweep(t.Context(), SweepOptions{DryRun: true})
	if err != nil || len(names(t, w.store, "")) != len(before)+1 {
		t.Errorf("%v; %v", err, names(t, w.store, ""))
	}
	if did := w.sweep(w.open()); said.Objects != did.Objects || said.Manifests != did.Manifests || said.Bytes != did.Bytes || did.Objects != 3 {
		t.Errorf("said %+v, did %+v", said, did)
	}
}

func TestWhatToRemoveIsAskedOfEachView(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.fulls(r, 3)
	asked := 0
	pruner := on(w.open(), &beforePut{Store: w.store, f: func(string) { w.full(w.open()) }})
	p, err := pruner.Prune(t.Context(), etcdMain, nil, PruneOptions{Choose: func(backups []Backup, now time.Time) []manifest.ID {
		if asked++; len(backups) != 2+asked || now.After(w.clock.now()) {
			t.Errorf("asked of %d backups at %s", len(backups), now)
		}
		return []manifest.ID{backups[len(backups)-2].ID} // the newest but one, whichever that is
	}})
	if err != nil || asked != 2 {
		t.Fatalf("asked %d times, %v", asked, err)
	}
	if got := p.Commit.Manifest.Prune.Manifests; len(got) != 1 || got[0].Sequence != 3 {
		t.Errorf("named %v", got)
	}
	w.clean(w.open())
}

func TestAKeyThatMayNotPruneIsToldSo(t *testing.T) {
	w := newWorld(t, nil)
	fulls := w.fulls(w.open(), 2)
	writer, elsewhere, stranger := w.newSigner("writer"), w.newSigner("elsewhere"), w.newSigner("stranger")
	trust := w.trusting(testCluster, w.signer, writer, elsewhere)
	trust.Verifiers[1].Kinds = []string{"full", "files"}
	trust.Verifiers[2].Chains = []string{"hosts/*"}
	before := w.manifests()
	for _, signer := range []*manifest.Signer{writer, elsewhere, stranger} {
		r := w.open(func(o *Options) { o.Trust, o.Signer = trust, signer })
		if p, err := r.Prune(t.Context(), etcdMain, []manifest.ID{fulls[0].Manifest.ID}, PruneOptions{}); !errors.Is(err, ErrMayNotPrune) {
			t.Errorf("%s pruned %+v, %v", signer.Name(), p, err)
		}
	}
	if got := w.manifests(); !slices.Equal(got, before) {
		t.Errorf("manifests %v", got)
	}
}

// deleting counts deletions and may refuse them.
type deleting struct {
	storage.Store
	err   error
	count atomic.Int64
}

func (d *deleting) Delete(ctx context.Context, name string) error {
	if d.count.Add(1); d.err != nil {
		return d.err
	}
	return d.Store.Delete(ctx, name)
}

func TestASweepThatMayNotDeleteSaysSoAndStops(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	var remove []manifest.ID
	for _, c := range w.fulls(r, 100)[:99] {
		remove = append(remove, c.Manifest.ID)
	}
	w.prune(r, etcdMain, remove...)
	w.clock.forward(ObjectGrace + time.Hour)
	w.tick() // for the store below hides that it tells the time
	store := &deleting{Store: w.store, err: fmt.Errorf("delete: %w", storage.ErrPermission)}
	s, err := on(r, store).Sweep(t.Context(), SweepOptions{})
	if !errors.Is(err, storage.ErrPermission) || s.Objects != 0 {
		t.Errorf("swept %+v, %v", s, err)
	}
	if n := store.count.Load(); n > 2*deletes {
		t.Errorf("%d attempts", n)
	}
	w.clean(w.open())
	if s := w.sweep(r); s.Objects != 99 { // by somebody who may
		t.Errorf("swept %+v", s)
	}
}

func TestASweepOfSomeChainsLeavesTheOthers(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	for _, chain := range []manifest.Chain{etcdMain, hostsCP1} {
		kind := manifest.KindFull
		if chain == hostsCP1 {
			kind = manifest.KindFiles
		}
		first := w.backup(r, chain, kind)
		w.backup(r, chain, kind)
		w.prune(r, chain, first.Manifest.ID)
	}
	w.clock.forward(ManifestGrace + time.Hour)
	for _, want := range []int{1, 0} {
		if s, err := r.Sweep(t.Context(), SweepOptions{Chains: []manifest.Chain{hostsCP1}}); err != nil || s.Objects != want || s.Manifests != want {
			t.Errorf("swept %+v, %v", s, err)
		}
	}
	if s := w.sweep(r); s.Objects != 1 || s.Manifests != 1 {
		t.Errorf("swept %+v", s)
	}
	w.clean(w.open())
}

func TestNoPruneTakesWhatABackupThatCountsNames(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	fulls := w.fulls(r, 2)
	v, err := r.Load(t.Context(), etcdMain)
	if err != nil {
		t.Fatal(err)
	}
	object := fulls[0].Manifest.Objects[0].Name
	prune := &manifest.Manifest{ // signed by a key that may, and wrong
		Chain: etcdMain, Kind: manifest.KindPrune, ID: w.id(), Created: w.clock.now(), Writer: r.opts.Writer,
		Index: v.st.live, Prune: &manifest.Prune{Base: 1, Objects: []string{object}},
	}
	if _, err := r.Commit(t.Context(), prune); err != nil {
		t.Fatal(err)
	}
	w.clock.forward(ManifestGrace + time.Hour)
	if s := w.sweep(r); s.Objects+s.Manifests+s.Waiting != 0 {
		t.Errorf("swept %+v", s)
	}
	w.clean(w.open())
}
