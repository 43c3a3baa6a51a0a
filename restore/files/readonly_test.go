package files

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"lifeboat/internal/durable/tinydisk"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/seal"
)

// onImage restores a unit in a read-only /usr and a file beside it, twice: the
// second time goes over what the first one has left.
func onImage(t *testing.T, there string) error {
	t.Helper()
	root := t.TempDir()
	usr := filepath.Join(root, "usr/lib")
	if err := errors.Join(os.MkdirAll(usr, 0o755), os.WriteFile(filepath.Join(usr, "a.service"), []byte(there), 0o644)); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(usr, "a.service"))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := seal.NewArchiveWriter(&out)
	for _, e := range []struct{ name, body string }{{hostfacts.Name, `{}`}, {"etc/new", "new"}, {"usr/lib/a.service", "unit"}} {
		h := seal.Header{Name: e.name, Mode: 0o644, ModTime: info.ModTime(), Size: int64(len(e.body)), UID: os.Getuid(), GID: os.Getgid()}
		if err := w.AddFile(h, strings.NewReader(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	tinydisk.ReadOnly(t, filepath.Join(root, "usr"))
	aside := filepath.Join(t.TempDir(), "aside")
	for range 2 {
		p, err := Prepare(t.Context(), bytes.NewReader(out.Bytes()), Options{Root: root, AsideDir: aside, RestoreID: "r1"})
		if err != nil {
			return err
		}
		_, err = p.Apply(t.Context(), bytes.NewReader(out.Bytes()))
		if err := errors.Join(err, p.Close()); err != nil {
			return err
		}
	}
	if text, err := os.ReadFile(filepath.Join(root, "etc/new")); err != nil || string(text) != "new" {
		t.Errorf("%q, %v", text, err)
	}
	return nil
}

func TestWhatIsTheSameOnAReadOnlyFileSystemStays(t *testing.T) {
	if err := onImage(t, "unit"); err != nil {
		t.Error(err)
	}
}

func TestWhatDiffersOnAReadOnlyFileSystemIsNamed(t *testing.T) {
	if err := onImage(t, "another unit"); !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "usr/lib/a.service") {
		t.Errorf("%v", err)
	}
}
