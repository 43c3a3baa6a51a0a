package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// TempPrefix begins the name of every unfinished file.
const TempPrefix = ".lifeboat-tmp-"

// Temp is an unfinished file below a root. It is locked for as long as it is
// open, so that a sweep takes only those whose writer has died.
type Temp struct {
	root    *os.Root
	name    string
	file    *os.File
	written int64 // bytes
	started int64 // bytes whose writeback was asked for; <= written
	synced  bool  // all that was written is on disk
}

// CreateTemp makes an empty unfinished file in the folder dir of root. The
// caller ends with Discard, published or not, and keeps root open until then.
func CreateTemp(root *os.Root, dir string, mode fs.FileMode) (*Temp, error) {
	for {
		name := path.Join(dir, TempPrefix+strconv.FormatUint(rand.Uint64(), 36))
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil && isNamed(root, name, f):
			return &Temp{root: root, name: name, file: f}, nil
		case err == nil || errors.Is(err, unix.EWOULDBLOCK):
			f.Close() // a sweep came between creating and locking, and removes it
		default:
			f.Close()
			return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), root.Remove(name))
		}
	}
}

func isNamed(root *os.Root, name string, f *os.File) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := root.Lstat(name)
	return err == nil && os.SameFile(held, named)
}

// writebackStep is how many bytes are written before the kernel is asked to
// start putting them on disk, so that the final fsync has little left to do.
const writebackStep = 8 << 20

// Write implements io.Writer.
func (t *Temp) Write(p []byte) (int, error) {
	t.synced = false
	n, err := t.file.Write(p)
	t.written += int64(n)
	if t.written-t.started >= writebackStep {
		startWriteback(t.file, t.started, t.written-t.started)
		t.started = t.written
	}
	return n, err
}

// Sync puts the bytes on disk.
func (t *Temp) Sync() error {
	if t.synced {
		return nil // spares the disk another flush
	}
	if err := t.file.Sync(); err != nil {
		return err
	}
	t.synced = true
	return nil
}

// Publish makes the bytes durable and then visible under name, whose folder
// must exist. With ifAbsent it never replaces: fs.ErrExist. When it returns nil
// the name is durable as well. It may be called again after fs.ErrNotExist, that
// is when the folder was not there.
func (t *Temp) Publish(name string, ifAbsent bool) error {
	if err := t.Sync(); err != nil {
		return err
	}
	var err error
	if ifAbsent {
		err = t.root.Link(t.name, name) // link never replaces; rename would
	} else {
		err = t.root.Rename(t.name, name)
	}
	if err != nil {
		return err
	}
	// The commit point is behind us: the name is visible, and durable after this.
	err = SyncDirIn(t.root, path.Dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // published, and by now deleted together with its folder
	}
	return err
}

// Lost reports whether somebody removed the unfinished file.
func (t *Temp) Lost() bool { return !isNamed(t.root, t.name, t.file) }

// Discard closes the file and removes its unfinished name. What was published
// stays.
func (t *Temp) Discard() error {
	err := t.root.Remove(t.name)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, t.file.Close())
}

// SyncDirIn makes the names in the folder dir of root durable.
func SyncDirIn(root *os.Root, dir string) error {
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// SweepTemp removes the unfinished files in the folder dir of root whose
// writer has died.
func SweepTemp(root *os.Root, dir string) error {
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), TempPrefix) && entry.Type().IsRegular() {
			errs = append(errs, removeUnlocked(root, path.Join(dir, entry.Name())))
		}
	}
	return errors.Join(errs...)
}

// removeUnlocked removes a file that nobody holds a lock on. Names of
// unfinished files are never used twice, so it can't remove a newer one.
func removeUnlocked(root *os.Root, name string) error {
	f, err := root.OpenFile(name, os.O_WRONLY, 0) // NFS locks exclusively only what is open for writing
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
		return fmt.Errorf("lock %s: %w", name, err)
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
