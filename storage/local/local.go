// Package local is a store in a directory of a file system that has hard
// links, fsync and flock: a disk, or NFS version 4.
//
// An object is a file of the same name below the root. Unfinished objects live
// in a hidden folder of the root and become visible by one link or rename, so a
// crash leaves nothing half-written in sight. Names are resolved through
// os.Root: no link inside the directory leads out of it.
//
// As in any file system a name can't be an object and a folder of others: with
// an object "a", putting "a/b" is storage.ErrInvalidName, and the reverse.
//
// The root is opened anew for each operation, so that the disk can be unmounted
// between two backups. Reading never writes: not a folder, not a lock.
package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"lifeboat/internal/durable"
	"lifeboat/storage"
)

// tempFolder holds unfinished objects. Names in it are not object names.
const tempFolder = ".lifeboat-tmp"

// maxRaces bounds how often a Put is tried again because a Delete took its
// empty folder. Each loss needs a Delete at the same moment.
const maxRaces = 100

// Store implements storage.Store.
type Store struct {
	dir   string // absolute
	sweep sync.Once

	mu      sync.Mutex
	settled map[string]fs.FileInfo // folders known to be durable, by name
}

// New is the store in dir, which need not exist yet: the first Put makes it
// (0700). It fails if dir is there and is no directory that can be opened.
func New(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, failed("open store", dir, err)
	}
	s := &Store{dir: abs}
	root, err := os.OpenRoot(abs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, nil
	case err != nil:
		return nil, failed("open store", dir, err)
	}
	return s, root.Close()
}

// Put implements storage.Store. RetainUntil is ignored: a directory can't
// protect what is in it from its owner.
func (s *Store) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return failed("put", name, context.Cause(ctx))
	}
	src := &source{ctx: ctx, r: r}
	if err := s.put(ctx, name, src, opts.IfAbsent); err != nil {
		if src.err != nil {
			// Not one of ours: what the source met says nothing of the store.
			return fmt.Errorf("put %s: read its source: %w", name, src.err)
		}
		return failed("put", name, err)
	}
	return nil
}

func (s *Store) put(ctx context.Context, name string, src *source, ifAbsent bool) (err error) {
	root, err := s.openForWriting()
	if err != nil {
		return err
	}
	defer root.Close()
	if err := checkPlace(root, name, ifAbsent); err != nil {
		return err
	}
	if err := s.mkdirAll(root, tempFolder); err != nil {
		return err
	}
	temp, err := durable.CreateTemp(root, tempFolder, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, temp.Discard()) }()
	if _, err := io.CopyBuffer(temp, src, make([]byte, 256<<10)); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil { // the long part, so that a cancel during it still counts
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for range maxRaces {
		if err = s.mkdirAll(root, path.Dir(name)); err == nil {
			err = temp.Publish(name, ifAbsent)
		}
		// Missing is the folder, which a Delete took meanwhile, unless it is
		// the unfinished object itself.
		if !errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil || temp.Lost() {
			break
		}
	}
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENOTDIR) {
		// A folder under the name, or an object in the place of a folder, can
		// have come since we looked.
		return cmp.Or(checkPlace(root, name, false), err)
	}
	return err
}

// checkPlace refuses what the file system would refuse in its own words, and
// spares a needless upload.
func checkPlace(root *os.Root, name string, ifAbsent bool) error {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if info, err := root.Stat(dir); err == nil {
			if !info.IsDir() {
				return fmt.Errorf("%w: %q is an object, not a folder", storage.ErrInvalidName, dir)
			}
			break
		}
	}
	info, err := root.Lstat(name)
	switch {
	case err == nil && info.IsDir():
		return fmt.Errorf("%w: it is a folder of other objects", storage.ErrInvalidName)
	case err == nil && ifAbsent:
		return fs.ErrExist
	}
	return nil
}

