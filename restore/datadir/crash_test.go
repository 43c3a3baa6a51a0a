package datadir

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"lifeboat/internal/durable/tinydisk"
	"lifeboat/internal/etcdtest"
)

// crashRun is what a child process is told to do and where to kill itself.
type crashRun struct {
	Snapshot, DataDir, AsideDir, ID, Point string
	NoExchange, PutBack                    bool
}

const crashVar = "LIFEBOAT_TEST_CRASH"

func TestMain(m *testing.M) {
	text := os.Getenv(crashVar)
	if text == "" {
		code := m.Run()
		if path, err := smallSnapshot(); err == nil {
			os.RemoveAll(filepath.Dir(path))
		}
		os.Exit(code)
	}
	var run crashRun
	if err := json.Unmarshal([]byte(text), &run); err != nil {
		panic(err)
	}
	canExchange = !run.NoExchange
	if run.PutBack {
		if _, err := putBack(options(run)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	f, err := os.Open(run.Snapshot)
	if err != nil {
		panic(err)
	}
	_, err = Write(context.Background(), f, options(run))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func options(run crashRun) Options {
	return Options{
		DataDir: run.DataDir, AsideDir: run.AsideDir, ID: run.ID, Token: "token of " + run.ID,
		Name: "m0", PeerURLs: []string{"http://127.0.0.1:2380"}, Bump: 1000,
		at: func(point string) {
			if point == run.Point {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		},
	}
}

// crash runs a restore in a process of its own, which dies at the point. It
// says whether the point was reached.
func crash(t *testing.T, run crashRun) bool {
	t.Helper()
	text, err := json.Marshal(run)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashVar+"="+string(text))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() {
		t.Fatalf("the restore failed instead of dying: %v\n%s", err, out)
	}
	return true
}

// smallSnapshot is shared: it is only read.
var smallSnapshot = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lifeboat-datadir-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "snapshot.db")
	_, err = etcdtest.BuildDB(path, etcdtest.BuildOptions{Objects: 600, Trailer: true, Storage: "3.7.0"})
	return path, err
})

func snapshotFile(t testing.TB) string {
	t.Helper()
	path, err := smallSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// placeOld makes a member folder that can be told from all others.
func placeOld(t *testing.T, dataDir string) {
	t.Helper()
	for _, d := range []string{"snap", "wal"} {
		if err := os.MkdirAll(filepath.Join(dataDir, "member", d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"snap/db", "snap/0000000000000007-0000000000000009.snap", "wal/0000000000000000-0000000000000000.wal", "old"} {
		if err := os.WriteFile(filepath.Join(dataDir, "member", f), []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// find lists the member folders below the roots: "old" ones and "new" ones by
// whether they hold placeOld's file.
func find(t *testing.T, roots ...string) (old, others []string) {
	t.Helper()
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			if _, err := os.Stat(filepath.Join(path, "snap")); err != nil {
				return nil
			}
			if text, err := os.ReadFile(filepath.Join(path, "old")); err == nil && string(text) == "precious" {
				old = append(old, path)
			} else {
				others = append(others, path)
			}
			return fs.SkipDir
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return old, others
}

// otherFileSystem returns a folder on another file system than the tests' own.
func otherFileSystem(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "lifeboat-datadir-")
	if err != nil {
		tinydisk.Unable(t, "no second file system at hand:", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a, _ := device(dir)
	if b, _ := device(t.TempDir()); a == b {
		tinydisk.Unable(t, "no second file system at hand: /dev/shm is on the same")
	}
	return dir
}

var crashPoints = []string{"begin", "receiving", "received", "verified", "finished", "marked", "journal", "between", "exchanged", "synced", "moved", "tidied", "forgotten", "aside"}

func TestACrashAtAnyPointLosesNothingAndTheNextRestoreGoesOn(t *testing.T) {
	snapshot := snapshotFile(t)
	for _, point := range crashPoints {
		for _, had := range []bool{true, false} {
			for _, noExchange := range []bool{false, true} {
				for _, aside := range []string{"beside", "elsewhere"} {
					if !had && (noExchange || aside == "elsewhere") {
						continue // nothing to exchange, nothing to move aside
					}
					name := fmt.Sprintf("%s/had %v/no exchange %v/aside %s", point, had, noExchange, aside)
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						dataDir, asideDir := filepath.Join(t.TempDir(), "etcd"), filepath.Join(t.TempDir(), "aside")
						if aside == "elsewhere" {
							asideDir = otherFileSystem(t)
						}
						if err := os.MkdirAll(dataDir, 0o700); err != nil {
							t.Fatal(err)
						}
						if had {
							placeOld(t, dataDir)
						}
						run := crashRun{Snapshot: snapshot, DataDir: dataDir, AsideDir: asideDir, ID: "r1", Point: point, NoExchange: noExchange}
						died := crash(t, run)
						if want := reaches(point, had, noExchange); died != want {
							t.Fatalf("reached the point: %v, want %v", died, want)
						}
						inPlace, _ := exists(filepath.Join(dataDir, "member"))
						if had && !inPlace && point != "between" {
							t.Error("neither the old nor the new member is in place")
						}
						checkOld(t, had, dataDir, asideDir)

						// A crash in the recovery itself is no different.
						for _, again := range []string{"moved", "tidied", "forgotten"} {
							if noExchange || aside == "elsewhere" {
								continue
							}
							run.ID, run.Point = "r2-"+again, again
							crash(t, run)
							checkOld(t, had, dataDir, asideDir)
						}
						run.ID, run.Point = "last", "none"
						if crash(t, run) {
							t.Fatal("it died at no point")
						}
						checkOld(t, had, dataDir, asideDir)
						if sum, err := hashFile(filepath.Join(dataDir, "member", "snap", snapName(1))); err != nil || len(sum) == 0 {
							t.Errorf("no new member in place: %v", err)
						}
						if _, err := os.Stat(filepath.Join(dataDir, stagingName)); err == nil {
							t.Error("the staging folder is left over")
						}
						if had {
							if old, _ := find(t, dataDir, asideDir); len(old) != 1 || old[0] == filepath.Join(dataDir, "member") || strings.Contains(old[0], stagingName) {
								t.Errorf("the old member is in %v", old)
							}
						}
					})
				}
			}
		}
	}
}

// reaches says which restores pass a point at all.
func reaches(point string, had, noExchange bool) bool {
	switch point {
	case "between":
		return had && noExchange
	case "moved": // only a recovery moves a new member
		return false
	}
	return true
}

func checkOld(t *testing.T, had bool, roots ...string) {
	t.Helper()
	roots = slices.DeleteFunc(roots, func(dir string) bool { ok, _ := exists(dir); return !ok })
	if old, _ := find(t, roots...); had && len(old) != 1 {
		t.Fatalf("the old member is in %d places: %v", len(old), old)
	}
}
