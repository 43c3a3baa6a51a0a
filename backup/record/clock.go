package record

import (
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/repository"
)

// Recovery points are times of the recorders' clocks. One that was ahead and was
// set right leaves points in the chain that lie in the future. They are told of
// once and not gone by: nobody would see for so long that recording stands still.
// No segment that only moves the recovery point can be committed meanwhile, since
// the chain claims to be further already; its point is known here all the same.

// farAhead is how far clocks may differ.
const farAhead = time.Minute

func ahead(at, now time.Time) bool { return at.Sub(now) > farAhead }

// doubt takes in whether a tip's time is one to go by.
func (c *committer) doubt(tip *repository.Tip, now time.Time) {
	c.mu.Lock()
	if ahead(tip.LastTime, now) && c.doubted.Before(tip.LastTime) {
		c.doubted = tip.LastTime
	}
	was, doubts := c.doubting, c.doubts(tip)
	c.doubting = doubts
	c.mu.Unlock()
	if doubts && !was {
		c.r.opts.Events.Emit(events.Warning{
			Chain: string(c.r.chain), Subject: c.url,
			Message: "the recovery point in the store is " + tip.LastTime.UTC().Format(time.RFC3339) + ", which is in the future: this clock is wrong, or the one of " + tip.Writer.Node + " is or was",
		})
	}
}

// doubts reports whether a tip's time is or was in the future. Once it has passed
// it is no truer than before.
func (c *committer) doubts(tip *repository.Tip) bool {
	return !c.doubted.IsZero() && !tip.LastTime.After(c.doubted)
}

// raise notes a recovery point, if it is a later one. c.mu is held.
func (c *committer) raise(point time.Time) {
	if c.status.RecoveryPoint.Before(point) {
		c.status.RecoveryPoint, c.raised = point, c.r.opts.Now()
	}
}

// lower takes back a recovery point that turns out to be in the future: it is as
// old as the time that has passed since. c.mu is held.
func (c *committer) lower(now time.Time) {
	if ahead(c.status.RecoveryPoint, now) {
		c.status.RecoveryPoint = whole(now.Add(-max(0, now.Sub(c.raised))))
	}
}

// forget gives up a recovery point of the cursor that turns out to be in the
// future: the next segment says what it can prove itself.
func (c *committer) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at.reached = time.Time{}
}

// claimed reports whether the chain claims, in error, to have reached a point: it
// takes no segment that only moves the recovery point there.
func (c *committer) claimed(point time.Time) bool {
	return c.doubts(c.tip) && !c.tip.LastTime.Before(point)
}

// standing moves the recovery point where nothing changes and no segment can move
// it. The chain was looked at just now.
func (c *committer) standing() {
	at := c.at
	if at == nil || int64(c.tip.Last) < at.next-1 {
		return
	}
	s, _, ok := c.r.tape.section(at.section)
	if !ok || s.last >= at.next {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if point := proved(s, c.r.opts.Now()); c.claimed(point) && at.reached.Before(point) {
		at.reached = point
		c.raise(point)
	}
}
