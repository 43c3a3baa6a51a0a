package repository

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"lifeboat/internal/manifest"
)

// aim finds the revision that the point means, by what the whole chain claims to
// hold: what is lost of it must not make the answer an older one.
func (w *router) aim(ctx context.Context) (aimed, error) {
	switch {
	case w.point.Revision != 0:
		return w.aimRevision()
	case !w.point.Time.IsZero():
		return w.aimTime(ctx)
	}
	epoch := w.lines[len(w.lines)-1].epoch
	if w.point.Epoch != 0 {
		epoch = w.point.Epoch
	}
	var furthest *line
	for i := range w.lines {
		if l := &w.lines[i]; l.epoch == epoch && l.restorable() {
			furthest = l
		}
	}
	if furthest == nil {
		before, after := w.nearRevision(epoch, 0)
		return aimed{}, w.unreachable(before, after, "no full of its epoch is there")
	}
	return aimed{line: furthest, rev: furthest.to}, nil
}

// holding is the line that a revision can be restored from; -1 if none.
func (w *router) holding(epoch uint64, rev manifest.Revision) int {
	return slices.IndexFunc(w.lines, func(l line) bool { return l.epoch == epoch && l.holds(rev) })
}

// aimRevision takes the newest epoch that reaches from below the revision to
// above it. If the revision lies in one of that epoch's gaps, an older history's
// revision of the same number is not what was meant.
func (w *router) aimRevision() (aimed, error) {
	rev, epoch := w.point.Revision, w.point.Epoch
	if epoch == 0 {
		epoch = w.epochOf(rev)
	}
	if i := w.holding(epoch, rev); i >= 0 {
		return aimed{line: &w.lines[i], rev: rev, exact: true}, nil
	}
	before, after := w.nearRevision(epoch, rev)
	return aimed{}, w.unreachable(before, after, w.why(before, after))
}

// epochOf is the newest epoch with points on both sides of a revision; if none
// has, the newest that begins below it, or the oldest.
func (w *router) epochOf(rev manifest.Revision) uint64 {
	lowest, highest := map[uint64]manifest.Revision{}, map[uint64]manifest.Revision{}
	var epochs []uint64 // ascending
	for _, l := range w.lines {
		if !l.restorable() {
			continue
		}
		if _, known := lowest[l.epoch]; !known {
			lowest[l.epoch] = l.fulls[0].Etcd.Revision
			epochs = append(epochs, l.epoch)
		}
		highest[l.epoch] = l.to
	}
	below := epochs[0]
	for _, epoch := range slices.Backward(epochs) {
		switch {
		case lowest[epoch] <= rev && rev <= highest[epoch]:
			return epoch
		case lowest[epoch] <= rev && below == epochs[0]:
			below = epoch
		}
	}
	return below
}

// aimTime takes the newest epoch that had begun by then, since an older one's
// etcd was no longer the one in use, and of it the last line.
func (w *router) aimTime(ctx context.Context) (aimed, error) {
	at := whole(w.point.Time)
	var in *line
	for i := range w.lines {
		l := &w.lines[i]
		if !l.restorable() || w.point.Epoch != 0 && l.epoch != w.point.Epoch || l.begins().Truncate(time.Second).After(at) {
			continue
		}
		in = l
	}
	if in == nil {
		before, after := w.nearTime(at)
		return aimed{}, w.unreachable(before, after, w.why(before, after))
	}
	// The capture of a line's first full may have begun while the line before was
	// still recorded: then that one tells of the time until its revision was made.
	for i := range w.lines {
		l := &w.lines[len(w.lines)-1-i]
		if at.After(in.until) || l.epoch != in.epoch || !l.restorable() || at.After(l.until) || l.begins().Truncate(time.Second).After(at) {
			continue
		}
		rev, precise, err := w.revisionAt(ctx, l, at)
		if err != nil {
			return aimed{}, err
		}
		if l.holds(rev) {
			return aimed{line: l, rev: rev, limit: at, exact: precise}, nil
		}
	}
	if b := w.fullAt(in.epoch, at); b != nil {
		i := w.holding(b.Epoch, b.Etcd.Revision)
		return aimed{line: &w.lines[i], rev: b.Etcd.Revision, exact: true}, nil
	}
	before, after := w.nearTime(at)
	if !at.After(in.until) { // before its first full was surely made
		first := in.first()
		after = &first
	}
	return aimed{}, w.unreachable(before, after, w.why(before, after))
}

// fullAt is the best full whose capture began in the second of at; nil if none did.
func (w *router) fullAt(epoch uint64, at time.Time) *Backup {
	var found []Backup
	for _, l := range w.lines {
		for _, b := range l.fulls {
			if b.Epoch == epoch && b.Created.Truncate(time.Second).Equal(at.Truncate(time.Second)) {
				found = append(found, b)
			}
		}
	}
	if len(found) == 0 {
		return nil
	}
	bestFirst(found)
	return &found[0]
}

