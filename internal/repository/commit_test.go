package repository

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
	"lifeboat/storage/memory"
)

func TestBackupsFormAChainThatAFreshReaderVerifiesAndResolves(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	if err := r.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	var done []*Committed
	for range 5 {
		done = append(done, w.full(r))
	}
	files := w.backup(r, hostsCP1, manifest.KindFiles)
	w.backup(r, drills, manifest.KindDrill)

	fresh := w.open(func(o *Options) { o.Signer = nil })
	w.clean(fresh)
	chains, err := fresh.Chains(t.Context())
	if err != nil || !slices.Equal(chains, []manifest.Chain{drills, etcdMain, hostsCP1}) {
		t.Fatalf("chains %v, %v", chains, err)
	}
	backups, problems, err := fresh.Backups(t.Context())
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	if len(backups) != 6 || backups[0].ID != files.Manifest.ID || backups[5].ID != done[0].Manifest.ID || !backups[5].Proved {
		t.Errorf("backups %v", backups)
	}
	for i, c := range done {
		if c.Sequence != manifest.Sequence(i+1) || c.Manifest.Epoch != 1 || len(c.Manifest.Index) != i {
			t.Errorf("commit %d: sequence %d, epoch %d, index of %d", i, c.Sequence, c.Manifest.Epoch, len(c.Manifest.Index))
		}
		if i > 0 && c.Manifest.Previous != done[i-1].Hash {
			t.Errorf("commit %d follows %s", i, c.Manifest.Previous)
		}
	}
	if heads := files.Manifest.Heads; len(heads) != 1 || heads[0].Chain != etcdMain || heads[0].Hash != done[4].Hash || heads[0].Store != "memory:" {
		t.Errorf("the files manifest witnesses %v", heads)
	}
	for point, want := range map[Point]*Committed{
		{}:                               done[4],
		{Backup: done[1].Manifest.ID}:    done[1],
		{Revision: 20}:                   done[1],
		{Revision: 29}:                   done[1],
		{Revision: 1e9}:                  done[4],
		{Revision: 50, Epoch: 1}:         done[4],
		{Time: done[2].Manifest.Created}: done[2],
		{Time: done[2].Manifest.Created.Add(59 * time.Second)}: done[2],
	} {
		m, err := fresh.Resolve(t.Context(), etcdMain, point)
		if err != nil || m.ID != want.Manifest.ID {
			t.Errorf("%s: %v, %v", point, m, err)
		}
	}
	for _, point := range []Point{{Revision: 9}, {Time: time.Unix(0, 0)}, {Backup: w.id()}, {Revision: 50, Epoch: 2}} {
		if _, err := fresh.Resolve(t.Context(), etcdMain, point); !errors.Is(err, ErrNothing) {
			t.Errorf("%s: %v", point, err)
		}
	}
	if _, err := fresh.Resolve(t.Context(), "etcd/other", Point{}); !errors.Is(err, ErrNothing) {
		t.Errorf("an empty chain resolves: %v", err)
	}
	if b, err := fresh.Find(t.Context(), string(files.Manifest.ID[:8])); err != nil || b.ID != files.Manifest.ID {
		t.Errorf("find by the beginning of an id: %v, %v", b, err)
	}
	body, err := fresh.OpenObject(t.Context(), done[3].Manifest.Objects[0])
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if data, err := io.ReadAll(body); err != nil || !strings.Contains(string(data), string(done[3].Manifest.ID)) {
		t.Errorf("object %q, %v", data, err)
	}
}

func TestACommitThatCanNotCountIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	m, data := w.draft(etcdMain, manifest.KindFull)

	if _, err := w.open(func(o *Options) { o.Signer = nil }).Commit(t.Context(), m); !errors.Is(err, ErrNoSigner) {
		t.Errorf("without a signer: %v", err)
	}
	r := w.open()
	if _, err := r.Commit(t.Context(), m); err == nil || !strings.Contains(err.Error(), "is not in the store") {
		t.Errorf("without its object: %v", err)
	}
	if err := put(t.Context(), r, m, data); err != nil {
		t.Fatal(err)
	}
	w.clock.forward(GiveUpAfter + time.Second)
	if _, err := r.Commit(t.Context(), m); !errors.Is(err, ErrTooOld) {
		t.Errorf("after the give-up time: %v", err)
	}
	if got := names(t, w.store, testCluster+"/etcd/main/manifests/"); len(got) > 0 {
		t.Errorf("left %v", got)
	}
}

