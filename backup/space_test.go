//go:build linux

package backup_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/backup/etcd"
	"lifeboat/internal/durable/tinydisk"
	"lifeboat/internal/etcdtest"
	"lifeboat/internal/events"
	"lifeboat/storage"
	"lifeboat/storage/local"
	"lifeboat/storage/memory"
)

// ownMounts runs the calling test again in a process with mounts of its own,
// which go with it whatever happens, and reports whether this is that process.
// A backup works in many threads, so a mount of one thread would not do.
func ownMounts(t *testing.T) bool {
	t.Helper()
	const variable = "LIFEBOAT_TEST_WITH_OWN_MOUNTS"
	if os.Getenv(variable) == t.Name() {
		return true
	}
	if os.Geteuid() != 0 {
		tinydisk.Unable(t, "mounting a small file system needs root")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=90s")
	cmd.Env = append(os.Environ(), variable+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, fs.ErrPermission):
		tinydisk.Unable(t, "can't have private mounts:", err)
	case bytes.Contains(out, []byte("--- SKIP")):
		tinydisk.Unable(t, string(out))
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case !bytes.Contains(out, []byte("--- PASS: "+t.Name())):
		t.Fatalf("it did not run:\n%s", out)
	}
	return false
}

// smallDisk mounts an empty file system of the given size.
func smallDisk(t *testing.T, bytes int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("smalldisk", dir, "tmpfs", 0, "size="+strconv.Itoa(bytes)); err != nil {
		tinydisk.Unable(t, "can't mount a small file system:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillUp leaves at most so many bytes free.
func fillUp(t *testing.T, dir string, free int64) {
	t.Helper()
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		t.Fatal(err)
	}
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	if size := int64(stat.Bavail)*stat.Bsize - free; size > 0 {
		if err := unix.Fallocate(int(ballast.Fd()), 0, 0, size); err != nil {
			t.Fatal(err)
		}
	}
}

func filesIn(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != "ballast" {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// bulkyEtcd holds 4 MB that don't compress.
func bulkyEtcd(t *testing.T) etcd.Config {
	t.Helper()
	member, err := etcdtest.StartEmbedded(t.TempDir(), etcdtest.EmbeddedOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { member.Close() })
	client, err := member.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for i := range 40 {
		value := make([]byte, 100_000)
		rand.Read(value)
		if _, err := client.Put(context.Background(), fmt.Sprintf("/bulk/%d", i), base64.StdEncoding.EncodeToString(value)); err != nil {
			t.Fatal(err)
		}
	}
	return etcd.Config{Name: "main", Endpoints: []string{member.Endpoint}}
}

func TestAScratchFolderThatFailsMeansStraightThrough(t *testing.T) {
	t.Parallel()
	w, store := newWorld(t), memory.New()
	runner := w.runner(t, store)
	// A folder that exists, has room, and whose path leaves none for a name.
	runner.Scratch = t.TempDir()
	for left := 4090 - len(runner.Scratch); left > 1; left = 4090 - len(runner.Scratch) {
		name := min(200, left-1)
		if left-1-name == 1 { // a separator alone is no name
			name--
		}
		runner.Scratch = filepath.Join(runner.Scratch, strings.Repeat("x", name))
	}
	m := mustEtcd(t, runner, sharedEtcd(t))
	if !has(m.Unproved, "no scratch: scratch: open a folder") || len(m.Degraded) != 0 {
		t.Errorf("unproved %q, degraded %q; want the scratch folder's failure as the reason", m.Unproved, m.Degraded)
	}
	w.verified(t, store)
}

func TestTooLittleScratchMeansStraightThrough(t *testing.T) {
	t.Parallel()
	if !ownMounts(t) {
		return
	}
	config := bulkyEtcd(t)
	for _, test := range []struct {
		name  string
		size  int
		hook  func(t *testing.T, dir string) // when the stream begins
		wants string
	}{
		{"seen before", 32 << 20, nil, "bytes of scratch"},
		{"found out on the way", 128 << 20, func(t *testing.T, dir string) { fillUp(t, dir, 1<<20) }, "no space left"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, store := newWorld(t), memory.New()
			dir := smallDisk(t, test.size)
			w.scratch = filepath.Join(dir, "scratch")
			starts := 0
			w.events.hook = func(e events.Event) {
				if started, ok := e.(events.StageStarted); ok && started.Stage == "snapshot" {
					if starts++; starts == 1 && test.hook != nil {
						test.hook(t, dir)
					}
				}
			}
			m := mustEtcd(t, w.runner(t, store), config)
			if !has(m.Unproved, test.wants) || len(m.Degraded) != 0 {
				t.Errorf("unproved %q, degraded %q; want %q", m.Unproved, m.Degraded, test.wants)
			}
			if told := w.events.all(); !strings.Contains(told, "straight to the stores") {
				t.Errorf("told: %s", told)
			}
			noStream(t, config.Endpoints[0])
			if left := filesIn(t, dir); len(left) != 0 {
				t.Errorf("left on the scratch disk: %q", left)
			}
			if left := objects(t, store); len(left) != 2 {
				t.Errorf("the store holds %q", left)
			}
			w.verified(t, store)
			w.opened(t, store, m)
			w.restored(t, store, m)
		})
	}
}

func TestAFullStoreIsReportedAndLeftClean(t *testing.T) {
	t.Parallel()
	if !ownMounts(t) {
		return
	}
	config := bulkyEtcd(t)
	for _, free := range []int64{0, 1 << 20, 3 << 20} { // of about 4 MB needed
		t.Run(fmt.Sprintf("%d bytes free", free), func(t *testing.T) {
			w := newWorld(t)
			dir := smallDisk(t, 8<<20)
			store, err := local.New(dir)
			if err != nil {
				t.Fatal(err)
			}
			fillUp(t, dir, free)
			_, err = w.runner(t, store).Etcd(t.Context(), config, limits)
			if !errors.Is(err, storage.ErrFull) || strings.Count(err.Error(), storage.ErrFull.Error()) != 1 {
				t.Errorf("the error should say once that the store is full: %v", err)
			}
			if left := filesIn(t, dir); len(left) != 0 {
				t.Errorf("left in the store: %q", left)
			}
			w.noScratch(t)

			other := memory.New()
			result, err := w.runner(t, store, other).Etcd(t.Context(), config, limits)
			if err != nil || !errors.Is(result.Commits[0].Err, storage.ErrFull) || result.Commits[1].Err != nil {
				t.Errorf("beside a good store: %+v, error %v", result, err)
			}
			// The first may have ended before etcd heard of it; this one can't.
			noStream(t, config.Endpoints[0])
			w.verified(t, other)
			if left := filesIn(t, dir); len(left) != 0 {
				t.Errorf("left in the store: %q", left)
			}

			if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
				t.Fatal(err)
			}
			mustEtcd(t, w.runner(t, store), config)
			w.verified(t, store)
			w.noScratch(t)
		})
	}
}