// about is how many segments around a time are read to find the moments next to
// it: recorders overlap, and a roll-up holds what small ones do.
const about = 4

// beat is how far apart a recorder's moments are at most while there are changes,
// with some room.
const beat = 5 * time.Second

// around are the last moment of a segment that is not after a time, and the next.
func around(s *manifest.Span, at time.Time) (before, after *manifest.Moment) {
	for _, m := range s.Moments() {
		if m.At.After(at) {
			return before, &m
		}
		before = &m
	}
	return before, nil
}

// revisionAt is the last revision of a line that is known to have been made
// before a time; 0 if none is. It is precise if a segment that was being recorded
// then has a moment just before, or nothing happened until its next: then no other
// segment knows better.
func (w *router) revisionAt(ctx context.Context, l *line, at time.Time) (rev manifest.Revision, precise bool, err error) {
	pieces := slices.Clone(l.pieces)
	slices.SortStableFunc(pieces, func(a, b piece) int {
		return cmp.Or(a.LastTime.Compare(b.LastTime), cmp.Compare(a.Last, b.Last))
	})
	here, _ := slices.BinarySearchFunc(pieces, at, func(p piece, at time.Time) int { return p.LastTime.Compare(at) })
	// A roll-up ends long after the times that it tells of. Of the small ones that
	// it replaces, those may be left that end before it, and tell of other times.
	var long []piece
	for _, p := range pieces[min(len(pieces), here+about):] {
		if p.RollUp && len(long) < about {
			long = append(long, p)
		}
	}
	found := false
	for from, to := max(0, here-about), min(len(pieces), here+about); ; from, to = max(0, from-about), from {
		list, err := w.confirm(ctx, append(pieces[from:to:to], long...))
		if err != nil {
			return 0, false, err
		}
		long = nil
		for _, m := range list {
			if m == nil {
				continue
			}
			before, after := around(m.Span, at)
			if before == nil {
				continue
			}
			found, rev = true, max(rev, before.AtLeast)
			precise = precise || !m.Span.LastTime.Before(at) && (at.Sub(before.At) <= beat || after != nil && after.AtMost <= before.AtLeast)
		}
		if found || from == 0 {
			break
		}
	}
	rev = min(rev, l.to)
	if bad := slices.Collect(maps.Values(w.bad)); len(bad) > 0 && !precise {
		return 0, false, &VerificationError{Doing: "find the revision of " + at.UTC().Format(time.RFC3339), Problems: sortProblems(bad)}
	}
	return rev, precise, nil
}

// nearRevision are the points next to a revision of an epoch.
func (w *router) nearRevision(epoch uint64, rev manifest.Revision) (before, after *NearPoint) {
	for i := range w.lines {
		l := &w.lines[i]
		if !l.restorable() {
			continue
		}
		if first := l.first(); after == nil && cmp.Or(cmp.Compare(l.epoch, epoch), cmp.Compare(first.Revision, rev)) > 0 {
			after = &first
		}
		switch {
		case l.epoch == epoch && l.holds(rev):
			p := NearPoint{Epoch: epoch, Revision: rev, Time: l.until}
			before = &p
		case cmp.Or(cmp.Compare(l.epoch, epoch), cmp.Compare(l.to, rev)) < 0:
			last := l.last()
			before = &last
		}
	}
	return before, after
}

// nearTime are the points next to a time.
func (w *router) nearTime(at time.Time) (before, after *NearPoint) {
	for i := range w.lines {
		l := &w.lines[i]
		if !l.restorable() {
			continue
		}
		if first := l.first(); first.Time.After(at) && (after == nil || first.Time.Before(after.Time)) {
			after = &first
		}
		if last := l.last(); !last.Time.After(at) && (before == nil || !last.Time.Before(before.Time)) {
			before = &last
		}
	}
	return before, after
}

func (w *router) unreachable(before, after *NearPoint, why string) error {
	return &UnreachableError{Chain: w.v.Chain, Point: w.point, Before: before, After: after, Why: why}
}

func (w *router) why(before, after *NearPoint) string {
	switch {
	case before == nil:
		return "it lies before the oldest full that is kept"
	case after == nil && !w.point.Time.IsZero() && w.r != nil && w.point.Time.After(w.r.now()):
		return "it lies in the future"
	case after == nil && w.point.Epoch > before.Epoch:
		return fmt.Sprintf("nothing is recorded of epoch %d", w.point.Epoch)
	case after == nil:
		return "it lies after all that is recorded"
	case before.Epoch != after.Epoch:
		return "it lies between two histories of etcd, where nothing is recorded"
	}
	return "it lies in a gap, where no segments continue the last full"
}
