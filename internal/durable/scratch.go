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

// scratchPrefix begins the name of every scratch folder, lockName is the file
// in it whose lock says that the owner lives.
const (
	scratchPrefix = "scratch-"
	lockName      = "lock"
)

// Scratch is a folder of one process for files that end with it. Its content
// may be secret: the folder is 0700, files are 0600.
type Scratch struct {
	path string
	lock *os.File
}

// OpenScratch makes a scratch folder under parent (made 0700 if missing) and
// first sweeps those whose process has died. Close it to remove it.
func OpenScratch(parent string) (*Scratch, error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, err
	}
	if err := sweepScratch(parent); err != nil {
		return nil, err
	}
	// Between making the folder and locking it, a sweeper could take it: the
	// lock is then on a removed file, and we try again.
	for {
		path, err := os.MkdirTemp(parent, scratchPrefix)
		if err != nil {
			return nil, err
		}
		lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, errors.Join(err, os.RemoveAll(path))
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil && sameFile(lock) {
			return &Scratch{path: path, lock: lock}, nil
		}
		lock.Close()
	}
}

func sameFile(f *os.File) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(f.Name())
	return err == nil && os.SameFile(held, named)
}

// Path is the folder.
func (s *Scratch) Path() string { return s.path }

// Create makes a new file in the folder, open for reading and writing.
func (s *Scratch) Create(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(s.path, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// Close removes the folder with all that is in it.
func (s *Scratch) Close() error {
	err := os.RemoveAll(s.path)
	return errors.Join(err, s.lock.Close())
}

func sweepScratch(parent string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		if !entry.IsDir() || !strings.HasPrefix(entry.Name(), scratchPrefix) {
			continue
		}
		if err := sweepOne(filepath.Join(parent, entry.Name())); err != nil {
			errs = append(errs, fmt.Errorf("sweep scratch: %w", err))
		}
	}
	return errors.Join(errs...)
}

func sweepOne(path string) error {
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // gone meanwhile
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // its owner lives
	}
	return os.RemoveAll(path)
}
