package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"lifeboat/storage"
)

// translations are tried in order; the first that fits decides.
var translations = []struct{ from, to error }{
	{storage.ErrInvalidName, nil}, // said already
	{fs.ErrExist, storage.ErrExist},
	{fs.ErrNotExist, storage.ErrNotExist},
	{unix.ENOTDIR, storage.ErrNotExist},
	{fs.ErrPermission, storage.ErrPermission},
	{unix.EROFS, storage.ErrPermission},
	{unix.ENOSPC, storage.ErrFull},
	{unix.EDQUOT, storage.ErrFull},
	{unix.ENAMETOOLONG, storage.ErrInvalidName}, // some file systems allow less than 255
}

// failed says what was being done to what, in the store's own errors.
func failed(doing, what string, err error) error {
	for _, t := range translations {
		if errors.Is(err, t.from) {
			if t.to == nil {
				break
			}
			return fmt.Errorf("%s %s: %w: %w", doing, what, t.to, err)
		}
	}
	return fmt.Errorf("%s %s: %w", doing, what, err)
}

func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

// source remembers the error of what a Put reads from, to tell it from the
// file system's, and honours the context.
type source struct {
	ctx context.Context
	r   io.Reader
	err error // other than io.EOF
}

func (s *source) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		s.err = context.Cause(s.ctx)
		return 0, s.err
	}
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// reader turns an early end, of a file that shrinks, into an error.
type reader struct {
	ctx  context.Context
	name string
	f    *os.File
	r    io.Reader
	left int64 // bytes
}

func (r *reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, failed("read", r.name, context.Cause(r.ctx))
	}
	n, err := r.r.Read(p)
	r.left -= int64(n)
	switch {
	case err == io.EOF && r.left > 0:
		err = failed("read", r.name, io.ErrUnexpectedEOF)
	case err != nil && err != io.EOF:
		err = failed("read", r.name, err)
	}
	return n, err
}

func (r *reader) Close() error { return r.f.Close() }
