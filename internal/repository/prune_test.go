package repository

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

func (w *world) prune(r *Repository, chain manifest.Chain, remove ...manifest.ID) *Pruned {
	w.t.Helper()
	w.tick()
	p, err := r.Prune(w.t.Context(), chain, remove, PruneOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.clock.forward(time.Minute)
	return p
}

func (w *world) sweep(r *Repository) *Swept {
	w.t.Helper()
	w.tick()
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

func TestGarbageIsNamedBeforeItIsDeletedAndOnlyWhenNoWriterCanBeAlive(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r)
	m, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(t.Context(), r, m, data); err != nil {
		t.Fatal(err)
	}
	w.clock.forward(GiveUpAfter)
	if p := w.prune(r, etcdMain); p.Commit != nil {
		t.Fatalf("young garbage was named: %+v", p)
	}
	w.clock.forward(2 * skewMargin)
	p := w.prune(r, etcdMain)
	if !slices.Equal(p.Dropped, []manifest.ID{m.ID}) || !slices.Equal(p.Objects, []string{m.Objects[0].Name}) {
		t.Fatalf("pruned %+v", p)
	}
	w.clock.forward(ObjectGrace + time.Hour)
	if s := w.sweep(r); s.Objects != 1 {
		t.Errorf("swept %+v", s)
	}
	w.clean(w.open())
	if n := len(names(t, w.store, testCluster+"/etcd/main/data/")); n != 1 {
		t.Errorf("%d data objects", n)
	}
}

// paused is a repository of a process that was stopped: its clock stands still.
func (w *world) paused() *Repository {
	then := w.clock.now()
	return w.open(func(o *Options) { o.Now = func() time.Time { return then } })
}

func TestAWriterPausedAcrossAPruneGivesUp(t *testing.T) {
	// A week later the prune that dropped it may be gone itself; then so are the
	// writer's data objects.
	gaveUp := func(err error) bool {
		return errors.Is(err, ErrSuperseded) || err != nil && strings.Contains(err.Error(), "is not in the store")
	}
	for name, between := range map[string]func(w *world){
		"and nothing more": func(w *world) {},
		"and another commit behind it, whose index hides the prune": func(w *world) { w.full(w.open()) },
		"and many": func(w *world) { w.fulls(w.open(), 12) },
		"and the sweep": func(w *world) {
			w.clock.forward(ObjectGrace + time.Hour)
			w.sweep(w.open())
		},
		"and another prune with its sweeps": func(w *world) {
			r := w.open()
			fulls := w.fulls(r, 3)
			w.clock.forward(ManifestGrace + time.Hour)
			w.sweep(r)
			w.prune(r, etcdMain, fulls[0].Manifest.ID)
			w.full(r)
		},
	} {
		t.Run("before it reads the head, "+name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.full(w.open())
			writer := w.paused()
			m, data := w.draft(etcdMain, manifest.KindFull)
			if err := put(t.Context(), writer, m, data); err != nil {
				t.Fatal(err)
			}
			w.clock.forward(2 * time.Hour)
			if p := w.prune(w.open(), etcdMain); !slices.Contains(p.Dropped, m.ID) {
				t.Fatalf("pruned %+v", p)
			}
			between(w)
			if _, err := writer.Commit(t.Context(), m); !gaveUp(err) {
				t.Errorf("commit: %v", err)
			}
			w.clean(w.open())
			if slices.Contains(w.ids(w.open()), m.ID) {
				t.Error("the dropped backup is listed")
			}
		})
		t.Run("between reading the head and the create, "+name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.full(w.open())
			paused := w.paused()
			m, data := w.draft(etcdMain, manifest.KindFull)
			writer := on(paused, &beforePut{Store: w.store, f: func(string) {
				w.clock.forward(2 * time.Hour)
				if p := w.prune(w.open(), etcdMain); !slices.Contains(p.Dropped, m.ID) {
					t.Errorf("pruned %+v", p)
				}
				between(w)
			}})
			if err := put(t.Context(), writer, m, data); err != nil {
				t.Fatal(err)
			}
			if _, err := writer.Commit(t.Context(), m); !gaveUp(err) {
				t.Errorf("commit: %v", err)
			}
			w.clean(w.open())
			if slices.Contains(w.ids(w.open()), m.ID) {
				t.Error("the dropped backup is listed")
			}
		})
	}
}

