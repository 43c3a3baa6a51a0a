package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
)

// startWriteback asks the kernel to begin writing a part of a file and does
// not wait for it. It is a hint: a file system that can't is no matter.
func startWriteback(f *os.File, off, n int64) {
	if n > 0 {
		_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
	}
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// rename moves within one file system and makes the move durable.
func rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := syncFile(filepath.Dir(to)); err != nil {
		return err
	}
	return syncFile(filepath.Dir(from))
}

// device returns the device that path, or its nearest existing parent, is on.
func device(path string) (uint64, error) {
	for {
		var st unix.Stat_t
		err := unix.Stat(path, &st)
		if err == nil {
			return uint64(st.Dev), nil
		}
		parent := filepath.Dir(path)
		if !errors.Is(err, unix.ENOENT) || parent == path {
			return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		path = parent
	}
}

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

// InUse says whether an etcd runs on a data directory: ErrInUse if so.
func InUse(dataDir string) error {
	locks, err := lockMember(filepath.Join(dataDir, "member"))
	locks.release()
	return err
}

type fileLocks []*os.File

func (l fileLocks) release() {
	for _, f := range l {
		f.Close()
	}
}

// lockMember takes the locks that etcd takes: flock on the database (bbolt) and
// etcd's own on every file of the write-ahead log. A file that is not there
// can't be in use. It changes nothing and returns what it has locked even with
// an error.
func lockMember(member string) (fileLocks, error) {
	var locks fileLocks
	db := filepath.Join(member, "snap", "db")
	f, err := os.OpenFile(db, os.O_RDWR, 0)
	switch {
	case err == nil:
		locks = append(locks, f)
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
			return locks, fmt.Errorf("%w: another process has locked %s", ErrInUse, db)
		}
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
		return locks, fmt.Errorf("look whether %s is in use: %w", db, err)
	}
	logs, err := filepath.Glob(filepath.Join(member, "wal", "*.wal"))
	if err != nil {
		return locks, err
	}
	for _, path := range logs {
		l, err := fileutil.TryLockFile(path, os.O_WRONLY, 0)
		switch {
		case err == nil:
			locks = append(locks, l.File)
		case errors.Is(err, fileutil.ErrLocked):
			return locks, fmt.Errorf("%w: another process has locked %s", ErrInUse, path)
		case !errors.Is(err, fs.ErrNotExist):
			return locks, fmt.Errorf("look whether %s is in use: %w", path, err)
		}
	}
	return locks, nil
}
