package materialize_test

import (
	"encoding/binary"
	"errors"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"google.golang.org/protobuf/proto"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/materialize"
)

// leasesOf reads the lease bucket with etcd's own type: time to live by id.
func leasesOf(t *testing.T, path string) map[int64]int64 {
	t.Helper()
	all := map[int64]int64{}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("lease")).ForEach(func(k, v []byte) error {
			var l leasepb.Lease
			if err := proto.Unmarshal(v, &l); err != nil {
				return err
			}
			if uint64(l.ID) != binary.BigEndian.Uint64(k) || l.RemainingTTL != 0 {
				t.Errorf("lease %x says %v", k, &l)
			}
			all[l.ID] = l.TTL
			return nil
		})
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return all
}

// small is a database file with one lease, 0x70726f6265 of 3600 s.
func small(t testing.TB) base {
	t.Helper()
	path := filepath.Join(t.TempDir(), "base")
	if _, err := etcdtest.BuildDB(path, etcdtest.BuildOptions{Objects: 20, Changes: -1}); err != nil {
		t.Fatal(err)
	}
	f, err := snapdb.Inspect(t.Context(), path, snapdb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return base{path: path, rev: f.Revision, hash: manifest.HashKV{Revision: manifest.Revision(f.Revision), CompactRevision: manifest.Revision(f.CompactRevision), HashKV: f.HashKV}}
}

// putLease is a put of a key of its own, attached to a lease; 0 is none.
func putLease(t testing.TB, rev, id int64) change {
	t.Helper()
	b, err := proto.Marshal(&mvccpb.KeyValue{Key: binary.BigEndian.AppendUint64([]byte("k"), uint64(rev)), CreateRevision: rev, ModRevision: rev, Version: 1, Lease: id})
	if err != nil {
		t.Fatal(err)
	}
	return change{main: rev, kv: b}
}

func TestLeasesAreThoseThatWereGrantedUpToTheRevision(t *testing.T) {
	const inBase = 0x70726f6265
	b := small(t)
	var h history
	for i, id := range []int64{inBase, 1, 2, -3, 4, 5, 1, 0, 6, 7} {
		h.changes = append(h.changes, putLease(t, b.rev+1+int64(i), id))
	}
	grant := func(id, ttl, at int64) segment.Lease { return segment.Lease{ID: id, TTL: ttl, Revision: b.rev + at} }
	made := func(id, at int64) segment.Lease {
		return segment.Lease{ID: id, TTL: 60, Synthetic: true, Revision: b.rev + at}
	}
	for _, tt := range []struct {
		name   string
		to     int64
		cuts   []int64 // first and last revisions of segments
		leases [][]segment.Lease
		want   map[int64]int64
		madeUp int
	}{
		{"all known", 6, []int64{1, 10}, [][]segment.Lease{{grant(1, 100, 2), grant(2, 200, 3), grant(-3, 300, 4), grant(4, 400, 5), grant(5, 500, 6)}},
			map[int64]int64{inBase: 3600, 1: 100, 2: 200, -3: 300, 4: 400, 5: 500}, 0},
		{"those to come are none yet", 3, []int64{1, 10}, [][]segment.Lease{{grant(1, 100, 2), grant(2, 200, 3), grant(-3, 300, 4), grant(4, 400, 5)}},
			map[int64]int64{inBase: 3600, 1: 100, 2: 200}, 0},
		{"an id that is used again", 10, []int64{1, 10}, [][]segment.Lease{{grant(1, 100, 2), grant(1, 900, 7), grant(2, 2, 3), grant(-3, 3, 4), grant(4, 4, 5), grant(5, 5, 6), grant(6, 6, 9), grant(7, 7, 10)}},
			map[int64]int64{inBase: 3600, 1: 900, 2: 2, -3: 3, 4: 4, 5: 5, 6: 6, 7: 7}, 0},
		{"an id that is used again, before that", 6, []int64{1, 10}, [][]segment.Lease{{grant(1, 100, 2), grant(1, 900, 7), grant(2, 2, 3), grant(-3, 3, 4), grant(4, 4, 5), grant(5, 5, 6)}},
			map[int64]int64{inBase: 3600, 1: 100, 2: 2, -3: 3, 4: 4, 5: 5}, 0},
		{"an overlap brings back no older grant", 7, []int64{1, 7, 2, 8}, [][]segment.Lease{{grant(1, 100, 2), grant(1, 900, 7), grant(2, 2, 3), grant(-3, 3, 4), grant(4, 4, 5), grant(5, 5, 6)}, {grant(1, 100, 2), grant(2, 2, 3)}},
			map[int64]int64{inBase: 3600, 1: 900, 2: 2, -3: 3, 4: 4, 5: 5}, 0},
		{"gone before it could be asked", 2, []int64{1, 4}, [][]segment.Lease{{made(1, 2), made(2, 3)}},
			map[int64]int64{inBase: 3600, 1: 60}, 1},
		{"made up where the base knows better", 2, []int64{1, 4}, [][]segment.Lease{{made(inBase, 1), grant(1, 7, 2)}},
			map[int64]int64{inBase: 3600, 1: 7}, 0},
		{"made up where another recorder knows better", 5, []int64{1, 4, 2, 5}, [][]segment.Lease{{made(1, 2), made(2, 3), grant(-3, 3, 4)}, {grant(1, 8, 2), made(-3, 4), grant(4, 4, 5)}},
			map[int64]int64{inBase: 3600, 1: 8, 2: 60, -3: 3, 4: 4}, 1},
		{"granted anew since the base", 1, []int64{1, 4}, [][]segment.Lease{{grant(inBase, 50, 1)}},
			map[int64]int64{inBase: 50}, 0},
		{"never told", 3, []int64{1, 4}, [][]segment.Lease{{grant(1, 9, 2)}},
			map[int64]int64{inBase: 3600, 1: 9, 2: 60}, 1},
		{"told by a later segment", 2, []int64{1, 1, 2, 4}, [][]segment.Lease{nil, {grant(1, 9, 2)}},
			map[int64]int64{inBase: 3600, 1: 9}, 0},
		{"no time to live", 2, []int64{1, 4}, [][]segment.Lease{{grant(1, 0, 2)}},
			map[int64]int64{inBase: 3600, 1: 60}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var all [][]byte
			for i, leases := range tt.leases {
				one := history{changes: h.changes, leases: leases}
				all = append(all, one.segment(t, b.rev+tt.cuts[2*i], b.rev+tt.cuts[2*i+1]))
			}
			path := filepath.Join(t.TempDir(), "db")
			copyFile(t, b.path, path)
			res, err := materialize.Append(t.Context(), path, materialize.Options{To: b.rev + tt.to, Base: b.hash, Segments: len(all), Open: opening(all)})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, leasesOf(t, path)); diff != "" {
				t.Error(diff)
			}
			if res.MadeUp != tt.madeUp {
				t.Errorf("%d are made up, want %d", res.MadeUp, tt.madeUp)
			}
		})
	}
}

