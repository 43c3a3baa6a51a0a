package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// This file moves entries between the root and folders outside it: the one
// where originals are kept, and the one for what an undo took away.

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
	if err := fill(out, in, info); err != nil {
		return err
	}
	if err := os.Chtimes(out.Name(), info.ModTime(), info.ModTime()); err != nil {
		return err
	}
	return os.Rename(out.Name(), target)
}

// moveTo moves the entry at name below folder, under its path or that with a
// number behind it. ErrConflict if it is a mount point, or a folder, a device or
// the like and folder is on another file system.
func (d *disk) moveTo(name, folder string, step func(op, name string) error) error {
	base := filepath.Join(folder, filepath.FromSlash(name))
	if err := mkdirAllDurable(filepath.Dir(base)); err != nil {
		return err
	}
	info, err := d.lstat(name)
	if err != nil {
		return err
	}
	plain := info.Mode().IsRegular() || info.Mode()&fs.ModeSymlink != 0
	target := base
	for n := 1; ; n++ {
		if _, err := os.Lstat(target); errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return err
		}
		if plain {
			same, err := d.sameFile(name, target)
			if err != nil {
				return err
			}
			if same {
				return d.remove(name, step) // an earlier try got as far as this
			}
		}
		target = fmt.Sprintf("%s.%d", base, n)
	}
	if err := step("move", name); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, d.full(name), unix.AT_FDCWD, target, unix.RENAME_NOREPLACE)
	switch {
	case err == nil:
		return syncDir(filepath.Dir(target))
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: it is a mount point", ErrConflict)
	case !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS):
		return &fs.PathError{Op: "move", Path: name, Err: err}
	case !plain:
		return fmt.Errorf("%w: it can't be moved to another file system", ErrConflict)
	}
	if err := d.keep(name, target); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(target)); err != nil {
		return err
	}
	return d.remove(name, step)
}

func (d *disk) remove(name string, step func(op, name string) error) error {
	if err := step("remove", name); err != nil {
		return err
	}
	return d.root.Remove(name)
}

// bring makes the file or link that is kept outside be at name too, where
// nothing is: as a second name, or where that can't be, as a copy with its mode,
// owner and time.
func (d *disk) bring(outside, name string) error {
	if os.Link(outside, d.full(name)) == nil {
		return nil
	}
	info, err := os.Lstat(outside)
	if err != nil {
		return err
	}
	uid, gid := ownerOf(info)
	if info.Mode()&fs.ModeSymlink != 0 {
		to, err := os.Readlink(outside)
		if err == nil {
			err = d.root.Symlink(to, name)
		}
		if err == nil && os.Geteuid() == 0 {
			err = d.root.Lchown(name, uid, gid)
		}
		if err != nil {
			return err
		}
		return d.linkTime(name, info.ModTime())
	}
	in, err := openOutside(outside)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = fill(out, in, info)
	if err == nil {
		err = d.root.Chtimes(name, info.ModTime(), info.ModTime())
	}
	if err != nil {
		return errors.Join(err, d.root.Remove(name))
	}
	return nil
}

// fill makes out a copy of in, with the owner, if that can be, and the mode
// of info, makes it durable and closes it.
func fill(out, in *os.File, info fs.FileInfo) error {
	_, err := io.Copy(out, in)
	if err == nil && os.Geteuid() == 0 {
		uid, gid := ownerOf(info)
		err = out.Chown(uid, gid)
	}
	if err == nil {
		err = out.Chmod(modeOf(info)) // after chown, which clears bits
	}
	if err == nil {
		err = out.Sync()
	}
	return errors.Join(err, out.Close())
}

// openOutside opens a file that is kept outside the root; no link is followed,
// and a fifo does not block.
func openOutside(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
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
	g, err := openOutside(outside)
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
