package record

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/patience"
	"lifeboat/internal/repository"
	"lifeboat/internal/segment"
	"lifeboat/internal/spool"
)

// committer brings one store's chain up to what is on the tape, and seals for
// itself, so that no store waits for another. Its goroutine is run.
type committer struct {
	r          *Recorder
	url        string
	chain      chain // nil: the store could not be opened
	err        error // why
	retainDays int
	alarm      alarm

	mu      sync.Mutex
	at      *cursor           // nil: what the tape holds does not go on from the chain. Written by run's goroutine
	tip     *repository.Tip   // as last seen; nil: not yet
	looked  time.Time         // when that was
	moved   time.Time         // when it was first seen to be as it is
	ours    manifest.Sequence // of our newest commit; 0: none by this process
	foreign bool              // another recorder has committed what we have not
	lost    bool              // its part of the tape was given up to make room
	floor   spool.Position    // it needs nothing below
	status  StoreStatus
	raised  time.Time // when its recovery point became what it is

	doubted  time.Time // the latest time of a tip that was found to be in the future
	doubting bool      // the tip's time is no later than that

	// Of run's goroutine.
	base        int64          // the chain's newest full
	behind      spool.Position // where what is behind it begins
	other       map[int64]bool // sections that hold another history than the chain
	broken      map[int64]bool // sections that can't be read
	tried       int64          // the newest section when the chain's place was last looked for
	mayNotPrune bool
	mayNotSweep bool            // was told
	hanging     patience.Ledger // requests that never came back
}

// cursor is where a committer is on the tape.
type cursor struct {
	section int64
	epoch   uint64         // of the chain, when the two were found to fit
	pos     spool.Position // all before it is committed, or will not be
	next    int64          // the first revision that is not
	mark    string         // of the one before
	reached time.Time      // the recovery point
	late    []segment.Moment
	cut     time.Time // when the newest cut was committed
	stirred bool      // it held changes
	heard   int64     // the newest time that was on the tape then

	// What a roll-up will begin with.
	rolled struct {
		pos   spool.Position
		next  int64
		since time.Time
	}
	parts int // segments since then
}

// The times of a committer.
const (
	lookEvery  = 2500 * time.Millisecond // at a chain that it does not write to
	firstPause = time.Second             // after a failure; doubled up to the longest
	mostPause  = 30 * time.Second
	lastWords  = 5 * time.Second // for a last commit when all ends
)

// run works until the context ends, and then once more with what was left,
// after last was closed.
func (c *committer) run(ctx context.Context, last <-chan struct{}) {
	if c.chain == nil {
		c.note(c.err)
		return
	}
	c.alarm.now() // to know at once where the chain is
	pause := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			<-last
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(lastWords, c.r.opts.StoreStall))
			defer cancel()
			c.note(c.step(ctx, true))
			return
		case <-time.After(max(pause, min(c.r.opts.Interval, lookEvery)-grain)):
		case <-c.alarm.ring:
			if pause > 0 { // a store that fails is not asked more often for more changes
				continue
			}
		}
		err := c.step(ctx, false)
		if ctx.Err() != nil {
			continue
		}
		c.note(err)
		if err == nil {
			pause = 0
		} else {
			pause = min(max(firstPause, 2*pause), mostPause)
		}
	}
}

// note keeps how the last step ended.
func (c *committer) note(err error) {
	c.mu.Lock()
	was := c.status.Err
	switch {
	case err == nil:
		c.status.Err, c.status.Since = "", time.Time{}
	case was == "":
		c.status.Since = c.r.opts.Now()
		fallthrough
	default:
		c.status.Err = err.Error()
	}
	c.mu.Unlock()
	if err != nil && was == "" {
		c.r.opts.Events.Emit(events.StoreFailed{Store: c.url, Chain: string(c.r.chain), Err: err})
	}
}

// due says whether a step is worth a request.
func (c *committer) due(closing bool) bool {
	c.mu.Lock()
	at, looked := c.at, c.looked
	c.mu.Unlock()
	idle := since(c.r.opts.Now(), looked)
	switch {
	case closing:
		return at != nil && c.next(true) != nil
	case at == nil && c.tried != c.r.tape.newest():
		return true
	case at == nil || !c.r.active.Load():
		return idle < 0 || idle >= lookEvery-grain || c.next(false) != nil
	}
	if c.r.fulls.pending() && idle >= lookEvery-grain { // it may be there
		return true
	}
	return c.next(false) != nil || c.rollUpDue() || idle < 0 || idle >= c.r.opts.Heartbeat || at.section != c.r.tape.newest()
}

// look asks where the chain is. The answer is what all decisions go by: others
// commit to it too.
func (c *committer) look(ctx context.Context) error {
	tip, err := within(ctx, c, toCommit, c.r.opts.StoreStall, c.chain.Head)
	if err != nil {
		return fmt.Errorf("look where the chain is: %w", err)
	}
	c.see(tip, c.r.opts.Now())
	if c.foreign {
		c.r.standDown()
	}
	return nil
}