// etcd notes what remains of a lease where it is told to; a lease that is granted
// anew has all of its time.
func TestWhatEtcdNotedToRemainOfALeaseStays(t *testing.T) {
	const noted, anew = 0x70726f6265, 9
	b := small(t)
	put := func(tx *bbolt.Tx, l *leasepb.Lease) error {
		text, err := proto.Marshal(l)
		if err != nil {
			return err
		}
		return tx.Bucket([]byte("lease")).Put(binary.BigEndian.AppendUint64(nil, uint64(l.ID)), text)
	}
	db, err := bbolt.Open(b.path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return errors.Join(put(tx, &leasepb.Lease{ID: noted, TTL: 3600, RemainingTTL: 120}), put(tx, &leasepb.Lease{ID: anew, TTL: 3600, RemainingTTL: 120}))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	h := history{
		changes: []change{putLease(t, b.rev+1, noted), putLease(t, b.rev+2, anew)},
		leases:  []segment.Lease{{ID: anew, TTL: 50, Revision: b.rev + 2}},
	}
	all := [][]byte{h.segment(t, b.rev+1, b.rev+2)}
	if _, err := materialize.Append(t.Context(), b.path, materialize.Options{To: b.rev + 2, Base: b.hash, Segments: 1, Open: opening(all)}); err != nil {
		t.Fatal(err)
	}
	if db, err = bbolt.Open(b.path, 0o600, &bbolt.Options{ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	_ = db.View(func(tx *bbolt.Tx) error {
		for id, want := range map[int64]*leasepb.Lease{noted: {ID: noted, TTL: 3600, RemainingTTL: 120}, anew: {ID: anew, TTL: 50}} {
			var got leasepb.Lease
			if err := proto.Unmarshal(tx.Bucket([]byte("lease")).Get(binary.BigEndian.AppendUint64(nil, uint64(id))), &got); err != nil || !proto.Equal(&got, want) {
				t.Errorf("lease %x: %v, %v, want %v", id, &got, err, want)
			}
		}
		return nil
	})
}

func TestLargeValuesAndLargeRevisionsAreAppended(t *testing.T) {
	b := small(t)
	var h history
	value := func(rev int64, key string, size int) change {
		kv, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte(key), Value: make([]byte, size), CreateRevision: rev, ModRevision: rev, Version: 1})
		if err != nil {
			t.Fatal(err)
		}
		return change{main: rev, kv: kv}
	}
	const many = 30_000
	h.changes = append(h.changes, value(b.rev+1, "large", 9<<20), value(b.rev+1, "small", 1), value(b.rev+2, "larger", 20<<20))
	for i := range many {
		h.changes = append(h.changes, value(b.rev+3, string(binary.BigEndian.AppendUint32(nil, uint32(i))), 10))
	}
	for i := range many {
		h.changes = append(h.changes, change{main: b.rev + 4, delete: true, kv: segment.AppendTombstone(nil, binary.BigEndian.AppendUint32(nil, uint32(i)))})
	}
	h.changes = append(h.changes, value(b.rev+5, "end", 0))
	all := [][]byte{h.segment(t, b.rev+1, b.rev+3), h.segment(t, b.rev+2, b.rev+5)}
	path := filepath.Join(t.TempDir(), "db")
	copyFile(t, b.path, path)
	var told int64
	res, err := materialize.Append(t.Context(), path, materialize.Options{To: b.rev + 5, Base: b.hash, Segments: 2, Open: opening(all), Progress: func(done int64) { told = done }})
	if err != nil {
		t.Fatal(err)
	}
	f, err := snapdb.Inspect(t.Context(), path, snapdb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if res.Written != 2*many+4 || res.Overlap != many+1 || f.Tombstones != many || f.Revision != b.rev+5 || told != 5 {
		t.Errorf("%+v, %+v, told %d", res, f, told)
	}
}

func TestNothingToAppendIsProvedAllTheSame(t *testing.T) {
	b := small(t)
	path := filepath.Join(t.TempDir(), "db")
	copyFile(t, b.path, path)
	res, err := materialize.Append(t.Context(), path, materialize.Options{To: b.rev, Base: b.hash})
	if err != nil || res.Revision != b.rev || res.Events != 0 || res.ProvedAt != nil {
		t.Errorf("%+v, %v", res, err)
	}
	var h history
	all := [][]byte{h.segment(t, b.rev+1, b.rev)}
	if _, err := materialize.Append(t.Context(), path, materialize.Options{To: b.rev, Base: b.hash, Segments: 1, Open: opening(all)}); err != nil {
		t.Errorf("with an empty segment, for the second time: %v", err)
	}
	b.hash.HashKV ^= 1
	if _, err := materialize.Append(t.Context(), path, materialize.Options{To: b.rev, Base: b.hash}); !errors.Is(err, materialize.ErrHash) {
		t.Errorf("%v", err)
	}
}
