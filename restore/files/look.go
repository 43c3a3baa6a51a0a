package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"lifeboat/internal/seal"
)

// List returns the archive's entries in its order, the facts too.
func List(ctx context.Context, archive io.Reader, limits seal.Limits) ([]seal.Header, error) {
	out := []seal.Header{}
	r := seal.NewArchiveReader(archive, limits)
	err := walk(ctx, r, func(h *seal.Header) error {
		out = append(out, *h)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the files: %w", err)
	}
	return out, nil
}

// LinkError says that the name is a symbolic link: the caller may look for
// Target in the archive from its start.
type LinkError struct {
	Name   string // the link
	Target string // where the link leads below the root, by this link alone
}

func (e *LinkError) Error() string {
	return fmt.Sprintf("%s is a symbolic link to %s", e.Name, e.Target)
}

// Cat writes one file's content to w. A leading slash in the name makes no
// difference. The archive is read to its end, since only there its sums are checked: an
// error means that what was written is not to be trusted. A link is a
// *LinkError, a name that is not there ErrNotFound.
func Cat(ctx context.Context, archive io.Reader, name string, w io.Writer, limits seal.Limits) error {
	name = path.Clean(strings.TrimLeft(name, "/"))
	r := seal.NewArchiveReader(archive, limits)
	var found bool
	var what error
	err := walk(ctx, r, func(h *seal.Header) error {
		if h.Name != name {
			return nil
		}
		found = true
		switch h.Type {
		case seal.TypeFile:
			_, err := io.Copy(w, r)
			return err
		case seal.TypeSymlink:
			to := h.Linkname
			if !strings.HasPrefix(to, "/") {
				to = path.Join("/", path.Dir(name), to)
			}
			what = &LinkError{Name: name, Target: strings.TrimPrefix(path.Clean(to), "/")}
		default:
			what = errors.New("it is a folder")
		}
		return nil
	})
	switch {
	case err != nil:
	case !found:
		err = ErrNotFound
	default:
		err = what
	}
	if err != nil {
		return fmt.Errorf("read %s from the backup: %w", name, err)
	}
	return nil
}
