package materialize_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/materialize"
)

// change is one event.
type change struct {
	main   int64
	delete bool
	kv     []byte
}

func (c change) parsed(t testing.TB) *mvccpb.KeyValue {
	t.Helper()
	var kv mvccpb.KeyValue
	if err := proto.Unmarshal(c.kv, &kv); err != nil {
		t.Fatal(err)
	}
	return &kv
}

// history is all that a live etcd has told, by revision.
type history struct {
	changes []change // ascending
	leases  []segment.Lease
}

func (h *history) from(first, last int64) []change {
	i, _ := slices.BinarySearchFunc(h.changes, first, func(c change, main int64) int { return int(c.main - main) })
	j, _ := slices.BinarySearchFunc(h.changes, last+1, func(c change, main int64) int { return int(c.main - main) })
	return h.changes[i:j]
}

// at is what is alive at a revision.
func (h *history) at(t testing.TB, rev int64) map[string]*mvccpb.KeyValue {
	alive := map[string]*mvccpb.KeyValue{}
	for _, c := range h.from(1, rev) {
		kv := c.parsed(t)
		if delete(alive, string(kv.Key)); !c.delete {
			alive[string(kv.Key)] = kv
		}
	}
	return alive
}

// segment makes the plain bytes of one segment. Leases come after all events
// that name them, as a recorder that asks for them has them.
func (h *history) segment(t testing.TB, first, last int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := segment.NewWriter(&b, segment.Header{ClusterID: 1, MemberID: 2, First: first, At: 1})
	if err != nil {
		t.Fatal(err)
	}
	write := func(r segment.Record) {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range h.from(first, last) {
		kind := segment.KindPut
		if c.delete {
			kind = segment.KindDelete
		}
		write(segment.Record{Kind: kind, Main: c.main, KV: c.kv})
		if i%7 == 0 {
			write(segment.Record{Kind: segment.KindTime, Time: segment.Moment{At: 1, AtLeast: c.main, AtMost: c.main}})
		}
	}
	for _, l := range h.leases {
		if l.Revision >= first && l.Revision <= last {
			write(segment.Record{Kind: segment.KindLease, Lease: l})
		}
	}
	if err := w.Close(last); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// route cuts a span at random into segments with overlaps and empty ones.
func (h *history) route(t testing.TB, rng *rand.Rand, first, last int64) [][]byte {
	t.Helper()
	var all [][]byte
	for reached := first - 1; reached < last || len(all) == 0; {
		begin := reached + 1
		if rng.IntN(2) == 0 {
			begin = max(first, begin-rng.Int64N(30))
		}
		end := min(last, reached+1+rng.Int64N(60))
		if rng.IntN(8) == 0 {
			begin, end = reached+1, reached
		}
		if n := len(all); n > 0 { // in the order of their beginnings
			begin = max(begin, firstOf(t, all[n-1]))
		}
		all = append(all, h.segment(t, begin, end))
		reached = max(reached, end)
	}
	return all
}

func firstOf(t testing.TB, plain []byte) int64 {
	t.Helper()
	r, err := segment.NewReader(bytes.NewReader(plain))
	if err != nil {
		t.Fatal(err)
	}
	return r.Header().First
}

// opening gives segments that are held in memory.
func opening(all [][]byte) func(context.Context, int) (io.ReadCloser, error) {
	return func(_ context.Context, i int) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(all[i])), nil
	}
}

// live is etcd's own store, as the source and the oracle.
type live struct {
	t   testing.TB
	rng *rand.Rand
	be  backend.Backend
	kv  mvcc.KV
	history
	hashes  map[[2]int64]uint32 // by revision and compact revision, as etcd gave them
	anchors []manifest.HashKV
	compact int64
}

func openLive(t testing.TB, path string, rng *rand.Rand) *live {
	t.Helper()
	be := backend.NewDefaultBackend(zap.NewNop(), path)
	l := &live{t: t, rng: rng, be: be, kv: mvcc.NewStore(zap.NewNop(), be, &lease.FakeLessor{}, mvcc.StoreConfig{}), hashes: map[[2]int64]uint32{}}
	return l
}

func (l *live) close() {
	if err := errors.Join(l.kv.Close(), l.be.Close()); err != nil {
		l.t.Error(err)
	}
}

