package local

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/storage"
)

var _ storage.Clock = (*Store)(nil)

// Now implements storage.Clock. It touches the hidden folder of unfinished
// objects, or the root where there is none yet, and reads which time the file
// system has put on it: an NFS server's own, like that of every object. Unlike
// a new file that needs no space, so it works on a full disk, and there is
// nothing to remove afterwards. A root that does not exist yet has no clock but
// this machine's.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	if ctx.Err() != nil {
		return time.Time{}, failed("ask for the time", s.dir, context.Cause(ctx))
	}
	root, err := os.OpenRoot(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Now(), nil
	}
	if err != nil {
		return time.Time{}, failed("ask for the time", s.dir, err)
	}
	defer root.Close()
	now, err := touch(root, tempFolder)
	if errors.Is(err, fs.ErrNotExist) {
		now, err = touch(root, ".")
	}
	if err != nil {
		return time.Time{}, failed("ask for the time", s.dir, err)
	}
	return now, nil
}

// touch sets a folder's times to now by the clock of its file system.
func touch(root *os.Root, name string) (time.Time, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	// The value "now" and not the time of our clock: who keeps the file fills it in.
	now := unix.Timespec{Nsec: unix.UTIME_NOW}
	err = unix.UtimesNanoAt(int(f.Fd()), ".", []unix.Timespec{now, now}, 0)
	info, statErr := f.Stat()
	if err := cmp.Or(err, statErr); err != nil {
		return time.Time{}, &fs.PathError{Op: "touch", Path: name, Err: err}
	}
	return info.ModTime(), nil
}
