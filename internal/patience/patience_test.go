package patience

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/storage"
)

func TestACallThatNeverReturnsIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		start := time.Now()
		_, err := Within(t.Context(), time.Minute, time.Second, func(context.Context) (int, error) {
			<-release
			return 1, nil
		})
		if !errors.Is(err, storage.ErrStalled) {
			t.Errorf("got %v, want a stall", err)
		}
		if took := time.Since(start); took != time.Minute+time.Second {
			t.Errorf("gave up after %s", took)
		}
		close(release)
	})
}

func TestAFailureSaysWhyItsContextEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("told to stop")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(why) })
		_, err := Within(ctx, time.Minute, time.Second, func(ctx context.Context) (int, error) {
			<-ctx.Done()
			return 0, errors.New("read failed")
		})
		if !errors.Is(err, why) {
			t.Errorf("got %v", err)
		}
	})
}

func TestAStoreThatHangsIsNotCalledForEverMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ledger, release := &Ledger{}, make(chan struct{})
		var calls atomic.Int32
		hang := func() error {
			return ledger.Within(t.Context(), "nfs", time.Minute, time.Second, func(context.Context) error {
				calls.Add(1)
				<-release
				return nil
			})
		}
		for range 10 {
			if err := hang(); !errors.Is(err, ErrStalled) {
				t.Fatalf("got %v", err)
			}
		}
		if n := calls.Load(); n != mostLeft {
			t.Errorf("%d calls were made, want %d", n, mostLeft)
		}
		other := false
		if err := ledger.Within(t.Context(), "s3", time.Minute, time.Second, func(context.Context) error { other = true; return nil }); err != nil || !other {
			t.Errorf("another store is kept waiting: %v", err)
		}
		close(release)
		synctest.Wait()
		if err := hang(); err != nil {
			t.Errorf("a store that came back is not called: %v", err)
		}
	})
}
