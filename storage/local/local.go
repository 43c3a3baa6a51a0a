// Package local is a store in a directory of a file system that has hard
// links, fsync and flock: a disk, or NFS version 4.
//
// An object is a file of the same name below the root. Unfinished objects live
// in a hidden folder beside them and become visible by one link or rename, so a
// crash leaves nothing half-written in sight. Names are resolved through
// os.Root: no link inside the directory leads out of it.
package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lifeboat/internal/durable"
	"lifeboat/storage"
)

// tempFolder holds unfinished objects. Names in it are not object names.
const tempFolder = ".lifeboat-tmp"

// Store implements storage.Store.
type Store struct {
	path string
	root *os.Root
}

// New opens the directory, which is made (0700) if missing, and sweeps what
// dead writers left unfinished.
func New(dir string) (*Store, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, failed("open store", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, failed("open store", dir, err)
	}
	if err := durable.SweepTemp(path.Join(dir, tempFolder)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return nil, failed("sweep store", dir, err)
	}
	return &Store{path: dir, root: root}, nil
}

// Put implements storage.Store.
func (s *Store) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := s.put(ctx, name, r, opts.IfAbsent); err != nil {
		return failed("put", name, err)
	}
	return nil
}

func (s *Store) put(ctx context.Context, name string, r io.Reader, ifAbsent bool) (err error) {
	temp, tempName, err := s.createTemp()
	if err != nil {
		return err
	}
	defer func() {
		if rmErr := s.root.Remove(tempName); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
		temp.Close()
	}()
	if _, err := io.CopyBuffer(&durable.EarlyWriter{File: temp}, &contextReader{ctx, r}, make([]byte, 256<<10)); err != nil {
		return err
	}
	if err := errors.Join(temp.Sync(), ctx.Err()); err != nil {
		return err
	}
	dir := path.Dir(name)
	for {
		if err := s.mkdirAll(dir); err != nil {
			return err
		}
		if ifAbsent {
			err = s.root.Link(tempName, name) // link never replaces; rename would
		} else {
			err = s.root.Rename(tempName, name)
		}
		if errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil {
			continue // a Delete took the empty folder meanwhile
		}
		if err != nil {
			return err
		}
		// The commit point: the name is visible, and durable after this.
		return s.syncDir(dir)
	}
}

func (s *Store) createTemp() (*os.File, string, error) {
	if err := s.mkdirAll(tempFolder); err != nil {
		return nil, "", err
	}
	for {
		name := path.Join(tempFolder, durable.TempPrefix+strconv.Itoa(os.Getpid())+"-"+strconv.FormatUint(rand.Uint64(), 36))
		f, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		// Held while we write: a sweeper takes only files that nobody holds.
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, "", errors.Join(err, s.root.Remove(name))
		}
		if _, err := s.root.Lstat(name); err != nil {
			f.Close() // swept between creating and locking
			continue
		}
		return f, name, nil
	}
}

// mkdirAll makes a folder and what is missing above it, each durable.
func (s *Store) mkdirAll(dir string) error {
	if dir == "." {
		return nil
	}
	if info, err := s.root.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	if err := s.mkdirAll(path.Dir(dir)); err != nil {
		return err
	}
	if err := s.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return s.syncDir(path.Dir(dir))
}

func (s *Store) syncDir(dir string) error {
	f, err := s.root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted meanwhile, with all that was in it
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Open implements storage.Store.
func (s *Store) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, storage.Info, error) {
	if err := cmp.Or(ctx.Err(), checkName(name)); err != nil {
		return nil, storage.Info{}, err
	}
	f, err := s.root.Open(name)
	if err != nil {
		return nil, storage.Info{}, failed("open", name, err)
	}
	stat, err := f.Stat()
	if err == nil && !stat.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		f.Close()
		return nil, storage.Info{}, failed("open", name, err)
	}
	length := max(0, stat.Size()-rng.Offset)
	if rng.Length > 0 {
		length = min(length, rng.Length)
	}
	section := &exactReader{ctx: ctx, r: io.NewSectionReader(f, rng.Offset, length), left: length}
	return struct {
		io.Reader
		io.Closer
	}{section, f}, storage.Info{Name: name, Size: stat.Size(), Modified: stat.ModTime()}, nil
}

