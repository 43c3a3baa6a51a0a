package repository

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage/memory"
)

const images = manifest.ImagesChain

// blob commits one part of images, the plain bytes standing for sealed ones.
func (w *world) blob(r *Repository, text string, change ...func(*manifest.Manifest)) *Committed {
	w.t.Helper()
	id, data := w.id(), []byte("sealed "+text)
	m := &manifest.Manifest{
		Chain: images, Kind: manifest.KindBlob, ID: id, Created: w.clock.now(), Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"},
		Recipients: []string{"age1old"}, Blob: &manifest.Blob{SHA256: sha256.Sum256([]byte(text))},
		Objects: []manifest.Object{{
			Name: ObjectName(images, id, "blob.zst.age"), Role: manifest.RoleBlob, Size: int64(len(data)), SHA256: sha256.Sum256(data), PlainSize: int64(len(text)),
		}},
	}
	for _, f := range change {
		f(m)
	}
	if err := r.PutObject(w.t.Context(), m.Objects[0].Name, bytes.NewReader(data), time.Time{}); err != nil {
		w.t.Fatal(err)
	}
	done, err := r.Commit(w.t.Context(), m)
	if err != nil {
		w.t.Fatal(err)
	}
	w.clock.forward(time.Second)
	return done
}

func (w *world) imagesDraft(node string, blobs ...string) *manifest.Manifest {
	m := &manifest.Manifest{
		Chain: images, Kind: manifest.KindImages, ID: w.id(), Created: w.clock.now(), Writer: manifest.Writer{Node: node, Version: "0.1.0"},
		Images: &manifest.Images{Node: node, Platform: "linux/amd64", Images: []manifest.Image{{
			Names: []string{"registry.k8s.io/" + blobs[0] + ":1"}, SHA256: sha256.Sum256([]byte(blobs[0])), MediaType: "m", Size: 1,
		}}},
	}
	for _, text := range blobs {
		m.Images.Blobs = append(m.Images.Blobs, sha256.Sum256([]byte(text)))
	}
	slices.SortFunc(m.Images.Blobs, func(a, b manifest.Hash) int { return bytes.Compare(a[:], b[:]) })
	return m
}

func (w *world) images(r *Repository, node string, blobs ...string) *Committed {
	w.t.Helper()
	done, err := r.Commit(w.t.Context(), w.imagesDraft(node, blobs...))
	if err != nil {
		w.t.Fatal(err)
	}
	w.clock.forward(time.Minute)
	return done
}

