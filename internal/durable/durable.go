// Package durable creates files that survive a crash: a file is either whole
// and on disk, or not there.
//
// It also keeps scratch space: one locked folder per process, which the next
// process sweeps when its owner has died.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Options change how WriteFile creates a file.
type Options struct {
	Mode     fs.FileMode // permission bits; 0600 when 0
	IfAbsent bool        // fail with fs.ErrExist instead of replacing
	// TempDir holds the file until it is whole. It must be on the same file
	// system; the file's own folder when empty.
	TempDir string
}

// TempPrefix begins the name of every unfinished file.
const TempPrefix = ".lifeboat-tmp-"

// WriteFile creates or replaces the file at path with all of r. When it
// returns nil the bytes and the name are on disk. Missing parent folders are
// made (0700) and are durable too. After an error, r's included, the path is as
// it was, except that a failed fsync of the folder may leave the file visible.
func WriteFile(path string, r io.Reader, opts Options) (n int64, err error) {
	if opts.Mode == 0 {
		opts.Mode = 0o600
	}
	dir := filepath.Dir(path)
	if err := MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	tempDir := opts.TempDir
	if tempDir == "" {
		tempDir = dir
	}
	temp, err := createTemp(tempDir, opts.Mode)
	if err != nil {
		return 0, err
	}
	defer func() {
		temp.Close()
		if rmErr := os.Remove(temp.Name()); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}()
	n, err = io.CopyBuffer(&EarlyWriter{File: temp}, r, make([]byte, 256<<10))
	if err != nil {
		return n, err
	}
	if err := temp.Sync(); err != nil {
		return n, err
	}
	if opts.IfAbsent {
		err = os.Link(temp.Name(), path) // link never replaces; rename would
	} else {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return n, err
	}
	return n, SyncDir(dir)
}

func createTemp(dir string, mode fs.FileMode) (*os.File, error) {
	for {
		name := filepath.Join(dir, TempPrefix+strconv.Itoa(os.Getpid())+"-"+strconv.FormatUint(rand.Uint64(), 36))
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// Held for the file's life: SweepTemp takes only what nobody holds.
		return f, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
}

// SweepTemp removes unfinished files in dir whose writer has died.
func SweepTemp(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), TempPrefix) || !entry.Type().IsRegular() {
			continue
		}
		if err := removeUnlocked(filepath.Join(dir, entry.Name())); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeUnlocked removes a file that no process holds a lock on.
func removeUnlocked(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil
		}
		return fmt.Errorf("lock %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// MkdirAll makes dir and what is missing above it, each durable in its parent.
func MkdirAll(dir string, mode fs.FileMode) error {
	err := os.Mkdir(dir, mode)
	switch {
	case err == nil:
		return SyncDir(filepath.Dir(dir))
	case errors.Is(err, fs.ErrExist):
		if info, statErr := os.Stat(dir); statErr == nil && info.IsDir() {
			return nil
		}
		return err
	case errors.Is(err, fs.ErrNotExist):
		if parent := filepath.Dir(dir); parent != dir {
			if err := MkdirAll(parent, mode); err != nil {
				return err
			}
			return MkdirAll(dir, mode)
		}
	}
	return err
}

// SyncDir makes the names in a folder durable.
func SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("sync folder %s: %w", path, err)
	}
	return nil
}

// FreeSpace is how many bytes an unprivileged process can still write to the
// file system of path.
func FreeSpace(path string) (int64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", path, err)
	}
	return int64(stat.Bavail) * stat.Bsize, nil
}

// writebackStep is how many bytes are written before the kernel is asked to
// start putting them on disk, so that the final fsync has little left to do.
const writebackStep = 8 << 20

// EarlyWriter writes to a file and starts writeback as it goes. It does not
// sync.
type EarlyWriter struct {
	File    *os.File
	written int64 // bytes
	started int64 // bytes whose writeback was asked for
}

// Write implements io.Writer.
func (w *EarlyWriter) Write(p []byte) (int, error) {
	n, err := w.File.Write(p)
	w.written += int64(n)
	if w.written-w.started >= writebackStep {
		// Only a hint: file systems that refuse it still sync at the end.
		_ = unix.SyncFileRange(int(w.File.Fd()), w.started, w.written-w.started, unix.SYNC_FILE_RANGE_WRITE)
		w.started = w.written
	}
	return n, err
}
