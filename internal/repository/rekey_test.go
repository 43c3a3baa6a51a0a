package repository

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

// rekey commits a rekey of a backup, as one who has sealed its data anew does.
func (w *world) rekey(r *Repository, of *manifest.Manifest, change ...func(*manifest.Manifest)) (*Committed, error) {
	w.t.Helper()
	old := of.Objects[0]
	id := w.id()
	data := bytes.Repeat([]byte{'x'}, int(old.Size)+1)
	copy(data, id)
	m := &manifest.Manifest{
		Chain: of.Chain, Kind: manifest.KindRekey, ID: id, Created: w.clock.now(), Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"},
		Rekey: &manifest.Rekey{Of: of.ID}, Recipients: []string{"age1new"},
		Objects: []manifest.Object{{
			Name: ObjectName(of.Chain, id, "snapshot.db.zst.age"), Role: old.Role, Size: int64(len(data)), SHA256: sha256.Sum256(data), PlainSize: old.PlainSize,
		}},
	}
	for _, f := range change {
		f(m)
	}
	if err := r.PutObject(w.t.Context(), m.Objects[0].Name, bytes.NewReader(data), time.Time{}); err != nil {
		w.t.Fatal(err)
	}
	done, err := r.CommitRekey(w.t.Context(), m)
	w.clock.forward(time.Minute)
	return done, err
}

func (w *world) mustRekey(r *Repository, of *manifest.Manifest, change ...func(*manifest.Manifest)) *Committed {
	w.t.Helper()
	done, err := w.rekey(r, of, change...)
	if err != nil {
		w.t.Fatal(err)
	}
	return done
}

// good fails the test unless all verifies.
func good(t *testing.T, r *Repository) *Report {
	t.Helper()
	report, err := r.Verify(t.Context(), VerifyOptions{})
	if err != nil || report.Err() != nil {
		t.Fatal(err, report.Err())
	}
	return report
}

