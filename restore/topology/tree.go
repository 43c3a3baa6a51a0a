package topology

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"lifeboat/internal/chroot"
)

// tree reads files as a process would whose root directory is the host's.
type tree struct {
	base   string
	root   *os.Root
	unread []string // what is there and could not be read, once each
}

func openTree(base string) (*tree, error) {
	base, err := filepath.Abs(base)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		return nil, fmt.Errorf("open the host's root: %w", err)
	}
	return &tree{base: base, root: root}, nil
}

func (t *tree) close() { _ = t.root.Close() }

func (t *tree) resolve(name string) (chroot.Place, error) {
	return chroot.Resolve(name, func(name string) (string, error) {
		info, err := t.root.Lstat(name)
		if err != nil || info.Mode().Type() != fs.ModeSymlink {
			return "", err
		}
		return t.root.Readlink(name)
	})
}

// path is where a name of the host's lies for this process, through no link.
func (t *tree) path(name string) string {
	place, err := t.resolve(name)
	if err != nil {
		return filepath.Join(t.base, name)
	}
	return filepath.Join(t.base, filepath.FromSlash(place.Name))
}

func (t *tree) exists(name string) bool {
	place, err := t.resolve(name)
	if err != nil {
		t.failed(name, err)
		return false
	}
	return !place.Missing
}

// maxFile bounds a manifest, a unit or a configuration; kubelet reads no more.
const maxFile = 10 << 20

// read returns a file's text; empty if there is none.
func (t *tree) read(name string) string {
	place, err := t.resolve(name)
	if err != nil {
		t.failed(name, err)
		return ""
	}
	if place.Missing {
		return ""
	}
	info, err := t.root.Stat(place.Name)
	if err != nil {
		t.failed(name, err)
		return ""
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return "" // a pipe would never end
	}
	f, err := t.root.Open(place.Name)
	if err != nil {
		t.failed(name, err)
		return ""
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		t.failed(name, err)
		return ""
	}
	return string(data)
}

// list returns the names in a folder, in order; none if there is none.
func (t *tree) list(folder string) []string {
	place, err := t.resolve(folder)
	if err != nil {
		t.failed(folder, err)
		return nil
	}
	if place.Missing {
		return nil
	}
	f, err := t.root.Open(place.Name)
	if err != nil {
		t.failed(folder, err)
		return nil
	}
	defer f.Close()
	const most = 10000
	names, err := f.Readdirnames(most)
	if err != nil && !errors.Is(err, io.EOF) {
		t.failed(folder, err)
	}
	slices.Sort(names)
	return names
}

func (t *tree) failed(name string, err error) {
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	text := fmt.Sprintf("%s could not be read, and what it says is not known: %v", path.Join("/", name), err)
	if !slices.Contains(t.unread, text) {
		t.unread = append(t.unread, text)
	}
}
