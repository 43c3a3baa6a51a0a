package datadir

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"golang.org/x/sys/unix"

	"lifeboat/internal/durable/tinydisk"
	"lifeboat/internal/etcdtest/cluster"
)

func readSnapshot(t testing.TB) []byte {
	t.Helper()
	text, err := os.ReadFile(snapshotFile(t))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// resealed gives a changed snapshot a right trailer.
func resealed(db []byte) []byte {
	sum := sha256.Sum256(db)
	return append(bytes.Clone(db), sum[:]...)
}

func TestWriteRefusesAndLeavesTheDataDirectoryAlone(t *testing.T) {
	whole := readSnapshot(t)
	db := whole[:len(whole)-sha256.Size]
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	trailerFlipped := bytes.Clone(whole)
	trailerFlipped[len(trailerFlipped)-1] ^= 1
	broken := errors.New("connection reset")
	tests := []struct {
		name string
		from io.Reader
		edit func(*Options)
		want error
	}{
		{name: "a flipped bit", from: bytes.NewReader(flipped), want: ErrDamaged},
		{name: "a flipped bit in the hash", from: bytes.NewReader(trailerFlipped), want: ErrDamaged},
		{name: "a snapshot without its last page", from: bytes.NewReader(whole[:len(whole)-4096]), want: ErrDamaged},
		{name: "a snapshot cut in its hash", from: bytes.NewReader(whole[:len(whole)-1]), want: ErrDamaged},
		{name: "a database file without a hash", from: bytes.NewReader(db), want: ErrDamaged},
		{name: "nothing", from: bytes.NewReader(nil), want: ErrDamaged},
		{name: "a hash alone", from: bytes.NewReader(resealed(nil)), want: ErrDamaged},
		{name: "no database, rightly hashed", from: bytes.NewReader(resealed(make([]byte, 1<<20))), want: ErrDamaged},
		{name: "a database that lacks pages, rightly hashed", from: bytes.NewReader(resealed(db[:len(db)-8192])), want: ErrDamaged},
		{name: "more bytes than announced", from: bytes.NewReader(whole), edit: func(o *Options) { o.Size = int64(len(whole)) - 512 }, want: ErrDamaged},
		{name: "fewer bytes than announced", from: bytes.NewReader(whole), edit: func(o *Options) { o.Size = int64(len(whole)) + 512 }, want: ErrDamaged},
		{name: "a stream that breaks", from: io.MultiReader(bytes.NewReader(whole[:1<<19]), iotest.ErrReader(broken)), want: broken},
		{name: "a check that fails", from: bytes.NewReader(whole), edit: func(o *Options) {
			o.Check = func(context.Context, string) error { return broken }
		}, want: broken},
		{name: "no space", from: bytes.NewReader(whole), edit: func(o *Options) { o.Size = 1 << 60 }, want: ErrNoSpace},
		{name: "a bump out of range", from: bytes.NewReader(whole), edit: func(o *Options) { o.Bump = 1 << 63 }, want: ErrInvalid},
		{name: "a member that the cluster lacks", from: bytes.NewReader(whole), edit: func(o *Options) { o.InitialCluster = "other=http://127.0.0.1:2380" }, want: ErrInvalid},
		{name: "other peer URLs than the cluster's", from: bytes.NewReader(whole), edit: func(o *Options) { o.InitialCluster = "m0=http://127.0.0.1:2390" }, want: ErrInvalid},
		{name: "two members with one URL", from: bytes.NewReader(whole), edit: func(o *Options) {
			o.InitialCluster = "m0=http://127.0.0.1:2380,m1=http://127.0.0.1:2380"
		}, want: ErrInvalid},
		{name: "no token", from: bytes.NewReader(whole), edit: func(o *Options) { o.Token = "" }, want: ErrInvalid},
		{name: "an id that leaves the folder", from: bytes.NewReader(whole), edit: func(o *Options) { o.ID = "../x" }, want: ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dataDir := filepath.Join(t.TempDir(), "etcd")
			placeOld(t, dataDir)
			opts := options(crashRun{DataDir: dataDir, ID: "r1"})
			if tt.edit != nil {
				tt.edit(&opts)
			}
			_, err := Write(t.Context(), tt.from, opts)
			if !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			old, others := find(t, dataDir)
			if len(old) != 1 || old[0] != filepath.Join(dataDir, "member") || len(others) > 0 {
				t.Errorf("old members %v, others %v", old, others)
			}
			if entries, _ := os.ReadDir(dataDir); len(entries) != 1 {
				t.Errorf("leftovers: %v", entries)
			}
		})
	}
}

