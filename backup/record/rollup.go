package record

import (
	"context"
	"errors"
	"fmt"

	"lifeboat/internal/events"
	"lifeboat/internal/repository"
	"lifeboat/internal/spool"
	"lifeboat/storage"
)

// rollUpDue says whether what was committed in small segments is to be sealed
// again as one: each hour, or when it is half of what the spool may hold.
func (c *committer) rollUpDue() bool {
	at := c.at
	if at == nil || at.parts < 2 || !c.r.active.Load() {
		return false
	}
	return since(c.r.opts.Now(), at.rolled.since) >= c.r.opts.RollUp || int64(at.pos-at.rolled.pos) >= c.r.opts.SpoolBytes/2
}

// rollUp seals what is committed once more, as one segment. It is committed
// before anything is released or pruned, so that at every moment all of it can
// be restored.
func (c *committer) rollUp(ctx context.Context) error {
	if !c.rollUpDue() {
		return nil
	}
	at := c.at
	s, _, ok := c.r.tape.section(at.section)
	if !ok {
		return nil
	}
	s.last, s.end = at.next-1, at.pos
	from, next := at.rolled.pos, at.rolled.next
	if next < s.first { // released by another's need for room
		from, next = s.start, s.first
	}
	if next <= s.last {
		if err := c.commit(ctx, &cut{section: s, from: from, first: next, rollUp: true, reached: at.reached, mark: at.mark}); errors.Is(err, spool.ErrDamaged) {
			c.r.opts.Events.Emit(events.Warning{Chain: string(c.r.chain), Subject: c.url, Message: "small segments stay as they are: roll up: " + err.Error()})
		} else if err != nil {
			return fmt.Errorf("roll up: %w", err)
		}
	}
	c.mu.Lock()
	if c.at != nil {
		c.at.rolled.pos, c.at.rolled.next, c.at.rolled.since = at.pos, at.next, c.r.opts.Now()
		c.at.parts = 0
	}
	c.mu.Unlock()
	if next <= s.last {
		c.prune(ctx)
	}
	return nil
}

// prune has the small segments named for deletion that the roll-up replaces. A
// failure is for the next hour, or for whoever prunes all.
func (c *committer) prune(ctx context.Context) {
	if !c.r.opts.Prune || c.mayNotPrune {
		return
	}
	_, err := within(ctx, c, toPrune, c.patience(true), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, c.chain.Prune(ctx)
	})
	if errors.Is(err, repository.ErrMayNotPrune) {
		c.mayNotPrune = true
		return
	}
	if err != nil && ctx.Err() == nil {
		c.r.opts.Events.Emit(events.Warning{Chain: string(c.r.chain), Subject: c.url, Message: "segments that a roll-up has replaced were not pruned: " + err.Error()})
	}
	if err == nil {
		c.sweep(ctx)
	}
}

// sweep deletes what earlier prunes have named. That it can't, because its
// credentials may not delete or because of a clock, is told once: whoever prunes
// all deletes it then.
func (c *committer) sweep(ctx context.Context) {
	_, err := within(ctx, c, toSweep, c.patience(true), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, c.chain.Sweep(ctx)
	})
	lasting := errors.Is(err, storage.ErrPermission) || errors.Is(err, repository.ErrClock)
	if err != nil && ctx.Err() == nil && !(lasting && c.mayNotSweep) {
		c.r.opts.Events.Emit(events.Warning{Chain: string(c.r.chain), Subject: c.url, Message: "segments that a roll-up has replaced were not deleted: " + err.Error()})
	}
	if err == nil || lasting {
		c.mayNotSweep = lasting
	}
}