// see takes in a new tip.
func (c *committer) see(tip *repository.Tip, now time.Time) {
	begun := tip.BaseTime
	if ahead(begun, now) {
		begun = time.Time{} // it does not tell what the full came after
	}
	c.r.fulls.seen(tip.Base, begun)
	c.outgrown(tip)
	c.doubt(tip, now)
	c.mu.Lock()
	defer c.mu.Unlock()
	was, looked := c.tip, c.looked
	if was == nil || was.Recorded != tip.Recorded || !was.LastTime.Equal(tip.LastTime) {
		c.moved = now
	}
	c.tip, c.looked = tip, now
	next := int64(1)
	if c.at != nil {
		next = c.at.next
	} else if s, ok := c.r.tape.now(); ok {
		next = s.last + 1
	}
	// Another's segment, of our own turn, lies behind our newest one: it is ahead,
	// or as far.
	c.foreign = tip.Writer.Node != "" && tip.Writer != c.r.opts.Writer && c.moved.After(c.r.turnBegan()) &&
		(int64(tip.Recorded) >= next || c.ours > 0 && tip.Sequence > c.ours && int64(tip.Recorded) == next-1)
	if c.status.Epoch != tip.Epoch {
		c.status.Epoch, c.status.Revision, c.status.RecoveryPoint = tip.Epoch, 0, time.Time{}
	}
	c.status.Revision = max(c.status.Revision, tip.Last)
	c.lower(now)
	switch {
	case !c.doubting:
		c.raise(tip.LastTime)
	case was != nil && c.moved.Equal(now) && tip.Writer != c.r.opts.Writer: // another one commits what comes
		c.raise(whole(looked))
	}
}

// attach finds the chain's place on the tape, or says what it waits for.
func (c *committer) attach() error {
	tip := c.tip
	sections := c.r.tape.all()
	if c.at != nil {
		if stays, done := c.stays(sections, tip); stays {
			return nil
		} else if done {
			c.passed(c.at.section, c.at.next, sections)
		}
		c.detach()
	}
	if len(sections) > 0 {
		c.tried = sections[len(sections)-1].id
		if c.broken[c.tried] { // the next watch begins another
			c.r.spoiled(c.tried)
			return nil
		}
		sections = slices.DeleteFunc(sections, func(s section) bool { return c.broken[s.id] })
	}
	p := fit(sections, tip, c.other)
	if p.section != nil {
		differs, err := c.differs(&p, tip)
		if err != nil {
			return c.unreadable(err)
		}
		if differs {
			c.other[p.section.id] = true
			p = forkedPlace(tip.Epoch + 1)
		}
	}
	if p.section == nil {
		if c.other[c.tried] && c.r.active.Load() { // again at each look: there may be no watch at this moment
			c.r.forked(c.tried, c.url+" holds other changes than etcd does")
		}
		c.waits(p)
		return nil
	}
	pos, ok := c.r.tape.find(p.section.id, p.next)
	if !ok {
		return nil // released meanwhile: the next look sees it
	}
	at := &cursor{section: p.section.id, epoch: tip.Epoch, pos: pos, next: p.next, mark: p.mark}
	if p.reached && !c.doubts(tip) {
		at.reached = tip.LastTime
	}
	at.rolled.pos, at.rolled.next, at.rolled.since = p.section.start, p.section.first, c.r.opts.Now()
	if pos > p.section.start {
		at.parts = 1
	}
	c.r.fulls.settled(c.url)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at, c.lost, c.floor, c.status.Waiting = at, false, 0, ""
	c.r.closeGap(c.url, manifest.Revision(p.next))
	c.r.tape.alarmAt(&c.alarm, pos+spool.Position(c.r.opts.MaxBytes))
	return nil
}

// differs says whether the place's section holds another history than the chain:
// at a revision whose mark is known, where its segments end or of its full, the
// two have done other things. A revision that is known to be the same is not
// committed again; where that is not known, a replay compares what comes twice.
func (c *committer) differs(p *place, tip *repository.Tip) (bool, error) {
	again, known := p.next, false
	for at, of := range map[int64]string{int64(tip.Recorded): tip.RecordedMark, int64(tip.Last): tip.Mark} {
		mark, err := c.r.tape.mark(*p.section, at, c.r.marker)
		if err != nil {
			return false, err
		}
		equal, comparable := segment.Compare(of, mark)
		if comparable && !equal {
			return true, nil
		}
		known = known || equal && at == again
	}
	switch {
	case !p.compare:
	case known:
		p.next++
	default:
		p.mark = ""
	}
	return false, nil
}

