package materialize

import (
	"context"
	"fmt"

	"lifeboat/internal/segment"
)

// visitor is given what the segments hold, in order.
type visitor interface {
	// event: known says that its revision was there before its segment began,
	// in the database or by an earlier segment.
	event(e *event, sub int64, known bool) error
	// revision: all events of a revision, numbered 0 to events-1, were given.
	revision(main, events int64, known bool) error
	// lease: those that were attached at or below known may have come before.
	lease(l segment.Lease, known int64) error
	// batch: the batch that the last events were of. It must be put back when its
	// values are not needed any more.
	batch(b *batch) error
}

// walk gives v the events up to revision until that are behind revision from or
// overlap it. With whole, every segment that it needs is read to its end, else
// reading stops beyond until. The revisions between are all there when it
// returns nil, if whole.
func (s *streams) walk(ctx context.Context, from, until int64, whole bool, v visitor) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.start(ctx)
	defer s.stop()
	w := walker{streams: s, visitor: v, reached: from, until: until, whole: whole}
	for !whole || w.reached < until || w.first == 0 { // those that overlap are read too
		one, ok := <-s.queue
		if !ok {
			break
		}
		more, err := w.segment(one)
		one.cancel()
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if w.reached < until {
		return fmt.Errorf("%w: the segments end at %d, and %d is wanted", ErrHole, w.reached, until)
	}
	return nil
}

type walker struct {
	*streams
	visitor
	reached, until int64
	whole          bool
	first          int64 // of the segment before
}

// segment walks one; more says whether a further one may be of interest.
func (w *walker) segment(one *stream) (more bool, err error) {
	b, ok := <-one.batches
	if !ok {
		return false, one.err
	}
	h := one.header
	if h.First < w.first {
		return false, fmt.Errorf("%w: segment %d begins at revision %d, the one before at %d", ErrInvalid, one.index+1, h.First, w.first)
	}
	w.first = h.First
	if h.First > w.until {
		return false, nil
	}
	if h.First > w.reached+1 {
		return false, fmt.Errorf("%w: %d to %d, before segment %d", ErrHole, w.reached+1, h.First-1, one.index+1)
	}
	known, main, events := w.reached, int64(0), int64(0)
	end := func() error {
		if events == 0 {
			return nil
		}
		w.reached = max(w.reached, main)
		return w.revision(main, events, main <= known)
	}
	beyond := false
	for ; ok; b, ok = <-one.batches {
		for i := range b.events {
			e := &b.events[i]
			if e.main > w.until {
				beyond = true
				break
			}
			if e.main != main {
				if err := end(); err != nil {
					return false, err
				}
				main, events = e.main, 0
			}
			if err := w.event(e, events, e.main <= known); err != nil {
				return false, err
			}
			events++
		}
		for _, l := range b.leases {
			if l.Revision > w.until {
				continue
			}
			if err := w.lease(l, known); err != nil {
				return false, err
			}
		}
		if err := w.batch(b); err != nil {
			return false, err
		}
		if beyond && !w.whole {
			return true, end()
		}
	}
	if one.err != nil {
		return false, one.err
	}
	return true, end()
}
