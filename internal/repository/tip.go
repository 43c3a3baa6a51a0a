package repository

import (
	"context"
	"fmt"
	"slices"
	"time"

	"lifeboat/internal/manifest"
)

// Tip is how far a chain of one etcd reaches, in its newest epoch.
type Tip struct {
	Sequence  manifest.Sequence // of the head; 0: the chain is empty
	Hash      manifest.Hash     // of the head's text
	Epoch     uint64            // of the head: what a segment's draft carries. 1 for an empty chain
	ClusterID manifest.EtcdID   // of the epoch's etcd; 0 if unknown

	// Base is the revision of the epoch's furthest full; 0: it has none, and
	// nothing can be restored.
	Base     manifest.Revision
	BaseTime time.Time      // when the capture of the newest full of that revision began
	Full     *manifest.Etcd // what that full says of etcd; nil if there is none, not to be changed

	// Last is the revision up to which everything from Base on is held: Base
	// itself, or the last of the segments that go on from it without a gap.
	Last     manifest.Revision
	LastTime time.Time // as of when Last is known to hold everything; zero if unknown
	Mark     string    // of revision Last; empty if unknown

	// Recorded is the revision that segments reach without a gap from any full
	// of the epoch on; 0 if none do. It lies below Last while a full is ahead
	// of the segments: the revisions between can't be restored one by one.
	Recorded     manifest.Revision
	RecordedMark string

	Writer manifest.Writer // of the epoch's newest segment; zero if it has none
}

// run is a range of revisions that segments of one epoch hold without a gap.
type run struct {
	first, last manifest.Revision // last is first-1 if they only move the recovery point
	until       time.Time         // all that was acknowledged before is at or below last
	end         manifest.Entry    // of the newest segment that ends at last
	mark        string            // of last; empty if that segment was not read
}

// coverage is what segments and fulls of a chain's newest epoch hold. Only
// segments give back the revisions between: a full covers none.
type coverage struct {
	runs    []run // ascending, with a revision missing between any two
	fulls   []*manifest.Manifest
	cluster manifest.EtcdID
	newest  manifest.Entry  // the newest segment
	writer  manifest.Writer // of it
}

// add takes in a segment. m is nil if only its entry is known.
func (c *coverage) add(e manifest.Entry, m *manifest.Manifest) {
	if e.Sequence > c.newest.Sequence {
		c.newest, c.writer = e, manifest.Writer{}
		if m != nil {
			c.writer = m.Writer
		}
	}
	r := run{first: e.Reach.First, last: e.Reach.Last, until: e.Reach.LastTime, end: e}
	if m != nil {
		r.mark = m.Span.Mark
	}
	// From the end: nearly always it continues the last run.
	at := len(c.runs)
	for at > 0 && c.runs[at-1].first > r.last+1 {
		at--
	}
	from := at
	for from > 0 && c.runs[from-1].last+1 >= r.first {
		from--
		r = r.join(c.runs[from])
	}
	c.runs = slices.Replace(c.runs, from, at, r)
}

// join merges two runs that touch.
func (r run) join(other run) run {
	if other.last > r.last || other.last == r.last && (r.mark == "" || other.end.Sequence > r.end.Sequence && other.mark != "") {
		r.last, r.end, r.mark = other.last, other.end, other.mark
	}
	r.first = min(r.first, other.first)
	if other.until.After(r.until) {
		r.until = other.until
	}
	return r
}

// from is the run that goes on from a full at a revision; nil if none does.
func (c *coverage) from(base manifest.Revision) *run {
	for i := range c.runs {
		if r := &c.runs[i]; r.first <= base+1 && base <= r.last {
			return r
		}
	}
	return nil
}

// holds reports whether segments hold a span already, as of its time or later.
func (c *coverage) holds(s *manifest.Span) bool {
	return slices.ContainsFunc(c.runs, func(r run) bool {
		return r.first <= s.First && s.Last <= r.last && !s.LastTime.After(r.until)
	})
}

// furthest is the full that goes furthest; nil if there is none.
func (c *coverage) furthest() (best *manifest.Manifest) {
	for _, m := range c.fulls {
		if best == nil || m.Etcd.Revision > best.Etcd.Revision {
			best = m
		}
	}
	return best
}

// coverageOf finds out what a view's newest epoch holds. It reads the manifests
// of fulls as far back as it needs.
func (r *Repository) coverageOf(ctx context.Context, view *View) (*coverage, error) {
	c := &coverage{}
	if view.Head == nil {
		return c, nil
	}
	for _, e := range view.st.live {
		var m *manifest.Manifest
		if s := view.st.slots[e.Sequence]; s != nil && s.m != nil && s.hash == e.Hash {
			m = s.m
			e.Reach = m.Reach()
		}
		if e.Kind == manifest.KindSegment && e.Reach != nil && e.Reach.Epoch == view.Head.Epoch {
			c.add(e, m)
		}
	}
	var err error
	if c.fulls, err = r.fullsOf(ctx, view, c); err != nil {
		return nil, fmt.Errorf("read the fulls of %s: %w", view.Chain, err)
	}
	if full := c.furthest(); full != nil {
		c.cluster = full.Etcd.ClusterID
	}
	if c.newest.Sequence != 0 && (c.writer == manifest.Writer{} || c.cluster == 0) {
		s, err := r.slotOf(ctx, view, c.newest)
		if err != nil {
			return nil, err
		}
		if s.m != nil && s.m.Span != nil {
			c.writer = s.m.Writer
			if c.cluster == 0 {
				c.cluster = s.m.Span.ClusterID
			}
		}
	}
	return c, r.markRuns(ctx, view, c)
}

