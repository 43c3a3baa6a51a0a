package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// scratchPrefix begins the name of every scratch folder.
const scratchPrefix = "scratch-"

// Scratch is a folder of one process for files that end with it. Its content
// may be secret: the folder is 0700, files are 0600.
//
// The lock is on the folder itself, held for as long as its owner lives. A
// sweeper removes a folder only while it holds that lock, so whoever gets the
// lock and still finds the folder under its name owns it.
type Scratch struct {
	path string
	lock *os.File
}

// OpenScratch makes a scratch folder under parent (made 0700 if missing) and
// first sweeps those whose process has died, never those of the living. Close
// it to remove it.
func OpenScratch(parent string) (*Scratch, error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, fmt.Errorf("open scratch: %w", err)
	}
	if err := SweepScratch(parent); err != nil {
		return nil, err
	}
	for {
		path, err := os.MkdirTemp(parent, scratchPrefix)
		if err != nil {
			return nil, fmt.Errorf("open scratch: %w", err)
		}
		lock, err := lockFolder(path)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open scratch: %w", err), os.RemoveAll(path))
		}
		if lock != nil {
			return &Scratch{path: path, lock: lock}, nil
		}
		// A sweeper came between making and locking, and takes it: make another.
	}
}

// Path is the folder.
func (s *Scratch) Path() string { return s.path }

// Create makes a new file in the folder, open for reading and writing.
func (s *Scratch) Create(name string) (*os.File, error) {
	if name != filepath.Base(name) || !filepath.IsLocal(name) {
		return nil, fmt.Errorf("create scratch file: %q is not a plain name", name)
	}
	return os.OpenFile(filepath.Join(s.path, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// Close removes the folder with all that is in it. The second Close does
// nothing.
func (s *Scratch) Close() error {
	if s.lock == nil {
		return nil
	}
	err := errors.Join(os.RemoveAll(s.path), s.lock.Close())
	s.lock = nil
	return err
}

// lockFolder returns the locked folder, or nil when another has or had it.
func lockFolder(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	held, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if named, err := os.Lstat(path); err != nil || !os.SameFile(held, named) {
		f.Close()
		return nil, nil
	}
	return f, nil
}

// SweepScratch removes the scratch folders under parent whose process has died,
// and what secrets they left. No such parent has none.
func SweepScratch(parent string) error {
	entries, err := os.ReadDir(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep scratch: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		if !entry.IsDir() || !strings.HasPrefix(entry.Name(), scratchPrefix) {
			continue
		}
		err := sweepOne(filepath.Join(parent, entry.Name()))
		// Another user's folder is theirs to sweep.
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep scratch: %w", err)
	}
	return nil
}

func sweepOne(path string) error {
	lock, err := lockFolder(path)
	if err != nil || lock == nil {
		return err
	}
	defer lock.Close()
	return os.RemoveAll(path)
}