func TestACreateInAPlaceThatWasPrunedDoesNotCount(t *testing.T) {
	// Stopped for longer than manifests live, between its last look and the
	// create: the place has been used, pruned and swept, so the create succeeds.
	w := newWorld(t, nil)
	w.full(w.open())
	paused := w.paused()
	m, data := w.draft(etcdMain, manifest.KindFull)
	writer := on(paused, &beforePut{Store: w.store, f: func(name string) {
		w.clock.forward(30 * time.Minute) // the objects are young: no prune names them yet
		r := w.open()
		fulls := w.fulls(r, 3)
		w.prune(r, etcdMain, fulls[0].Manifest.ID)
		w.clock.forward(ManifestGrace + time.Hour)
		if s := w.sweep(r); s.Manifests != 1 {
			t.Errorf("swept %+v", s)
		}
	}})
	if err := put(t.Context(), writer, m, data); err != nil {
		t.Fatal(err)
	}
	c, err := writer.Commit(t.Context(), m) // its own clock stands still, so it tries again
	if err != nil || c.Sequence != 6 {
		t.Fatalf("%+v, %v", c, err)
	}
	if got := w.manifests(); !slices.Contains(got, 2) {
		t.Fatalf("manifests %v", got)
	}
	w.clean(w.open())
	rep, _ := w.open().Verify(t.Context(), VerifyOptions{})
	wantProblem(t, rep.Problems, w.stored(writer, etcdMain, 2), Leftover)
	if n := len(w.ids(w.open())); n != 4 {
		t.Errorf("%d backups", n)
	}
	if p := w.prune(w.open(), etcdMain); p.Commit == nil {
		t.Error("the next prune leaves it there")
	}
	w.clock.forward(ManifestGrace + time.Hour)
	w.sweep(w.open())
	w.clean(w.open())
	if got := w.manifests(); slices.Contains(got, 2) {
		t.Errorf("manifests %v", got)
	}
}

func TestAPrunerThatLosesTheRaceReadsAgain(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	fulls := w.fulls(r, 2)
	m, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(t.Context(), r, m, data); err != nil {
		t.Fatal(err)
	}
	slow := w.paused()
	w.clock.forward(2 * time.Hour) // its objects look like garbage to the pruner
	pruner := on(w.open(), &beforePut{Store: w.store, f: func(string) {
		if _, err := slow.Commit(t.Context(), m); err != nil {
			t.Error(err)
		}
	}})
	p := w.prune(pruner, etcdMain, fulls[0].Manifest.ID)
	if p.Commit.Sequence != 4 || len(p.Dropped) != 0 || len(p.Objects) != 1 {
		t.Errorf("pruned %+v", p)
	}
	w.clock.forward(ManifestGrace + time.Hour)
	w.sweep(r)
	w.clean(w.open())
	if ids := w.ids(w.open()); len(ids) != 2 || !slices.Contains(ids, m.ID) {
		t.Errorf("backups %v", ids)
	}
}

func TestASweepLeavesAWriterInFlightAlone(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	fulls := w.fulls(r, 3)
	w.prune(r, etcdMain, fulls[0].Manifest.ID)
	w.clock.forward(ManifestGrace + time.Hour)
	m, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(t.Context(), r, m, data); err != nil {
		t.Fatal(err)
	}
	w.sweep(w.open())
	during := on(r, &beforePut{Store: w.store, f: func(string) { w.sweep(w.open()) }})
	if _, err := during.Commit(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	w.sweep(w.open())
	w.clean(w.open())
	if n := len(w.ids(w.open())); n != 3 {
		t.Errorf("%d backups", n)
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