func (w *world) held(r *Repository, text string) bool {
	w.t.Helper()
	blobs, err := r.Blobs(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	_, ok := blobs.Of(sha256.Sum256([]byte(text)))
	return ok
}

func TestImagesAreCommittedOnlyBehindAllTheirBlobs(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.blob(r, "a")
	draft := w.imagesDraft("cp1", "a", "b")
	if _, err := w.open().Commit(t.Context(), draft); !errors.Is(err, ErrIncomplete) {
		t.Fatalf("without its second blob: %v", err)
	}
	others := 300 // beyond where each manifest carries an index
	if testing.Short() {
		others = 30
	}
	for i := range others {
		w.blob(r, string(rune('A'+i)))
	}
	w.blob(r, "b")
	done, err := w.open().Commit(t.Context(), draft)
	if err != nil {
		t.Fatal(err)
	}
	w.clean(w.open())
	if got := w.ids(w.open()); !slices.Equal(got, []manifest.ID{draft.ID}) {
		t.Errorf("backups %v: blobs are none", got)
	}
	if found, err := w.open().Find(t.Context(), string(draft.ID[:8])); err != nil || found.Images == nil || found.Hash != done.Hash {
		t.Errorf("found %v, %v", found, err)
	}
}

func TestABlobIsHeldWhileItsObjectIsWhole(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	first := w.blob(r, "a")
	w.images(r, "cp1", "a")
	if !w.held(w.open(), "a") || w.held(w.open(), "b") {
		t.Error("a is there, b is not")
	}
	object := r.stored(first.Manifest.Objects[0].Name)
	data := get(t, w.store, object)
	set(t, w.store, object, data[:len(data)-1])
	if w.held(w.open(), "a") {
		t.Error("its object was cut short")
	}
	w.blob(r, "a")
	if !w.held(w.open(), "a") {
		t.Error("it was put again")
	}
	remove(t, w.store, object)
	wantProblem(t, w.failures(w.open()), object, ObjectMissing)
}

func TestABlobStaysUntilTheLastImagesThatNeedItHaveGone(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	for _, text := range []string{"etcd-1", "base"} {
		w.blob(r, text)
	}
	old := w.images(r, "cp1", "etcd-1", "base")
	w.clock.forward(48 * time.Hour)
	w.blob(r, "etcd-2")
	w.images(r, "cp1", "etcd-2", "base")
	left := w.blob(r, "left by a save that never ended")

	goes := ObjectName(images, w.find(r, "etcd-1"), "blob.zst.age")
	pruned := w.prune(r, images, old.Manifest.ID)
	if len(pruned.Objects) != 1 || pruned.Objects[0] != goes {
		t.Errorf("objects that go: %v", pruned.Objects)
	}
	w.clock.forward(ManifestGrace + time.Hour)
	w.sweep(r)
	w.clean(w.open())
	if w.held(w.open(), "etcd-1") || !w.held(w.open(), "base") || !w.held(w.open(), "etcd-2") {
		t.Error("etcd-1 goes; what they share, and what is new, stays")
	}
	pruned = w.prune(r, images)
	if !slices.Contains(pruned.Objects, left.Manifest.Objects[0].Name) {
		t.Errorf("a blob that nobody names stays beyond the time of a writer: %v", pruned)
	}
	w.clock.forward(ManifestGrace + time.Hour)
	w.sweep(r)
	w.prune(r, images) // the prune that is done goes
	w.clock.forward(ManifestGrace + time.Hour)
	w.sweep(r)
	w.clean(w.open())
	for _, text := range []string{"base", "etcd-2"} {
		if got := get(t, w.store, r.stored(ObjectName(images, w.find(r, text), "blob.zst.age"))); string(got) != "sealed "+text {
			t.Errorf("%s: %q", text, got)
		}
	}
}

// find is the id of a blob.
func (w *world) find(r *Repository, text string) manifest.ID {
	w.t.Helper()
	blobs, err := r.Blobs(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	b, ok := blobs.Of(sha256.Sum256([]byte(text)))
	if !ok {
		w.t.Fatalf("no blob %s", text)
	}
	return b.ID
}

func TestABlobOnItsWayIsNoGarbage(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.blob(r, "a")
	w.images(r, "cp1", "a")
	w.clock.forward(time.Hour)
	w.blob(r, "b")
	w.clock.forward(GiveUpAfter)
	if pruned := w.prune(r, images); pruned.Commit != nil {
		t.Errorf("a save that has ten minutes left would lose %v", pruned.Objects)
	}
	w.clock.forward(15 * time.Minute)
	if pruned := w.prune(r, images); len(pruned.Objects) != 1 {
		t.Errorf("and then nobody names it: %v", pruned.Objects)
	}
	if _, err := r.Commit(t.Context(), w.imagesDraft("cp1", "b")); !errors.Is(err, ErrIncomplete) {
		t.Errorf("images that need what a prune took: %v", err)
	}
}

func TestOfABlobThatIsThereTwiceTheNewestWholeStays(t *testing.T) {
	for _, c := range []struct {
		name  string
		loses int // whose object the store loses; -1: none
		goes  int
	}{{"both whole", -1, 0}, {"the older is gone", 0, 0}, {"the newer is gone", 1, -1}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			twice := []*Committed{w.blob(r, "a"), w.blob(r, "a")}
			w.images(r, "cp1", "a")
			w.clock.forward(48 * time.Hour)
			if c.loses >= 0 {
				remove(t, w.store, r.stored(twice[c.loses].Manifest.Objects[0].Name))
			}
			w.prune(r, images)
			v, err := w.open().Load(t.Context(), images)
			if err != nil {
				t.Fatal(err)
			}
			for i, b := range twice {
				if there := v.Find(b.Manifest.ID) != nil; there == (i == c.goes) {
					t.Errorf("blob %d stays: %v", i, there)
				}
			}
			if len(v.Failures()) > 0 {
				t.Error(v.Failures())
			}
		})
	}
}