// stays says whether the cursor is still right; or whether it is done with its
// section, behind which another begins.
func (c *committer) stays(sections []section, tip *repository.Tip) (stays, done bool) {
	for i, s := range sections {
		if s.id != c.at.section {
			continue
		}
		if tip.Epoch != c.at.epoch || tip.Base == 0 || c.lost || c.at.pos < c.r.tape.log.Start() {
			return false, false
		}
		done := i < len(sections)-1 && c.at.next > s.last
		return !done, done
	}
	return false, false
}

// passed notes what is missing between the end of one section and the next of
// the same history.
func (c *committer) passed(was int64, next int64, sections []section) {
	i := slices.IndexFunc(sections, func(s section) bool { return s.id == was })
	if i < 0 || i+1 == len(sections) {
		return
	}
	if s := sections[i+1]; s.first > next && s.epoch == sections[i].epoch && s.clusterID == sections[i].clusterID {
		c.r.addGap(Gap{Store: c.url, From: manifest.Revision(next), To: manifest.Revision(s.first - 1), Why: s.why})
	}
}

func (c *committer) detach() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = nil
	c.r.tape.alarmAt(&c.alarm, 0)
}

// waits notes why nothing can be committed, and asks for the full that helps.
func (c *committer) waits(p place) {
	c.mu.Lock()
	was := c.status.Waiting
	c.status.Waiting = p.waits
	c.mu.Unlock()
	if p.full == "" {
		c.r.fulls.settled(c.url)
		return
	}
	c.r.fulls.want(c.url, p.full, p.epoch)
	if p.from != 0 {
		c.r.addGap(Gap{Store: c.url, From: manifest.Revision(p.from), To: manifest.Revision(p.to), Why: p.waits})
	}
	if was != p.waits && c.r.active.Load() {
		c.r.opts.Events.Emit(events.Warning{Chain: string(c.r.chain), Subject: c.url, Message: p.waits})
	}
}

// unreadable is for a tape that can't be read: what it held for this store is
// given up.
func (c *committer) unreadable(err error) error {
	if errors.Is(err, spool.ErrReleased) {
		return nil
	}
	return fmt.Errorf("read the spool: %w", err)
}

// giveUp detaches from a section that is damaged on the disk, if that is why a
// cut failed. What can't be read is a gap.
func (c *committer) giveUp(cut *cut, err error) {
	if !errors.Is(err, spool.ErrDamaged) {
		return
	}
	c.broken[cut.section.id] = true
	c.r.addGap(Gap{Store: c.url, From: manifest.Revision(c.at.next), Why: errSpoiled.Error()})
	c.detach()
}

// links are where the stores' chains are, as far as they have said.
func (r *Recorder) links() []link {
	var list []link
	for _, c := range r.committers {
		c.mu.Lock()
		if t := c.tip; t != nil && t.Base != 0 && !c.lost {
			list = append(list, link{cluster: uint64(t.ClusterID), epoch: t.Epoch, last: int64(t.Last)})
		}
		c.mu.Unlock()
	}
	return list
}

// newestFull is what the newest full of an etcd says of it, of all stores' that
// have answered; nil if there is none.
func (r *Recorder) newestFull(cluster uint64) (newest *manifest.Etcd) {
	made := time.Time{}
	for _, c := range r.committers {
		c.mu.Lock()
		if t := c.tip; t != nil && t.Full != nil && uint64(t.Full.ClusterID) == cluster && (newest == nil || t.BaseTime.After(made)) {
			newest, made = t.Full, t.BaseTime
		}
		c.mu.Unlock()
	}
	return newest
}

// forked ends the watch because a chain holds another history than a section,
// which is still the newest.
func (r *Recorder) forked(section int64, why string) {
	if r.tape.newest() == section {
		r.stopWatch(fmt.Errorf("%w: %s", errElsewhere, why))
	}
}

// spoiled ends the watch because its section can't be read.
func (r *Recorder) spoiled(section int64) {
	if r.tape.newest() == section {
		r.stopWatch(errSpoiled)
	}
}

// standDown ends the watch if another recorder is ahead in every store that
// answers.
func (r *Recorder) standDown() {
	ahead := false
	for _, c := range r.committers {
		c.mu.Lock()
		if c.chain != nil && c.status.Err == "" && c.tip != nil {
			if !c.foreign {
				c.mu.Unlock()
				return
			}
			ahead = true
		}
		c.mu.Unlock()
	}
	if ahead {
		r.stopWatch(errStoodDown)
	}
}

func (r *Recorder) stopWatch(why error) {
	r.mu.Lock()
	stop := r.state.stop
	r.mu.Unlock()
	if stop != nil {
		stop(why)
	}
}

func (r *Recorder) noteCompaction(revision int64) {
	for {
		was := r.compacted.Load()
		if revision <= was || r.compacted.CompareAndSwap(was, revision) {
			return
		}
	}
}