// transact does one random transaction.
func (l *live) transact(keys int) {
	tx := l.kv.Write(traceutil.TODO())
	used := map[int]bool{}
	for range 1 + l.rng.IntN(4)*l.rng.IntN(2) {
		k := l.rng.IntN(keys)
		if used[k] || used[k+1] || used[k+2] {
			continue // etcd refuses a transaction that touches a key twice
		}
		used[k] = true
		key := fmt.Appendf(nil, "/k%03d", k)
		switch l.rng.IntN(6) {
		case 0:
			tx.DeleteRange(key, nil)
		case 1:
			used[k+1], used[k+2] = true, true
			tx.DeleteRange(key, fmt.Appendf(nil, "/k%03d", k+3))
		default:
			id := lease.NoLease
			if l.rng.IntN(4) == 0 {
				id = lease.LeaseID(1 + l.rng.Int64N(9))
			}
			tx.Put(key, fmt.Appendf(nil, "value %d", l.rng.Uint64()), id)
		}
	}
	l.end(tx)
}

func (l *live) end(tx mvcc.TxnWrite) {
	changes := tx.Changes()
	rev := tx.Rev() + 1
	for _, kv := range changes {
		b, err := proto.Marshal(kv)
		if err != nil {
			l.t.Fatal(err)
		}
		l.changes = append(l.changes, change{main: rev, delete: kv.ModRevision == 0, kv: b})
	}
	tx.End()
}

func (l *live) hash(rev int64) {
	l.t.Helper()
	h, _, err := l.kv.HashStorage().HashByRev(rev)
	if err != nil {
		l.t.Fatalf("etcd's hash at %d: %v", rev, err)
	}
	l.hashes[[2]int64{rev, max(0, h.CompactRevision)}] = h.Hash
}

func (l *live) compactTo(rev int64) {
	l.t.Helper()
	done, err := l.kv.Compact(traceutil.TODO(), rev)
	if err != nil {
		l.t.Fatal(err)
	}
	<-done
	l.compact = rev
	h, _, err := l.kv.HashStorage().HashByRev(rev)
	if err != nil {
		l.t.Fatal(err)
	}
	l.anchors = append(l.anchors, manifest.HashKV{Revision: manifest.Revision(rev), CompactRevision: manifest.Revision(max(0, h.CompactRevision)), HashKV: h.Hash})
}

func (l *live) snapshot(path string) {
	l.t.Helper()
	l.kv.Commit()
	f, err := os.Create(path)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	snap := l.be.Snapshot()
	_, err = snap.WriteTo(f)
	if err := errors.Join(err, snap.Close()); err != nil {
		l.t.Fatal(err)
	}
}

// schedule leaves a database as one in which a compaction has just begun.
func schedule(t testing.TB, path string, rev int64) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		at := binary.BigEndian.AppendUint64(nil, uint64(rev))
		return tx.Bucket([]byte("meta")).Put([]byte("scheduledCompactRev"), append(append(at, '_'), make([]byte, 8)...))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// base is a snapshot with what a manifest knows of it.
type base struct {
	path string
	rev  int64
	hash manifest.HashKV
}

var seeds = flag.Uint64("seeds", 6, "random histories to try")