// TestABlobForOthersIsNoSecondOne: who opens the older may open no other.
func TestABlobForOthersIsNoSecondOne(t *testing.T) {
	to := func(names ...string) func(*manifest.Manifest) {
		return func(m *manifest.Manifest) { m.Recipients = names }
	}
	for _, c := range []struct {
		name         string
		older, newer []string
		goes         bool
	}{
		{"for the same", []string{"age1old"}, []string{"age1old"}, true},
		{"for more", []string{"age1old"}, []string{"age1new", "age1old"}, true},
		{"for another", []string{"age1old"}, []string{"age1new"}, false},
		{"for less", []string{"age1new", "age1old"}, []string{"age1new"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			older := w.blob(r, "a", to(c.older...))
			w.blob(r, "a", to(c.newer...))
			w.images(r, "cp1", "a")
			w.clock.forward(48 * time.Hour)
			if goes := len(w.prune(r, images).Objects) == 1; goes != c.goes {
				t.Errorf("it goes: %v", goes)
			}
			if c.goes {
				return
			}
			// Sealed anew it is one, and one of them is enough.
			w.mustRekey(r, older.Manifest, func(m *manifest.Manifest) {
				m.Objects[0].Name, m.Recipients = ObjectName(images, m.ID, "blob.zst.age"), c.newer
			})
			w.clock.forward(48 * time.Hour)
			w.prune(r, images)
			v, err := w.open().Load(t.Context(), images)
			if err != nil || v.Find(older.Manifest.ID) != nil || len(v.Failures()) > 0 {
				t.Errorf("it stays: %v, %v", err, v.Failures())
			}
		})
	}
}

func TestNothingGoesWhileImagesCantBeRead(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.blob(r, "a")
	damaged := w.images(r, "cp1", "a")
	w.images(r, "cp1", "a")
	w.clock.forward(48 * time.Hour)
	set(t, w.store, w.stored(r, images, damaged.Sequence), []byte("junk"))
	if _, err := w.open().Prune(t.Context(), images, nil, PruneOptions{}); !errors.Is(err, ErrVerification) {
		t.Errorf("pruned: %v", err)
	}
}

func TestImagesWithoutABlobAreAFailure(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.blob(r, "a")
	w.images(r, "cp1", "a")
	// A writer with the key, and without the check.
	m := w.imagesDraft("cp1", "a", "nowhere")
	view, err := r.Load(t.Context(), images)
	if err != nil {
		t.Fatal(err)
	}
	m.Format, m.Cluster, m.Epoch, m.Created = manifest.FormatVersion, testCluster, 1, whole(m.Created)
	m.Sequence, m.Previous = view.Head.Sequence+1, view.Head.Hash
	signed, _, err := r.sign(m)
	if err != nil {
		t.Fatal(err)
	}
	set(t, w.store, w.stored(r, images, m.Sequence), signed)
	wantProblem(t, w.failures(w.open()), w.stored(r, images, m.Sequence), NoBlob)
}

func TestVerifyingImagesReadsTheirBlobs(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.blob(r, "a")
	other := w.blob(r, "b")
	first, second := w.images(r, "cp1", "a"), w.images(r, "cp1", "b")
	tamper(t, w.store, r.stored(other.Manifest.Objects[0].Name))
	for id, bad := range map[manifest.ID]int{first.Manifest.ID: 0, second.Manifest.ID: 1} {
		rep, err := w.open().Verify(t.Context(), VerifyOptions{IDs: []manifest.ID{id}})
		if err != nil || rep.Objects != 1 || len(Failures(rep.Problems)) != bad {
			t.Errorf("%d objects, %v, %v", rep.Objects, rep.Problems, err)
		}
	}
}

func TestARekeyStandsForABlobsData(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	old := w.blob(r, "a")
	set := w.images(r, "cp1", "a")
	done := w.mustRekey(r, old.Manifest, func(m *manifest.Manifest) { m.Objects[0].Name = ObjectName(images, m.ID, "blob.zst.age") })
	w.clean(w.open())
	blobs, err := w.open().Blobs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, ok := blobs.Of(sha256.Sum256([]byte("a")))
	if !ok || b.Rekeyed != done.Manifest.ID || b.Objects[0] != done.Manifest.Objects[0] || b.Recipients[0] != "age1new" || b.ID != old.Manifest.ID {
		t.Errorf("%+v, %v", b, ok)
	}
	if good, err := w.open().Confirmed(t.Context(), []Backup{b}); err != nil || good[0].Objects[0] != done.Manifest.Objects[0] {
		t.Errorf("confirmed %v, %v", good, err)
	}
	ofImages := *set.Manifest
	ofImages.Objects = old.Manifest.Objects
	if _, err := w.rekey(r, &ofImages); !errors.Is(err, ErrNothing) {
		t.Errorf("a rekey of images, which have no data: %v", err)
	}
	w.clock.forward(48 * time.Hour)
	w.prune(r, images)
	w.clock.forward(ManifestGrace + time.Hour)
	w.sweep(r)
	w.clean(w.open())
	if there := names(t, w.store, r.stored(images.DataFolder(old.Manifest.ID))); len(there) > 0 {
		t.Errorf("what was replaced is still there: %v", there)
	}
	if !w.held(w.open(), "a") {
		t.Error("what replaced it is gone")
	}
}

