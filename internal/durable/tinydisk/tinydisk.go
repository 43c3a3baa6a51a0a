//go:build linux

// Package tinydisk gives tests a file system of their own: one that fills up,
// or one that can't be written to. Where that is impossible they are skipped, but
// not in a run that must try everything.
package tinydisk

import (
	"os"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// Unable skips a test that this machine can't run. With LIFEBOAT_CI set, as
// .ci/run does, it fails: there a skipped test would hide what it is for.
func Unable(t testing.TB, why ...any) {
	t.Helper()
	if os.Getenv("LIFEBOAT_CI") != "" {
		t.Fatal(append(why, "(and LIFEBOAT_CI is set: no test may be skipped for that)")...)
	}
	t.Skip(why...)
}

// Full mounts an empty file system of the given size and returns its folder. It
// needs root, else the test is skipped.
//
// The mount is in a namespace of this test's thread alone, so that it goes with
// the process whatever happens. Only the test's own goroutine sees it.
func Full(t *testing.T, size int) string {
	t.Helper()
	dir := private(t)
	if err := unix.Mount("tinydisk", dir, "tmpfs", 0, "size="+strconv.Itoa(size)); err != nil {
		Unable(t, "can't mount a small file system:", err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

// Fill leaves at most free bytes on the file system of dir, by a file whose
// path it returns.
func Fill(t *testing.T, dir string, free int64) string {
	t.Helper()
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		t.Fatal(err)
	}
	path := dir + "/ballast"
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size := max(0, int64(stat.Bavail)*int64(stat.Bsize)-free)
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); size > 0 && err != nil {
		t.Fatal(err)
	}
	return path
}

// ReadOnly makes the folder dir read-only for this test, in the way of Full.
func ReadOnly(t *testing.T, dir string) {
	t.Helper()
	private(t)
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		Unable(t, "can't mount a folder read-only:", err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		Unable(t, "can't mount a folder read-only:", err)
	}
}

// private gives the test's thread mounts of its own. The thread is never
// unlocked, so the runtime ends it with the test's goroutine.
func private(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		Unable(t, "mounting a file system needs root")
	}
	dir := t.TempDir()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		Unable(t, "can't have private mounts:", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		Unable(t, "can't have private mounts:", err)
	}
	return dir
}

func unmount(t *testing.T, dir string) {
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Error("unmount:", err)
	}
}