func TestReadersUseTheNewestRekeysObject(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	first := w.backup(r, etcdMain, manifest.KindFull)
	second := w.backup(r, etcdMain, manifest.KindFull)
	w.mustRekey(r, first.Manifest)
	newest := w.mustRekey(r, first.Manifest)
	for round := range 2 { // by its own signature, then by an index that lists it
		got, err := w.open().Resolve(t.Context(), etcdMain, Point{Backup: first.Manifest.ID})
		if err != nil {
			t.Fatal(err)
		}
		if got.Objects[0] != newest.Manifest.Objects[0] || got.Recipients[0] != "age1new" {
			t.Errorf("round %d: got %v, want the newest rekey's object", round, got.Objects)
		}
		if got.ID != first.Manifest.ID || got.Etcd.Revision != first.Manifest.Etcd.Revision || got.Sequence != 1 {
			t.Errorf("round %d: a rekey changed more than the data: %v", round, got)
		}
		found, err := w.open().Find(t.Context(), string(first.Manifest.ID))
		if err != nil || found.Rekeyed != newest.Manifest.ID || found.Objects[0] != newest.Manifest.Objects[0] {
			t.Errorf("round %d: found %v, %v", round, found, err)
		}
		body, err := w.open().OpenObject(t.Context(), got.Objects[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			t.Error(err)
		}
		body.Close()
		w.backup(r, etcdMain, manifest.KindFull)
	}
	latest, err := r.Resolve(t.Context(), etcdMain, Point{Time: second.Manifest.Created})
	if err != nil || latest.ID != second.Manifest.ID {
		t.Errorf("a rekey of an older backup took the place of a newer one: %v, %v", latest, err)
	}
	good(t, r)
}

func TestWhatARekeyReplacedIsPromisedAndSwept(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	first := w.backup(r, etcdMain, manifest.KindFull)
	w.backup(r, etcdMain, manifest.KindFull)
	superseded := w.mustRekey(r, first.Manifest)
	current := w.mustRekey(r, first.Manifest)
	old := []string{first.Manifest.Objects[0].Name, superseded.Manifest.Objects[0].Name}

	w.clock.forward(2 * time.Hour)
	pruned, err := r.Prune(t.Context(), etcdMain, nil, PruneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(pruned.Objects) != 2 || len(pruned.Removed) != 0 || len(pruned.Dropped) != 0 {
		t.Fatalf("a prune names %v, removes %v, drops %v; want the two old objects only", pruned.Objects, pruned.Removed, pruned.Dropped)
	}
	w.clock.forward(ObjectGrace / 2)
	w.backup(r, etcdMain, manifest.KindFull)
	if swept, err := r.Sweep(t.Context(), SweepOptions{}); err != nil || swept.Objects != 0 {
		t.Errorf("deleted before its time: %+v, %v", swept, err)
	}
	w.clock.forward(ObjectGrace)
	w.backup(r, etcdMain, manifest.KindFull)
	swept, err := r.Sweep(t.Context(), SweepOptions{})
	if err != nil || swept.Objects != 2 {
		t.Fatalf("%+v, %v", swept, err)
	}
	for _, name := range old {
		if there, err := r.exists(t.Context(), r.stored(name)); err != nil || there {
			t.Errorf("%s: %v, %v", name, there, err)
		}
	}
	good(t, r)
	got, err := w.open().Resolve(t.Context(), etcdMain, Point{Backup: first.Manifest.ID})
	if err != nil || got.Objects[0] != current.Manifest.Objects[0] {
		t.Errorf("%v, %v", got, err)
	}
	if _, problems, err := w.open().Backups(t.Context()); err != nil || len(Failures(problems)) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

func TestAPruneTakesABackupsRekeysAlong(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	first := w.backup(r, etcdMain, manifest.KindFull)
	w.backup(r, etcdMain, manifest.KindFull)
	rekey := w.mustRekey(r, first.Manifest)
	if _, err := r.Prune(t.Context(), etcdMain, []manifest.ID{rekey.Manifest.ID}, PruneOptions{}); !errors.Is(err, ErrNothing) {
		t.Errorf("a rekey was removed by itself: %v", err)
	}
	pruned, err := r.Prune(t.Context(), etcdMain, []manifest.ID{first.Manifest.ID}, PruneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(pruned.Objects) != 2 || len(pruned.Commit.Manifest.Prune.Manifests) != 2 {
		t.Errorf("named %v and %v, want the backup's and the rekey's", pruned.Objects, pruned.Commit.Manifest.Prune.Manifests)
	}
	if _, err := w.rekey(r, first.Manifest); !errors.Is(err, ErrNothing) {
		t.Errorf("rekeyed what was pruned: %v", err)
	}
	good(t, r)
}

func TestNothingOldGoesWhileTheNewObjectIsNotThereOrTheOldIsLocked(t *testing.T) {
	for name, c := range map[string]struct {
		full  func(*manifest.Manifest)
		after func(*Repository, *Committed) error
	}{
		"the new object is gone": {func(*manifest.Manifest) {}, func(r *Repository, rekey *Committed) error {
			return r.store.Delete(t.Context(), r.stored(rekey.Manifest.Objects[0].Name))
		}},
		"the old one is locked": {
			func(m *manifest.Manifest) { until := m.Created.AddDate(0, 0, 30); m.RetainUntil = &until },
			func(*Repository, *Committed) error { return nil },
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			first := w.backup(r, etcdMain, manifest.KindFull, c.full)
			if err := c.after(r, w.mustRekey(r, first.Manifest)); err != nil {
				t.Fatal(err)
			}
			w.clock.forward(2 * time.Hour)
			w.backup(r, etcdMain, manifest.KindFull)
			pruned, err := r.Prune(t.Context(), etcdMain, nil, PruneOptions{})
			if err != nil || len(pruned.Objects) != 0 {
				t.Errorf("named %v, %v", pruned.Objects, err)
			}
		})
	}
}

func TestAKeyThatMayRekeyButNotBackUpReplacesNothing(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	first := w.backup(r, etcdMain, manifest.KindFull)
	narrow := w.newSigner("rekeyer")
	w.trust.Verifiers = append(w.trust.Verifiers, manifest.Verifier{Key: narrow.VerifierText(), Chains: []string{"*"}, Kinds: []string{"rekey"}})
	thief := w.open(func(o *Options) { o.Signer = narrow })
	if err := thief.MayRekey(Backup{Manifest: first.Manifest}); !errors.Is(err, ErrMayNotRekey) {
		t.Error(err)
	}
	w.mustRekey(thief, first.Manifest)
	for _, when := range []string{"at the chain's end", "behind an index"} {
		got, err := w.open().Resolve(t.Context(), etcdMain, Point{Backup: first.Manifest.ID})
		if err != nil || got.Objects[0] != first.Manifest.Objects[0] {
			t.Errorf("%s: %v, %v", when, got, err)
		}
		if _, err := w.open().Resolve(t.Context(), etcdMain, Point{}); err != nil {
			t.Errorf("%s: it keeps the latest from being restored: %v", when, err)
		}
		report, err := w.open().Verify(t.Context(), VerifyOptions{})
		if err != nil || len(Failures(report.Problems)) != 1 || Failures(report.Problems)[0].Kind != Misfit {
			t.Errorf("%s: %v, %v", when, report.Problems, err)
		}
		w.backup(r, etcdMain, manifest.KindFull)
	}
	w.clock.forward(2 * time.Hour)
	pruned, err := r.Prune(t.Context(), etcdMain, nil, PruneOptions{})
	if err != nil || len(pruned.Objects) != 0 {
		t.Errorf("a prune names the genuine object: %v, %v", pruned.Objects, err)
	}
}

func TestARekeyOfAnotherSizeReplacesNothing(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	first := w.backup(r, etcdMain, manifest.KindFull)
	w.mustRekey(r, first.Manifest, func(m *manifest.Manifest) { m.Objects[0].PlainSize++ })
	got, err := r.Resolve(t.Context(), etcdMain, Point{})
	if err != nil || got.Objects[0] != first.Manifest.Objects[0] {
		t.Errorf("%v, %v", got, err)
	}
}

// A rekey that nobody committed is garbage, and its object goes as garbage does.
func TestAnUncommittedRekeysObjectIsGarbage(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.backup(r, etcdMain, manifest.KindFull)
	name := ObjectName(etcdMain, w.id(), "snapshot.db.zst.age")
	if err := r.PutObject(t.Context(), name, bytes.NewReader([]byte("x")), time.Time{}); err != nil {
		t.Fatal(err)
	}
	w.clock.forward(2 * time.Hour)
	w.backup(r, etcdMain, manifest.KindFull)
	pruned, err := r.Prune(t.Context(), etcdMain, nil, PruneOptions{})
	if err != nil || len(pruned.Objects) != 1 || pruned.Objects[0] != name || len(pruned.Dropped) != 1 {
		t.Errorf("%+v, %v", pruned, err)
	}
}
