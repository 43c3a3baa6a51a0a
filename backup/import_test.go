package backup_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/snapdb"
	"lifeboat/storage/memory"
)

func builtDB(t *testing.T, trailer bool) (path string, built *etcdtest.BuildResult) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "theirs.db")
	built, err := etcdtest.BuildDB(path, etcdtest.BuildOptions{Objects: 200, Trailer: trailer, Storage: "3.6.0"})
	if err != nil {
		t.Fatal(err)
	}
	return path, built
}

func edited(t *testing.T, path string, edit func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, edit(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAnImportedSnapshotIsABackupLikeOthers(t *testing.T) {
	t.Parallel()
	for name, trailer := range map[string]bool{"with its hash trailer": true, "a plain database file": false} {
		t.Run(name, func(t *testing.T) {
			w, store := newWorld(t), memory.New()
			path, built := builtDB(t, trailer)
			result, err := w.runner(t, store).Import(t.Context(), "etcd/main", path)
			if err != nil {
				t.Fatal(err)
			}
			m := result.Manifest
			if m.Imported != "theirs.db" || !has(m.Unproved, "imported") || has(m.Unproved, "no hash trailer") == trailer {
				t.Errorf("imported %q, unproved %q", m.Imported, m.Unproved)
			}
			if int64(m.Etcd.Revision) != built.Revision || m.Etcd.Keys != built.Live || m.Etcd.HashKV == 0 {
				t.Errorf("revision %d with %d keys, hash %d; want %d with %d", m.Etcd.Revision, m.Etcd.Keys, m.Etcd.HashKV, built.Revision, built.Live)
			}
			w.verified(t, store)
			if list := w.backups(t, store); len(list) != 1 || list[0].Proved {
				t.Errorf("listed: %+v", list)
			}
			w.opened(t, store, m)
			w.restored(t, store, m)
		})
	}
}

func TestWhatIsNoSnapshotIsNotImported(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		trailer bool
		edit    func([]byte) []byte
		want    error
	}{
		{"a flipped bit in the trailer", true, func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, snapdb.ErrCorrupt},
		{"a flipped bit in a value", true, func(b []byte) []byte {
			b[bytes.LastIndex(b, []byte("/registry/"))+3] ^= 1
			return b
		}, snapdb.ErrCorrupt},
		{"a byte of the trailer cut off", true, func(b []byte) []byte { return b[:len(b)-1] }, snapdb.ErrCorrupt},
		{"a page overwritten", false, func(b []byte) []byte { copy(b[len(b)/2:], make([]byte, 8192)); return b }, snapdb.ErrCorrupt},
		{"its end cut off", false, func(b []byte) []byte { return b[:len(b)/2] }, snapdb.ErrCorrupt},
		{"a text", false, func([]byte) []byte { return []byte(strings.Repeat("not a database\n", 1000)) }, snapdb.ErrCorrupt},
		{"an empty file", false, func([]byte) []byte { return nil }, snapdb.ErrCorrupt},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, store := newWorld(t), memory.New()
			path, _ := builtDB(t, test.trailer)
			edited(t, path, test.edit)
			_, err := w.runner(t, store).Import(t.Context(), "etcd/main", path)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want %v and the path", err, test.want)
			}
			if left := objects(t, store); len(left) != 0 {
				t.Errorf("left %q", left)
			}
		})
	}
	t.Run("a file that is not there", func(t *testing.T) {
		if _, err := newWorld(t).runner(t, memory.New()).Import(t.Context(), "etcd/main", "/does/not/exist"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
}
