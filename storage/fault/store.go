package fault

import (
	"context"
	"fmt"
	"io"
	"iter"
	"time"

	"lifeboat/storage"
)

// Put implements storage.Store.
func (s *Store) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	p := s.begin(Put, name, opts.IfAbsent)
	if p != nil && p.when == Before {
		return s.end(p, Put, name, nil)
	}
	src := &source{s: s, r: r}
	if p != nil && p.when == Partial {
		src.fail = p.err
	}
	return s.end(p, Put, name, s.inner.Put(ctx, name, src, opts))
}

// source is what the inner store reads: it ends with an error when the Put
// shall break off or the store has crashed.
type source struct {
	s    *Store
	r    io.Reader
	fail error
}

func (r *source) Read(p []byte) (int, error) {
	if r.s.Crashed() {
		return 0, ErrCrashed
	}
	if r.fail == nil {
		return r.r.Read(p)
	}
	if len(p) > 0 {
		// One byte arrives, if there is one, and the next read fails.
		n, err := r.r.Read(p[:1])
		r.r = brokenReader{r.fail}
		if n > 0 && err == nil {
			return n, nil
		}
	}
	return 0, r.fail
}

type brokenReader struct{ err error }

func (r brokenReader) Read([]byte) (int, error) { return 0, r.err }

// Open implements storage.Store.
func (s *Store) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, storage.Info, error) {
	return s.open(Open, name, rng, func() (io.ReadCloser, storage.Info, error) {
		return s.inner.Open(ctx, name, rng)
	})
}

// OpenVersion implements storage.Versioned. The lies about an object are told
// about its current content only.
func (s *Store) OpenVersion(ctx context.Context, v storage.Version) (io.ReadCloser, storage.Info, error) {
	return s.open(OpenVersion, v.Name, storage.Range{}, func() (io.ReadCloser, storage.Info, error) {
		if versioned, ok := s.inner.(storage.Versioned); ok {
			return versioned.OpenVersion(ctx, v)
		}
		return nil, storage.Info{}, fmt.Errorf("open version of %s: %w", v.Name, storage.ErrNotExist)
	})
}

func (s *Store) open(op Op, name string, rng storage.Range, open func() (io.ReadCloser, storage.Info, error)) (io.ReadCloser, storage.Info, error) {
	p := s.begin(op, name, false)
	if p != nil && p.when == Before {
		return nil, storage.Info{}, s.end(p, op, name, nil)
	}
	rc, info, err := open()
	if p != nil && p.when == Partial && err == nil {
		return &reader{s: s, op: op, name: name, rc: rc, p: p, left: expected(info, rng) / 2}, info, nil
	}
	if err := s.end(p, op, name, err); err != nil {
		if rc != nil {
			rc.Close()
		}
		return nil, storage.Info{}, err
	}
	r := &reader{s: s, op: op, name: name, rc: rc}
	if op == Open {
		r.lie = s.lieAbout(name, rng)
	}
	return r, info, nil
}

func expected(info storage.Info, rng storage.Range) int64 {
	n := max(0, info.Size-rng.Offset)
	if rng.Length > 0 {
		n = min(n, rng.Length)
	}
	return n
}

// reader is an open object: it breaks off when told to or when the store
// crashes, and lies.
type reader struct {
	s    *Store
	op   Op
	name string
	rc   io.ReadCloser
	p    *plan // breaks off with it after left bytes
	left int64
	lie  *lie
}

func (r *reader) Read(b []byte) (int, error) {
	if r.p != nil {
		if r.left <= 0 {
			return 0, r.s.end(r.p, r.op, r.name, nil)
		}
		b = b[:min(int64(len(b)), r.left)]
	}
	if r.s.Crashed() {
		return 0, r.s.end(nil, r.op, r.name, nil)
	}
	n, err := r.rc.Read(b)
	if r.p != nil {
		if r.left -= int64(n); err != nil {
			r.left = 0 // shorter than expected: breaks off here
		}
		return n, nil
	}
	return r.lie.tell(b, n, err)
}

func (r *reader) Close() error {
	if r.p != nil {
		_ = r.s.end(r.p, r.op, r.name, nil) // a crash happens even if nobody read so far
	}
	return r.rc.Close()
}

// List implements storage.Store.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return breakable(s, List, prefix, func() iter.Seq2[storage.Info, error] {
		if frozen, ok := s.frozenList(prefix); ok {
			return frozen
		}
		return s.inner.List(ctx, prefix)
	})
}

// ListAfter implements storage.Ranger. It counts as a List, and a frozen list is
// frozen for it, too.
func (s *Store) ListAfter(ctx context.Context, prefix, after string) iter.Seq2[storage.Info, error] {
	return breakable(s, List, prefix, func() iter.Seq2[storage.Info, error] {
		if frozen, ok := s.frozenList(prefix); ok {
			return func(yield func(storage.Info, error) bool) {
				for info, err := range frozen {
					if info.Name > after && !yield(info, err) {
						return
					}
				}
			}
		}
		return storage.ListAfter(ctx, s.inner, prefix, after)
	})
}

// Versions implements storage.Versioned. Around a store that is not versioned
// it yields nothing.
func (s *Store) Versions(ctx context.Context, name string) iter.Seq2[storage.Version, error] {
	return breakable(s, Versions, name, func() iter.Seq2[storage.Version, error] {
		if versioned, ok := s.inner.(storage.Versioned); ok {
			return versioned.Versions(ctx, name)
		}
		return func(func(storage.Version, error) bool) {}
	})
}

// breakable is a sequence that counts as one operation when it is begun.
func breakable[T any](s *Store, op Op, name string, list func() iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		p := s.begin(op, name, false)
		if p != nil && p.when == Before {
			yield(zero, s.end(p, op, name, nil))
			return
		}
		limit := -1
		if p != nil && p.when == Partial {
			limit = 0
			for _, err := range list() {
				if err == nil {
					limit++
				}
			}
			limit /= 2
		}
		for item, err := range list() {
			if err == nil && s.Crashed() {
				err = s.end(nil, op, name, nil)
			}
			if err != nil || limit == 0 {
				yield(zero, s.end(p, op, name, err))
				return
			}
			limit--
			if !yield(item, nil) {
				_ = s.end(p, op, name, nil) // a crash happens even if nobody wants the rest
				return
			}
		}
		if err := s.end(p, op, name, nil); err != nil {
			yield(zero, err)
		}
	}
}

// Delete implements storage.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	p := s.begin(Delete, name, false)
	if p != nil && p.when != After {
		return s.end(p, Delete, name, nil)
	}
	return s.end(p, Delete, name, s.inner.Delete(ctx, name))
}

// Now implements storage.Clock. Asking for the time is no operation that is
// counted, but a crashed store does not answer.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	if s.Crashed() {
		return time.Time{}, ErrCrashed
	}
	now, known, err := storage.NowOf(ctx, s.inner)
	if err == nil && !known {
		err = storage.ErrNoClock
	}
	return now, err
}
