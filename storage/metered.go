package storage

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"time"
)

// Ops are the operations that Metered reports.
var Ops = []string{"put", "open", "list", "delete", "versions", "open_version", "now"}

// codes are the classes of errors, the first that fits counts.
var codes = []struct {
	err  error
	code string
}{
	{nil, "ok"},
	{ErrExist, "exist"},
	{ErrNotExist, "not_exist"},
	{ErrInvalidName, "invalid_name"},
	{ErrPermission, "permission"},
	{ErrProtected, "protected"},
	{ErrFull, "full"},
	{ErrStalled, "stalled"},
	{context.DeadlineExceeded, "timeout"},
	{context.Canceled, "canceled"},
}

// Code is the class of an error, from a closed set that is fit to be a metric's
// label: ok, exist, not_exist, invalid_name, permission, protected, full,
// stalled, timeout, canceled, or error for everything else.
func Code(err error) string {
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return "error"
}

// Metered reports every operation on s when it is over, by its name in Ops and
// its Code: an Open when its reader is closed, a List when the caller stops.
// report may be called from several goroutines at once and must return quickly.
// What s can do beyond Store (Versioned, Clock) the result can do, too; it is
// always a Ranger, and no better at it than s.
func Metered(s Store, report func(op, code string)) Store {
	m := &metered{s, report}
	past, keepsVersions := s.(Versioned)
	teller, tellsTime := s.(Clock)
	v, c := meteredVersions{m, past}, meteredClock{m, teller}
	switch {
	case keepsVersions && tellsTime:
		return struct {
			*metered
			Versioned
			Clock
		}{m, v, c}
	case keepsVersions:
		return struct {
			*metered
			Versioned
		}{m, v}
	case tellsTime:
		return struct {
			*metered
			Clock
		}{m, c}
	default:
		return m
	}
}

type metered struct {
	inner  Store
	report func(op, code string)
}

func (m *metered) done(op string, err error) { m.report(op, Code(err)) }

func (m *metered) Put(ctx context.Context, name string, r io.Reader, opts PutOptions) error {
	err := m.inner.Put(ctx, name, r, opts)
	m.done("put", err)
	return err
}

func (m *metered) Open(ctx context.Context, name string, rng Range) (io.ReadCloser, Info, error) {
	rc, info, err := m.inner.Open(ctx, name, rng)
	return m.opened("open", rc, info, err)
}

func (m *metered) opened(op string, rc io.ReadCloser, info Info, err error) (io.ReadCloser, Info, error) {
	if err != nil {
		m.done(op, err)
		return rc, info, err
	}
	return &meteredReader{inner: rc, done: func(err error) { m.done(op, err) }}, info, nil
}

func (m *metered) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return meteredSeq(m, "list", m.inner.List(ctx, prefix))
}

// ListAfter implements Ranger. It is reported as a list.
func (m *metered) ListAfter(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return meteredSeq(m, "list", ListAfter(ctx, m.inner, prefix, after))
}

func (m *metered) Delete(ctx context.Context, name string) error {
	err := m.inner.Delete(ctx, name)
	m.done("delete", err)
	return err
}

type meteredVersions struct {
	m     *metered
	inner Versioned
}

func (v meteredVersions) Versions(ctx context.Context, name string) iter.Seq2[Version, error] {
	return meteredSeq(v.m, "versions", v.inner.Versions(ctx, name))
}

func (v meteredVersions) OpenVersion(ctx context.Context, version Version) (io.ReadCloser, Info, error) {
	rc, info, err := v.inner.OpenVersion(ctx, version)
	return v.m.opened("open_version", rc, info, err)
}

type meteredClock struct {
	m     *metered
	inner Clock
}

func (c meteredClock) Now(ctx context.Context) (time.Time, error) {
	now, err := c.inner.Now(ctx)
	c.m.done("now", err)
	return now, err
}

func meteredSeq[T any](m *metered, op string, seq iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var failed error
		for item, err := range seq {
			if failed == nil {
				failed = err
			}
			if !yield(item, err) {
				break
			}
		}
		m.done(op, failed)
	}
}

// meteredReader remembers the first error of reading, which says more than
// Close's. Close may come from another goroutine, to end a Read that hangs.
type meteredReader struct {
	inner io.ReadCloser
	done  func(error)
	once  sync.Once

	mu  sync.Mutex
	err error
}

func (r *meteredReader) Read(p []byte) (int, error) {
	n, err := r.inner.Read(p)
	if err != nil && err != io.EOF {
		r.note(err)
	}
	return n, err
}

func (r *meteredReader) Close() error {
	err := r.inner.Close()
	r.once.Do(func() { r.done(r.note(err)) })
	return err
}

// note keeps the first error and returns it.
func (r *meteredReader) note(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
	return r.err
}
