package patience

import (
	"context"
	"io"
	"sync/atomic"
	"time"
)

// Feed calls f, which puts what it reads of body into a store, and gives up on it
// when it asks for no more for stall, or has not returned finish after body's end.
// While body itself keeps f waiting no time counts. Like Within's, an f that does not
// return even within farewell is left behind; body must then fail if it is read.
func Feed(ctx context.Context, body io.Reader, stall, finish, farewell time.Duration, f func(context.Context, io.Reader) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	fed := &fed{body: body, stall: stall, finish: finish}
	fed.limit.Store(int64(stall))
	fed.timer = time.AfterFunc(stall, func() { cancel(StalledFor(time.Duration(fed.limit.Load()))) })
	defer fed.timer.Stop()
	done := make(chan error, 1)
	go func() { done <- f(ctx, fed) }()
	err, returned := Awaited(ctx, done, farewell)
	if !returned {
		return context.Cause(ctx)
	}
	return Because(ctx, err)
}

// fed runs a timer while nobody reads.
type fed struct {
	body          io.Reader
	stall, finish time.Duration
	limit         atomic.Int64 // the timer's
	timer         *time.Timer
}

func (f *fed) Read(p []byte) (int, error) {
	f.timer.Stop()
	n, err := f.body.Read(p)
	limit := f.stall
	if err != nil {
		limit = f.finish
	}
	f.limit.Store(int64(limit))
	f.timer.Reset(limit)
	return n, err
}
