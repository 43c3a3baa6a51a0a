package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
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
	free  chan struct{}
	begun time.Time // of the last call; belongs to who is in the gate
}

func newGate() *gate { return &gate{free: make(chan struct{}, 1)} }

// pass calls f alone, within the limit, and gives up on it bye after that. How it
// went goes to then, before the next one may pass. Whoever waited for a call that
// began no sooner than its own has been served by that one: neither is called.
func pass[T any](ctx context.Context, g *gate, limit, bye time.Duration, f func(context.Context) (T, error), then func(T, error)) {
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case g.free <- struct{}{}:
	default:
		select {
		case g.free <- struct{}{}:
			if !g.begun.Before(asked) {
				<-g.free
				return
			}
		case <-ctx.Done():
			var none T
			then(none, fmt.Errorf("an earlier call still has not ended: %w", context.Cause(ctx)))
			return
		}
	}
	g.begun = time.Now()
	done := begin(ctx, f)
	o, back := await(ctx, done, bye)
	then(o.value, o.err)
	if back {
		<-g.free
		return
	}
	go func() { <-done; <-g.free }()
}
