package watch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lifeboat/internal/segment"
)

// keepTime finds out which revision belongs to which time. A drain alone does
// not know: a member that is cut off goes on without news. So each time is
// bounded from below by what was complete before it, and from above by a
// linearizable read that began after it.
func (d *Drain) keepTime(ctx context.Context) {
	ticker := time.NewTicker(d.options.Tick)
	defer ticker.Stop()
	k := &timekeeper{moved: time.Now(), answered: time.Now()}
	for {
		if err := d.takeTime(ctx, k); err != nil {
			d.tell(ctx, finding{err: err})
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// timekeeper remembers the last time that was taken. Its clock is the
// monotonic one.
type timekeeper struct {
	atLeast, atMost int64
	taken           time.Time // when
	answered        time.Time // when the cluster last answered
	moved           time.Time // when the drain was last seen going on, or with nothing to do
	copied          int64     // bytes of a snapshot that had come by then
}

// takeTime takes one, unless nothing has changed since the last. It gives an
// error when the watch is not worth going on with.
func (d *Drain) takeTime(ctx context.Context, k *timekeeper) error {
	complete := d.complete.Load() // first: what it says was before At
	idle := complete == k.atLeast && complete == k.atMost
	if idle && time.Since(k.taken) < d.options.Idle {
		return nil
	}
	at := d.options.Now()
	call, cancel := context.WithTimeout(ctx, d.options.Call)
	defer cancel()
	head, err := d.source.Head(call)
	switch {
	case errors.Is(err, ErrOtherCluster):
		return err
	case err != nil && time.Since(k.answered) > d.options.Stall:
		return &Error{Why: Unreadable(err), Cause: err}
	case err != nil:
		return nil
	}
	k.answered = time.Now()
	copied := d.copied.Load()
	if complete > k.atLeast || head <= d.complete.Load() || copied > k.copied {
		k.moved, k.copied = k.answered, copied
	}
	k.atLeast, k.atMost, k.taken = complete, head, k.answered
	switch behind := head - d.complete.Load(); {
	case behind > 2*d.options.MaxLag:
		return &Error{Why: ErrBehind, Head: head}
	case behind > 0 && time.Since(k.moved) > d.options.Stall:
		return &Error{Why: ErrStalled, Head: head, Cause: fmt.Errorf("nothing came for %s", d.options.Stall)}
	}
	d.tell(ctx, finding{record: segment.Record{Kind: segment.KindTime, Time: segment.Moment{
		At: at.UnixMilli(), AtLeast: complete, AtMost: max(head, complete),
	}}})
	return nil
}