func TestAFailedRestoreIntoANewDirectoryLeavesNone(t *testing.T) {
	dataDir := filepath.Join(t.TempDir(), "a", "etcd")
	_, err := Write(t.Context(), strings.NewReader("short"), options(crashRun{DataDir: dataDir, ID: "r1"}))
	if !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	if _, err := os.Stat(dataDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data directory is left: %v", err)
	}
}

func TestARefusedRestoreLeavesTheOtherOnesStagingFolder(t *testing.T) {
	dataDir := t.TempDir()
	staging := filepath.Join(dataDir, stagingName) // as it is before the first writes into it
	if err := os.Mkdir(staging, 0o700); err != nil {
		t.Fatal(err)
	}
	other, err := os.Open(dataDir)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := Begin(t.Context(), options(crashRun{DataDir: dataDir, ID: "r1"})); !errors.Is(err, ErrInUse) {
		t.Fatalf("error %v, want in use", err)
	}
	if _, err := os.Stat(staging); err != nil {
		t.Errorf("the other restore's folder: %v", err)
	}
}

func TestWriteStopsWhenItsContextEnds(t *testing.T) {
	whole := readSnapshot(t)
	for _, point := range []string{"receiving", "received", "verified", "finished"} {
		t.Run("at "+point, func(t *testing.T) {
			dataDir := t.TempDir()
			placeOld(t, dataDir)
			ctx, cancel := context.WithCancel(t.Context())
			opts := options(crashRun{DataDir: dataDir, ID: "r1"})
			opts.at = func(p string) {
				if p == point {
					cancel()
				}
			}
			if _, err := Write(ctx, bytes.NewReader(whole), opts); !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			if entries, _ := os.ReadDir(dataDir); len(entries) != 1 {
				t.Errorf("leftovers: %v", entries)
			}
		})
	}
}

func TestADataDirectoryInUseIsRefused(t *testing.T) {
	whole := readSnapshot(t)
	for _, version := range versions {
		t.Run("by etcd "+version, func(t *testing.T) {
			t.Parallel()
			dataDir := t.TempDir()
			c := cluster.StartBinary(t, version, cluster.Options{DataDir: dataDir})
			opts := options(crashRun{DataDir: dataDir, ID: "r1"})
			if _, err := Write(t.Context(), bytes.NewReader(whole), opts); !errors.Is(err, ErrInUse) {
				t.Fatalf("error %v, want in use", err)
			}
			if _, err := c.Client().Put(t.Context(), "still", "alive"); err != nil {
				t.Fatal(err)
			}
			c.Stop(0)
			res, err := Write(t.Context(), bytes.NewReader(whole), opts)
			if err != nil {
				t.Fatal(err)
			}
			if want := filepath.Join(dataDir, AsideName, "r1", "member"); res.Aside != want {
				t.Errorf("the old member is in %s, want %s", res.Aside, want)
			}
		})
	}
	t.Run("by an etcd that begins while the snapshot arrives", func(t *testing.T) {
		dataDir := t.TempDir()
		placeOld(t, dataDir)
		opts := options(crashRun{DataDir: dataDir, ID: "r1"})
		opts.at = func(p string) {
			if p != "finished" {
				return
			}
			db, err := os.Open(filepath.Join(dataDir, "member", "snap", "db"))
			if err == nil {
				err = syscall.Flock(int(db.Fd()), syscall.LOCK_EX)
			}
			if err != nil {
				t.Error(err)
			}
			t.Cleanup(func() { db.Close() })
		}
		if _, err := Write(t.Context(), bytes.NewReader(whole), opts); !errors.Is(err, ErrInUse) {
			t.Fatalf("error %v, want in use", err)
		}
		checkOld(t, true, dataDir)
	})
	t.Run("by another restore", func(t *testing.T) {
		dataDir := t.TempDir()
		first, err := Begin(t.Context(), options(crashRun{DataDir: dataDir, ID: "r1"}))
		if err != nil {
			t.Fatal(err)
		}
		defer first.Abort()
		if _, err := Begin(t.Context(), options(crashRun{DataDir: dataDir, ID: "r2"})); !errors.Is(err, ErrInUse) {
			t.Errorf("error %v, want in use", err)
		}
	})
}

