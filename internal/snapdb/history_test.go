package snapdb_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/lease"

	"lifeboat/internal/snapdb"
)

func history(t *testing.T, path string, after int64) (list []snapdb.Change, err error) {
	t.Helper()
	err = snapdb.History(t.Context(), path, after, func(c snapdb.Change) error {
		c.KV = bytes.Clone(c.KV)
		list = append(list, c)
		return nil
	})
	return list, err
}

// stored reads the key bucket with bbolt.
func stored(t *testing.T, path string, after int64) (list []snapdb.Change) {
	t.Helper()
	db, err := bbolt.Open(edit(t, path, func(*bbolt.Tx) error { return nil }), 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("key")).ForEach(func(k, v []byte) error {
			c := snapdb.Change{Main: int64(binary.BigEndian.Uint64(k)), Sub: int64(binary.BigEndian.Uint64(k[9:])), Tombstone: len(k) == 18, KV: bytes.Clone(v)}
			if c.Main > after {
				list = append(list, c)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestHistoryIsAllThatTheDatabaseHoldsAfterARevision(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	defer s.close()
	rng := rand.New(rand.NewPCG(1, 2))
	if got, err := history(t, s.snapshot("empty"), 1); err != nil || len(got) > 0 {
		t.Errorf("of an empty store: %v, %v", got, err)
	}
	s.random(rng, 3000, 200)
	s.compact(700)
	path := s.snapshot("db")
	for _, after := range []int64{700, 701, 1500, s.revision() - 1, s.revision(), s.revision() + 5} {
		got, err := history(t, path, after)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(stored(t, path, after), got); diff != "" {
			t.Errorf("after %d: %s", after, diff)
		}
	}
	if got, err := history(t, path, 699); !errors.Is(err, snapdb.ErrCompacted) || len(got) > 0 {
		t.Errorf("of compacted revisions: %d changes, %v", len(got), err)
	}
	stop := errors.New("enough")
	if err := snapdb.History(t.Context(), path, 700, func(snapdb.Change) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the caller's error became %v", err)
	}
}

func TestHistoryTellsLeases(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	defer s.close()
	tx := s.kv.Write(traceutil.TODO())
	tx.Put([]byte("a"), []byte("v"), lease.LeaseID(4711))
	tx.Put([]byte("b"), []byte("v"), lease.NoLease)
	tx.End()
	got, err := history(t, s.snapshot("db"), 1)
	if err != nil || len(got) != 2 || got[0].Lease != 4711 || got[1].Lease != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// pagesOf finds the pages of a file that hold a text, in order.
func pagesOf(t *testing.T, data []byte, pageSize int, text string) (pages []int) {
	t.Helper()
	for at := 0; at < len(data); at += pageSize {
		if bytes.Contains(data[at:at+pageSize], []byte(text)) {
			pages = append(pages, at)
		}
	}
	if len(pages) == 0 {
		t.Fatalf("no page holds %q", text)
	}
	return pages
}

// Damage that is met is told; pages that hold older revisions alone are not met.
func TestHistoryReadsOnlyWhatItNeeds(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	defer s.close()
	const n = 3000
	for i := range n {
		tx := s.kv.Write(traceutil.TODO())
		tx.Put(fmt.Appendf(nil, "/key/%04d", i), bytes.Repeat([]byte("x"), 300), lease.NoLease)
		tx.End()
	}
	path := s.snapshot("db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := history(t, path, n-100)
	if err != nil || len(want) != 101 {
		t.Fatalf("%d changes, %v", len(want), err)
	}
	pageSize := int(inspect(t, path).PageSize)
	for text, damaged := range map[string]bool{"/key/0100": false, "/key/2990": true} {
		data := slices.Clone(whole)
		for _, at := range pagesOf(t, data, pageSize, text) {
			binary.NativeEndian.PutUint64(data[at:], 1<<40) // it says that it is another page
		}
		broken := filepath.Join(t.TempDir(), "broken.db")
		if err := os.WriteFile(broken, data, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := history(t, broken, n-100)
		if damaged != errors.Is(err, snapdb.ErrCorrupt) || !damaged && !cmp.Equal(want, got) {
			t.Errorf("with the page of %s broken: %d changes, %v", text, len(got), err)
		}
	}
	marked := edit(t, path, func(tx *bbolt.Tx) error { return tx.Bucket([]byte("key")).Put(revisionKey(n+100, 0, false), nil) })
	if _, err := history(t, marked, n-100); !errors.Is(err, snapdb.ErrCorrupt) {
		t.Errorf("a revision without a change: %v", err)
	}
}
