package record

import (
	"errors"
	"fmt"
	"syscall"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/spool"
)

// The spool is bounded. What stores still need is kept for as long as there is
// room; then, in this order: parts that only a roll-up would read again; the
// oldest of what waits for a full; the part of a store that lags behind others.
// If none of that helps the watch ends, and etcd keeps what comes until it
// compacts.

// errNoRoom ends a watch.
var errNoRoom = errors.New("the spool is full")

// withRoom does what needs room on the tape, and makes some as often as that
// helps.
func (r *Recorder) withRoom(do func() error) error {
	for {
		err := do()
		if err == nil || !errors.Is(err, spool.ErrFull) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
			return err
		}
		if !r.makeRoom() {
			return fmt.Errorf("%w: %w", errNoRoom, err)
		}
	}
}

// makeRoom reports whether there is more room than before.
func (r *Recorder) makeRoom() bool {
	before := r.tape.bytes()
	for _, give := range []func(){r.withoutRollUps, r.withoutWaiting, r.withoutLaggards} {
		give()
		if err := r.release(); err == nil && r.tape.bytes() < before {
			return true
		}
	}
	return false
}

// release drops what no store needs.
func (r *Recorder) release() error {
	s, ok := r.tape.now()
	if !ok {
		return nil
	}
	need := s.end
	for _, c := range r.committers {
		need = min(need, c.needs(s))
	}
	if need <= r.tape.log.Start() {
		return nil
	}
	return r.tape.release(need)
}

// needs is the lowest position that the committer will still read.
func (c *committer) needs(newest section) spool.Position {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.chain == nil || c.lost:
		return newest.end
	case c.at != nil:
		return max(c.at.rolled.pos, c.floor)
	case c.tip == nil: // it has not answered yet
		return 0
	}
	return max(min(newest.start, newest.end), c.floor)
}

func (r *Recorder) withoutRollUps() {
	for _, c := range r.committers {
		c.mu.Lock()
		if c.at != nil && c.at.rolled.pos < c.at.pos {
			c.floor = c.at.pos
		}
		c.mu.Unlock()
	}
}

func (r *Recorder) withoutWaiting() {
	quarter := r.tape.log.Start() + spool.Position(r.tape.bytes()/4)
	for _, c := range r.committers {
		c.mu.Lock()
		if c.at == nil && c.tip != nil {
			c.floor = max(c.floor, quarter)
		}
		c.mu.Unlock()
	}
}

// withoutLaggards gives up the part of the stores that need the oldest, unless
// all do: then nobody would gain by it.
func (r *Recorder) withoutLaggards() {
	s, ok := r.tape.now()
	if !ok {
		return
	}
	lowest, highest := s.end, spool.Position(0)
	for _, c := range r.committers {
		if c.chain != nil {
			need := c.needs(s)
			lowest, highest = min(lowest, need), max(highest, need)
		}
	}
	if lowest >= highest {
		return
	}
	for _, c := range r.committers {
		if c.chain == nil || c.needs(s) != lowest {
			continue
		}
		c.mu.Lock()
		next := int64(0)
		if c.at != nil {
			next = c.at.next
		}
		c.lost = true
		c.mu.Unlock()
		why := "it took nothing for so long that its changes were given up to make room in the spool"
		r.fulls.want(c.url, why, 0)
		if next != 0 {
			r.addGap(Gap{Store: c.url, From: manifest.Revision(next), Why: why})
		}
		r.opts.Events.Emit(events.Warning{Chain: string(r.chain), Subject: c.url, Message: why})
	}
}

// outgrown asks for a full when a restore would have to replay too much behind
// the newest one, or could make a database above etcd's quota of it. What is
// released counts: positions only grow.
func (c *committer) outgrown(tip *repository.Tip) {
	s, ok := c.r.tape.now()
	base := int64(tip.Base)
	if !ok || base == 0 || s.last < base {
		return
	}
	if c.base != base {
		c.base, c.behind = base, s.start
		if at, found := c.r.tape.find(s.id, base+1); found {
			c.behind = at
		}
	}
	if s.last-base >= c.r.opts.FullRevisions || int64(s.end-c.behind) >= c.r.opts.mostBehind(tip.Full) {
		c.r.fulls.onceFor("much was recorded since the newest full", c.r.opts.Now())
	}
}

// mostBehind is how many bytes of changes may follow a full: FullBytes, or what
// etcd's quota leaves beside its database. A quarter of FullBytes is let pass in
// any case, since a full of a database so large costs much by itself.
func (o *Options) mostBehind(full *manifest.Etcd) int64 {
	if full == nil {
		return o.FullBytes
	}
	return min(o.FullBytes, max(full.AssumedQuota()-full.DBBytes, o.FullBytes/4))
}
