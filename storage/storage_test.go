package storage_test

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/storage"
	"lifeboat/storage/storetest"
)

func TestCheckName(t *testing.T) {
	for about, name := range storetest.InvalidNames() {
		if err := storage.CheckName(name); !errors.Is(err, storage.ErrInvalidName) {
			t.Errorf("%s: got %v", about, err)
		}
	}
	for _, name := range storetest.ValidNames() {
		if err := storage.CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// FuzzCheckName holds what CheckName takes to other judges: a name that it takes
// is a valid path of io/fs, stays below any root, and can be logged.
func FuzzCheckName(f *testing.F) {
	for _, name := range storetest.InvalidNames() {
		f.Add(name)
	}
	for _, name := range storetest.ValidNames() {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if err := storage.CheckName(name); err != nil {
			if !errors.Is(err, storage.ErrInvalidName) {
				t.Fatalf("%q: the error is %v", name, err)
			}
			return
		}
		joined := filepath.Join("/root", name)
		switch {
		case !fs.ValidPath(name) || name == ".":
			t.Fatalf("%q is no valid path", name)
		case !filepath.IsLocal(name) || joined != "/root/"+name:
			t.Fatalf("%q leads to %q", name, joined)
		case strings.ContainsAny(name, "\\\x00\r\n\x1b\u0085\u009b\u200b\u200e\u202e\u2067\u2028") || len(name) > storage.MaxNameLength:
			t.Fatalf("%q was taken", name)
		}
	})
}
