package record

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/segment"
	"lifeboat/internal/spool"
)

// The way of one change, from top to bottom.

// sink takes what the watch finds, and puts it on the tape. It is called by the
// goroutine that reads from etcd, so it must never wait for a store.
type sink struct {
	r    *Recorder
	skip int64 // revisions up to here are on the tape already, or not wanted

	// Where a watch goes on, the last revision that is on the tape comes again,
	// and must be the same.
	expect string // its mark; empty: nothing to compare with
	again  group
}

// Record puts one change, or what belongs to changes, on the tape.
func (s *sink) Record(rec segment.Record) error {
	if rec.IsEvent() && rec.Main <= s.skip {
		s.remember(rec)
		return nil
	}
	if err := s.compare(); err != nil {
		return err
	}
	if rec.Kind == segment.KindCompaction {
		s.r.noteCompaction(rec.Compaction.Revision)
	}
	return s.r.withRoom(func() error { return s.r.tape.record(rec) })
}

// Complete says that the revision is whole: from now on it may be committed.
func (s *sink) Complete(revision int64, _ time.Time) error {
	if err := s.compare(); err != nil {
		return err
	}
	return s.r.withRoom(func() error { return s.r.tape.whole(revision) })
}

// Changed asks for a full backup, since no segment can hold what changed.
func (s *sink) Changed(what string) { s.r.fulls.once(what, s.r.opts.Now()) }

// step is what a committer does each interval, and earlier when much has come:
// look where the chain is, find that place on the tape, and commit what lies
// behind it.
func (c *committer) step(ctx context.Context, closing bool) error {
	if !c.due(closing) {
		return nil
	}
	if err := c.look(ctx); err != nil {
		return err
	}
	if err := c.attach(); err != nil {
		return err
	}
	c.standing()
	for ctx.Err() == nil {
		cut := c.next(closing)
		if cut == nil {
			break
		}
		c.awaitLeases(ctx, cut)
		if err := c.commit(ctx, cut); err != nil {
			c.giveUp(cut, err)
			return err
		}
		if stays, _ := c.stays(c.r.tape.all(), c.tip); !stays { // the next section, at the end of one, fits to what the chain is now
			if err := c.look(ctx); err != nil {
				return err
			}
		}
		if err := c.attach(); err != nil {
			return err
		}
		if at := c.at; at != nil && at.section == cut.section.id && at.next <= cut.first {
			break // the chain has not gone on: not again before the next step
		}
	}
	if closing || ctx.Err() != nil {
		return nil
	}
	if err := c.rollUp(ctx); err != nil {
		return err
	}
	return c.r.release()
}

// next is the cut that is due, or nil.
func (c *committer) next(closing bool) *cut {
	at := c.at
	if at == nil {
		return nil
	}
	s, newest, ok := c.r.tape.section(at.section)
	if !ok {
		return nil
	}
	if s.last < at.next && c.r.tape.bytes() > c.r.opts.SpoolBytes/4*3 {
		c.skipTo(s.end) // what is between are times, and what a lost watch left
	}
	now := c.r.opts.Now()
	backlog := int64(s.end - at.pos)
	point := proved(s, now)
	if ahead(at.reached, now) {
		c.forget()
	}
	switch changed := s.last >= at.next; {
	case changed && (closing || !newest || backlog >= c.r.opts.MaxBytes || since(now, at.cut) >= c.r.opts.Interval-grain):
	case !changed && c.claimed(point): // see standing
		return nil
	case !changed && at.reached.Before(point) && at.heard != s.newest.At && (closing || c.quiet(s, now)):
	default:
		return nil
	}
	limit := c.r.opts.MaxBytes
	if backlog > 4*limit {
		limit *= 16 // catching up: fewer and larger ones
	}
	return &cut{section: s, from: at.pos, first: at.next, limit: limit, reached: at.reached, mark: at.mark, late: at.late}
}

// skipTo gives up what is no change, to make room.
func (c *committer) skipTo(end spool.Position) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at.pos < end {
		c.at.pos, c.floor = end, max(c.floor, end)
	}
}

