package storage

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
)

// Result says how one operation on a store ended.
type Result struct {
	Store string // the name given to Metered
	Op    string // put, open, list, delete, versions or open_version
	Code  string // see Code
	Bytes int64  // that went through, of the operations that carry bytes
}

// Code is the class of an error, from a closed set that is fit to be a metric
// label: ok, exist, not_exist, invalid_name, permission, protected, full,
// stalled, canceled, or error for everything else.
func Code(err error) string {
	for _, c := range []struct {
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
		{context.Canceled, "canceled"},
		{context.DeadlineExceeded, "canceled"},
	} {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return "error"
}

// Metered reports every operation on s when it is over: an Open when its reader
// is closed, a List when the caller stops. report may be called from several
// goroutines at once and must return quickly.
func Metered(s Store, name string, report func(Result)) Store {
	return &metered{s, name, report}
}

type metered struct {
	inner  Store
	name   string
	report func(Result)
}

func (m *metered) done(op string, bytes int64, err error) {
	m.report(Result{Store: m.name, Op: op, Code: Code(err), Bytes: bytes})
}

func (m *metered) Put(ctx context.Context, name string, r io.Reader, opts PutOptions) error {
	counted := &countingReader{r: r}
	err := m.inner.Put(ctx, name, counted, opts)
	m.done("put", counted.n, err)
	return err
}

type countingReader struct {
	r   io.Reader
	n   int64
	err error // the last, io.EOF apart
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

func (m *metered) Open(ctx context.Context, name string, rng Range) (io.ReadCloser, Info, error) {
	rc, info, err := m.inner.Open(ctx, name, rng)
	return m.opened("open", rc, info, err)
}

func (m *metered) OpenVersion(ctx context.Context, v Version) (io.ReadCloser, Info, error) {
	rc, info, err := openVersionOf(ctx, m.inner, v)
	return m.opened("open_version", rc, info, err)
}

func (m *metered) opened(op string, rc io.ReadCloser, info Info, err error) (io.ReadCloser, Info, error) {
	if err != nil {
		m.done(op, 0, err)
		return rc, info, err
	}
	return &meteredReader{countingReader{r: rc}, rc, op, m, sync.Once{}}, info, nil
}

type meteredReader struct {
	countingReader
	io.Closer
	op   string
	m    *metered
	once sync.Once
}

func (r *meteredReader) Close() error {
	err := r.Closer.Close()
	r.once.Do(func() { r.m.done(r.op, r.n, errors.Join(r.err, err)) })
	return err
}

func (m *metered) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return meteredSeq(m, "list", m.inner.List(ctx, prefix))
}

func (m *metered) Versions(ctx context.Context, name string) iter.Seq2[Version, error] {
	return meteredSeq(m, "versions", versionsOf(ctx, m.inner, name))
}

func meteredSeq[T any](m *metered, op string, seq iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var failed error
		for item, err := range seq {
			failed = errors.Join(failed, err)
			if !yield(item, err) {
				break
			}
		}
		m.done(op, 0, failed)
	}
}

func (m *metered) Delete(ctx context.Context, name string) error {
	err := m.inner.Delete(ctx, name)
	m.done("delete", 0, err)
	return err
}
