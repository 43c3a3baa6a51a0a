package pki

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"lifeboat/internal/chroot"
)

// What a folder full of junk can cost.
const (
	fileLimit    = 1 << 20 // bytes of a certificate, key or kubeconfig
	folderLimit  = 1000    // names in a folder
	filesLimit   = 2000    // files in all
	certsLimit   = 1000    // certificates in all files
	deepest      = 4       // folders below a folder of certificates
	journalLimit = 4 << 20
)

// tree is the root that is worked on.
type tree struct {
	root   *os.Root
	path   string                      // absolute, through no link
	before func(op, name string) error // a test's hook before every change
}

func openTree(root string) (*tree, error) {
	abs, err := filepath.Abs(root)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return nil, fmt.Errorf("open the root %s: %w", root, err)
	}
	r, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("open the root %s: %w", root, err)
	}
	return &tree{root: r, path: abs, before: func(string, string) error { return nil }}, nil
}

func (t *tree) close() error { return t.root.Close() }

// lock keeps other restores off the root. A file system that can't lock a
// folder is not refused for it.
func (t *tree) lock() (unlock func(), err error) {
	f, err := t.root.Open(".")
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, fmt.Errorf("%s: %w", t.path, ErrInUse)
	}
	return func() { f.Close() }, nil
}

// lstat tells what is at a place, whose folder may be missing or no folder.
func (t *tree) lstat(place string) (fs.FileInfo, error) {
	info, err := t.root.Lstat(place)
	if errors.Is(err, syscall.ENOTDIR) {
		return nil, fs.ErrNotExist
	}
	return info, err
}

func (t *tree) readlink(place string) (string, error) {
	info, err := t.lstat(place)
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return "", err
	}
	return t.root.Readlink(place)
}

func (t *tree) resolve(name string) (chroot.Place, error) {
	return chroot.Resolve(name, t.readlink)
}

// folderOf resolves the folder of a name, whose own last element is not followed.
func (t *tree) folderOf(name string) (place string, err error) {
	dir, err := t.resolve(path.Dir(name))
	if err != nil {
		return "", err
	}
	return path.Join(dir.Name, path.Base(name)), nil
}

// saved is a file as it was read.
type saved struct {
	name  string // as the host sees it
	place string // relative to the root, through no link
	info  fs.FileInfo
	data  []byte
}

func (s *saved) sum() [sha256.Size]byte { return sha256.Sum256(s.data) }

// read returns the file that a name leads to, nil if there is none.
func (t *tree) read(name string) (*saved, error) {
	place, err := t.resolve(name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if place.Missing {
		return nil, nil
	}
	info, data, err := t.readPlace(place.Name, fileLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return &saved{name: name, place: place.Name, info: info, data: data}, nil
}

// readPlace reads a regular file; a fifo in its place does not block.
func (t *tree) readPlace(place string, limit int64) (fs.FileInfo, []byte, error) {
	f, err := t.root.OpenFile(place, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%w: it is no regular file", ErrUnreadable)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, nil, err
	}
	if int64(len(data)) > limit {
		return nil, nil, fmt.Errorf("%w: it is larger than %d bytes", ErrUnreadable, limit)
	}
	return info, data, nil
}

// names lists a folder, sorted; nil if it is not there. Hidden names are left
// out: unfinished files have such.
func (t *tree) names(folder string) ([]string, error) {
	place, err := t.resolve(folder)
	if err != nil || place.Missing {
		return nil, err
	}
	f, err := t.root.Open(place.Name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(folderLimit + 1)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if len(names) > folderLimit {
		return nil, fmt.Errorf("%w: it holds more than %d files", ErrUnreadable, folderLimit)
	}
	names = slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, ".") })
	slices.Sort(names)
	return names, nil
}

func ownerOf(info fs.FileInfo) (uid, gid int) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return 0, 0
}
