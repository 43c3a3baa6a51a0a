package local_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/storage"
	"lifeboat/storage/storetest"
)

func reserved(name string) bool {
	top, _, _ := strings.Cut(name, "/")
	return top == ".lifeboat-tmp" || top == "lost+found"
}

// FuzzName holds the store to two things for any name: a name that CheckName
// takes becomes one file in the root and nothing outside, any other is refused
// everywhere.
func FuzzName(f *testing.F) {
	for _, name := range storetest.InvalidNames() {
		f.Add(name)
	}
	for _, name := range storetest.ValidNames() {
		f.Add(name)
	}
	f.Add(".lifeboat-tmp/x")
	f.Add("lost+found/x")
	f.Fuzz(func(t *testing.T, name string) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "root")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir)
		err := s.Put(t.Context(), name, strings.NewReader(name), storage.PutOptions{IfAbsent: true})
		for _, file := range files(t, parent) {
			if file != "root/"+name {
				t.Fatalf("putting %q made %q", name, file)
			}
		}
		if check := storage.CheckName(name); check != nil && !errors.Is(err, storage.ErrInvalidName) {
			t.Fatalf("CheckName says %v, Put %v", check, err)
		} else if check == nil && err != nil && !reserved(name) {
			t.Fatalf("a valid name was refused: %v", err)
		}
		if err != nil {
			if _, err := get(t, s, name); !errors.Is(err, storage.ErrInvalidName) {
				t.Fatalf("a name that Put refuses can be opened: %v", err)
			}
			list(t, s, name)
			return
		}
		if got := list(t, s, ""); len(got) != 1 || got[0] != name {
			t.Fatalf("putting %q lists %q", name, got)
		}
		if got, err := get(t, s, name); err != nil || got != name {
			t.Fatalf("%q holds %q, error %v", name, got, err)
		}
		if err := s.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if got := files(t, parent); len(got) != 0 {
			t.Fatalf("after the delete there is %q", got)
		}
	})
}
