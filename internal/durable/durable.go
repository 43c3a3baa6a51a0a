// Package durable creates files that survive a crash: a file is either whole
// and on disk, or not there.
//
// WriteFile is for a file in an ordinary folder; Temp is the same in steps,
// below an os.Root, for a store that must retry the last one. Scratch is space
// for files that end with the process: one locked folder each, which the next
// process sweeps when its owner has died.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Options change how WriteFile creates a file.
type Options struct {
	Mode     fs.FileMode // permission bits before the umask; 0600 when 0
	IfAbsent bool        // fail with fs.ErrExist instead of replacing
}

// WriteFile creates or replaces the file at path with all of r. When it
// returns nil the bytes and the name are on disk. Missing parent folders are
// made (0700) and are durable too. After an error, r's included, the path is as
// it was, except that a failed fsync of the folder may leave the file visible.
//
// It also sweeps unfinished files of dead processes from the folder, which it
// reads for that: it is meant for folders of few files.
func WriteFile(path string, r io.Reader, opts Options) (n int64, err error) {
	if opts.Mode == 0 {
		opts.Mode = 0o600
	}
	dir, name := filepath.Split(filepath.Clean(path))
	dir = filepath.Clean(dir) // "" is "."
	if err := MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	// What can't be swept is hidden junk of somebody else, no reason to fail.
	_ = SweepTemp(root, ".")
	temp, err := CreateTemp(root, ".", opts.Mode)
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, temp.Discard()) }()
	n, err = io.CopyBuffer(temp, r, make([]byte, 256<<10))
	if err != nil {
		return n, fmt.Errorf("write %s: %w", path, err)
	}
	if err := temp.Publish(name, opts.IfAbsent); err != nil {
		return n, fmt.Errorf("write %s: %w", path, err)
	}
	return n, nil
}

// MkdirAll makes dir and what is missing above it, each durable in its parent.
func MkdirAll(dir string, mode fs.FileMode) error {
	err := os.Mkdir(dir, mode)
	switch {
	case err == nil:
		return SyncDir(filepath.Dir(dir))
	case errors.Is(err, fs.ErrNotExist):
		if parent := filepath.Dir(dir); parent != dir {
			if err := MkdirAll(parent, mode); err != nil {
				return err
			}
			// Once more and no further: some places, such as /proc, say so of
			// whatever is to be made in them.
			if err = os.Mkdir(dir, mode); err == nil {
				return SyncDir(parent)
			}
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	// On a read-only file system mkdir says so even of a folder that is there.
	info, statErr := os.Stat(dir)
	switch {
	case statErr == nil && info.IsDir():
		return nil
	case statErr == nil: // and not fs.ErrExist, which a caller takes for the file's
		return &fs.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
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
	return int64(stat.Bavail) * int64(stat.Bsize), nil
}