// Delete implements storage.Store. Folders that become empty go too.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := cmp.Or(ctx.Err(), checkName(name)); err != nil {
		return err
	}
	err := s.root.Remove(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return failed("delete", name, err)
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if err := s.syncDir(dir); err != nil {
			return failed("delete", name, err)
		}
		if s.root.Remove(dir) != nil {
			break // not empty
		}
	}
	return nil
}

// List implements storage.Store. It walks folders only as the caller pulls.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		start := "."
		if i := strings.LastIndexByte(prefix, '/'); i > 0 {
			start = prefix[:i]
		}
		if start != "." && !fs.ValidPath(start) {
			return // no object has such a prefix
		}
		s.walk(ctx, start, prefix, yield)
	}
}

// walk yields the objects below dir in the byte order of their full names,
// which is the order of entries when a folder counts as its name and a slash.
func (s *Store) walk(ctx context.Context, dir, prefix string, yield func(storage.Info, error) bool) bool {
	entries, err := s.readDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return true
		}
		yield(storage.Info{}, failed("list", dir, err))
		return false
	}
	sortKey := func(e fs.DirEntry) string {
		if e.IsDir() {
			return e.Name() + "/"
		}
		return e.Name()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(sortKey(a), sortKey(b)) })
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			yield(storage.Info{}, err)
			return false
		}
		name := path.Join(dir, entry.Name())
		switch {
		case dir == "." && entry.Name() == tempFolder:
		case entry.IsDir():
			below := name + "/"
			if strings.HasPrefix(below, prefix) || strings.HasPrefix(prefix, below) {
				if !s.walk(ctx, name, prefix, yield) {
					return false
				}
			}
		case entry.Type().IsRegular() && strings.HasPrefix(name, prefix):
			stat, err := entry.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue // deleted meanwhile
			}
			if err != nil {
				yield(storage.Info{}, failed("list", name, err))
				return false
			}
			if !yield(storage.Info{Name: name, Size: stat.Size(), Modified: stat.ModTime()}, nil) {
				return false
			}
		}
	}
	return true
}

func (s *Store) readDir(dir string) ([]fs.DirEntry, error) {
	f, err := s.root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.ReadDir(-1)
}

// checkName keeps the folder of unfinished objects out of reach.
func checkName(name string) error {
	if err := storage.CheckName(name); err != nil {
		return err
	}
	if name == tempFolder || strings.HasPrefix(name, tempFolder+"/") {
		return fmt.Errorf("%w: %q is reserved", storage.ErrInvalidName, name)
	}
	return nil
}

// failed says what was being done to what, in the store's own errors.
func failed(doing, what string, err error) error {
	for from, to := range map[error]error{
		fs.ErrNotExist:   storage.ErrNotExist,
		fs.ErrExist:      storage.ErrExist,
		fs.ErrPermission: storage.ErrPermission,
		unix.EROFS:       storage.ErrPermission,
		unix.ENOSPC:      storage.ErrFull,
		unix.EDQUOT:      storage.ErrFull,
		unix.ENOTDIR:     storage.ErrNotExist,
	} {
		if errors.Is(err, from) {
			return fmt.Errorf("%s %s: %w: %w", doing, what, to, err)
		}
	}
	return fmt.Errorf("%s %s: %w", doing, what, err)
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// exactReader turns an early end, of a file that shrinks, into an error.
type exactReader struct {
	ctx  context.Context
	r    io.Reader
	left int64
}

func (r *exactReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, context.Cause(r.ctx)
	}
	n, err := r.r.Read(p)
	r.left -= int64(n)
	if err == io.EOF && r.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
