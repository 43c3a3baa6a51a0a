//go:build linux

package durable_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/internal/durable"
	"lifeboat/internal/durable/tinydisk"
)

func TestAFullDiskLeavesWhatWas(t *testing.T) {
	dir := tinydisk.Full(t, 4<<20)
	path := filepath.Join(dir, "file")
	if _, err := durable.WriteFile(path, strings.NewReader("old"), durable.Options{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := durable.WriteFile(path, bytes.NewReader(make([]byte, 8<<20)), durable.Options{}); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("got %v", err)
		}
		wantEntries(t, dir, "file")
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
		t.Fatalf("the file holds %q, error %v", got, err)
	}
	if _, err := durable.WriteFile(path, bytes.NewReader(make([]byte, 2<<20)), durable.Options{}); err != nil {
		t.Fatalf("what fits after a failure: %v", err)
	}
	n, err := durable.FreeSpace(dir)
	if err != nil || n <= 0 || n > 2<<20 {
		t.Fatalf("%d bytes are free of 2 MiB, error %v", n, err)
	}
}

func TestAReadOnlyFolderIsAnErrorAndStays(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	tinydisk.ReadOnly(t, dir)
	if _, err := durable.WriteFile(filepath.Join(dir, "file"), strings.NewReader("new"), durable.Options{}); !errors.Is(err, unix.EROFS) {
		t.Fatalf("got %v", err)
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		t.Fatalf("a folder that is there needs no writing: %v", err)
	}
	if _, err := durable.OpenScratch(dir); !errors.Is(err, unix.EROFS) {
		t.Fatalf("scratch: %v", err)
	}
	wantEntries(t, dir, "file")
}
