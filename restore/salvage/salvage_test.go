package salvage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"golang.org/x/sys/unix"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/snapdb"
)

// survivor is the copied data directory of a sole member that was killed under load,
// and what it had acknowledged.
func survivor(t *testing.T) (dir string, acked map[string]string) {
	t.Helper()
	c := cluster.StartBinary(t, "3.6", cluster.Options{Args: slow})
	acked = load(t, c.Client(), func() { c.Kill(0) }, 2)
	return copyDir(t, c.Members[0].Dir), acked
}

// inspect opens and inspects a directory.
func inspect(t *testing.T, dir string) *Found {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f, err := s.Inspect(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func logFileOf(t *testing.T, dir string) string {
	t.Helper()
	names, err := logNames(filepath.Join(dir, "member", "wal"))
	if err != nil || len(names) != 1 {
		t.Fatalf("%v, %v", names, err)
	}
	return names[0]
}

// tree is the size, mode, time and bytes of all files below a folder.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v %d %d\n", path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		if info.Mode().IsRegular() {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%x\n", bytes.TrimRight(text, "\x00"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestNothingOfADirectoryIsWritten(t *testing.T) {
	dir, _ := survivor(t)
	before := tree(t, dir)
	_, _, applied := salvaged(t, dir, TakeAll)
	if applied.Entries == 0 {
		t.Error("no entry was applied")
	}
	if tree(t, dir) != before {
		t.Error("the directory has changed")
	}
}

func TestWithoutTheLogTheLossIsTold(t *testing.T) {
	dir, acked := survivor(t)
	path, f, applied := salvaged(t, dir, TakeNone)
	if applied.Entries != 0 || applied.Revision != f.Database.Revision {
		t.Errorf("applied %+v, the database is at %d", *applied, f.Database.Revision)
	}
	_, _, all := salvaged(t, dir, TakeAll)
	// All that was written were puts: the count of lost changes is exact.
	if lost := all.Revision - applied.Revision; lost != f.Log.Changes || lost < int64(len(acked)) {
		t.Errorf("%d changes are told as lost, %d are, %d were acknowledged", f.Log.Changes, lost, len(acked))
	}
	if facts, err := snapdb.Inspect(t.Context(), path, snapdb.Options{}); err != nil || facts.HashKV != f.Database.HashKV {
		t.Errorf("%+v, %v", facts, err)
	}
}

func TestCommittedOnlyEndsAtTheCommitIndexOfTheLog(t *testing.T) {
	dir, _ := survivor(t)
	_, f, applied := salvaged(t, dir, TakeCommitted)
	if applied.To != f.Log.Commit || f.Log.Commit > f.Log.Last || f.Log.Uncertain != int64(f.Log.Last-f.Log.Commit) {
		t.Errorf("applied %+v of %+v", *applied, f.Log)
	}
}

func TestOneOfThreeSaysWhatIsUncertain(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3, Args: slow})
	client := c.Client()
	acked := load(t, client, func() {
		for i := range c.Members {
			c.Kill(i)
		}
	}, 3)
	// Every acknowledged put is on two members: so it is on the one whose log is
	// furthest by raft's rule, which is the one to take.
	var best *Found
	for _, m := range c.Members {
		f := inspect(t, m.Dir)
		if f.Sole() || f.Voters() != 3 {
			t.Errorf("%s has %d voters", m.Name, f.Voters())
		}
		if f.Log.Broken != "" || f.Log.Gap != "" {
			t.Errorf("%s: %+v", m.Name, f.Log)
		}
		if best == nil || f.Log.Term > best.Log.Term || f.Log.Term == best.Log.Term && f.Log.Last > best.Log.Last {
			best = f
		}
	}
	path, f, applied := salvaged(t, best.Dir, TakeAll)
	t.Logf("%d acknowledged; log %+v; applied %+v", len(acked), f.Log, *applied)
	var all bytes.Buffer
	for _, v := range contents(t, path) {
		all.Write(v)
	}
	for key, value := range acked {
		if !bytes.Contains(all.Bytes(), []byte(key)) || !bytes.Contains(all.Bytes(), []byte(value)) {
			t.Errorf("%s, which was acknowledged, is missing", key)
		}
	}
}

func TestADirectoryInUseIsRefused(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{})
	if _, err := Open(c.Members[0].Dir); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "etcd.yaml") {
		t.Errorf("while it runs: %v", err)
	}
	c.Kill(0)
	s, err := Open(c.Members[0].Dir)
	if err != nil {
		t.Fatal(err)
	}
	// The log alone, as where the database is being replaced.
	if err := os.Remove(c.Members[0].DBFile()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := Open(c.Members[0].Dir); !errors.Is(err, ErrNoMember) {
		t.Errorf("without a database: %v", err)
	}
}

