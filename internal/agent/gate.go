package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// errStuck: work was told to stop and did not.
var errStuck = errors.New("it did not stop when told to")

// panicError is a panic of Works: a failure as any other, since the next run
// may well go through.
type panicError struct {
	value any
	stack []byte
}

func (p *panicError) Error() string { return fmt.Sprintf("panic: %v", p.value) }

// guarded calls f and turns a panic into an error.
func guarded[T any](ctx context.Context, f func(context.Context) (T, error)) (value T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p, debug.Stack()}
		}
	}()
	return f(ctx)
}

// outcome is what a call of Works came back with.
type outcome[T any] struct {
	value T
	err   error
}

// begin calls f on a goroutine of its own.
func begin[T any](ctx context.Context, f func(context.Context) (T, error)) <-chan outcome[T] {
	done := make(chan outcome[T], 1)
	go func() {
		value, err := guarded(ctx, f)
		done <- outcome[T]{value, err}
	}()
	return done
}

// await waits for a call, and when its context has ended, no longer than bye.
func await[T any](ctx context.Context, done <-chan outcome[T], bye time.Duration) (outcome[T], bool) {
	select {
	case o := <-done:
		return o, true
	case <-ctx.Done():
	}
	timer := time.NewTimer(bye)
	defer timer.Stop()
	select {
	case o := <-done:
		return o, true
	case <-timer.C:
		return outcome[T]{err: fmt.Errorf("%w: %w", context.Cause(ctx), errStuck)}, false
	}
}

// gate lets one call through at a time, even one that was left behind.
type gate struct {
	free chan struct{}

	mu    sync.Mutex
	begun uint64 // calls so far
}

func newGate() *gate { return &gate{free: make(chan struct{}, 1)} }

// pass calls f alone, within the limit, and gives up on it bye after that. If
// share is set and another call has begun and ended since pass was called, that
// one counts, and shared is true.
func pass[T any](ctx context.Context, g *gate, share bool, limit, bye time.Duration, f func(context.Context) (T, error)) (value T, shared bool, err error) {
	g.mu.Lock()
	need := g.begun + 1
	g.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case g.free <- struct{}{}:
	case <-ctx.Done():
		return value, false, fmt.Errorf("an earlier call still has not ended: %w", context.Cause(ctx))
	}
	g.mu.Lock()
	if share && g.begun >= need {
		g.mu.Unlock()
		<-g.free
		return value, true, nil
	}
	g.begun++
	g.mu.Unlock()
	done := begin(ctx, func(ctx context.Context) (T, error) {
		defer func() { <-g.free }()
		return f(ctx)
	})
	o, _ := await(ctx, done, bye)
	return o.value, false, o.err
}
