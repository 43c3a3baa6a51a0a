package snapdb_test

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/lease"
	"google.golang.org/protobuf/proto"

	"lifeboat/internal/snapdb"
)

// last is a copy of what Inspect tells of the last revision.
type last struct {
	Main  int64
	Kinds []string
	Keys  []string
}

func lastOf(t *testing.T, path string) *last {
	t.Helper()
	var got *last
	_, err := snapdb.Inspect(t.Context(), path, snapdb.Options{LastRevision: func(main int64, records []snapdb.LastRecord) {
		if got != nil {
			t.Error("told twice")
		}
		got = &last{Main: main}
		for _, r := range records {
			var kv mvccpb.KeyValue
			if err := proto.Unmarshal(r.KV, &kv); err != nil {
				t.Fatal(err)
			}
			kind := "put"
			if r.Tombstone {
				kind = "delete"
				if want, _ := proto.Marshal(&mvccpb.KeyValue{Key: kv.Key}); !cmp.Equal(want, r.KV) {
					t.Errorf("a tombstone holds %x", r.KV)
				}
			} else if kv.ModRevision != main {
				t.Errorf("the record says revision %d, not %d", kv.ModRevision, main)
			}
			got.Kinds, got.Keys = append(got.Kinds, kind), append(got.Keys, string(kv.Key))
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestTheLastRevisionIsToldWhole(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	defer s.close()
	if got := lastOf(t, s.snapshot("empty")); got != nil {
		t.Errorf("of an empty store: %+v", got)
	}
	do := func(f func(put func(string), del func(from, to string))) {
		tx := s.kv.Write(traceutil.TODO())
		f(func(k string) { tx.Put([]byte(k), []byte("v"), lease.NoLease) }, func(from, to string) { tx.DeleteRange([]byte(from), []byte(to)) })
		tx.End()
	}
	do(func(put func(string), _ func(string, string)) { put("a"); put("b"); put("c") })
	if diff := cmp.Diff(&last{2, []string{"put", "put", "put"}, []string{"a", "b", "c"}}, lastOf(t, s.snapshot("puts"))); diff != "" {
		t.Error(diff)
	}
	do(func(put func(string), del func(string, string)) { put("z"); del("a", "c"); put("d") })
	want := &last{3, []string{"put", "delete", "delete", "put"}, []string{"z", "a", "b", "d"}}
	if diff := cmp.Diff(want, lastOf(t, s.snapshot("mixed"))); diff != "" {
		t.Error(diff)
	}
	s.compact(2)
	if diff := cmp.Diff(want, lastOf(t, s.snapshot("compacted before"))); diff != "" {
		t.Error(diff)
	}
	s.compact(3)
	if got := lastOf(t, s.snapshot("compacted")); got != nil {
		t.Errorf("a compaction has reached it, and it was told: %+v", got)
	}
	bumped := edit(t, s.snapshot("to bump"), func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("key")).Put(revisionKey(1000, 0, false), nil)
	})
	if got := lastOf(t, bumped); got != nil {
		t.Errorf("a bump's mark was told: %+v", got)
	}
}

func TestADamagedFileTellsNoLastRevision(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	s.compact(s.revision())
	tx := s.kv.Write(traceutil.TODO())
	tx.Put([]byte("a"), []byte("v"), lease.NoLease)
	tx.End()
	path := edit(t, s.snapshot("x"), func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("key")).Put(revisionKey(1, 0, false), []byte{0xff})
	})
	s.close()
	told := false
	_, err := snapdb.Inspect(t.Context(), path, snapdb.Options{LastRevision: func(int64, []snapdb.LastRecord) { told = true }})
	if err == nil || told {
		t.Errorf("error %v, told %v", err, told)
	}
}

func TestTheHashThatEtcdKeepsOfACompactionIsKnownWhereAScanGivesAnother(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	defer s.close()
	write := func(f func(put func(string), del func(string))) int64 {
		tx := s.kv.Write(traceutil.TODO())
		f(func(k string) { tx.Put([]byte(k), []byte("v"), lease.NoLease) }, func(k string) { tx.DeleteRange([]byte(k), nil) })
		tx.End()
		return s.revision()
	}
	write(func(put, _ func(string)) { put("a"); put("b") })
	first := write(func(put, _ func(string)) { put("a") })
	s.compact(first)
	before := s.snapshot("before") // holds what the next compaction takes away
	write(func(put, del func(string)) { put("c"); del("a") })
	write(func(_, del func(string)) { del("c") })
	end := write(func(_, del func(string)) { del("b") })
	path := s.snapshot("all deleted")
	scan := s.hash(end)
	s.compact(end)
	kept := s.hash(end) // from its memory
	if scan.Hash == kept.Hash || kept.CompactRevision != first {
		t.Fatalf("etcd's own hashes: scan %+v, kept %+v", scan, kept)
	}
	for _, want := range []uint32{scan.Hash, kept.Hash} {
		got, same, err := snapdb.CheckHashKV(t.Context(), path, end, first, want)
		if err != nil || !same || got != scan.Hash {
			t.Errorf("of %d: %d, %v, %v", want, got, same, err)
		}
	}
	if _, same, err := snapdb.CheckHashKV(t.Context(), path, end, first, scan.Hash^1); err != nil || same {
		t.Errorf("a wrong hash: %v, %v", same, err)
	}
	if _, same, err := snapdb.CheckHashKV(t.Context(), before, first, first, scan.Hash); err != nil || same {
		t.Errorf("of another revision: %v, %v", same, err)
	}
}
