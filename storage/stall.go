package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"time"
)

// ErrStalled is the failure of an operation that made no progress.
var ErrStalled = errors.New("no progress")

// WithStallLimit makes an operation on s fail with ErrStalled when for d no
// byte of a Put's source, no byte of an Open's reader and no name of a List has
// moved, or when another call has not returned. The time that the caller takes
// between two reads or names doesn't count. A slow transfer is no stall.
//
// After the source's end a Put has d to finish: choose d above what the store
// needs to flush what it holds back. When a Put fails because its source
// blocks, the source may still be in use afterwards. A cancel waits for a read
// of the source that is under way, but no longer than d.
//
// The limit works by cancelling the context, which stores honour.
func WithStallLimit(s Store, d time.Duration) Store { return &stallLimit{s, d} }

type stallLimit struct {
	inner Store
	d     time.Duration
}

// watch is a context that ends when its timer does; every progress sets it back.
type watch struct {
	context.Context
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	d       time.Duration
	stalled chan struct{} // closed when the timer has gone off
}

func (s *stallLimit) watch(ctx context.Context) *watch {
	w := &watch{d: s.d, stalled: make(chan struct{})}
	w.Context, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(s.d, sync.OnceFunc(func() {
		w.cancel(fmt.Errorf("%w for %s", ErrStalled, s.d))
		close(w.stalled)
	}))
	return w
}

func (w *watch) progress() { w.timer.Reset(w.d) }
func (w *watch) pause()    { w.timer.Stop() }

func (w *watch) end() {
	w.timer.Stop()
	w.cancel(nil)
}

// explain makes sure that an error that the limit caused says so.
func (w *watch) explain(doing, what string, err error) error {
	cause := context.Cause(w)
	if err == nil || err == io.EOF || !errors.Is(cause, ErrStalled) || errors.Is(err, ErrStalled) {
		return err
	}
	return fmt.Errorf("%s %s: %w: %w", doing, what, cause, err)
}

func (s *stallLimit) Put(ctx context.Context, name string, r io.Reader, opts PutOptions) error {
	w := s.watch(ctx)
	defer w.end()
	return w.explain("put", name, s.inner.Put(w, name, &stallSource{w: w, r: r}, opts))
}

// stallSource reads r on another goroutine, since a read that blocks can't be
// stopped, only left behind. Its buffer is never used again then.
type stallSource struct {
	w    *watch
	r    io.Reader
	buf  []byte
	left bool
}

type readResult struct {
	n   int
	err error
}

func (s *stallSource) Read(p []byte) (int, error) {
	if s.left {
		return 0, context.Cause(s.w)
	}
	if s.buf == nil {
		s.buf = make([]byte, 256<<10)
	}
	buf := s.buf[:min(len(p), len(s.buf))]
	done := make(chan readResult, 1)
	go func() {
		n, err := s.r.Read(buf)
		done <- readResult{n, err}
	}()
	select {
	case res := <-done:
		if res.n > 0 || res.err == io.EOF {
			s.w.progress()
		}
		return copy(p, buf[:res.n]), res.err
	case <-s.w.stalled:
		s.left = true
		return 0, context.Cause(s.w)
	}
}

func (s *stallLimit) Open(ctx context.Context, name string, rng Range) (io.ReadCloser, Info, error) {
	w := s.watch(ctx)
	rc, info, err := s.inner.Open(w, name, rng)
	return w.opened(name, rc, info, err)
}

func (s *stallLimit) OpenVersion(ctx context.Context, v Version) (io.ReadCloser, Info, error) {
	w := s.watch(ctx)
	rc, info, err := openVersionOf(w, s.inner, v)
	return w.opened(v.Name, rc, info, err)
}

func (w *watch) opened(name string, rc io.ReadCloser, info Info, err error) (io.ReadCloser, Info, error) {
	w.pause()
	if err != nil {
		defer w.end()
		return nil, Info{}, w.explain("open", name, err)
	}
	return &stallReader{w, name, rc}, info, nil
}

type stallReader struct {
	w    *watch
	name string
	rc   io.ReadCloser
}

func (r *stallReader) Read(p []byte) (int, error) {
	r.w.progress()
	n, err := r.rc.Read(p)
	r.w.pause()
	return n, r.w.explain("read", r.name, err)
}

func (r *stallReader) Close() error {
	defer r.w.end()
	return r.rc.Close()
}

func (s *stallLimit) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return stallSeq(s, ctx, prefix, func(ctx context.Context) iter.Seq2[Info, error] { return s.inner.List(ctx, prefix) })
}

func (s *stallLimit) Versions(ctx context.Context, name string) iter.Seq2[Version, error] {
	return stallSeq(s, ctx, name, func(ctx context.Context) iter.Seq2[Version, error] { return versionsOf(ctx, s.inner, name) })
}

func stallSeq[T any](s *stallLimit, ctx context.Context, what string, list func(context.Context) iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		w := s.watch(ctx)
		defer w.end()
		for item, err := range list(w) {
			w.pause()
			if !yield(item, w.explain("list", what, err)) {
				return
			}
			w.progress()
		}
	}
}

func (s *stallLimit) Delete(ctx context.Context, name string) error {
	w := s.watch(ctx)
	defer w.end()
	return w.explain("delete", name, s.inner.Delete(w, name))
}
