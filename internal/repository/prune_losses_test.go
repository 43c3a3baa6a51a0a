package repository

import (
	"errors"
	"testing"

	"lifeboat/internal/manifest"
)

func TestAHoleBlocksPruningUntilTheLossIsAccepted(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	fulls := w.fulls(r, 4)
	remove(t, w.store, w.stored(r, etcdMain, 2))
	behind := w.full(r)
	if len(behind.Manifest.Index) != 4 {
		t.Errorf("the index of %d entries forgets the lost one", len(behind.Manifest.Index))
	}
	wantProblem(t, w.failures(w.open()), w.stored(r, etcdMain, 2), Hole)
	if _, err := r.Prune(t.Context(), etcdMain, nil, PruneOptions{}); !errors.Is(err, ErrVerification) {
		t.Errorf("prune: %v", err)
	}
	s, err := r.Sweep(t.Context(), SweepOptions{})
	if err != nil || len(s.Problems) != 1 {
		t.Errorf("sweep: %+v, %v", s, err)
	}
	if _, err := r.Prune(t.Context(), etcdMain, []manifest.ID{fulls[1].Manifest.ID}, PruneOptions{AcceptLosses: true}); err != nil {
		t.Fatal(err)
	}
	w.full(r)
	w.clean(w.open())
	if n := len(w.ids(w.open())); n != 5 {
		t.Errorf("%d backups", n)
	}
}

func TestAHoleBehindTheIndexIsNotHiddenByLaterBackups(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.fulls(r, 2)
	w.backup(r, etcdMain, manifest.KindProof, func(m *manifest.Manifest) {
		m.Proof = &manifest.Proof{Of: w.id(), Revision: 1, How: "drill"}
	})
	w.backup(r, etcdMain, manifest.KindProof, func(m *manifest.Manifest) {
		m.Proof = &manifest.Proof{Of: w.id(), Revision: 1, How: "drill"}
	})
	remove(t, w.store, w.stored(r, etcdMain, 3)) // no index lists it
	for range 3 {
		if c := w.full(r); len(c.Manifest.Index) > 0 {
			t.Errorf("manifest %d has an index over a hole", c.Sequence)
		}
		wantProblem(t, w.failures(w.open()), w.stored(r, etcdMain, 3), Hole)
	}
	if _, err := r.Prune(t.Context(), etcdMain, nil, PruneOptions{AcceptLosses: true}); err != nil {
		t.Fatal(err)
	}
	w.clean(w.open())
	if c := w.full(r); len(c.Manifest.Index) == 0 {
		t.Error("no index after the loss was accepted")
	}
}

func TestADamagedOldManifestIsFoundThroughTheIndex(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.fulls(r, 8)
	name := w.stored(r, etcdMain, 2)
	data := get(t, w.store, name)
	data[200] ^= 1
	set(t, w.store, name, data)
	v, err := w.open().Load(t.Context(), etcdMain)
	if err != nil {
		t.Fatal(err)
	}
	wantProblem(t, v.Failures(), name, Damaged)
	if m, err := r.Resolve(t.Context(), etcdMain, Point{}); err != nil || m.Sequence != 8 { // it hides nothing newer
		t.Errorf("resolve: %v, %v", m, err)
	}
}

func TestWritersThatTrustDifferentKeysAreReported(t *testing.T) {
	w := newWorld(t, nil)
	other := w.newSigner("cp2")
	w.full(w.open())
	both := w.trusting(testCluster, w.signer, other)
	newer := func() *Repository {
		return w.open(func(o *Options) { o.Trust, o.Signer = both, other })
	}
	w.full(newer())
	c := w.full(w.open()) // does not know cp2's key, and takes its backup for junk
	if c.Sequence != 3 || len(c.Manifest.Skipped) != 1 || len(w.warnings) == 0 {
		t.Errorf("committed %d, skipped %v, warnings %v", c.Sequence, c.Manifest.Skipped, w.warnings)
	}
	wantProblem(t, w.failures(newer()), w.stored(newer(), etcdMain, 2), Fork)
	if n := len(w.ids(newer())); n != 3 { // nothing acknowledged is lost
		t.Errorf("%d backups", n)
	}
	w.full(w.open())
	wantProblem(t, w.failures(newer()), w.stored(newer(), etcdMain, 2), Fork)
}
