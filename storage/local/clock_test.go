//go:build linux

package local_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lifeboat/internal/durable/tinydisk"
	"lifeboat/storage"
	"lifeboat/storage/local"
)

// asked is the store's time, which must be the machine's.
func asked(t *testing.T, s *local.Store) {
	t.Helper()
	before := time.Now().Add(-time.Second) // a file system's clock ticks slower
	now, err := s.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if now.Before(before) || now.After(time.Now().Add(time.Second)) {
		t.Errorf("the store says %s", now)
	}
}

func TestTheTimeIsToldOnAFullDisk(t *testing.T) {
	dir := tinydisk.Full(t, 4<<20)
	s := open(t, dir)
	put(t, s, "old", "old")
	tinydisk.Fill(t, dir, 0)
	asked(t, s)
}

func TestAskingForTheTimeMakesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	asked(t, s)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the root was made: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	asked(t, s)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the root holds %v, %v", entries, err)
	}
}

// TestTheTimeIsNotThatOfAnOldFolder would pass with a clock that only looks.
func TestTheTimeIsNotThatOfAnOldFolder(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "a", "a")
	old := time.Now().Add(-24 * time.Hour)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) < 2 {
		t.Fatal(entries, err)
	}
	for _, entry := range entries {
		if err := os.Chtimes(filepath.Join(dir, entry.Name()), old, old); err != nil {
			t.Fatal(err)
		}
	}
	asked(t, s)
	if list(t, s, "")[0] != "a" {
		t.Error("the object is gone")
	}
}

func TestAReadOnlyDiskDoesNotTellTheTime(t *testing.T) {
	dir := t.TempDir()
	put(t, open(t, dir), "a", "a")
	tinydisk.ReadOnly(t, dir)
	if now, err := open(t, dir).Now(t.Context()); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("%s, %v", now, err)
	}
}
