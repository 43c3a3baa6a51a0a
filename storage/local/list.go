package local

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/storage"
)

// List implements storage.Store. A folder is read when the caller gets to it,
// a file is looked at when it is yielded. What was deleted meanwhile is left
// out.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return s.ListAfter(ctx, prefix, "")
}

// ListAfter implements storage.Ranger: folders are read for their names, but
// what lies before after is neither opened nor looked at.
func (s *Store) ListAfter(ctx context.Context, prefix, after string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		start := "."
		if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
			start = prefix[:i]
		}
		if start != "." && storage.CheckName(start) != nil || isReserved(start) {
			return // no object has such a prefix
		}
		root, err := os.OpenRoot(s.dir)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				yield(storage.Info{}, failed("list", prefix, err))
			}
			return
		}
		defer root.Close()
		l := &lister{ctx: ctx, root: root, prefix: prefix, after: after, yield: yield}
		l.walk(start)
	}
}

type lister struct {
	ctx    context.Context
	root   *os.Root
	prefix string
	after  string
	yield  func(storage.Info, error) bool
}

// walk yields the objects below dir in the byte order of their full names,
// which is the order of entries when a folder counts as its name and a slash.
// It reports whether to go on.
func (l *lister) walk(dir string) bool {
	f, err := l.root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return isMissing(err) || l.fail(dir, err)
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return isMissing(err) || l.fail(dir, err)
	}
	type child struct {
		name   string // full; a folder's ends with a slash, which sorts it
		folder bool
	}
	children := make([]child, 0, len(entries))
	for _, entry := range entries {
		c := child{path.Join(dir, entry.Name()), entry.IsDir()}
		switch {
		case !c.folder && !entry.Type().IsRegular(): // links, sockets and the like are no objects
		case checkName(c.name) != nil: // no name of an object
		case c.folder:
			c.name += "/"
			if c.name <= l.after && !strings.HasPrefix(l.after, c.name) {
				continue // all in it comes before
			}
			if strings.HasPrefix(c.name, l.prefix) || strings.HasPrefix(l.prefix, c.name) {
				children = append(children, c)
			}
		case c.name > l.after && strings.HasPrefix(c.name, l.prefix):
			children = append(children, c)
		}
	}
	slices.SortFunc(children, func(a, b child) int { return cmp.Compare(a.name, b.name) })
	for _, c := range children {
		if l.ctx.Err() != nil {
			return l.fail(dir, context.Cause(l.ctx))
		}
		if c.folder {
			if !l.walk(strings.TrimSuffix(c.name, "/")) {
				return false
			}
			continue
		}
		// One call on the open folder, where a walk from the root would open
		// each folder above again.
		var stat unix.Stat_t
		err := unix.Fstatat(int(f.Fd()), path.Base(c.name), &stat, unix.AT_SYMLINK_NOFOLLOW)
		if isMissing(err) {
			continue
		}
		if err != nil {
			return l.fail(c.name, err)
		}
		info := storage.Info{Name: c.name, Size: stat.Size, Modified: time.Unix(stat.Mtim.Unix())}
		if !l.yield(info, nil) {
			return false
		}
	}
	return true
}

func (l *lister) fail(what string, err error) bool {
	l.yield(storage.Info{}, failed("list", what, err))
	return false
}
