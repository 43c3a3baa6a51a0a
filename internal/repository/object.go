package repository

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// PutObject stores one data object under a name that ObjectName made. When it
// returns nil the object is durable and holds exactly what r gave. A create
// that is refused because the name exists, or whose answer is lost, is settled
// by reading the object back: ids are random, so an object with the same bytes
// is our own from an attempt that succeeded unnoticed.
func (r *Repository) PutObject(ctx context.Context, name string, body io.Reader, retainUntil time.Time) error {
	if p, ok := locate(name); !ok || p.manifest || p.id == "" {
		return fmt.Errorf("put %s: %w: not a data object's name", name, storage.ErrInvalidName)
	}
	src := &hashedReader{r: body, sum: sha256.New()}
	err := r.store.Put(ctx, r.stored(name), src, storage.PutOptions{IfAbsent: true, RetainUntil: retainUntil})
	if err == nil {
		return nil
	}
	if src.err == nil && errors.Is(err, storage.ErrExist) {
		_, _ = io.Copy(io.Discard, src) // its failure is in src.err
	}
	if src.err != io.EOF {
		return fmt.Errorf("put %s: %w", name, err) // not all of it was sent, so it can't be there
	}
	same, readErr := r.holds(ctx, name, src.n, src.sum)
	switch {
	case readErr != nil:
		return fmt.Errorf("put %s: %w", name, errors.Join(err, fmt.Errorf("read back: %w", readErr)))
	case !same:
		return fmt.Errorf("put %s: %w", name, err)
	}
	return nil
}

// hashedReader remembers what was read through it and how that ended.
type hashedReader struct {
	r   io.Reader
	sum hash.Hash
	n   int64
	err error
}

func (h *hashedReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.sum.Write(p[:n])
	h.n += int64(n)
	if err != nil {
		h.err = err
	}
	return n, err
}

// holds reports whether an object is there with these bytes.
func (r *Repository) holds(ctx context.Context, name string, size int64, want hash.Hash) (bool, error) {
	body, info, err := r.store.Open(ctx, r.stored(name), storage.Range{})
	if errors.Is(err, storage.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer body.Close()
	if info.Size != size {
		return false, nil
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, body); err != nil {
		return false, err
	}
	return bytes.Equal(sum.Sum(nil), want.Sum(nil)), nil
}

// OpenObject opens a data object. Reading it to the end checks its size and
// SHA-256; what does not fit is an error that wraps ErrVerification, at the
// latest in place of io.EOF. So nothing read counts before the EOF. On a store
// with versions an object that was replaced or deleted is served from the
// version that its manifest names. The caller closes the reader.
func (r *Repository) OpenObject(ctx context.Context, o manifest.Object) (io.ReadCloser, error) {
	body, err := r.OpenStored(ctx, o)
	if err != nil {
		return nil, err
	}
	return &objectReader{r: r, body: body, o: o, sum: sha256.New()}, nil
}

// OpenStored is OpenObject for readers that check the SHA-256 themselves: it
// checks only the size that the store reports.
func (r *Repository) OpenStored(ctx context.Context, o manifest.Object) (io.ReadCloser, error) {
	name := r.stored(o.Name)
	if _, ok := r.store.(storage.Versioned); ok {
		if body, err := r.openVersion(ctx, o); body != nil || err != nil {
			return body, err
		}
	}
	body, info, err := r.store.Open(ctx, name, storage.Range{})
	if errors.Is(err, storage.ErrNotExist) {
		return nil, r.objectError(o, ObjectMissing, "it is not in the store")
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	if info.Size != o.Size {
		body.Close()
		return nil, r.objectError(o, ObjectSize, fmt.Sprintf("%d bytes, its manifest says %d", info.Size, o.Size))
	}
	return body, nil
}

// openVersion finds the stored version that a manifest names. It returns nil
// where there is nothing to choose from: one version, and that the current one.
func (r *Repository) openVersion(ctx context.Context, o manifest.Object) (io.ReadCloser, error) {
	versioned := r.store.(storage.Versioned)
	var versions []storage.Version
	for v, err := range versioned.Versions(ctx, r.stored(o.Name)) {
		if err != nil {
			return nil, fmt.Errorf("list versions of %s: %w", r.stored(o.Name), err)
		}
		versions = append(versions, v)
	}
	if len(versions) == 0 {
		return nil, nil
	}
	there, err := r.exists(ctx, r.stored(o.Name))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", r.stored(o.Name), err)
	}
	if len(versions) == 1 && there {
		return nil, nil
	}
	for _, v := range slices.Backward(versions) { // the oldest is the genuine one: it was created on condition
		if v.Size != o.Size {
			continue
		}
		if len(versions) > 1 { // reading it twice is the price of choosing
			body, _, err := versioned.OpenVersion(ctx, v)
			if err != nil {
				return nil, fmt.Errorf("open a version of %s: %w", r.stored(o.Name), err)
			}
			sum := sha256.New()
			_, err = io.Copy(sum, body)
			body.Close()
			if err != nil {
				return nil, fmt.Errorf("read a version of %s: %w", r.stored(o.Name), err)
			}
			if manifest.Hash(sum.Sum(nil)) != o.SHA256 {
				continue
			}
		}
		body, _, err := versioned.OpenVersion(ctx, v)
		if err != nil {
			return nil, fmt.Errorf("open a version of %s: %w", r.stored(o.Name), err)
		}
		return body, nil
	}
	return nil, nil
}

func (r *Repository) objectError(o manifest.Object, kind Kind, message string) error {
	return &VerificationError{Doing: "read " + o.Name, Problems: []Problem{{
		Object: r.stored(o.Name), Kind: kind, Message: message,
	}}}
}

// objectReader checks an object while it is read.
type objectReader struct {
	r    *Repository
	body io.ReadCloser
	o    manifest.Object
	sum  hash.Hash
	n    int64
	err  error
}

func (or *objectReader) Read(p []byte) (int, error) {
	if or.err != nil {
		return 0, or.err
	}
	n, err := or.body.Read(p)
	or.sum.Write(p[:n])
	or.n += int64(n)
	switch {
	case or.n > or.o.Size:
		n, err = 0, or.r.objectError(or.o, ObjectSize, fmt.Sprintf("more than the %d bytes that its manifest says", or.o.Size))
	case err == io.EOF && or.n < or.o.Size, errors.Is(err, io.ErrUnexpectedEOF):
		err = or.r.objectError(or.o, ObjectSize, fmt.Sprintf("it ends after %d of %d bytes", or.n, or.o.Size))
	case err == io.EOF && manifest.Hash(or.sum.Sum(nil)) != or.o.SHA256:
		err = or.r.objectError(or.o, ObjectDamaged, fmt.Sprintf("its SHA-256 is %x, its manifest says %s", or.sum.Sum(nil), or.o.SHA256))
	case err != nil && err != io.EOF:
		err = fmt.Errorf("read %s: %w", or.r.stored(or.o.Name), err)
	}
	or.err = err
	return n, err
}

func (or *objectReader) Close() error { return or.body.Close() }