// fullsOf are the recent fulls of the newest epoch, and older ones back to one
// that segments go on from.
func (r *Repository) fullsOf(ctx context.Context, view *View, c *coverage) ([]*manifest.Manifest, error) {
	list, err := r.recentFulls(ctx, view)
	if err != nil {
		return nil, err
	}
	continued := func(m *manifest.Manifest) bool {
		run := c.from(m.Etcd.Revision)
		return run != nil && run.last >= run.first
	}
	list = slices.DeleteFunc(list, func(m *manifest.Manifest) bool { return m.Epoch != view.Head.Epoch })
	if len(list) == 0 || len(c.runs) == 0 || slices.ContainsFunc(list, continued) {
		return list, nil
	}
	for _, e := range slices.Backward(view.st.live) {
		if e.Kind != manifest.KindFull || len(list) >= mostRecent || e.Sequence >= list[len(list)-1].Sequence {
			continue
		}
		s, err := r.slotOf(ctx, view, e)
		if err != nil {
			return nil, err
		}
		if s.m == nil || s.m.Etcd == nil {
			continue
		}
		if s.m.Epoch != view.Head.Epoch {
			break
		}
		if list = append(list, s.m); continued(s.m) {
			break
		}
	}
	return list, nil
}

// markRuns reads the marks of the last revisions of the runs that a tip may tell of.
func (r *Repository) markRuns(ctx context.Context, view *View, c *coverage) error {
	for _, full := range c.fulls {
		run := c.from(full.Etcd.Revision)
		if run == nil || run.mark != "" {
			continue
		}
		s, err := r.slotOf(ctx, view, run.end)
		if err != nil {
			return err
		}
		if s.m != nil && s.m.Span != nil {
			run.mark = s.m.Span.Mark
		}
	}
	return nil
}

// tip tells of the coverage behind a head.
func (c *coverage) tip(head manifest.Sequence, hash manifest.Hash, epoch uint64) *Tip {
	t := &Tip{Sequence: head, Hash: hash, Epoch: epoch, ClusterID: c.cluster, Writer: c.writer}
	full := c.furthest()
	if full == nil {
		return t
	}
	t.Base = full.Etcd.Revision
	for _, m := range c.fulls {
		if m.Etcd.Revision == t.Base && (t.Full == nil || m.Created.After(t.BaseTime)) {
			t.BaseTime, t.Full = m.Created, m.Etcd
		}
	}
	t.Last, t.Mark = t.Base, full.Etcd.Mark
	if len(full.Degraded) == 0 { // a degraded one may be of a member that lagged
		t.LastTime = full.Created
	}
	if run := c.from(t.Base); run != nil {
		if run.last > t.Last || run.mark != "" {
			t.Last, t.Mark = run.last, run.mark
		}
		if run.until.After(t.LastTime) {
			t.LastTime = run.until
		}
	}
	for _, m := range c.fulls {
		if run := c.from(m.Etcd.Revision); run != nil && run.last >= run.first && run.last > t.Recorded {
			t.Recorded, t.RecordedMark = run.last, run.mark
		}
	}
	return t
}

// fits says why a segment has no place behind the coverage: ErrReplaced if it
// is of another history, ErrCovered if it adds nothing.
func (c *coverage) fits(draft *manifest.Manifest, epoch uint64) error {
	s := draft.Span
	switch {
	case s == nil:
		return fmt.Errorf("a segment without a span")
	case draft.Epoch != 0 && draft.Epoch != epoch:
		return fmt.Errorf("%w: it continues epoch %d, and the chain is in epoch %d", ErrReplaced, draft.Epoch, epoch)
	case c.cluster != 0 && s.ClusterID != c.cluster:
		return fmt.Errorf("%w: it is of cluster %s, and the chain of %s", ErrReplaced, s.ClusterID, c.cluster)
	case !s.RollUp && c.holds(s):
		return fmt.Errorf("%w: revisions %d to %d as of %s", ErrCovered, s.First, s.Last, s.LastTime.Format(time.RFC3339))
	}
	return nil
}

// fits says why a segment has no place behind a view.
func (r *Repository) fits(ctx context.Context, view *View, draft *manifest.Manifest) error {
	c, err := r.coverageOf(ctx, view)
	if err != nil {
		return err
	}
	return c.fits(draft, view.epoch())
}

// epoch is the one that the next segment belongs to.
func (v *View) epoch() uint64 {
	if v.Head == nil {
		return 1
	}
	return v.Head.Epoch
}