func TestTheOldMemberGoesWhereAsideSays(t *testing.T) {
	whole := readSnapshot(t)
	for _, aside := range []string{"", "same", "other"} {
		t.Run("aside folder "+aside, func(t *testing.T) {
			dataDir, asideDir := t.TempDir(), ""
			switch aside {
			case "same":
				asideDir = filepath.Join(t.TempDir(), "lifeboat", "aside")
			case "other":
				asideDir = otherFileSystem(t)
			}
			// The last two have the same id, and so the same token: what the
			// first of them wrote must survive the second all the same.
			for _, id := range []string{"r1", "r2", "r2"} {
				if id == "r1" {
					placeOld(t, dataDir)
				}
				want, err := Aside(dataDir, asideDir, id)
				if err != nil {
					t.Fatal(err)
				}
				opts := options(crashRun{DataDir: dataDir, AsideDir: asideDir, ID: id})
				res, err := Write(t.Context(), bytes.NewReader(whole), opts)
				if err != nil {
					t.Fatal(err)
				}
				if res.Aside != want && res.Aside != want+".2" {
					t.Errorf("the old member is in %s, said was %s", res.Aside, want)
				}
				if id == "r1" {
					checkOld(t, true, filepath.Dir(filepath.Dir(res.Aside)))
				}
				if _, err := os.Stat(filepath.Join(res.Aside, "snap", "db")); err != nil {
					t.Error(err)
				}
				dataDirEntries, _ := os.ReadDir(dataDir)
				if aside == "same" && len(dataDirEntries) != 1 {
					t.Errorf("the data directory holds %v", dataDirEntries)
				}
			}
		})
	}
}

func TestRecoverSaysWhatItFound(t *testing.T) {
	snapshot := snapshotFile(t)
	for point, want := range map[string]string{
		"receiving": "before it had changed anything",
		"exchanged": "after it had put its member in place",
		"between":   "half-way",
	} {
		t.Run(point, func(t *testing.T) {
			dataDir := t.TempDir()
			placeOld(t, dataDir)
			if !crash(t, crashRun{Snapshot: snapshot, DataDir: dataDir, ID: "r1", Point: point, NoExchange: point == "between"}) {
				t.Fatal("it did not die")
			}
			said, err := Recover(dataDir)
			if err != nil {
				t.Fatal(err)
			}
			if len(said) != 1 || !strings.Contains(said[0], want) {
				t.Errorf("said %q, want %q", said, want)
			}
			checkOld(t, true, dataDir)
			if said, err := Recover(dataDir); err != nil || len(said) != 0 {
				t.Errorf("a second time it said %q, %v", said, err)
			}
		})
	}
	t.Run("a folder that is no restore's is left alone", func(t *testing.T) {
		dataDir := t.TempDir()
		dir := filepath.Join(dataDir, stagingName, "x")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "journal"), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Recover(dataDir); err == nil {
			t.Error("no error")
		}
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	})
}

