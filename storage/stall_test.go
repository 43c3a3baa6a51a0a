package storage_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/storage"
	"lifeboat/storage/memory"
)

// slowStore waits before every step, heeding the context. Steps are the
// operations themselves and, when opening is done, each byte or name.
type slowStore struct {
	storage.Store
	call, step time.Duration
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err() // and says nothing of why
	}
}

func (s *slowStore) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	if err := wait(ctx, s.call); err != nil {
		return err
	}
	return s.Store.Put(context.WithoutCancel(ctx), name, &slowReader{r, nil, ctx, s.step}, opts)
}

func (s *slowStore) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, storage.Info, error) {
	if err := wait(ctx, s.call); err != nil {
		return nil, storage.Info{}, err
	}
	rc, info, err := s.Store.Open(context.WithoutCancel(ctx), name, rng)
	return &slowReader{rc, rc, ctx, s.step}, info, err
}

func (s *slowStore) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		for info, err := range s.Store.List(context.WithoutCancel(ctx), prefix) {
			if err := wait(ctx, s.step); err != nil {
				yield(storage.Info{}, err)
				return
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

func (s *slowStore) Delete(ctx context.Context, name string) error {
	if err := wait(ctx, s.call); err != nil {
		return err
	}
	return s.Store.Delete(ctx, name)
}

type slowReader struct {
	io.Reader
	io.Closer
	ctx  context.Context
	step time.Duration
}

func (r *slowReader) Read(p []byte) (int, error) {
	if err := wait(r.ctx, r.step); err != nil {
		return 0, err
	}
	return r.Reader.Read(p[:1])
}

func TestStallLimit(t *testing.T) {
	const limit = 10 * time.Second
	for _, test := range []struct {
		about      string
		call, step time.Duration
		caller     time.Duration // between two reads or names
		opens      bool          // whether calls succeed, and
		moves      bool          // whether transfers do
	}{
		{"a slow transfer is no stall", 500 * time.Millisecond, 9 * time.Second, 0, true, true},
		{"a slow caller is no stall", time.Second, time.Second, time.Hour, true, true},
		{"a silent transfer is a stall", time.Second, 11 * time.Second, 0, true, false},
		{"a silent call is a stall", 11 * time.Second, 0, 0, false, false},
	} {
		t.Run(test.about, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inner := memory.New()
				put(t, inner, "a", "0123456789")
				put(t, inner, "b", "b")
				s := storage.WithStallLimit(&slowStore{inner, test.call, test.step}, limit)
				check := func(doing string, err error, succeeds bool) {
					t.Helper()
					if succeeds && err != nil || !succeeds && !errors.Is(err, storage.ErrStalled) {
						t.Errorf("%s: %v", doing, err)
					}
				}
				check("put", s.Put(t.Context(), "c", strings.NewReader("0123456789"), storage.PutOptions{}), test.moves)
				check("delete", s.Delete(t.Context(), "b"), test.opens)
				rc, _, err := s.Open(t.Context(), "a", storage.Range{})
				check("open", err, test.opens)
				if err == nil {
					data := make([]byte, 0, 10)
					for err == nil {
						var p [4]byte
						var n int
						n, err = rc.Read(p[:])
						data = append(data, p[:n]...)
						time.Sleep(test.caller)
					}
					if test.moves && string(data) != "0123456789" {
						t.Errorf("read %q", data)
					}
					if err == io.EOF {
						err = nil
					}
					check("read", err, test.moves)
					if err := rc.Close(); err != nil {
						t.Error(err)
					}
				}
				if test.step > 0 {
					var err error
					for _, err = range s.List(t.Context(), "") {
						time.Sleep(test.caller)
					}
					check("list", err, test.moves)
				}
			})
		})
	}
}

func TestASourceThatBlocksIsAStallAndLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := memory.New()
		s := storage.WithStallLimit(inner, 10*time.Second)
		r, w := io.Pipe()
		go func() { _, _ = w.Write([]byte("half")) }()
		start := time.Now()
		err := s.Put(t.Context(), "a", r, storage.PutOptions{})
		if !errors.Is(err, storage.ErrStalled) || time.Since(start) != 10*time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		if got, err := list(t, inner); err != nil || len(got) != 0 {
			t.Errorf("left %q, %v", got, err)
		}
		w.Close() // lets the read that was left behind end
	})
}

// The read is not left behind at once: its source may belong to the caller
// again when Put returns.
func TestACancelWaitsForTheSourceNoLongerThanTheLimit(t *testing.T) {
	for _, test := range []struct {
		about  string
		source time.Duration // how long its read takes
		ends   time.Duration // when Put does
	}{
		{"a source that answers is waited for", 5 * time.Second, 5 * time.Second},
		{"a source that blocks is left behind", time.Hour, 10 * time.Second},
	} {
		t.Run(test.about, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := storage.WithStallLimit(memory.New(), 10*time.Second)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				start := time.Now()
				err := s.Put(ctx, "a", readFunc(func(p []byte) (int, error) {
					time.Sleep(test.source)
					return 1, nil
				}), storage.PutOptions{})
				if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != test.ends {
					t.Errorf("after %s: %v", time.Since(start), err)
				}
				time.Sleep(test.source) // a read that was left behind ends here
			})
		})
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }
