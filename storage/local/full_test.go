//go:build linux

package local_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"lifeboat/internal/durable/tinydisk"
	"lifeboat/storage"
)

func TestAFullDiskIsErrFullAndLeavesNothing(t *testing.T) {
	dir := tinydisk.Full(t, 4<<20)
	s := open(t, dir)
	put(t, s, "old", "old")
	for _, ifAbsent := range []bool{false, true} {
		err := s.Put(t.Context(), "a/b/new", bytes.NewReader(make([]byte, 8<<20)), storage.PutOptions{IfAbsent: ifAbsent})
		if !errors.Is(err, storage.ErrFull) {
			t.Fatalf("got %v", err)
		}
		err = s.Put(t.Context(), "old", bytes.NewReader(make([]byte, 8<<20)), storage.PutOptions{})
		if !errors.Is(err, storage.ErrFull) {
			t.Fatalf("got %v", err)
		}
		if got := files(t, dir); len(got) != 1 || got[0] != "old" {
			t.Fatalf("the disk holds %q", got)
		}
		if got, err := get(t, s, "old"); err != nil || got != "old" {
			t.Fatalf("the old object holds %q, error %v", got, err)
		}
	}
	ballast := tinydisk.Fill(t, dir, 0)
	if err := s.Put(t.Context(), "x", strings.NewReader("x"), storage.PutOptions{}); !errors.Is(err, storage.ErrFull) {
		t.Fatalf("not a byte free: %v", err)
	}
	if err := s.Delete(t.Context(), filepath.Base(ballast)); err != nil {
		t.Fatalf("deleting on a full disk: %v", err)
	}
	put(t, s, "x", "x")
}

func TestAReadOnlyDiskCanBeRead(t *testing.T) {
	dir := t.TempDir()
	put(t, open(t, dir), "a/b", "kept")
	tinydisk.ReadOnly(t, dir)
	s := open(t, dir)
	if got, err := get(t, s, "a/b"); err != nil || got != "kept" {
		t.Fatalf("%q, error %v", got, err)
	}
	if got := list(t, s, ""); len(got) != 1 {
		t.Fatalf("list is %q", got)
	}
	for _, ifAbsent := range []bool{false, true} {
		err := s.Put(t.Context(), "a/c", strings.NewReader("x"), storage.PutOptions{IfAbsent: ifAbsent})
		if !errors.Is(err, storage.ErrPermission) {
			t.Errorf("put: %v", err)
		}
	}
	if err := s.Delete(t.Context(), "a/b"); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("delete: %v", err)
	}
}

// asSomebody reports whether the calling test may go on. Root may do everything,
// so as root it runs the test again in a process of a user without rights.
func asSomebody(t *testing.T) bool {
	t.Helper()
	const nobody = 65534
	if os.Geteuid() != 0 {
		return true
	}
	// Where that user can come: the test binary's own folder is root's.
	dir, err := os.MkdirTemp("", "somebody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program := filepath.Join(dir, "test")
	text, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(program, text, 0o755), os.Chown(dir, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("as user %d: %v\n%s", nobody, err, out)
	}
	return false
}

func TestAFolderWithoutPermissionIsErrPermission(t *testing.T) {
	if !asSomebody(t) {
		return
	}
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "a/b", "kept")
	if err := os.Chmod(filepath.Join(dir, "a"), 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(dir, "a"), 0o700) })
	if err := s.Put(t.Context(), "a/c", strings.NewReader("x"), storage.PutOptions{}); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("put: %v", err)
	}
	if err := s.Delete(t.Context(), "a/b"); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("delete: %v", err)
	}
	if got, err := get(t, s, "a/b"); err != nil || got != "kept" {
		t.Errorf("%q, error %v", got, err)
	}
}