func TestImagesAreCopiedWithTheirBlobs(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	first := w.blob(r, "a")
	w.blob(r, "b")
	w.images(r, "cp1", "a", "b")
	w.mustRekey(r, first.Manifest, func(m *manifest.Manifest) { m.Objects[0].Name = ObjectName(images, m.ID, "blob.zst.age") })
	second := w.second()
	fates, err := copyAll(t, r, second, images)
	if err != nil || len(fates) != 3 {
		t.Fatal(fates, err)
	}
	w.clean(second)
	if !w.held(second, "a") || !w.held(second, "b") || len(w.ids(second)) != 1 {
		t.Error("the copy is not whole")
	}
	// What the destination holds under another id is not copied.
	third := on(r, memory.New(memory.WithClock(w.clock.now)))
	w.blob(third, "a")
	fates, err = copyAll(t, r, third, images)
	if err != nil || fates[first.Manifest.ID] != FateCovered {
		t.Error(fates, err)
	}
	w.clean(third)
	// Images whose blob was left out are not copied.
	fourth := on(r, memory.New(memory.WithClock(w.clock.now)))
	originals, _, err := r.Originals(t.Context(), images)
	if err != nil {
		t.Fatal(err)
	}
	c := fourth.Copy(images, r.Name(), originals)
	if _, err := c.Commit(t.Context(), c.Draft(originals[2].ID, time.Time{})); !errors.Is(err, ErrIncomplete) {
		t.Errorf("copied without blobs: %v", err)
	}
}

// TestNodesImagesAreNoHistoryOfEachOther: the destination missed one node's save, and
// has later ones of another.
func TestNodesImagesAreNoHistoryOfEachOther(t *testing.T) {
	w := newWorld(t, nil)
	from, to := w.open(), w.second()
	w.blob(from, "a")
	missed, newest := w.images(from, "cp1", "a"), w.images(from, "cp2", "a")
	copyOf := func(id manifest.ID) (Fate, error) {
		t.Helper()
		originals, _, err := from.Originals(t.Context(), images)
		if err != nil {
			t.Fatal(err)
		}
		c := to.Copy(images, from.Name(), originals)
		fates, err := c.Plan(t.Context(), []manifest.ID{id})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Commit(t.Context(), c.Draft(id, time.Time{}))
		return fates[id], err
	}
	w.blob(to, "a")
	if fate, err := copyOf(newest.Manifest.ID); fate != FateWanted || err != nil {
		t.Fatal(fate, err)
	}
	own := w.images(to, "cp2", "a") // that only the destination has
	if fate, err := copyOf(missed.Manifest.ID); fate != FateWanted || err != nil {
		t.Errorf("behind another node's: %s, %v", fate, err)
	}
	again := w.images(from, "cp1", "a")
	w.images(to, "cp1", "a")
	if fate, err := copyOf(again.Manifest.ID); fate != FateOld || !errors.Is(err, ErrOrder) {
		t.Errorf("behind a newer one of the node itself: %s, %v", fate, err)
	}
	if got := w.ids(to); len(got) != 4 || !slices.Contains(got, own.Manifest.ID) {
		t.Errorf("the destination has %v", got)
	}
	w.clean(to)
}

func TestAKeyForFilesAloneSignsNoImages(t *testing.T) {
	w := newWorld(t, nil)
	w.trust.Verifiers[0].Chains = []string{"etcd/*", "hosts/*", "drills"}
	r := w.open()
	if err := r.MayCommit(images, manifest.KindBlob); !errors.Is(err, ErrMayNotSign) {
		t.Errorf("%v", err)
	}
	if err := r.MayCommit(etcdMain, manifest.KindFull); err != nil {
		t.Errorf("%v", err)
	}
	if err := w.open(func(o *Options) { o.Signer = nil }).MayCommit(etcdMain, manifest.KindFull); !errors.Is(err, ErrNoSigner) {
		t.Errorf("%v", err)
	}
}
