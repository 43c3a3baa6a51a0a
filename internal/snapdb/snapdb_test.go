package snapdb_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/snapdb"
)

// build writes a database file and returns its path.
func build(t testing.TB, opts etcdtest.BuildOptions) (string, *etcdtest.BuildResult) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshot.db")
	res, err := etcdtest.BuildDB(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	return path, res
}

// edit changes a copy of the file through bbolt and returns its path. The
// trailer is lost.
func edit(t testing.TB, path string, f func(*bbolt.Tx) error) string {
	t.Helper()
	return editWith(t, path, &bbolt.Options{NoFreelistSync: true}, f)
}

func editWith(t testing.TB, path string, opts *bbolt.Options, f func(*bbolt.Tx) error) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "edited.db")
	if err := os.WriteFile(path, data[:len(data)/512*512], 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(f); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func inspect(t testing.TB, path string) *snapdb.Facts {
	t.Helper()
	facts, err := snapdb.Inspect(t.Context(), path, snapdb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return facts
}

func TestInspectReportsWhatTheFileHolds(t *testing.T) {
	path, built := build(t, etcdtest.BuildOptions{Objects: 2000, Seed: 1, Trailer: true})
	path2 := edit(t, path, func(tx *bbolt.Tx) error {
		// AlarmMember{MemberID: 5, Alarm: NOSPACE}
		if err := tx.Bucket([]byte("alarm")).Put([]byte{0x08, 5, 0x10, 1}, nil); err != nil {
			return err
		}
		return tx.Bucket([]byte("auth")).Put([]byte("authEnabled"), []byte{1})
	})
	for name, p := range map[string]string{"a snapshot with its hash": path, "a database file": path2} {
		t.Run(name, func(t *testing.T) {
			info, err := os.Stat(p)
			if err != nil {
				t.Fatal(err)
			}
			got := inspect(t, p)
			want := &snapdb.Facts{
				Size: info.Size(), DBBytes: info.Size() / 512 * 512, HasTrailer: p == path,
				PageSize: int64(os.Getpagesize()), Pages: got.Pages, FreePages: got.FreePages,
				Revision: built.Revision, CompactRevision: built.CompactRevision,
				FinishedCompact: built.CompactRevision, ScheduledCompact: built.CompactRevision,
				HashKV: got.HashKV, Keys: built.Live, Revisions: 2200, Tombstones: 20,
				StorageVersion: "3.6.0", ClusterVersion: "3.6.0",
				ConsistentIndex: uint64(built.Revision) + 10, Term: 2, AuthRevision: 1, Leases: 1,
				Members: []snapdb.Member{{ID: 0x8e9e05c52164694d, Name: "cp1",
					PeerURLs: []string{"https://10.0.0.1:2380"}, ClientURLs: []string{"https://10.0.0.1:2379"}}},
			}
			if p == path2 {
				want.AuthEnabled = true
				want.Alarms = []snapdb.Alarm{{Member: 5, Kind: "NOSPACE"}}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if got.UnfinishedCompaction() {
				t.Error("a finished compaction is called unfinished")
			}
		})
	}
}

func TestInspectCountsEncryptionPrefixes(t *testing.T) {
	path, _ := build(t, etcdtest.BuildOptions{Objects: 10, Changes: -1})
	values := map[string]string{
		"/registry/secrets/a": "k8s:enc:aescbc:v1:key1:\x00\x01:",
		"/registry/secrets/b": "k8s:enc:aescbc:v1:key1:\x02",
		"/registry/secrets/c": "k8s:enc:kms:v2:vault:\x02",
		"/registry/secrets/d": "k8s:enc:",
		"/registry/secrets/e": "k8s:enc:kms",
		"/registry/secrets/f": "plain",
	}
	path = edit(t, path, func(tx *bbolt.Tx) error {
		rev := int64(100)
		for _, k := range []string{"a", "b", "c", "d", "e", "f"} {
			rev++
			key := "/registry/secrets/" + k
			if err := tx.Bucket([]byte("key")).Put(revisionKey(rev, 0, false), keyValue(key, values[key], 1)); err != nil {
				return err
			}
		}
		return nil
	})
	want := []snapdb.EncryptionUse{
		{Provider: "aescbc", Version: "v1", Key: "key1", Count: 2, Example: "/registry/secrets/a"},
		{Provider: "kms", Version: "v2", Key: "vault", Count: 1, Example: "/registry/secrets/c"},
		{Provider: "unknown", Count: 2, Example: "/registry/secrets/d"},
	}
	if diff := cmp.Diff(want, inspect(t, path).Encryption); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestInspectSeesARevisionBump(t *testing.T) {
	path, built := build(t, etcdtest.BuildOptions{Objects: 100})
	bumped := edit(t, path, func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("key")).Put(revisionKey(built.Revision+1000, 0, false), nil)
	})
	got := inspect(t, bumped)
	if got.BumpedTo != built.Revision+1000 || got.Revision != got.BumpedTo || got.Keys != built.Live {
		t.Errorf("%+v", got)
	}
}

func TestInspectTakesTheLaterCompactionAsRevision(t *testing.T) {
	path, built := build(t, etcdtest.BuildOptions{Objects: 100})
	later := edit(t, path, func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("scheduledCompactRev"), revisionKey(built.Revision+1, 0, false))
	})
	got := inspect(t, later)
	if got.Revision != built.Revision+1 || got.CompactRevision != built.Revision+1 || !got.UnfinishedCompaction() {
		t.Errorf("%+v", got)
	}
}

