package salvage

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// The locks are those that etcd takes, shared: they need no file opened to write,
// so that a disk mounted read-only will do. A file system that has no locks is not
// refused for it.

// lockDatabase shares bbolt's lock.
func lockDatabase(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return inUse(f)
	}
	return nil
}

// lockLog shares etcd's lock on a file of the log (client/pkg/fileutil/lock_linux.go),
// which is one of the open file description, or where there is none flock.
func lockLog(f *os.File) error {
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return inUse(f)
	}
	return lockDatabase(f)
}

func inUse(f *os.File) error {
	return fmt.Errorf("%w: another process has locked %s: stop the etcd that runs on it (for a static pod, move etcd.yaml out of /etc/kubernetes/manifests), then run this again", ErrInUse, f.Name())
}