func TestADatabaseAtARandomRevisionIsAsEtcdHadIt(t *testing.T) {
	var compared, anchored, skipped, removed int64
	for seed := range *seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 4))
			dir := t.TempDir()
			l := openLive(t, filepath.Join(dir, "live"), rng)
			defer l.close()
			keys := 3 + rng.IntN(40)
			var bases []base
			for i := range 600 {
				l.transact(keys)
				rev := l.kv.Rev()
				l.hash(rev)
				if rng.IntN(20) == 0 { // an older one, as of the present compact revision
					l.hash(l.compact + rng.Int64N(rev-l.compact) + 1)
				}
				if rng.IntN(120) == 0 && l.compact < rev-1 {
					l.compactTo(l.compact + 1 + rng.Int64N(rev-l.compact-1))
				}
				if i == 40+rng.IntN(20) || rng.IntN(150) == 0 {
					b := base{path: filepath.Join(dir, fmt.Sprint("base", len(bases))), rev: rev}
					l.snapshot(b.path)
					if rng.IntN(2) == 0 && l.compact < rev-1 { // in the middle of a compaction
						at := l.compact + 1 + rng.Int64N(rev-l.compact-1)
						schedule(t, b.path, at)
						l.compactTo(at)
					}
					h, _, err := l.kv.HashStorage().HashByRev(rev)
					if err != nil {
						t.Fatal(err)
					}
					b.hash = manifest.HashKV{Revision: manifest.Revision(rev), CompactRevision: manifest.Revision(max(0, h.CompactRevision)), HashKV: h.Hash}
					bases = append(bases, b)
				}
			}
			end := l.kv.Rev()
			for n, b := range bases {
				for i := range 6 {
					p := b.rev + rng.Int64N(end-b.rev+1)
					if p == b.rev && i > 0 {
						continue
					}
					opts := materialize.Options{To: p, Base: b.hash, Hashes: l.anchors, Scratch: dir}
					if rng.IntN(3) == 0 {
						opts.Hashes = nil
					}
					if rng.IntN(4) == 0 {
						opts.Base = manifest.HashKV{}
					}
					route := l.route(t, rng, max(2, b.rev-rng.Int64N(40)), min(end, p+rng.Int64N(20)))
					opts.Segments, opts.Open = len(route), opening(route)
					path := filepath.Join(dir, fmt.Sprint("to", n, "-", i))
					copyFile(t, b.path, path)
					res, err := materialize.Append(t.Context(), path, opts)
					if err != nil {
						t.Fatalf("base %d to %d: %v", b.rev, p, err)
					}
					if res.Revision != p || res.Base != b.rev || res.Events != res.Written+res.Skipped || int(res.Events) != len(l.from(b.rev+1, p)) {
						t.Errorf("base %d to %d: %+v", b.rev, p, res)
					}
					if res.ProvedAt != nil {
						anchored++
					}
					skipped, removed = skipped+res.Skipped, removed+res.Removed
					compared += l.compareHashes(path, res)
					l.compareStore(path, res)
				}
			}
		})
	}
	t.Logf("%d hashes compared, %d results proved by a recorded one, %d changes skipped, %d revisions of bases removed", compared, anchored, skipped, removed)
	if compared < 60 || anchored < 20 || skipped < 1000 || removed < 100 {
		t.Error("too little was tried")
	}
}

// compareHashes holds a file to every hash that etcd gave of its last revision
// and could be asked again.
func (l *live) compareHashes(path string, res *materialize.Result) (n int64) {
	l.t.Helper()
	for at, want := range l.hashes {
		if at[0] != res.Revision || at[1] < res.CompactRevision {
			continue
		}
		got, err := snapdb.HashKV(l.t.Context(), path, at[0], at[1])
		if err != nil || got != want {
			l.t.Errorf("HashKV at %d, compacted at %d: %d, want %d (%v)", at[0], at[1], got, want, err)
		}
		n++
	}
	f, err := snapdb.Inspect(l.t.Context(), path, snapdb.Options{})
	if err != nil {
		l.t.Fatal(err)
	}
	if f.Revision != res.Revision || max(0, f.CompactRevision) != res.CompactRevision || f.Size != res.Bytes {
		l.t.Errorf("the file says %+v, the result %+v", f, res)
	}
	return n
}

// compareStore opens the file as etcd does, compares every key, and makes one
// more change to each: what etcd believes of versions and creations shows then.
func (l *live) compareStore(path string, res *materialize.Result) {
	l.t.Helper()
	s := openLive(l.t, path, l.rng)
	defer s.close()
	want := l.at(l.t, res.Revision)
	s.compareKeys(want, res.Revision)
	rev := s.kv.Rev()
	if rev != res.Revision {
		l.t.Errorf("etcd starts at revision %d, not %d", rev, res.Revision)
	}
	names := map[string]bool{}
	for _, c := range l.changes {
		names[string(c.parsed(l.t).Key)] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		rev++
		next := &mvccpb.KeyValue{Key: []byte(name), Value: []byte("next"), CreateRevision: rev, ModRevision: rev, Version: 1}
		if old := want[name]; old != nil {
			next.CreateRevision, next.Version = old.CreateRevision, old.Version+1
		}
		want[name] = next
		tx := s.kv.Write(traceutil.TODO())
		tx.Put(next.Key, next.Value, lease.NoLease)
		tx.End()
	}
	s.compareKeys(want, rev)
}

func (l *live) compareKeys(want map[string]*mvccpb.KeyValue, rev int64) {
	l.t.Helper()
	r, err := l.kv.Range(l.t.Context(), []byte{0}, []byte{}, mvcc.RangeOptions{Rev: rev})
	if err != nil {
		l.t.Fatal(err)
	}
	if len(r.KVs) != len(want) {
		l.t.Errorf("at %d: %d keys, want %d", rev, len(r.KVs), len(want))
	}
	for _, kv := range r.KVs {
		if w := want[string(kv.Key)]; !proto.Equal(w, kv) {
			l.t.Errorf("at %d: %v, want %v", rev, kv, w)
		}
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
