package host

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"

	"lifeboat/internal/chroot"
)

// tree is a host's file system. Names are relative to its root; links are
// followed by chroot.Resolve and never by the kernel.
type tree struct {
	root *os.Root
	open func(name string) (*os.File, error) // replaced by tests that need an unreadable file
}

func openTree(root string) (*tree, error) {
	if root == "" {
		root = "/"
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("open the host's root: %w", err)
	}
	t := &tree{root: r}
	// O_NONBLOCK: a fifo put in a file's place must not hold a backup up.
	t.open = func(name string) (*os.File, error) {
		return r.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	}
	return t, nil
}

func (t *tree) close() error { return t.root.Close() }

func (t *tree) readlink(name string) (string, error) {
	info, err := t.root.Lstat(name)
	switch {
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.EINVAL):
		// Too long for a name: a secret in base64 may begin with a slash too.
		return "", fs.ErrNotExist
	case err != nil:
		return "", err
	case info.Mode()&fs.ModeSymlink == 0:
		return "", nil
	}
	return t.root.Readlink(name)
}

func (t *tree) resolve(p string) (chroot.Place, error) { return chroot.Resolve(p, t.readlink) }

// folder returns the names in a folder, sorted, at most limit of them.
func (t *tree) folder(name string, limit int) ([]string, error) {
	f, err := t.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(limit)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	slices.Sort(names)
	return names, err
}

// errTooLarge says that a file is larger than the limit for one.
var errTooLarge = errors.New("larger than the limit for one file")

// errNotRegular says that a name was a regular file a moment ago.
var errNotRegular = errors.New("not a regular file")

// content is what one reading of a file gave.
type content struct {
	info fs.FileInfo // after the reading
	sum  [sha256.Size]byte
	size int64
	data []byte // nil when larger than keep
	torn bool   // the file changed while it was read
}

// read reads a regular file through no link: up to limit bytes, keeping
// the bytes when there are at most keep.
func (t *tree) read(name string, limit, keep int64) (content, error) {
	f, err := t.open(name)
	if err != nil {
		return content{}, err
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return content{}, err
	}
	if !before.Mode().IsRegular() {
		return content{}, errNotRegular
	}
	if before.Size() > limit {
		return content{}, errTooLarge
	}
	var c content
	h := sha256.New()
	if before.Size() <= keep {
		c.data, err = io.ReadAll(io.LimitReader(f, limit+1))
		h.Write(c.data)
		c.size = int64(len(c.data))
	} else {
		c.size, err = io.Copy(h, io.LimitReader(f, limit+1))
	}
	if err != nil {
		return content{}, err
	}
	if c.size > limit {
		return content{}, errTooLarge
	}
	h.Sum(c.sum[:0])
	if c.info, err = f.Stat(); err != nil {
		return content{}, err
	}
	c.torn = c.info.Size() != c.size || !c.info.ModTime().Equal(before.ModTime())
	return c, nil
}

// text returns a small file's content, links followed, or "" if there is none.
func (t *tree) text(p string) string {
	place, err := t.resolve(p)
	if err != nil || place.Missing || excluded(place.Name) {
		return ""
	}
	c, err := t.read(place.Name, parseLimit, parseLimit)
	if err != nil {
		return ""
	}
	return string(c.data)
}

// owner returns the numeric owners of a file.
func owner(info fs.FileInfo) (uid, gid int) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return 0, 0
}

// why says what went wrong with a file in a few words that never hold
// any of its content. Error texts of parsers do; they are never passed on.
func why(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "permission denied"
	case errors.Is(err, fs.ErrNotExist):
		return "does not exist"
	case errors.Is(err, chroot.ErrLoop):
		return "too many symbolic links"
	case errors.Is(err, errTooLarge):
		return errTooLarge.Error()
	case errors.Is(err, errNotRegular):
		return errNotRegular.Error()
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return "can't be read"
}

// parents returns the folders above name, outermost first, without the root.
func parents(name string) []string {
	var out []string
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		out = append(out, dir)
	}
	slices.Reverse(out)
	return out
}
