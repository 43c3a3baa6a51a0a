package durable_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"lifeboat/internal/durable"
)

func TestScratchIsPrivateAndGoesOnClose(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "state", "scratch")
	s, err := durable.OpenScratch(parent)
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.Create("snapshot.db")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := s.Create("snapshot.db"); err == nil {
		t.Error("a scratch file was created twice")
	}
	for _, name := range []string{"", ".", "..", "a/b", "../x", "/x"} {
		if f, err := s.Create(name); err == nil {
			f.Close()
			t.Errorf("the name %q was accepted", name)
		}
	}
	for path, want := range map[string]fs.FileMode{parent: 0o700, s.Path(): 0o700, f.Name(): 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, error %v; want %v", path, info.Mode(), err, want)
		}
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wantEntries(t, parent)
}

func TestScratchOfTheDeadIsSweptAndThatOfTheLivingKept(t *testing.T) {
	parent := t.TempDir()
	killDead := startWriter(t, "scratch", parent)
	dead := entries(t, parent)[0]
	startWriter(t, "scratch", parent)
	killDead()
	if err := os.Mkdir(filepath.Join(parent, "not-ours"), 0o700); err != nil {
		t.Fatal(err)
	}
	own, err := durable.OpenScratch(parent)
	if err != nil {
		t.Fatal(err)
	}
	second, err := durable.OpenScratch(parent) // the same process may have several
	if err != nil {
		t.Fatal(err)
	}
	got := entries(t, parent)
	if len(got) != 4 { // of the living, two of ours, not ours
		t.Fatalf("the parent holds %q", got)
	}
	for _, name := range got {
		if name == dead {
			t.Fatal("the dead process's scratch is still there")
		}
	}
	for _, s := range []*durable.Scratch{own, second} {
		if _, err := os.Stat(s.Path()); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := entries(t, parent); len(got) != 2 {
		t.Fatalf("the parent holds %q", got)
	}
}

func TestManyScratchesAtOnceNeverTakeEachOthers(t *testing.T) {
	parent := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				s, err := durable.OpenScratch(parent)
				if err != nil {
					t.Error(err)
					return
				}
				f, err := s.Create("x")
				if err != nil {
					t.Errorf("a living scratch was swept: %v", err)
					return
				}
				f.Close()
				if err := s.Close(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	wantEntries(t, parent)
}
