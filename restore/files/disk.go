package files

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/chroot"
)

// disk is the root that is restored into.
type disk struct {
	root *os.Root
	path string          // absolute, through no link
	gone map[string]bool // what a plan will replace: names don't lead through it
}

func openDisk(root string) (*disk, error) {
	abs, err := filepath.Abs(root)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return nil, fmt.Errorf("open the root to restore into: %w", err)
	}
	r, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("open the root to restore into: %w", err)
	}
	return &disk{root: r, path: abs, gone: make(map[string]bool)}, nil
}

// lock keeps other restores off the root: each removes, when it begins, what
// it takes for an interrupted one's half-written files. A file system that
// can't lock a folder is not refused for it.
func (d *disk) lock() (unlock func(), err error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, fmt.Errorf("%s: %w", d.path, ErrInUse)
	}
	return func() {
		// Closing alone leaves the lock to a child process that is just being started.
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
		f.Close()
	}, nil
}

// canKeep makes the aside folder and finds out that files can be made in it.
func canKeep(folder string) error {
	if err := mkdirAllDurable(folder); err != nil {
		return err
	}
	f, err := os.CreateTemp(folder, tempPrefix+"*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// lstat tells what is at a name, whose folder may be missing or no folder.
func (d *disk) lstat(name string) (fs.FileInfo, error) {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if d.gone[dir] {
			return nil, fs.ErrNotExist
		}
	}
	info, err := d.root.Lstat(name)
	if errors.Is(err, syscall.ENOTDIR) {
		return nil, fs.ErrNotExist
	}
	return info, err
}

func (d *disk) readlink(name string) (string, error) {
	if d.gone[name] {
		return "", fs.ErrNotExist
	}
	info, err := d.lstat(name)
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return "", err
	}
	return d.root.Readlink(name)
}

func (d *disk) resolve(name string) (chroot.Place, error) { return chroot.Resolve(name, d.readlink) }

func (d *disk) leadsToDir(name string) bool {
	place, err := d.resolve(name)
	if err != nil || place.Missing {
		return false
	}
	info, err := d.lstat(place.Name)
	return err == nil && info.IsDir()
}

// folder returns a folder's names.
func (d *disk) folder(name string) ([]string, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// openFile opens a regular file; a fifo in its place does not block.
func (d *disk) openFile(name string) (*os.File, error) {
	return d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// full is the name for calls that os.Root has not. name leads through no link.
func (d *disk) full(name string) string { return filepath.Join(d.path, filepath.FromSlash(name)) }

// sync makes a folder's entries durable.
func (d *disk) sync(name string) error {
	f, err := d.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// linkTime sets the time of a symbolic link itself.
func (d *disk) linkTime(name string, t time.Time) error {
	dir, err := d.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.UtimesNanoAt(int(dir.Fd()), path.Base(name), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

const tempPrefix = ".lifeboat-"

// removeLeftover removes a half-written file, if there is one. On a read-only
// file system, such as /usr where the operating system is an image, there is none.
func (d *disk) removeLeftover(name string) error {
	err := d.root.Remove(name)
	if errors.Is(err, syscall.EROFS) {
		if _, missing := d.root.Lstat(name); errors.Is(missing, fs.ErrNotExist) {
			return nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// temp is the name under which a file is written before it takes its place: in
// the same folder, the same at every try, and with a dot, since a
// kubelet runs what is in its manifests folder except files with one.
func temp(name string) string {
	sum := sha256.Sum256([]byte(name))
	return path.Join(path.Dir(name), tempPrefix+hex.EncodeToString(sum[:10]))
}

func isTemp(base string) bool {
	return strings.HasPrefix(base, tempPrefix) && len(base) == len(tempPrefix)+20
}

// modeOf returns the bits that an archive keeps.
func modeOf(info fs.FileInfo) fs.FileMode {
	if info.IsDir() {
		return info.Mode() & (fs.ModePerm | fs.ModeSetgid | fs.ModeSticky)
	}
	return info.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
}

func ownerOf(info fs.FileInfo) (uid, gid int) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return 0, 0
}
