package storage

import (
	"context"
	"errors"
	"io"
	"iter"
)

// Retry repeats what is safe to repeat: opening, reading on from where a reader
// broke off, listing on from the last name, deleting. A Put passes through,
// since whether a failed one took effect is for its caller to find out.
//
// An operation is tried at most attempts times in a row without progress.
// sleep is called before each further one, with 1 before the second; its error,
// the context's say, ends the operation with the store's last error. Answers
// that another attempt would not change, such as ErrNotExist, are not retried.
func Retry(s Store, attempts int, sleep func(ctx context.Context, attempt int) error) Store {
	return &retry{s, attempts, sleep}
}

type retry struct {
	Store    // Put
	attempts int
	sleep    func(ctx context.Context, attempt int) error
}

// again reports whether to try once more after err, having waited.
func (s *retry) again(ctx context.Context, failures int, err error) bool {
	if err == nil || failures >= s.attempts || ctx.Err() != nil {
		return false
	}
	for _, final := range []error{ErrNotExist, ErrExist, ErrInvalidName, ErrPermission, ErrProtected, ErrFull} {
		if errors.Is(err, final) {
			return false
		}
	}
	return s.sleep(ctx, failures) == nil
}

func (s *retry) Delete(ctx context.Context, name string) error {
	for failures := 1; ; failures++ {
		err := s.Store.Delete(ctx, name)
		if !s.again(ctx, failures, err) {
			return err
		}
	}
}

func (s *retry) Open(ctx context.Context, name string, rng Range) (io.ReadCloser, Info, error) {
	for failures := 1; ; failures++ {
		rc, info, err := s.Store.Open(ctx, name, rng)
		if err == nil {
			return &retryReader{ctx: ctx, s: s, rc: rc, info: info, rng: rng}, info, nil
		}
		if !s.again(ctx, failures, err) {
			return nil, Info{}, err
		}
	}
}

// retryReader opens the rest of its object when a read fails.
type retryReader struct {
	ctx      context.Context
	s        *retry
	rc       io.ReadCloser
	info     Info
	rng      Range // what is still to come
	bounded  bool  // rng.Length was given, so that 0 now means nothing
	failures int   // in a row
}

func (r *retryReader) Read(p []byte) (int, error) {
	r.bounded = r.bounded || r.rng.Length > 0
	n, err := r.rc.Read(p)
	r.rng.Offset += int64(n)
	if r.bounded {
		r.rng.Length -= int64(n)
	}
	if n > 0 {
		r.failures = 0
	}
	// An error after the last byte, a checksum's say, must not be hidden by
	// opening an empty rest.
	over := r.rng.Offset >= r.info.Size || r.bounded && r.rng.Length <= 0
	if err == nil || err == io.EOF || over {
		return n, err
	}
	for {
		if r.failures++; !r.s.again(r.ctx, r.failures, err) {
			return n, err
		}
		rc, info, openErr := r.s.Store.Open(r.ctx, r.info.Name, r.rng)
		if openErr != nil {
			err = openErr
			continue
		}
		if info.Size != r.info.Size || !info.Modified.Equal(r.info.Modified) {
			rc.Close() // another object by now: its bytes don't continue ours
			return n, err
		}
		r.rc.Close()
		r.rc = rc
		return n, nil
	}
}

func (r *retryReader) Close() error { return r.rc.Close() }

func (s *retry) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		last, failures := "", 0 // no name is empty
		for {
			var failed error
			for info, err := range s.Store.List(ctx, prefix) {
				if err != nil {
					failed = err
					break
				}
				if last != "" && info.Name <= last {
					continue // yielded before
				}
				last, failures = info.Name, 0
				if !yield(info, nil) {
					return
				}
			}
			if failed == nil {
				return
			}
			if failures++; !s.again(ctx, failures, failed) {
				yield(Info{}, failed)
				return
			}
		}
	}
}

func (s *retry) Versions(ctx context.Context, name string) iter.Seq2[Version, error] {
	return versionsOf(ctx, s.Store, name)
}

func (s *retry) OpenVersion(ctx context.Context, v Version) (io.ReadCloser, Info, error) {
	return openVersionOf(ctx, s.Store, v)
}