func TestAnOpenDirectoryKeepsEtcdAway(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{})
	c.Kill(0)
	s, err := Open(c.Members[0].Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	second, err := Open(c.Members[0].Dir) // readers don't mind each other
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
	if f, err := fileutil.TryLockFile(logFileOf(t, s.Dir), os.O_WRONLY, 0); !errors.Is(err, fileutil.ErrLocked) {
		t.Errorf("etcd's lock on the log: %v, %v", f, err)
	}
	db, err := os.OpenFile(c.Members[0].DBFile(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := unix.Flock(int(db.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("bbolt's lock on the database: %v", err)
	}
}

func TestOtherPathsAreRefusedByWhatTheyAre(t *testing.T) {
	dir, _ := survivor(t)
	file := filepath.Join(t.TempDir(), "snapshot.db")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	bare := t.TempDir()
	if err := os.WriteFile(filepath.Join(bare, "db"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ path, says string }{
		"a file":          {file, "lifeboat import"},
		"the member":      {filepath.Join(dir, "member"), "give " + dir},
		"snap":            {filepath.Join(dir, "member", "snap"), "without a member folder"},
		"a bare database": {bare, "DIR/member/snap/db"},
		"nothing":         {t.TempDir(), "has no folder"},
		"not there":       {filepath.Join(dir, "none"), "no such file"},
	} {
		if _, err := Open(c.path); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A snapshot with its trailer in the database's place.
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	r, size, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var whole bytes.Buffer
	if n, err := whole.ReadFrom(r); err != nil || n != size {
		t.Fatal(n, err)
	}
	s.Close()
	if err := os.WriteFile(filepath.Join(dir, "member", "snap", "db"), whole.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Inspect(t.Context(), nil); !errors.Is(err, ErrNoMember) {
		t.Errorf("a snapshot: %v", err)
	}
}

func TestDamage(t *testing.T) {
	dir, _ := survivor(t)
	whole := inspect(t, dir)
	log := logFileOf(t, dir)
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	end := len(bytes.TrimRight(text, "\x00"))
	put := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(log, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("a bit of the log", func(t *testing.T) {
		bad := bytes.Clone(text)
		bad[end/2+bytes.Index(bad[end/2:], []byte("load/"))] ^= 1 // in an entry: no sum covers the padding between records
		put(bad)
		_, f, applied := salvaged(t, dir, TakeAll)
		if f.Log.Broken == "" || f.Log.Last >= whole.Log.Last || applied.To != f.Log.Last || applied.Entries == 0 {
			t.Errorf("%+v, applied %+v", f.Log, *applied)
		}
	})
	t.Run("a length in the log", func(t *testing.T) {
		bad := bytes.Clone(text)
		at := bytes.Index(bad[end/2:], []byte("load/")) + end/2
		copy(bad[at-64:at], bytes.Repeat([]byte{0x7f}, 64))
		put(bad)
		if f := inspect(t, dir); f.Log.Broken == "" || f.Log.Last >= whole.Log.Last {
			t.Errorf("%+v", f.Log)
		}
	})
	t.Run("the log cut short", func(t *testing.T) {
		for _, n := range []int{end - 1, end - 200, end / 2} {
			put(text[:n])
			if f := inspect(t, dir); f.Log.Broken == "" {
				t.Errorf("%d of %d bytes: %+v", n, end, f.Log)
			}
		}
	})
	t.Run("a last record half written", func(t *testing.T) {
		torn := bytes.Clone(text)
		clear(torn[end-30:])
		put(torn)
		if f := inspect(t, dir); f.Log.Last > whole.Log.Last || f.Log.Last+1 < whole.Log.Last {
			t.Errorf("%+v, whole %+v", f.Log, whole.Log)
		}
	})
	t.Run("no log", func(t *testing.T) {
		if err := os.Remove(log); err != nil {
			t.Fatal(err)
		}
		_, f, applied := salvaged(t, dir, TakeAll)
		if !strings.Contains(f.Log.Broken, "no log") || f.ClusterID() != 0 || applied.Entries != 0 {
			t.Errorf("%+v, %+v", f.Log, *applied)
		}
		put(text)
	})
	t.Run("a log that begins too late", func(t *testing.T) {
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		log, err := indexLog(t.Context(), s.readers, 0)
		if err != nil || log.Gap != "" {
			t.Fatalf("%+v, %v", log, err)
		}
		// A database that ends before the log begins, as after a snapshot from a leader.
		late := &logIndex{Log: Log{Applied: 5}}
		for _, index := range []byte{9, 10} {
			if err := late.entry([]byte{0x08, 0, 0x10, 1, 0x18, index}, 1); err != nil {
				t.Fatal(err)
			}
		}
		if late.Gap == "" || late.Through(TakeAll) != 5 {
			t.Errorf("%+v", late.Log)
		}
	})
	t.Run("a page of the database", func(t *testing.T) {
		db := filepath.Join(dir, "member", "snap", "db")
		bad, err := os.ReadFile(db)
		if err != nil {
			t.Fatal(err)
		}
		for page := 2; page < len(bad)/4096; page++ {
			copy(bad[page*4096:], "nothing of the kind")
		}
		if err := os.WriteFile(db, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Inspect(t.Context(), nil); !errors.Is(err, snapdb.ErrCorrupt) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%v", err)
		}
	})
}

func TestAChangedDirectoryIsNoticed(t *testing.T) {
	dir, _ := survivor(t)
	f := inspect(t, dir)
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Unchanged(f); err != nil {
		t.Error(err)
	}
	if err := os.Chtimes(logFileOf(t, dir), time.Now(), time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := s.Unchanged(f); !errors.Is(err, ErrChanged) {
		t.Errorf("%v", err)
	}
}

func TestACancelledContextEndsReading(t *testing.T) {
	dir, _ := survivor(t)
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Inspect(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
