// Package patience bounds calls that may never return. A dead NFS server holds
// its callers for ever, whatever their contexts say: no other store and no
// Ctrl-C shall wait for it.
package patience

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"lifeboat/storage"
)

// Farewell bounds how long a store that was told to stop may clean up after
// itself. Then it is left behind.
const Farewell = 5 * time.Second

// ErrStalled ends a store that keeps the others waiting.
var ErrStalled = fmt.Errorf("the store did not answer: %w", storage.ErrStalled)

// StalledFor is ErrStalled with the time that was waited.
func StalledFor(d time.Duration) error { return fmt.Errorf("%w for %s", ErrStalled, d) }

// Within calls f, which works on a store, and gives up on it at the limit: f's
// context ends, and if f does not return even within farewell, it is left behind
// with whatever it may still do.
func Within[T any](ctx context.Context, limit, farewell time.Duration, f func(context.Context) (T, error)) (T, error) {
	return within(ctx, limit, farewell, f, func() {}, func() {})
}

// within tells when f is left behind, and then when it came back after all.
func within[T any](ctx context.Context, limit, farewell time.Duration, f func(context.Context) (T, error), left, back func()) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, StalledFor(limit))
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
	o, returned := Awaited(ctx, done, farewell)
	if !returned {
		left()
		go func() {
			<-done
			back()
		}()
		return o.value, context.Cause(ctx)
	}
	return o.value, Because(ctx, o.err)
}

// Awaited waits for done, and when the context ends only a little longer.
func Awaited[T any](ctx context.Context, done <-chan T, farewell time.Duration) (value T, returned bool) {
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

// Because adds to a failure why its context ended.
func Because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// mostLeft is how many calls of one store may hang before no more are made. Each
// may hold a thread of the system, and a daemon tries again for weeks.
const mostLeft = 3

// Ledger remembers calls that were left behind, by store. A nil Ledger
// remembers nothing. It is safe for concurrent use.
type Ledger struct {
	mu   sync.Mutex
	left map[string]int
}

// Within is the function of that name, but calls nothing while several earlier
// calls for the same store still hang.
func (l *Ledger) Within(ctx context.Context, store string, limit, farewell time.Duration, f func(context.Context) error) error {
	if n := l.Left(store); n >= mostLeft {
		return fmt.Errorf("%w: %d earlier calls still hang", ErrStalled, n)
	}
	_, err := within(ctx, limit, farewell, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) },
		func() { l.add(store, 1) }, func() { l.add(store, -1) })
	return err
}

// Left is how many calls for a store hang.
func (l *Ledger) Left(store string) int {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left[store]
}

func (l *Ledger) add(store string, n int) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left == nil {
		l.left = map[string]int{}
	}
	l.left[store] += n
}
