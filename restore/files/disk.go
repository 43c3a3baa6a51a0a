package files

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
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
	return func() { f.Close() }, nil
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

// aside keeps a second name, or where that can't be a copy, of the file or
// link at name below folder, and makes it durable. The original stays.
func (d *disk) aside(name, folder string) error {
	target := filepath.Join(folder, filepath.FromSlash(name))
	if err := mkdirAllDurable(filepath.Dir(target)); err != nil {
		return err
	}
	for n := 1; ; n++ {
		same, err := d.sameFile(name, target)
		switch {
		case err == nil && same:
			return nil // an earlier try got as far as this
		case errors.Is(err, fs.ErrNotExist):
			if err := d.keep(name, target); err != nil {
				return err
			}
			return syncDir(filepath.Dir(target))
		case err != nil:
			return err
		}
		target = fmt.Sprintf("%s.%d", filepath.Join(folder, filepath.FromSlash(name)), n)
	}
}

// keep gives the file at name the second name target, which does not exist.
func (d *disk) keep(name, target string) error {
	err := os.Link(d.full(name), target)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	// Another file system, or one without hard links.
	info, err := d.lstat(name)
	if err != nil {
		return err
	}
	uid, gid := ownerOf(info)
	if info.Mode()&fs.ModeSymlink != 0 {
		to, err := d.root.Readlink(name)
		if err != nil {
			return err
		}
		return os.Symlink(to, target)
	}
	in, err := d.openFile(name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(target), tempPrefix+"*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	_, err = io.Copy(out, in)
	if err == nil && os.Geteuid() == 0 {
		err = out.Chown(uid, gid)
	}
	if err == nil {
		err = out.Chmod(modeOf(info))
	}
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	if err := os.Chtimes(out.Name(), info.ModTime(), info.ModTime()); err != nil {
		return err
	}
	return os.Rename(out.Name(), target)
}

// sameFile compares the file or link at name with one outside.
func (d *disk) sameFile(name, outside string) (bool, error) {
	b, err := os.Lstat(outside)
	if err != nil {
		return false, err
	}
	a, err := d.lstat(name)
	if err != nil {
		return false, err
	}
	switch {
	case os.SameFile(a, b):
		return true, nil
	case a.Mode() != b.Mode(), a.Size() != b.Size(), a.IsDir():
		return false, nil
	case a.Mode()&fs.ModeSymlink != 0:
		x, err1 := d.root.Readlink(name)
		y, err2 := os.Readlink(outside)
		return x == y, errors.Join(err1, err2)
	}
	f, err := d.openFile(name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	g, err := os.Open(outside)
	if err != nil {
		return false, err
	}
	defer g.Close()
	x, err1 := sumOf(f)
	y, err2 := sumOf(g)
	return x == y, errors.Join(err1, err2)
}

// mkdirAllDurable makes folders that only their owner may enter: what is kept
// aside can hold private keys.
func mkdirAllDurable(dir string) error {
	if info, err := os.Stat(dir); err == nil {
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
		}
		return nil
	}
	parent := filepath.Dir(dir)
	if err := mkdirAllDurable(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