// openForWriting opens the root, made if missing, and once in this Store's life
// sweeps what dead writers left unfinished.
func (s *Store) openForWriting() (*os.Root, error) {
	root, err := os.OpenRoot(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := durable.MkdirAll(s.dir, 0o700); err != nil {
			return nil, err
		}
		root, err = os.OpenRoot(s.dir)
	}
	if err != nil {
		return nil, err
	}
	// What can't be swept is hidden and does no harm; the Put must not fail for it.
	s.sweep.Do(func() { _ = durable.SweepTemp(root, tempFolder) })
	return root, nil
}

// mkdirAll makes a folder and what is missing above it, each durable. A folder
// that is there already may have been made by another process that has not
// synced it yet, so that one is made durable as well, once.
func (s *Store) mkdirAll(root *os.Root, dir string) error {
	if dir == "." {
		return nil
	}
	info, err := root.Stat(dir)
	if err == nil && s.isSettled(dir, info) {
		return nil
	}
	if err := s.mkdirAll(root, path.Dir(dir)); err != nil {
		return err
	}
	if err != nil {
		if err := root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if info, err = root.Stat(dir); err != nil {
			return err
		}
	}
	if !info.IsDir() {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
	}
	if err := durable.SyncDirIn(root, path.Dir(dir)); err != nil {
		return err
	}
	s.settle(dir, info)
	return nil
}

// maxSettled bounds what is remembered of folders: each backup makes a new one.
const maxSettled = 1000

func (s *Store) isSettled(dir string, info fs.FileInfo) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.settled[dir]
	return ok && os.SameFile(known, info)
}

func (s *Store) settle(dir string, info fs.FileInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.settled) >= maxSettled || s.settled == nil {
		s.settled = map[string]fs.FileInfo{}
	}
	s.settled[dir] = info
}

// Open implements storage.Store.
func (s *Store) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, storage.Info, error) {
	if err := checkName(name); err != nil {
		return nil, storage.Info{}, err
	}
	f, info, err := s.open(ctx, name, rng)
	if err != nil {
		return nil, storage.Info{}, failed("open", name, err)
	}
	left := max(0, info.Size()-rng.Offset)
	if rng.Length > 0 {
		left = min(left, rng.Length)
	}
	r := &reader{ctx: ctx, name: name, f: f, r: io.NewSectionReader(f, rng.Offset, left), left: left}
	return r, storage.Info{Name: name, Size: info.Size(), Modified: info.ModTime()}, nil
}

func (s *Store) open(ctx context.Context, name string, rng storage.Range) (*os.File, fs.FileInfo, error) {
	if rng.Offset < 0 || rng.Length < 0 {
		return nil, nil, fmt.Errorf("negative range %d+%d", rng.Offset, rng.Length)
	}
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return nil, nil, err
	}
	defer root.Close()
	// Only a plain file is an object. Looking first keeps us from opening a
	// named pipe, which would block.
	if info, err := root.Lstat(name); err != nil {
		return nil, nil, err
	} else if !info.Mode().IsRegular() {
		return nil, nil, fs.ErrNotExist
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// Delete implements storage.Store. Folders that become empty go too; a Put that
// meets such a moment makes its folder again.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := s.remove(ctx, name); err != nil && !isMissing(err) {
		return failed("delete", name, err)
	}
	return nil
}

func (s *Store) remove(ctx context.Context, name string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if info, err := root.Lstat(name); err != nil {
		return err
	} else if !info.Mode().IsRegular() {
		return nil // no object: a folder or somebody's link
	}
	if err := root.Remove(name); err != nil {
		return err
	}
	dir := path.Dir(name)
	for dir != "." && root.Remove(dir) == nil { // until one is not empty
		dir = path.Dir(dir)
	}
	return durable.SyncDirIn(root, dir)
}

// checkName keeps what is not ours to name out of reach.
func checkName(name string) error {
	if err := storage.CheckName(name); err != nil {
		return err
	}
	if isReserved(name) {
		return fmt.Errorf("%w: %q is reserved", storage.ErrInvalidName, name)
	}
	return nil
}

// isReserved tells the folder of unfinished objects, and the one that a file
// system puts at the top of a disk, from folders of objects.
func isReserved(name string) bool {
	top, _, _ := strings.Cut(name, "/")
	return top == tempFolder || top == "lost+found"
}
