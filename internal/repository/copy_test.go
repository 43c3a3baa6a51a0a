package repository

import (
	"bytes"
	"errors"
	"io"
	"path"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
	"lifeboat/storage/memory"
)

// second is another store of the same cluster.
func (w *world) second() *Repository {
	return on(w.open(func(o *Options) { o.Name = "memory:two" }), memory.New(memory.WithClock(w.clock.now)))
}

// copyAll copies what a chain has, and returns the fates.
func copyAll(t *testing.T, from, to *Repository, chain manifest.Chain) (map[manifest.ID]Fate, error) {
	t.Helper()
	originals, _, err := from.Originals(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	c := to.Copy(chain, from.Name(), originals)
	var ids []manifest.ID
	for _, o := range originals {
		ids = append(ids, o.ID)
	}
	fates, err := c.Plan(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range originals {
		if fates[o.ID] != FateWanted {
			continue
		}
		draft := c.Draft(o.ID, time.Time{})
		for i, object := range o.Objects {
			if err := to.CopyObject(t.Context(), from, object, draft.Objects[i].Name, time.Time{}, func(int) {}); err != nil {
				return fates, err
			}
		}
		if _, err := c.Commit(t.Context(), draft); err != nil {
			return fates, err
		}
		fates[o.ID] = FateCopied
	}
	return fates, nil
}

func fulls(t *testing.T, r *Repository) []*Loaded {
	t.Helper()
	v, err := r.Load(t.Context(), etcdMain)
	if err != nil || len(v.Failures()) > 0 {
		t.Fatal(err, v.Failures())
	}
	var list []*Loaded
	for i := range v.Manifests {
		if v.Manifests[i].Kind == manifest.KindFull {
			list = append(list, &v.Manifests[i])
		}
	}
	return list
}

func TestACopyKeepsWhatTheOriginalWas(t *testing.T) {
	w := newWorld(t, nil)
	from, to := w.open(), w.second()
	next := w.clock.now().Add(time.Hour)
	unproved := w.backup(from, etcdMain, manifest.KindFull, func(m *manifest.Manifest) {
		m.Unproved, m.NextExpectedBy = []string{"nobody to compare with"}, &next
	})
	w.proof(from, unproved.Manifest)
	rekeyed := w.backup(from, etcdMain, manifest.KindFull)
	rekey := w.mustRekey(from, rekeyed.Manifest)
	gone := w.backup(from, etcdMain, manifest.KindFull)
	last := w.backup(from, etcdMain, manifest.KindFull)
	if _, err := from.Prune(t.Context(), etcdMain, []manifest.ID{gone.Manifest.ID}, PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	w.clock.forward(40 * 24 * time.Hour) // copies may be of any age
	if fates, err := copyAll(t, from, to, etcdMain); err != nil || len(fates) != 4 {
		t.Fatal(fates, err)
	}
	good(t, to)
	got := fulls(t, to)
	if len(got) != 3 {
		t.Fatalf("%d fulls arrived, want 3", len(got))
	}
	for i, want := range []*Committed{unproved, rekeyed, last} {
		g := got[i]
		if g.ID != want.Manifest.ID || !g.Created.Equal(want.Manifest.Created) || g.Etcd.Revision != want.Manifest.Etcd.Revision {
			t.Errorf("copy %d is %v, want %v", i, g.Manifest, want.Manifest)
		}
		if c := g.Copied; c == nil || c.Store != "memory:" || c.Hash != want.Hash || c.Sequence != want.Sequence {
			t.Errorf("copy %d says it comes from %v", i, c)
		}
		if g.NextExpectedBy != nil {
			t.Errorf("copy %d promises a next one", i)
		}
	}
	if o := got[1].Objects[0]; o.SHA256 != rekey.Manifest.Objects[0].SHA256 || got[1].Recipients[0] != "age1new" {
		t.Errorf("of a rekeyed backup %v was copied, want the bytes in effect", o)
	}
	if b, err := to.Find(t.Context(), string(unproved.Manifest.ID)); err != nil || !b.Proved {
		t.Errorf("its proof did not come along: %v", err)
	}
	fates, err := copyAll(t, from, to, etcdMain)
	for id, fate := range fates {
		if fate != FatePresent {
			t.Errorf("again: %s is %s, %v", id, fate, err)
		}
	}
}

// proof commits that a full was proved later.
func (w *world) proof(r *Repository, of *manifest.Manifest) {
	w.t.Helper()
	w.backup(r, etcdMain, manifest.KindProof, func(m *manifest.Manifest) {
		m.Proof = &manifest.Proof{Of: of.ID, Revision: of.Etcd.Revision, HashKV: of.Etcd.HashKV, How: "deep verification"}
	})
}

func TestAChainTakesNoCopyThatIsOlderThanWhatItHolds(t *testing.T) {
	w := newWorld(t, nil)
	from, to := w.open(), w.second()
	old := w.backup(from, etcdMain, manifest.KindFull)
	own := w.backup(to, etcdMain, manifest.KindFull) // a backup that only the destination has
	newer := w.backup(from, etcdMain, manifest.KindFull)
	fates, err := copyAll(t, from, to, etcdMain)
	if err != nil || fates[old.Manifest.ID] != FateOld || fates[newer.Manifest.ID] != FateCopied {
		t.Errorf("%v, %v", fates, err)
	}
	originals, _, err := from.Originals(t.Context(), etcdMain)
	if err != nil {
		t.Fatal(err)
	}
	// The commit decides again: whoever planned before the other commit.
	c := to.Copy(etcdMain, from.Name(), originals)
	draft := c.Draft(old.Manifest.ID, time.Time{})
	if err := to.CopyObject(t.Context(), from, originals[0].Objects[0], draft.Objects[0].Name, time.Time{}, func(int) {}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(t.Context(), draft); !errors.Is(err, ErrOrder) {
		t.Errorf("committed behind newer ones: %v", err)
	}
	latest, err := to.Resolve(t.Context(), etcdMain, Point{})
	if err != nil || latest.ID != newer.Manifest.ID || own.Sequence != 1 {
		t.Errorf("%v, %v", latest, err)
	}
}

func TestCapturesThatOverlappedAreCopiedInTheirChainsOrder(t *testing.T) {
	w := newWorld(t, nil)
	from, to := w.open(), w.second()
	w.backup(from, etcdMain, manifest.KindFull)
	w.backup(from, etcdMain, manifest.KindFull, func(m *manifest.Manifest) { m.Created = m.Created.Add(-10 * time.Minute) })
	fates, err := copyAll(t, from, to, etcdMain)
	if err != nil {
		t.Fatal(err)
	}
	for id, fate := range fates {
		if fate != FateCopied {
			t.Errorf("%s is %s", id, fate)
		}
	}
}

func TestEpochsRiseAsInTheSource(t *testing.T) {
	w := newWorld(t, nil)
	from, to := w.open(), w.second()
	cluster := func(id manifest.EtcdID) func(*manifest.Manifest) {
		return func(m *manifest.Manifest) { m.Etcd.ClusterID = id }
	}
	first := w.backup(from, etcdMain, manifest.KindFull)
	w.backup(from, etcdMain, manifest.KindFull, cluster(8))
	w.backup(from, etcdMain, manifest.KindFull, cluster(9))
	if _, err := from.Prune(t.Context(), etcdMain, []manifest.ID{first.Manifest.ID}, PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := copyAll(t, from, to, etcdMain); err != nil {
		t.Fatal(err)
	}
	w.backup(from, etcdMain, manifest.KindFull, cluster(10))
	if _, err := copyAll(t, from, to, etcdMain); err != nil {
		t.Fatal(err)
	}
	own := w.backup(to, etcdMain, manifest.KindFull, cluster(10))
	var epochs []uint64
	for _, m := range fulls(t, to) {
		epochs = append(epochs, m.Epoch)
	}
	if len(epochs) != 4 || epochs[0] != 2 || epochs[1] != 3 || epochs[2] != 4 || own.Manifest.Epoch != 4 {
		t.Errorf("epochs are %v", epochs)
	}
}

func TestAPruneThatDropsACopysIDWins(t *testing.T) {
	w := newWorld(t, nil)
	from, to := w.open(), w.second()
	w.backup(to, etcdMain, manifest.KindFull)
	b := w.backup(from, etcdMain, manifest.KindFull)
	originals, _, err := from.Originals(t.Context(), etcdMain)
	if err != nil {
		t.Fatal(err)
	}
	c := to.Copy(etcdMain, from.Name(), originals)
	draft := c.Draft(b.Manifest.ID, time.Time{})
	if err := to.CopyObject(t.Context(), from, originals[0].Objects[0], draft.Objects[0].Name, time.Time{}, func(int) {}); err != nil {
		t.Fatal(err)
	}
	w.clock.forward(3 * time.Hour) // the copier was killed here, and its object is garbage by now
	w.touch(to)
	if pruned, err := to.Prune(t.Context(), etcdMain, nil, PruneOptions{}); err != nil || len(pruned.Dropped) != 1 {
		t.Fatal(pruned, err)
	}
	if _, err := c.Commit(t.Context(), draft); !errors.Is(err, ErrSuperseded) {
		t.Errorf("committed what a prune had dropped: %v", err)
	}
	fates, err := copyAll(t, from, to, etcdMain)
	if err != nil || fates[b.Manifest.ID] != FateDropped {
		t.Errorf("%v, %v", fates, err)
	}
	good(t, to)
}

func TestACopyInterruptedBeforeARekeyIsFinishedAfterIt(t *testing.T) {
	w := newWorld(t, nil)
	from, to := w.open(), w.second()
	b := w.backup(from, etcdMain, manifest.KindFull)
	name := b.Manifest.Objects[0].Name
	if err := to.CopyObject(t.Context(), from, b.Manifest.Objects[0], name, time.Time{}, func(int) {}); err != nil {
		t.Fatal(err)
	}
	w.mustRekey(from, b.Manifest)
	fates, err := copyAll(t, from, to, etcdMain)
	if err != nil || fates[b.Manifest.ID] != FateCopied {
		t.Fatalf("%v, %v", fates, err)
	}
	good(t, to)
	w.mustRekey(to, b.Manifest) // and on to a third, under a name that does not grow
	third := w.second()
	if _, err := copyAll(t, to, third, etcdMain); err != nil {
		t.Fatal(err)
	}
	if file := path.Base(fulls(t, third)[0].Objects[0].Name); len(file) != 26+1+len(path.Base(name)) {
		t.Errorf("it is named %s", file)
	}
	good(t, third)
}

// touch stores something new, by which a store without a clock tells the time.
func (w *world) touch(r *Repository) {
	w.t.Helper()
	m, data := w.draft(drills, manifest.KindDrill)
	if err := put(w.t.Context(), r, m, data); err != nil {
		w.t.Fatal(err)
	}
}

func TestADamagedOriginalIsNotCopied(t *testing.T) {
	w := newWorld(t, nil)
	from, to := w.open(), w.second()
	b := w.backup(from, etcdMain, manifest.KindFull)
	tamper(t, from.store, from.stored(b.Manifest.Objects[0].Name))
	if _, err := copyAll(t, from, to, etcdMain); !errors.Is(err, ErrVerification) {
		t.Errorf("copied: %v", err)
	}
	for info, err := range to.store.List(t.Context(), "") {
		t.Errorf("it left %s, %v", info.Name, err)
	}
}

// tamper flips a bit in a stored object.
func tamper(t *testing.T, store storage.Store, name string) {
	t.Helper()
	body, _, err := store.Open(t.Context(), name, storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	data[0] ^= 1
	if err := store.Put(t.Context(), name, bytes.NewReader(data), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

// What a key has signed that is not trusted any more is not signed for anew.
func TestACopierVouchesForNothingThatItDoesNotBelieve(t *testing.T) {
	w := newWorld(t, nil)
	stolen := w.newSigner("stolen")
	honest := w.trust
	both := *honest
	both.Verifiers = append(both.Verifiers, manifest.Verifier{Key: stolen.VerifierText(), Chains: []string{"*"}, Kinds: []string{"*"}})
	w.trust = &both
	forged := w.backup(w.open(func(o *Options) { o.Signer = stolen }), etcdMain, manifest.KindFull)
	w.backup(w.open(), etcdMain, manifest.KindFull) // lists it in its index
	w.trust = honest
	from, to := w.open(), w.second()
	fates, err := copyAll(t, from, to, etcdMain)
	if _, offered := fates[forged.Manifest.ID]; offered || err != nil || len(fates) != 1 {
		t.Errorf("%v, %v", fates, err)
	}
}