func TestPageCheckAgreesWithBbolt(t *testing.T) {
	churn := func(tx *bbolt.Tx) error { // leaves free pages behind
		b := tx.Bucket([]byte("key"))
		c := b.Cursor()
		n := 0
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			if n++; n%3 != 0 {
				if err := c.Delete(); err != nil {
					return err
				}
			}
		}
		return b.Put(revisionKey(1<<40, 0, false), keyValue("big", string(bytes.Repeat([]byte("x"), 100_000)), 1))
	}
	plain, _ := build(t, etcdtest.BuildOptions{Objects: 3000, Seed: 2})
	for _, tt := range []struct {
		name string
		path string
		free bool
	}{
		{"as built", plain, false},
		{"with free pages and no free list", edit(t, plain, churn), true},
		{"with a free list on disk", editWith(t, plain, &bbolt.Options{}, churn), true},
		{"with a page size of 16 KiB", resized(t, plain, 16<<10), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			facts := inspect(t, tt.path)
			db, err := bbolt.Open(tt.path, 0o600, &bbolt.Options{ReadOnly: true, PreLoadFreelist: true})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			free := db.Stats().FreePageN + db.Stats().PendingPageN
			if err := db.View(func(tx *bbolt.Tx) error {
				for err := range tx.Check() {
					t.Errorf("bbolt: %v", err)
				}
				if free == 0 { // a read-only database counts them in the check at the latest
					free = db.Stats().FreePageN
				}
				if got := facts.Pages * facts.PageSize; got != tx.Size() {
					t.Errorf("%d bytes in use, bbolt says %d", got, tx.Size())
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if tt.free && facts.FreePages == 0 {
				t.Error("no free pages")
			}
			if free > 0 && facts.FreePages != int64(free) {
				t.Errorf("%d free pages, bbolt says %d", facts.FreePages, free)
			}
		})
	}
}

// resized copies a database into one with another page size.
func resized(t *testing.T, path string, pageSize int) string {
	t.Helper()
	from, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	out := filepath.Join(t.TempDir(), "resized.db")
	to, err := bbolt.Open(out, 0o600, &bbolt.Options{PageSize: pageSize, NoFreelistSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if err := bbolt.Compact(to, from, 1<<20); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestVerifyTrailer(t *testing.T) {
	path, _ := build(t, etcdtest.BuildOptions{Objects: 50, Trailer: true})
	if err := snapdb.VerifyTrailer(t.Context(), path); err != nil {
		t.Errorf("a whole snapshot: %v", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) string {
		p := filepath.Join(t.TempDir(), "x.db")
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, at := range []int{0, len(data) / 2, len(data) - 33, len(data) - 1} {
		bad := bytes.Clone(data)
		bad[at] ^= 1
		if err := snapdb.VerifyTrailer(t.Context(), write(bad)); !errors.Is(err, snapdb.ErrCorrupt) {
			t.Errorf("bit flipped at %d: %v", at, err)
		}
	}
	if err := snapdb.VerifyTrailer(t.Context(), write(data[:len(data)-32])); !errors.Is(err, snapdb.ErrNoTrailer) {
		t.Errorf("without a hash: %v", err)
	}
	if err := snapdb.VerifyTrailer(t.Context(), write(nil)); !errors.Is(err, snapdb.ErrNoTrailer) {
		t.Errorf("an empty file: %v", err)
	}
}

func TestCancelledContextEndsTheReading(t *testing.T) {
	path, built := build(t, etcdtest.BuildOptions{Objects: 20_000, ValueBytes: 1500})
	ctx, cancel := context.WithCancel(t.Context())
	var calls int
	_, err := snapdb.Inspect(ctx, path, snapdb.Options{Progress: func(done, total int64) {
		if calls++; done > total || total == 0 {
			t.Errorf("progress %d of %d", done, total)
		}
		cancel()
	}})
	if !errors.Is(err, context.Canceled) || calls == 0 {
		t.Errorf("Inspect: %v after %d calls", err, calls)
	}
	if _, err := snapdb.HashKV(ctx, path, built.Revision, built.CompactRevision); !errors.Is(err, context.Canceled) {
		t.Errorf("HashKV: %v", err)
	}
	if err := snapdb.VerifyTrailer(ctx, path+"x"); err == nil {
		t.Error("a missing file has a hash")
	}
}

func TestNotADatabase(t *testing.T) {
	for name, content := range map[string]string{
		"an empty file": "", "one byte": "x", "text": string(bytes.Repeat([]byte("hello "), 10_000)),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := snapdb.Inspect(t.Context(), path, snapdb.Options{}); !errors.Is(err, snapdb.ErrCorrupt) {
				t.Error(err)
			}
		})
	}
	if _, err := snapdb.Inspect(t.Context(), t.TempDir(), snapdb.Options{}); err == nil {
		t.Error("a folder was inspected")
	}
	if _, err := snapdb.Inspect(t.Context(), "/nonexistent", snapdb.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	other := filepath.Join(t.TempDir(), "other.db")
	db, err := bbolt.Open(other, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("x")); return err }); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, err := snapdb.Inspect(t.Context(), other, snapdb.Options{}); !errors.Is(err, snapdb.ErrCorrupt) {
		t.Error(err)
	}
}
