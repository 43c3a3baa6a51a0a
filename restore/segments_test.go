package restore

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/segment"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/materialize"
)

// recorded is what a real etcd did after a full, with HashKV at each revision.
type recorded struct {
	snapshot string
	first    int64 // revision after the full's
	events   [][]segment.Record
	hash     map[int64]uint32
	cluster  manifest.EtcdID // 1 when 0
}

// recordEtcd runs an etcd, takes a snapshot and goes on for n revisions.
func recordEtcd(t *testing.T, n int) *recorded {
	t.Helper()
	ctx := t.Context()
	m, err := etcdtest.StartEmbedded(filepath.Join(t.TempDir(), "live"), etcdtest.EmbeddedOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	c, err := m.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	put := func(i int) int64 {
		res, err := c.Put(ctx, fmt.Sprintf("/registry/k%02d", i%17), strings.Repeat(fmt.Sprint(i), 40))
		if err != nil {
			t.Fatal(err)
		}
		return res.Header.Revision
	}
	var at int64
	for i := range 30 {
		at = put(i)
	}
	r := &recorded{snapshot: filepath.Join(t.TempDir(), "full.db"), first: at + 1, hash: map[int64]uint32{}}
	snapshot, err := c.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.snapshot, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		at = put(100 + i)
		h, err := c.HashKV(ctx, m.Endpoint, at)
		if err != nil {
			t.Fatal(err)
		}
		r.hash[at] = h.Hash
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	for res := range c.Watch(watching, "\x00", clientv3.WithFromKey(), clientv3.WithRev(r.first)) {
		if res.Err() != nil {
			t.Fatal(res.Err())
		}
		for _, e := range res.Events {
			r.events = append(r.events, []segment.Record{eventRecord(t, e)})
		}
		if res.Events[len(res.Events)-1].Kv.ModRevision == at {
			break
		}
	}
	return r
}

func eventRecord(t *testing.T, e *clientv3.Event) segment.Record {
	kv := (*mvccpb.KeyValue)(e.Kv)
	text, err := proto.Marshal(kv)
	if err != nil {
		t.Fatal(err)
	}
	return segment.Record{Kind: segment.KindPut, Main: kv.ModRevision, KV: text}
}

// segment commits revisions from to to, of which the last is known as of end;
// with the hash at its last revision if hashed.
func (f *fixture) segment(t *testing.T, r *recorded, from, to int64, end time.Time, hashed bool) *manifest.Manifest {
	t.Helper()
	var plain bytes.Buffer
	w, err := segment.NewWriter(&plain, segment.Header{ClusterID: 1, MemberID: 2, First: from, At: end.UnixMilli()})
	if err != nil {
		t.Fatal(err)
	}
	events := int64(0)
	for rev := from; rev <= to; rev++ {
		for _, e := range r.events[rev-r.first] {
			if err := w.Write(e); err != nil {
				t.Fatal(err)
			}
			events++
		}
	}
	if err := w.Close(to); err != nil {
		t.Fatal(err)
	}
	span := &manifest.Span{
		ClusterID: cmp.Or(r.cluster, 1), MemberID: 2, First: manifest.Revision(from), Last: manifest.Revision(to), Events: events,
		FirstTime: end.Add(-2 * time.Second), LastTime: end,
	}
	var moments []manifest.Moment
	for i := range int64(3) { // the middle of it is known as of the middle of the time
		at := from - 1 + (to-from+1)*i/2
		moments = append(moments, manifest.Moment{At: end.Add(time.Duration(i-2) * time.Second), AtLeast: manifest.Revision(at), AtMost: manifest.Revision(at)})
	}
	span.SetMoments(moments)
	if hashed {
		span.Hashes = []manifest.HashKV{{Revision: manifest.Revision(to), HashKV: r.hash[to], Members: []manifest.EtcdID{2}}}
	}
	return f.commit(t, &manifest.Manifest{Chain: DefaultChain, Epoch: 1, Kind: manifest.KindSegment, Span: span}, manifest.RoleEvents, "events.zst.age", plain.Bytes())
}

// world is a full of real etcd and three segments behind it: of revisions +1 to
// +20, +21 to +40, and after a gap, +51 to +60.
type world struct {
	*fixture
	*recorded
	full     *manifest.Manifest
	segments []*manifest.Manifest
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{fixture: newFixture(t), recorded: recordEtcd(t, 60)}
	w.full = w.fixture.full(t, w.snapshot, nil)
	w.now = w.now.Add(10 * time.Second)
	start := w.now
	w.segments = append(w.segments, w.segment(t, w.recorded, w.first, w.first+19, start, false))
	w.segments = append(w.segments, w.segment(t, w.recorded, w.first+20, w.first+39, start.Add(2*time.Second), true))
	w.now = w.now.Add(time.Minute)
	return w
}

// holds compares a database file with what etcd held at a revision.
func (w *world) holds(t *testing.T, path string, revision int64) {
	t.Helper()
	facts, err := snapdb.Inspect(t.Context(), path, snapdb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if facts.Revision != revision || facts.HashKV != w.hash[revision] {
		t.Errorf("revision %d with HashKV %d, want %d with %d", facts.Revision, facts.HashKV, revision, w.hash[revision])
	}
}

func TestAPointBetweenFullsIsExactlyWhatEtcdHeld(t *testing.T) {
	w := newWorld(t)
	at := w.now.Add(-time.Minute) // the first segment ends there
	tests := []struct {
		name   string
		point  repository.Point
		want   int64
		behind string
		proved bool
	}{
		{"the latest", repository.Point{}, w.first + 39, "nothing that is recorded", true},
		{"a revision", repository.Point{Revision: manifest.Revision(w.first + 25)}, w.first + 25, "14 revisions lie after it", false},
		{"a revision in the first segment", repository.Point{Revision: manifest.Revision(w.first)}, w.first, "39 revisions", false},
		{"a time", repository.Point{Time: at.Add(1500 * time.Millisecond)}, w.first + 29, "10 revisions", false},
		{"the full's own revision", repository.Point{Revision: manifest.Revision(w.first - 1)}, w.first - 1, "40 revisions", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out.db")
			res, err := Export(t.Context(), w.repo, ExportOptions{
				Point: tt.point, Identities: []age.Identity{w.id}, Out: out, Now: time.Now, Rand: rand.Reader,
			})
			if err != nil {
				t.Fatal(err)
			}
			if int64(res.Choice.Revision) != tt.want || res.Revision != tt.want || !strings.Contains(res.Choice.Behind(), tt.behind) {
				t.Errorf("%s; %s; revision %d, want %d", res.Choice, res.Choice.Behind(), res.Revision, tt.want)
			}
			if tt.want >= w.first {
				w.holds(t, out, tt.want)
				if res.HashKV != w.hash[tt.want] {
					t.Errorf("HashKV %d, want %d", res.HashKV, w.hash[tt.want])
				}
				if (res.Applied.ProvedAt != nil) != tt.proved {
					t.Errorf("applied %+v", res.Applied)
				}
			}
			text, err := os.ReadFile(out)
			if err != nil || len(text)%512 != 32 {
				t.Errorf("%d bytes and no trailer, %v", len(text), err)
			}

			opts := w.etcdOptions(filepath.Join(t.TempDir(), "etcd"))
			opts.Point = tt.point
			plan, err := PlanEtcd(t.Context(), w.repo, opts)
			if err != nil {
				t.Fatal(err)
			}
			var printed bytes.Buffer
			if err := plan.Print(&printed); err != nil || !strings.Contains(printed.String(), plan.Choice.String()) || !strings.Contains(printed.String(), tt.behind) {
				t.Errorf("the plan does not say which point: %v\n%s", err, printed.String())
			}
			if err := plan.Execute(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			ahead := w.first + 39 - tt.want
			if plan.Result.Last != tt.want || plan.Result.Revision != tt.want+minBump+ahead {
				t.Errorf("result %+v", plan.Result)
			}
			entries, _ := os.ReadDir(opts.DataDir)
			if len(entries) != 1 {
				t.Errorf("left in the data directory: %v", entries)
			}
		})
	}
}

func TestAPointThatIsNotRecordedIsRefusedWithThePointsBesideIt(t *testing.T) {
	w := newWorld(t)
	w.segments = append(w.segments, w.segment(t, w.recorded, w.first+50, w.first+59, w.now, true))
	tests := []struct {
		name          string
		point         repository.Point
		want          error
		before, after bool
	}{
		{"in a gap", repository.Point{Revision: manifest.Revision(w.first + 45)}, repository.ErrNothing, true, false}, // nothing restorable lies behind it
		{"before all", repository.Point{Revision: 1}, repository.ErrNothing, false, true},
		{"in the future", repository.Point{Time: w.now.Add(time.Hour)}, repository.ErrNothing, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			opts := w.etcdOptions(filepath.Join(t.TempDir(), "etcd"))
			opts.Point = tt.point
			_, err := PlanEtcd(t.Context(), w.repo, opts)
			var not *repository.UnreachableError
			if !errors.As(err, &not) || !errors.Is(err, tt.want) || (not.Before != nil) != tt.before || (not.After != nil) != tt.after {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestSegmentsThatAreNotWhatWasRecordedAreRefused(t *testing.T) {
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	tests := []struct {
		name   string
		damage func(t *testing.T, w *world)
		want   error
	}{
		{"a flipped bit", func(t *testing.T, w *world) { w.overwrite(t, w.segments[1], flip) }, repository.ErrVerification},
		{"cut short", func(t *testing.T, w *world) {
			w.overwrite(t, w.segments[0], func(b []byte) []byte { return b[:len(b)-20] })
		}, repository.ErrVerification},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.damage(t, w)
			opts := w.etcdOptions(filepath.Join(t.TempDir(), "etcd"))
			plan, err := PlanEtcd(t.Context(), w.repo, opts)
			if err == nil {
				err = plan.Execute(t.Context(), nil)
			}
			var lost *SegmentError
			if !errors.Is(err, tt.want) || !errors.As(err, &lost) {
				t.Errorf("%v", err)
			}
			if _, err := os.Stat(opts.DataDir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("leftovers: %v", err)
			}
			out := filepath.Join(t.TempDir(), "out.db")
			if _, err := Export(t.Context(), w.repo, ExportOptions{Identities: []age.Identity{w.id}, Out: out, Now: time.Now, Rand: rand.Reader}); !errors.Is(err, tt.want) {
				t.Errorf("export: %v", err)
			}
			if left, _ := os.ReadDir(filepath.Dir(out)); len(left) > 0 {
				t.Errorf("export left %v", left)
			}
		})
	}
	t.Run("a hash that is another", func(t *testing.T) {
		w := newWorld(t)
		w.hash[w.first+59]++
		w.segment(t, w.recorded, w.first+40, w.first+59, w.now, true)
		_, err := Export(t.Context(), w.repo, ExportOptions{Identities: []age.Identity{w.id}, Out: filepath.Join(t.TempDir(), "o"), Now: time.Now, Rand: rand.Reader})
		if !errors.Is(err, repository.ErrVerification) || !strings.Contains(err.Error(), "HashKV") {
			t.Errorf("%v", err)
		}
	})
	t.Run("an overlap that differs", func(t *testing.T) {
		w := newWorld(t)
		out := filepath.Join(t.TempDir(), "o")
		export := func() error {
			_, err := Export(t.Context(), w.repo, ExportOptions{Identities: []age.Identity{w.id}, Out: out, Force: true, Now: time.Now, Rand: rand.Reader})
			return err
		}
		w.segment(t, w.recorded, w.first+35, w.first+49, w.now, true) // as another recorder's that took over
		if err := export(); err != nil {
			t.Fatalf("an overlap that does not differ: %v", err)
		}
		w = newWorld(t)
		e := &w.events[37][0]
		e.KV = bytes.Clone(e.KV)
		e.KV[len(e.KV)-1] ^= 1
		w.segment(t, w.recorded, w.first+35, w.first+49, w.now, false)
		if err := export(); !errors.Is(err, repository.ErrVerification) || !errors.Is(err, materialize.ErrDiffers) || !strings.Contains(err.Error(), fmt.Sprint("revision ", w.first+37)) {
			t.Errorf("%v", err)
		}
	})
}

func TestLeasesThatAreMadeUpAreCounted(t *testing.T) {
	w := newWorld(t)
	for i, id := range []byte{5, 6} { // nothing is recorded of either
		e := &w.events[40+i][0]
		e.KV = append(bytes.Clone(e.KV), 6<<3, id)
	}
	w.segment(t, w.recorded, w.first+40, w.first+49, w.now, false)
	res, err := Export(t.Context(), w.repo, ExportOptions{Identities: []age.Identity{w.id}, Out: filepath.Join(t.TempDir(), "o"), Now: time.Now, Rand: rand.Reader})
	if err != nil || res.Applied.MadeUp != 2 {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestADatabaseAboveTheQuotaIsRefused(t *testing.T) {
	w := newWorld(t)
	quota := w.full.Etcd.DBBytes + 100
	opts := w.etcdOptions(filepath.Join(t.TempDir(), "etcd"))
	opts.Quota = &quota
	if _, err := PlanEtcd(t.Context(), w.repo, opts); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "would be at least") {
		t.Errorf("what surely exceeds it: %v", err)
	}
	// A smaller change may find room in free pages, or not: that is seen at the end.
	opts.Point = repository.Point{Revision: manifest.Revision(w.first + 5)}
	plan, err := PlanEtcd(t.Context(), w.repo, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Execute(t.Context(), nil); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "has become") {
		t.Errorf("what turns out to: %v", err)
	}
	none := int64(0)
	opts.Quota = &none
	if plan, err = PlanEtcd(t.Context(), w.repo, opts); err == nil {
		err = plan.Execute(t.Context(), nil)
	}
	if err != nil {
		t.Errorf("without a quota: %v", err)
	}
}

func TestOnlyAHashThatIsThereIsSaidToBeCompared(t *testing.T) {
	streamed := &repository.Route{Base: repository.Backup{Manifest: &manifest.Manifest{Etcd: &manifest.Etcd{}}}}
	whole := &repository.Route{Base: repository.Backup{Manifest: &manifest.Manifest{Etcd: &manifest.Etcd{HashKV: 7}}}}
	for said, compared := range map[string]bool{
		(&Applied{}).String(): false, (&Applied{BaseHash: true}).String(): true,
		proofText(streamed): false, proofText(whole): true,
	} {
		if strings.Contains(said, "none that etcd gave") == compared || strings.Contains(said, "the full's") != compared {
			t.Errorf("compared %v: %s", compared, said)
		}
	}
}

func TestTheDefaultQuota(t *testing.T) {
	given := int64(5)
	for _, tt := range []struct {
		given *int64
		bytes int64
		want  int64
	}{{nil, 1 << 20, 2 << 30}, {nil, 3 << 30, 8 << 30}, {nil, 9 << 30, 9 << 30}, {&given, 9 << 30, 5}} {
		if got := quotaFor(tt.given, &manifest.Manifest{Etcd: &manifest.Etcd{DBBytes: tt.bytes}}); got != tt.want {
			t.Errorf("given %v and a full of %d: %d, want %d", tt.given, tt.bytes, got, tt.want)
		}
	}
}

func TestDeepVerificationProvesTheSegmentsBehindAFull(t *testing.T) {
	w := newWorld(t)
	route, err := RouteBeyond(t.Context(), w.repo, w.full, 0)
	if err != nil || route == nil || int64(route.Revision) != w.first+39 {
		t.Fatalf("%+v, %v", route, err)
	}
	opts := w.deepOptions(t)
	opts.Route = route
	report, err := DeepVerify(t.Context(), w.repo, w.full, opts)
	if err != nil || report.Applied == nil || report.Applied.Events != 40 || report.Applied.ProvedAt == nil {
		t.Fatalf("%+v, %v", report, err)
	}
	if left, _ := os.ReadDir(opts.Scratch); len(left) != 0 {
		t.Errorf("left in scratch: %v", left)
	}
	w.overwrite(t, w.segments[0], func(b []byte) []byte { b[len(b)-9] ^= 1; return b })
	if _, err = DeepVerify(t.Context(), w.repo, w.full, opts); !errors.Is(err, repository.ErrVerification) {
		t.Errorf("a damaged segment: %v", err)
	}
	if route, err = RouteBeyond(t.Context(), w.repo, w.full, manifest.Revision(w.first+4)); err != nil || int64(route.Revision) != w.first+4 {
		t.Errorf("to a revision: %+v, %v", route, err)
	}
	if route, err = RouteBeyond(t.Context(), w.repo, w.full, w.full.Etcd.Revision); err != nil || route != nil {
		t.Errorf("to itself: %+v, %v", route, err)
	}
}

func TestThePlanSaysHowMuchOfTheSegmentsIsStored(t *testing.T) {
	w := newWorld(t)
	plan, err := PlanEtcd(t.Context(), w.repo, w.etcdOptions(filepath.Join(t.TempDir(), "etcd")))
	if err != nil {
		t.Fatal(err)
	}
	stored := int64(0)
	for _, m := range w.segments {
		stored += m.Objects[0].Size
	}
	var printed bytes.Buffer
	if err := plan.Print(&printed); err != nil || !strings.Contains(printed.String(), size(stored)+" stored, from ") {
		t.Errorf("no %s stored: %v\n%s", size(stored), err, printed.String())
	}
}