func TestTheNewMemberBelongsToTheOldOnesOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		tinydisk.Unable(t, "needs root")
	}
	dataDir := t.TempDir()
	placeOld(t, dataDir)
	if err := os.Lchown(filepath.Join(dataDir, "member"), 4711, 4712); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(t.Context(), bytes.NewReader(readSnapshot(t)), options(crashRun{DataDir: dataDir, ID: "r1"})); err != nil {
		t.Fatal(err)
	}
	err := filepath.Walk(filepath.Join(dataDir, "member"), func(path string, info os.FileInfo, err error) error {
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != 4711 || st.Gid != 4712 {
			t.Errorf("%s belongs to %v", path, info.Sys())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheLastRevisionCountsCompactionsToo(t *testing.T) {
	rev := func(main int64) []byte { return mvcc.RevToBytes(mvcc.Revision{Main: main}, mvcc.NewRevBytes()) }
	tests := []struct {
		name                     string
		key, finished, scheduled int64
		want                     int64
		wantErr                  bool
		badKey                   string
	}{
		{name: "the last key is newest", key: 9, finished: 3, scheduled: 4, want: 9},
		{name: "all behind the compaction is gone", key: 2, finished: 7, scheduled: 7, want: 7},
		{name: "a compaction was only scheduled", key: 8, finished: 3, scheduled: 8, want: 8},
		{name: "an empty database", want: 0},
		{name: "a key that is no revision", badKey: "zz", wantErr: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "db")
			db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true})
			if err != nil {
				t.Fatal(err)
			}
			err = db.Update(func(tx *bbolt.Tx) error {
				keys, _ := tx.CreateBucket([]byte("key"))
				meta, _ := tx.CreateBucket([]byte("meta"))
				var errs []error
				if tt.key > 0 {
					errs = append(errs, keys.Put(rev(tt.key), []byte("x")))
				}
				if tt.badKey != "" {
					errs = append(errs, keys.Put([]byte(tt.badKey), []byte("x")))
				}
				if tt.finished > 0 {
					errs = append(errs, meta.Put([]byte("finishedCompactRev"), rev(tt.finished)))
				}
				if tt.scheduled > 0 {
					errs = append(errs, meta.Put([]byte("scheduledCompactRev"), rev(tt.scheduled)))
				}
				return errors.Join(errs...)
			})
			if err := errors.Join(err, db.Close()); err != nil {
				t.Fatal(err)
			}
			last, now, err := Bump(path, 10)
			if tt.wantErr {
				if !errors.Is(err, ErrDamaged) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil || last != tt.want || now != tt.want+10 {
				t.Errorf("%d and %d (%v), want %d", last, now, err, tt.want)
			}
			// The file is whole afterwards by bbolt's own judgement.
			dump(t, path)
		})
	}
}

func TestReceiveCutsTheTrailerWhereverBlocksEnd(t *testing.T) {
	for _, size := range []int{512, blockBytes - 512, blockBytes, blockBytes + 512, 2*blockBytes - 512, 2 * blockBytes} {
		db := bytes.Repeat([]byte("x"), size)
		path := filepath.Join(t.TempDir(), "db")
		n, _, err := Receive(t.Context(), path, iotest.HalfReader(bytes.NewReader(resealed(db))), 0, nil)
		if err != nil || n != int64(size) {
			t.Fatalf("%d bytes: %d, %v", size, n, err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, db) {
			t.Errorf("%d bytes came out as %d: %v", size, len(got), err)
		}
	}
}

func FuzzEditOfADamagedDatabase(f *testing.F) {
	dir := f.TempDir()
	path := filepath.Join(dir, "db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true})
	if err != nil {
		f.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range []string{"key", "meta"} {
			if _, err := tx.CreateBucket([]byte(b)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), []byte{})
	f.Add(uint32(16), []byte{0xff})
	f.Add(uint32(4096+16+8), []byte{0, 0})
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		text := bytes.Clone(whole)
		if int(at) < len(text) {
			copy(text[at:], change)
		}
		path := filepath.Join(t.TempDir(), "db")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _, _ = Bump(path, 1) // an error or not, but no crash
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("it hangs")
		}
	})
}
