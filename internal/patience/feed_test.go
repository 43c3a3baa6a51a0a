package patience

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/storage"
)

// slowly yields a byte a minute.
type slowly struct{ left int }

func (s *slowly) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	time.Sleep(time.Minute)
	s.left--
	return copy(p, "x"), nil
}

func TestAStoreMustGoOnTaking(t *testing.T) {
	const stall, finish, farewell = 10 * time.Second, 50 * time.Second, time.Second
	forever := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	for _, c := range []struct {
		name string
		body io.Reader
		f    func(context.Context, io.Reader) error
		took time.Duration
		err  error
	}{
		{"one that takes all as it comes, from a slow reader", &slowly{5}, func(_ context.Context, r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			time.Sleep(finish - time.Second)
			return err
		}, 5*time.Minute + finish - time.Second, nil},
		{"one that never begins", strings.NewReader("abc"), func(ctx context.Context, _ io.Reader) error { return forever(ctx) }, stall, storage.ErrStalled},
		{"one that stops taking", &slowly{5}, func(ctx context.Context, r io.Reader) error {
			if _, err := r.Read(make([]byte, 1)); err != nil {
				return err
			}
			return forever(ctx)
		}, time.Minute + stall, storage.ErrStalled},
		{"one that never ends", strings.NewReader("abc"), func(ctx context.Context, r io.Reader) error {
			_, _ = io.Copy(io.Discard, r)
			return forever(ctx)
		}, finish, storage.ErrStalled},
		{"one that fails", strings.NewReader("abc"), func(context.Context, io.Reader) error { return io.ErrShortWrite }, 0, io.ErrShortWrite},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				err := Feed(t.Context(), c.body, stall, finish, farewell, c.f)
				if !errors.Is(err, c.err) || time.Since(began) != c.took {
					t.Errorf("%v after %s", err, time.Since(began))
				}
			})
		})
	}
}

func TestAStoreThatHearsNothingIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		began := time.Now()
		err := Feed(t.Context(), strings.NewReader("abc"), time.Minute, time.Hour, time.Second, func(_ context.Context, r io.Reader) error {
			<-release
			_, err := r.Read(make([]byte, 1)) // and later it goes on
			return err
		})
		if took := time.Since(began); !errors.Is(err, storage.ErrStalled) || took != time.Minute+time.Second {
			t.Errorf("%v after %s", err, took)
		}
		close(release)
	})
}