func TestCommittingTwiceIsOneBackup(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r)
	m, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(t.Context(), r, m, data); err != nil {
		t.Fatal(err)
	}
	first, err := r.Commit(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	w.full(r)
	again, err := w.open().Commit(t.Context(), m)
	if err != nil || again.Sequence != first.Sequence || again.Hash != first.Hash {
		t.Fatalf("again: %+v, %v", again, err)
	}
	if ids := w.ids(r); len(ids) != 3 {
		t.Errorf("backups %v", ids)
	}
}

func TestAnObjectThatExistsIsOurOwnOnlyWithTheSameBytes(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	name := ObjectName(etcdMain, w.id(), "snapshot.db.zst.age")
	put := func(text string) error { return r.PutObject(t.Context(), name, strings.NewReader(text), time.Time{}) }
	if err := put("bytes"); err != nil {
		t.Fatal(err)
	}
	if err := put("bytes"); err != nil {
		t.Errorf("the same bytes: %v", err)
	}
	if err := put("other"); !errors.Is(err, storage.ErrExist) {
		t.Errorf("other bytes: %v", err)
	}
	if err := put("bytes and more"); !errors.Is(err, storage.ErrExist) {
		t.Errorf("more bytes: %v", err)
	}
	for _, bad := range []string{"etcd/main/manifests/00000000000000000001", "README.txt", "etcd/main/data/x/y", "../x"} {
		if err := r.PutObject(t.Context(), bad, strings.NewReader("x"), time.Time{}); !errors.Is(err, storage.ErrInvalidName) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestAnotherEtcdHistoryStartsTheNextEpoch(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	cluster := func(id manifest.EtcdID, rev manifest.Revision) func(*manifest.Manifest) {
		return func(m *manifest.Manifest) { m.Etcd.ClusterID, m.Etcd.Revision = id, rev }
	}
	for _, step := range []struct {
		cluster manifest.EtcdID
		rev     manifest.Revision
		epoch   uint64
	}{{1, 100, 1}, {1, 100, 1}, {1, 120, 1}, {2, 130, 2}, {2, 90, 3}, {2, 95, 3}, {1, 200, 4}} {
		w.clock.forward(snapshotWithin)
		if c := w.full(r, cluster(step.cluster, step.rev)); c.Manifest.Epoch != step.epoch {
			t.Errorf("cluster %d at %d: epoch %d, want %d", step.cluster, step.rev, c.Manifest.Epoch, step.epoch)
		}
	}
	// The same revision in two epochs: the newest epoch wins unless told.
	m, err := r.Resolve(t.Context(), etcdMain, Point{Revision: 100})
	if err != nil || m.Epoch != 3 || m.Etcd.Revision != 95 {
		t.Errorf("revision 100: %+v, %v", m, err)
	}
	m, err = r.Resolve(t.Context(), etcdMain, Point{Revision: 110, Epoch: 1})
	if err != nil || m.Epoch != 1 || m.Etcd.Revision != 100 || m.Sequence != 2 {
		t.Errorf("revision 110 of epoch 1: %+v, %v", m, err)
	}
}

func TestAProofManifestMakesAnEarlierFullProved(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	unproved := w.full(r, func(m *manifest.Manifest) { m.Unproved = []string{"no scratch space"} })
	degraded := w.full(r, func(m *manifest.Manifest) { m.Degraded = []string{"no quorum"} })
	want := func(proved ...bool) {
		t.Helper()
		backups, _, err := w.open().Backups(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		slices.Reverse(backups)
		for i, b := range backups {
			if b.Proved != proved[i] {
				t.Errorf("backup %d: proved is %v", i, b.Proved)
			}
		}
	}
	want(false, false)
	prove := func(of *Committed, hash uint32) {
		_, err := r.Commit(t.Context(), &manifest.Manifest{
			Chain: etcdMain, Kind: manifest.KindProof, ID: w.id(), Created: w.clock.now(), Writer: of.Manifest.Writer,
			Proof: &manifest.Proof{Of: of.Manifest.ID, Revision: of.Manifest.Etcd.Revision, HashKV: hash, How: "drill"},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	prove(unproved, 1) // of something else
	want(false, false)
	prove(degraded, 77)
	want(false, false)
	prove(unproved, 77)
	want(true, false)
	w.clean(w.open())
}

func TestTwoWritersOnOneChainNeverFork(t *testing.T) {
	w := newWorld(t, nil)
	const writers, rounds = 2, 40
	var wg sync.WaitGroup
	for range writers {
		r := w.open()
		wg.Go(func() {
			for range rounds {
				m, data := w.draft(etcdMain, manifest.KindFull)
				if err := errors.Join(put(t.Context(), r, m, data)); err != nil {
					t.Error(err)
				}
				if _, err := r.Commit(t.Context(), m); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	fresh := w.open()
	w.clean(fresh)
	if n := len(w.ids(fresh)); n != writers*rounds {
		t.Errorf("%d backups", n)
	}
	if n := len(names(t, w.store, testCluster+"/etcd/main/manifests/")); n != writers*rounds {
		t.Errorf("%d manifests", n)
	}
}

func TestJunkInTheHeadsWayIsSkippedNamedAndReported(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r)
	set(t, w.store, w.stored(r, etcdMain, 2), []byte("junk"))
	set(t, w.store, w.stored(r, etcdMain, 3), get(t, w.store, w.stored(r, etcdMain, 1))) // a replay
	set(t, w.store, w.stored(r, etcdMain, 9), []byte("far away"))

	problems := w.failures(w.open())
	wantProblem(t, problems, w.stored(r, etcdMain, 2), Damaged)
	wantProblem(t, problems, w.stored(r, etcdMain, 3), Misplaced)
	if _, err := r.Resolve(t.Context(), etcdMain, Point{}); !errors.Is(err, ErrVerification) {
		t.Errorf("the latest behind junk: %v", err)
	}

	c := w.full(r)
	if c.Sequence != 4 || len(c.Manifest.Skipped) != 2 {
		t.Fatalf("committed %d, skipped %v", c.Sequence, c.Manifest.Skipped)
	}
	if len(w.warnings) < 2 || w.warnings[0].Subject != w.stored(r, etcdMain, 2) {
		t.Errorf("warnings %v", w.warnings)
	}
	remove(t, w.store, w.stored(r, etcdMain, 9))
	w.full(r)
	fresh := w.open()
	w.clean(fresh)
	if m, err := fresh.Resolve(t.Context(), etcdMain, Point{}); err != nil || m.Sequence != 5 {
		t.Errorf("resolve: %v, %v", m, err)
	}
	rep, _ := fresh.Verify(t.Context(), VerifyOptions{})
	wantProblem(t, rep.Problems, w.stored(r, etcdMain, 2), Skipped)

	set(t, w.store, w.stored(r, etcdMain, 2), []byte("other junk"))
	wantProblem(t, w.failures(fresh), w.stored(r, etcdMain, 2), Damaged)
	remove(t, w.store, w.stored(r, etcdMain, 2))
	w.clean(fresh) // junk that has gone is no loss
}

// beforePut runs f once, before the first conditional create of a manifest.
type beforePut struct {
	storage.Store
	once sync.Once
	f    func(name string)
}

func (b *beforePut) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	if strings.Contains(name, "/manifests/") {
		b.once.Do(func() { b.f(name) })
	}
	return b.Store.Put(ctx, name, r, opts)
}

func TestJunkThatAppearsBetweenReadAndCreateIsSkipped(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r)
	racing := on(r, &beforePut{Store: w.store, f: func(name string) { set(t, w.store, name, []byte("junk")) }})
	if c := w.full(racing); c.Sequence != 3 || len(c.Manifest.Skipped) != 1 {
		t.Errorf("committed %d, skipped %v", c.Sequence, c.Manifest.Skipped)
	}
	w.clean(w.open())
}

func TestALostRaceIsRetriedBehindTheWinner(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r)
	racing := on(r, &beforePut{Store: w.store, f: func(string) { w.full(r) }})
	if c := w.full(racing); c.Sequence != 3 {
		t.Errorf("committed %d", c.Sequence)
	}
	w.clean(w.open())
}

func TestTwoClustersOfOneNameDoNotMix(t *testing.T) {
	w := newWorld(t, nil)
	other := newWorld(t, w.store)
	other.trust = w.trusting("prod-eu1-aaaaaaaa", other.signer)
	third := newWorld(t, w.store)
	third.trust = w.trusting("prod-eu1-east-bbbbbbbb", third.signer)
	a, b, c := w.open(), other.open(), third.open()
	w.full(a)
	w.full(b)
	w.full(a)
	w.full(c)
	w.clean(w.open())
	w.clean(other.open())
	if len(w.ids(a)) != 2 || len(w.ids(b)) != 1 {
		t.Errorf("backups %v and %v", w.ids(a), w.ids(b))
	}
	for name, want := range map[string][]string{
		"prod-eu1": {"prod-eu1-aaaaaaaa", testCluster}, "prod-eu1-east": {"prod-eu1-east-bbbbbbbb"},
		"prod": nil, testCluster: {testCluster},
	} {
		if got, err := FindCluster(t.Context(), w.store, name); err != nil || !slices.Equal(got, want) {
			t.Errorf("find %s: %v, %v", name, got, err)
		}
	}
	// A whole chain copied into the other cluster's folder is nobody's.
	for _, name := range names(t, w.store, testCluster+"/etcd/main/manifests/") {
		set(t, w.store, strings.Replace(name, testCluster, "prod-eu1-aaaaaaaa", 1), get(t, w.store, name))
	}
	wantProblem(t, other.failures(other.open()), "prod-eu1-aaaaaaaa/etcd/main/manifests/00000000000000000002", Misplaced)
}

func TestAHiddenOrReplacedManifestIsReadFromItsOlderVersion(t *testing.T) {
	w := newWorld(t, nil)
	w.store = memory.New(memory.WithClock(w.clock.now), memory.WithVersioning())
	r := w.open()
	for range 4 {
		w.full(r)
	}
	set(t, w.store, w.stored(r, etcdMain, 2), []byte("junk"))
	remove(t, w.store, w.stored(r, etcdMain, 3))
	remove(t, w.store, w.stored(r, etcdMain, 4)) // the newest
	fresh := w.open()
	for _, seq := range []manifest.Sequence{2, 3, 4} {
		wantProblem(t, w.failures(fresh), w.stored(r, etcdMain, seq), Overwritten)
	}
	if ids := w.ids(fresh); len(ids) != 4 {
		t.Errorf("backups %v", ids)
	}
	if c := w.full(fresh); c.Sequence != 5 {
		t.Errorf("committed %d", c.Sequence)
	}

	c := w.full(r)
	name := r.stored(c.Manifest.Objects[0].Name)
	want := get(t, w.store, name)
	set(t, w.store, name, []byte(strings.Repeat("x", len(want))))
	for range 2 {
		body, err := fresh.OpenObject(t.Context(), c.Manifest.Objects[0])
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		if err != nil || string(got) != string(want) {
			t.Errorf("read %q, %v", got, err)
		}
		wantProblem(t, w.failures(fresh), name, Overwritten)
		remove(t, w.store, name)
	}
}

func TestTheBeginningOfSeveralIDsIsAmbiguous(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	seen := map[byte]bool{}
	for {
		id := w.full(r).Manifest.ID
		if !seen[id[0]] {
			seen[id[0]] = true
			continue
		}
		if _, err := r.Find(t.Context(), string(id[:1])); !errors.Is(err, ErrAmbiguous) {
			t.Errorf("find %c: %v", id[0], err)
		}
		return
	}
}
