package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lifeboat/storage"
)

// finishStalls is how many stall limits a store may take to make durable what
// it was given, and for a commit: an S3 server that joins a large object's
// parts is silent for minutes.
const finishStalls = 5

// longestFarewell bounds how long a store that was told to stop may clean up
// after itself. Then it is left behind, since a dead NFS server holds its
// callers for ever: no other store and no Ctrl-C shall wait for it.
const longestFarewell = 5 * time.Second

func (r *Runner) farewell() time.Duration { return min(longestFarewell, r.StoreStall) }

// errStoreStalled ends a store that keeps the others waiting.
var errStoreStalled = fmt.Errorf("the store did not answer: %w", storage.ErrStalled)

func stalledFor(d time.Duration) error { return fmt.Errorf("%w for %s", errStoreStalled, d) }

// within calls f, which works on a store, and gives up on it at the limit: f's
// context ends, and if f does not return even then, it is left behind with
// whatever it may still do.
func within[T any](ctx context.Context, limit, farewell time.Duration, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, stalledFor(limit))
	defer cancel()
	type outcome struct {
		value T
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		value, err := f(ctx)
		done <- outcome{value, err}
	}()
	o, returned := awaited(ctx, done, farewell)
	if !returned {
		return o.value, context.Cause(ctx)
	}
	return o.value, because(ctx, o.err)
}

// awaited waits for done, and when the context ends only a little longer.
func awaited[T any](ctx context.Context, done <-chan T, farewell time.Duration) (value T, returned bool) {
	select {
	case value = <-done:
		return value, true
	case <-ctx.Done():
	}
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	select {
	case value = <-done:
		return value, true
	case <-timer.C:
		return value, false
	}
}

// because adds to a failure why its context ended.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}