// quiet says whether to commit that nothing has changed: once soon after the
// last change, so that the recovery point is behind it, and then from time to
// time.
func (c *committer) quiet(s section, now time.Time) bool {
	if c.at.stirred && proved(s, now).After(c.at.cut) {
		return since(now, c.at.cut) >= c.r.opts.Interval-grain
	}
	return since(now, c.at.cut) >= c.r.opts.Heartbeat-grain
}

// grain is how much earlier than an interval a cut may come, so that no timer
// that fires a little early makes it wait for another interval.
const grain = 20 * time.Millisecond

// since is the time between two readings of the clock on the wall. One that was
// set back does not tell; then it was long enough, or nothing would be committed
// until the clock is as far again.
func since(now, then time.Time) time.Duration {
	if now.Before(then) {
		return math.MaxInt64
	}
	return now.Sub(then)
}

// proved is the newest recovery point that the section allows for; zero if that
// is none, or one in the future.
func proved(s section, now time.Time) time.Time {
	at := time.UnixMilli(s.newest.At).UTC()
	if s.newest.AtMost > s.last || ahead(at, now) {
		return time.Time{}
	}
	return at
}

// Leases that a cut's changes hang on are asked for when they are first seen;
// a cut waits a little for the answers.
const (
	leasesWait = 3 * time.Second
	leasesLook = 50 * time.Millisecond
)

func (c *committer) awaitLeases(ctx context.Context, cut *cut) {
	for waited := time.Duration(0); waited < leasesWait; waited += leasesLook {
		if !c.r.leases.Pending(cut.section.last) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(leasesLook):
		}
	}
}

// commit makes a cut durable and visible in the store.
func (c *committer) commit(ctx context.Context, cut *cut) error {
	id, err := manifest.NewID(c.r.opts.Rand)
	if err != nil {
		return err
	}
	created := whole(c.r.opts.Now())
	done, object, err := c.upload(ctx, cut, id, c.retention(cut.rollUp, created))
	if err != nil {
		return fmt.Errorf("store revisions from %d on: %w", cut.first, err)
	}
	draft := c.draft(id, created, c.at.epoch, done.span, object)
	if until := c.retention(cut.rollUp, created); !until.IsZero() {
		draft.RetainUntil = &until
	}
	// The commit point. Before it the store holds an object that no manifest
	// names; after it, these revisions can be restored.
	committed, err := within(ctx, c, toCommit, c.patience(cut.rollUp), func(ctx context.Context) (*repository.Committed, error) {
		return c.chain.Commit(ctx, draft)
	})
	switch {
	case errors.Is(err, repository.ErrCovered): // by another recorder: it is as good
	case errors.Is(err, repository.ErrReplaced):
		c.detach()
		return fmt.Errorf("commit revisions %d to %d: %w", done.span.First, done.span.Last, err)
	case err != nil:
		return fmt.Errorf("commit revisions %d to %d: %w", done.span.First, done.span.Last, err)
	}
	c.advance(cut, done, committed, created)
	return nil
}

// advance notes what is committed. What is below the cursor will not be read
// again, but for a roll-up.
func (c *committer) advance(cut *cut, done *written, committed *repository.Committed, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if committed != nil && cut.rollUp {
		c.status.RollUps++
	} else if committed != nil {
		c.status.Segments++
	}
	if committed != nil {
		c.ours = committed.Sequence
	}
	c.status.LastCommit = now
	if cut.rollUp {
		return
	}
	c.at.pos, c.at.next, c.at.mark = done.end, int64(done.span.Last)+1, done.span.Mark
	c.at.reached, c.at.late, c.at.cut, c.at.heard = done.span.LastTime, done.late, now, cut.section.newest.At
	c.at.stirred = done.span.Events > 0
	c.at.parts++
	c.status.Epoch, c.status.Revision = c.at.epoch, max(c.status.Revision, done.span.Last)
	c.raise(c.at.reached)
	c.r.tape.alarmAt(&c.alarm, done.end+spool.Position(c.r.opts.MaxBytes))
}
