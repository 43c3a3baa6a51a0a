package transfer

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/storage/fault"
	"lifeboat/storage/memory"
)

// segment commits one to a repository. Its data is not sealed: nobody opens it here.
func (w *world) segment(r *repository.Repository, first, last manifest.Revision, rollUp bool) {
	w.t.Helper()
	id, err := manifest.NewID(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	data := []byte(fmt.Sprintf("events %d to %d", first, last))
	name := repository.ObjectName(etcdMain, id, "events.zst.age")
	if err := r.PutObject(w.t.Context(), name, bytes.NewReader(data), time.Time{}); err != nil {
		w.t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	latest, err := r.Resolve(w.t.Context(), etcdMain, repository.Point{})
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = r.Commit(w.t.Context(), &manifest.Manifest{
		Chain: etcdMain, Kind: manifest.KindSegment, ID: id, Created: now, Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"},
		Span: &manifest.Span{ClusterID: latest.Etcd.ClusterID, MemberID: 1, First: first, Last: last, FirstTime: now, LastTime: now, Events: int64(last - first + 1), RollUp: rollUp},
		Objects: []manifest.Object{{
			Name: name, Role: manifest.RoleEvents, Size: int64(len(data)), PlainSize: int64(len(data)), SHA256: sha256.Sum256(data),
		}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// fullAt commits a full at a revision of a cluster.
func (w *world) fullAt(r *repository.Repository, rev manifest.Revision, cluster manifest.EtcdID) {
	w.t.Helper()
	id, err := manifest.NewID(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	data := []byte("full " + string(id))
	name := repository.ObjectName(etcdMain, id, "snapshot.db.zst.age")
	if err := r.PutObject(w.t.Context(), name, bytes.NewReader(data), time.Time{}); err != nil {
		w.t.Fatal(err)
	}
	_, err = r.Commit(w.t.Context(), &manifest.Manifest{
		Chain: etcdMain, Kind: manifest.KindFull, ID: id, Created: time.Now(), Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"},
		Etcd: &manifest.Etcd{ClusterID: cluster, MemberID: 1, Revision: rev, HashKV: 7},
		Objects: []manifest.Object{{
			Name: name, Role: manifest.RoleSnapshot, Size: int64(len(data)), PlainSize: int64(len(data)), SHA256: sha256.Sum256(data),
		}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) copySegments(to *repository.Repository, change ...func(*CopyOptions)) (map[repository.Fate]int, error) {
	o := CopyOptions{From: w.from, To: to, Now: time.Now}
	for _, f := range change {
		f(&o)
	}
	report, err := Copy(w.t.Context(), o)
	fates := map[repository.Fate]int{}
	for _, c := range report.Copies {
		if c.Kind == manifest.KindSegment {
			fates[c.Fate]++
		}
	}
	return fates, err
}

func wantFates(t *testing.T, what string, got map[repository.Fate]int, err error, want string) {
	t.Helper()
	if err != nil || fmt.Sprint(got) != want {
		t.Errorf("%s: %v, %v; want %s", what, got, err, want)
	}
}

// points are the revisions that can be restored, as text.
func (w *world) points(r *repository.Repository) string {
	w.t.Helper()
	line, err := r.Timeline(w.t.Context(), etcdMain)
	if err != nil {
		w.t.Fatal(err)
	}
	s := ""
	for _, span := range line.Spans {
		s += fmt.Sprintf("%d/%d-%d ", span.Epoch, span.First.Revision, span.Last.Revision)
	}
	return s
}

func TestACopyCanBeRestoredToTheSamePoints(t *testing.T) {
	w := newWorld(t, 0)
	w.fullAt(w.from, 100, 7)
	w.segment(w.from, 101, 110, false)
	w.segment(w.from, 111, 120, false)
	w.segment(w.from, 101, 120, true)
	w.segment(w.from, 121, 130, false)
	w.fullAt(w.from, 125, 7)
	w.fullAt(w.from, 50, 8)
	w.segment(w.from, 51, 60, false)
	const all = "1/100-130 2/50-60 "
	if got := w.points(w.from); got != all {
		t.Fatal(got)
	}
	store := memory.New()
	to := w.repo(store, "memory:to")
	dry, err := w.copySegments(to, func(o *CopyOptions) { o.DryRun = true })
	wantFates(t, "dry run", dry, err, "map[wanted:3]")
	got, err := w.copySegments(to)
	wantFates(t, "copy", got, err, "map[copied:3]") // those that the roll-up replaced are left out
	if got := w.points(w.repo(store, "memory:to")); got != all {
		t.Errorf("the copy has %s", got)
	}
	for _, point := range []repository.Point{{}, {Revision: 115}, {Revision: 128, Epoch: 1}} {
		a, errA := w.from.Route(t.Context(), etcdMain, point)
		b, errB := w.repo(store, "memory:to").Route(t.Context(), etcdMain, point)
		if errA != nil || errB != nil || a.Revision != b.Revision || a.Epoch != b.Epoch || a.Base.ID != b.Base.ID || len(a.Segments) != len(b.Segments) {
			t.Errorf("%s: %+v and %+v, %v, %v", point, a, b, errA, errB)
		}
	}
	if report, err := to.Verify(t.Context(), repository.VerifyOptions{}); err != nil || report.Err() != nil {
		t.Error(err, report.Err())
	}
	got, err = w.copySegments(to)
	wantFates(t, "again", got, err, "map[present:3]")

	// Both go on; what the copy's own recorder has is not copied to it.
	w.segment(w.from, 61, 65, false)
	w.segment(w.from, 66, 70, false)
	w.segment(to, 61, 66, false)
	got, err = w.copySegments(to)
	wantFates(t, "beside another recorder", got, err, "map[copied:1 covered:1 present:3]")
	if got := w.points(to); got != "1/100-130 2/50-70 " {
		t.Errorf("the copy has %s", got)
	}
	latest, err := w.from.Resolve(t.Context(), etcdMain, repository.Point{})
	if err != nil {
		t.Fatal(err)
	}
	got, err = w.copySegments(to, func(o *CopyOptions) { o.IDs = []string{string(latest.ID)} })
	wantFates(t, "by ids", got, err, "map[]")
}

func TestASegmentWithoutAFullOfItsHistoryIsNotCopied(t *testing.T) {
	w := newWorld(t, 0)
	to := w.repo(memory.New(), "memory:to")
	w.fullAt(w.from, 100, 7)
	w.segment(w.from, 101, 110, false)
	since := time.Now().Truncate(time.Millisecond)
	w.segment(w.from, 111, 120, false)
	got, err := w.copySegments(to, func(o *CopyOptions) { o.Since = since })
	wantFates(t, "its full is left out", got, err, "map[alone:1]")
	got, err = w.copySegments(to)
	wantFates(t, "with it", got, err, "map[copied:2]")
	w.segment(w.from, 121, 130, false)
	w.fullAt(to, 10, 9) // the destination has gone on to another history
	got, err = w.copySegments(to)
	wantFates(t, "of an older history", got, err, "map[alone:1 present:2]")
	if errors.Is(err, repository.ErrOrder) {
		t.Error(err)
	}
}

// A chain may be long: what changed most in a time line is told without loading
// it anew.
func TestWhatChangedMostIsFoundInOneLoadOfTheChain(t *testing.T) {
	w := newWorld(t, 0)
	w.fullAt(w.from, 100, 7)
	w.segment(w.from, 101, 110, false)
	w.segment(w.from, 111, 120, false)
	counted := fault.New(w.store)
	repo := w.repo(counted, "memory:from")
	line, err := repo.Timeline(t.Context(), etcdMain)
	if err != nil {
		t.Fatal(err)
	}
	loaded := len(counted.Trace())
	bursts, err := repo.Busiest(t.Context(), line, 5)
	if err != nil || len(bursts) == 0 || bursts[0].Last != 120 {
		t.Fatalf("%+v, %v", bursts, err)
	}
	for _, c := range counted.Trace()[loaded:] {
		if c.Op == fault.List {
			t.Errorf("the chain is listed once more: %s", c)
		}
	}
	if loaded == 0 {
		t.Error("nothing was counted")
	}
}
