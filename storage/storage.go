// Package storage is the contract between lifeboat and a place for bytes.
//
// A Store is dumb on purpose: it knows nothing of chains, manifests or
// encryption. Everything above it relies on two promises only, durability and
// atomic creation, which are spelled out on the methods. The backends live in
// storage/local, storage/s3 and storage/memory; each passes the suite in
// storage/storetest.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Store keeps named, immutable byte strings. All methods are safe for
// concurrent use, honour their context, and report failures by wrapping one of
// this package's sentinel errors where one fits.
type Store interface {
	// Put creates or replaces the object name with all of r. When it returns
	// nil the object is durable and visible whole. An error that wraps ErrExist
	// or ErrInvalidName means that nothing was written; after any other error
	// the object is either visible whole or not visible at all, and the caller
	// must look to know which.
	//
	// A store on a file system can't hold "a" beside "a/b": the second of the
	// two is refused with ErrInvalidName. Callers avoid such names.
	//
	// An error from r aborts the Put and leaves nothing visible. Put never
	// closes r.
	Put(ctx context.Context, name string, r io.Reader, opts PutOptions) error

	// Open returns the bytes of an object, or of a range of it. The Info is of
	// the whole object. The caller closes the reader. A missing object is
	// ErrNotExist. A read that ends early without an error is forbidden: a
	// backend returns io.ErrUnexpectedEOF instead.
	Open(ctx context.Context, name string, rng Range) (io.ReadCloser, Info, error)

	// List yields every object whose name begins with prefix, in ascending
	// byte order of the names. The prefix is a plain string, not a folder.
	// An error ends the sequence.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]

	// Delete removes an object. A missing one is not an error. On a versioned
	// store the object is no longer visible, whether or not bytes remain.
	Delete(ctx context.Context, name string) error
}

// Info describes one object.
type Info struct {
	Name     string
	Size     int64     // bytes as stored
	Modified time.Time // by the store's clock
}

// Range selects a part of an object. The zero value is the whole object.
type Range struct {
	Offset int64 // first byte, 0 or more
	Length int64 // bytes; 0 means to the end
}

// PutOptions changes how Put creates an object. The zero value replaces
// whatever is there.
type PutOptions struct {
	// IfAbsent makes the create conditional: if the name exists already, Put
	// fails with ErrExist and changes nothing. It is atomic against every
	// other writer of the store.
	IfAbsent bool

	// RetainUntil, if not zero, asks the store to refuse deletion of the object
	// before that time (S3 Object Lock). A store that can't protect objects
	// ignores it.
	RetainUntil time.Time
}

// Versioned is implemented by stores that keep the earlier contents of an
// object. Readers use it to fall back to a version that verifies when the
// current one was overwritten or hidden by a delete marker.
type Versioned interface {
	// Versions yields the stored versions of one object, newest first. Delete
	// markers are left out. A store with versioning off yields nothing.
	Versions(ctx context.Context, name string) iter.Seq2[Version, error]

	// OpenVersion opens one version whole.
	OpenVersion(ctx context.Context, v Version) (io.ReadCloser, Info, error)
}

// Version names one stored content of an object.
type Version struct {
	Info
	ID string // opaque; means something to the store that gave it
}

// Clock is implemented by stores that tell the time. What is deleted, and when,
// depends on how old objects are by the store's clock, so a wrong clock on
// either side must be noticed. Decorators pass it on.
type Clock interface {
	// Now is the time by the clock that Info.Modified is taken from, to the
	// second or better. For a folder of this machine's own disk that is this
	// machine's clock. Asking leaves nothing in the store that List would show.
	Now(ctx context.Context) (time.Time, error)
}

// NowOf asks a store for its time. It reports false if the store tells none.
func NowOf(ctx context.Context, s Store) (time.Time, bool, error) {
	clock, ok := s.(Clock)
	if !ok {
		return time.Time{}, false, nil
	}
	now, err := clock.Now(ctx)
	if errors.Is(err, ErrNoClock) {
		return time.Time{}, false, nil
	}
	return now, err == nil, err
}

// Ranger is implemented by stores that list from a name onwards without listing
// what lies before it, so that the end of a long folder can be had alone. All of
// this module's backends and decorators are Rangers.
type Ranger interface {
	// ListAfter is List without the names up to after, which itself is left
	// out too. It may be any string, also one that names no object.
	ListAfter(ctx context.Context, prefix, after string) iter.Seq2[Info, error]
}

// ListAfter asks s for what lies behind after, or lists everything and leaves
// out the rest if s is no Ranger.
func ListAfter(ctx context.Context, s Store, prefix, after string) iter.Seq2[Info, error] {
	if r, ok := s.(Ranger); ok {
		return r.ListAfter(ctx, prefix, after)
	}
	return func(yield func(Info, error) bool) {
		for info, err := range s.List(ctx, prefix) {
			if (err != nil || info.Name > after) && !yield(info, err) {
				return
			}
		}
	}
}

// What a caller may branch on. Backends wrap these; provider error types
// never leave a backend.
var (
	ErrNotExist    = errors.New("object does not exist")
	ErrExist       = errors.New("object exists already")
	ErrInvalidName = errors.New("invalid object name")
	ErrPermission  = errors.New("not permitted by the store")
	ErrProtected   = errors.New("object is protected from deletion")
	ErrFull        = errors.New("no space left in the store")
	ErrNoClock     = errors.New("the store tells no time") // a decorator's answer around one that is no Clock
	ErrStalled     = errors.New("no progress")             // no byte moved for the limit of whoever wraps it
)

// MaxNameLength is the longest object name in bytes: S3's limit of 1024 less
// 124 for a configured prefix.
const MaxNameLength = 900

// CheckName reports whether name is one that every backend accepts: relative,
// slash-separated, clean (no empty, "." or ".." element), at most
// MaxNameLength bytes of printable UTF-8 (graphic characters and spaces), with
// no element longer than 255 bytes and no backslash. The error wraps ErrInvalidName.
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: empty", ErrInvalidName)
	case len(name) > MaxNameLength:
		return fmt.Errorf("%w: %d bytes, limit %d", ErrInvalidName, len(name), MaxNameLength)
	case !utf8.ValidString(name):
		return fmt.Errorf("%w: %q is not UTF-8", ErrInvalidName, name)
	case name[0] == '/' || path.Clean(name) != name || name == "." || name == ".." || strings.HasPrefix(name, "../"):
		return fmt.Errorf("%w: %q is not a clean relative path", ErrInvalidName, name)
	}
	for _, r := range name {
		// Names are shown: nothing in them may steer a terminal, hide or turn
		// the direction of what follows. None of that is graphic to Unicode.
		if !unicode.IsGraphic(r) || r == '\\' {
			return fmt.Errorf("%w: %q holds %q", ErrInvalidName, name, r)
		}
	}
	for element := range strings.SplitSeq(name, "/") {
		if len(element) > 255 {
			return fmt.Errorf("%w: an element of %d bytes, limit 255", ErrInvalidName, len(element))
		}
	}
	return nil
}
