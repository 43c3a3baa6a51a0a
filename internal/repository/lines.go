package repository

import (
	"cmp"
	"slices"
	"time"

	"lifeboat/internal/manifest"
)

// piece is one segment as the chain tells of it.
type piece struct {
	manifest.Reach
	entry manifest.Entry
}

// line is a range of revisions of one epoch that segments hold without a gap,
// with the fulls that it can be entered by. A full that no segment continues is
// a line of its own, and so are segments that no full leads into.
type line struct {
	epoch    uint64
	from, to manifest.Revision // the pieces hold all of these; to is from-1 if they hold none
	until    time.Time         // all that was acknowledged before is at or below to
	pieces   []piece           // by their first revision
	fulls    []Backup          // by revision, then as in the chain
}

// pieces are the segments of a view. Of those that were not read, an index says
// what they hold. What is damaged and not indexed says nothing; it is a failure
// of the chain.
func (v *View) pieces() []piece {
	var list []piece
	for _, e := range v.st.live {
		if e.Kind != manifest.KindSegment {
			continue
		}
		reach := e.Reach
		if s := v.st.slots[e.Sequence]; s != nil && s.m != nil && s.hash == e.Hash {
			reach = s.m.Reach()
		}
		if reach != nil {
			list = append(list, piece{*reach, e})
		}
	}
	return list
}

// lines sorts what a view holds of etcd's history, by epoch and revision.
func (v *View) lines() []line { return linesOf(v.pieces(), v.Backups()) }

func linesOf(pieces []piece, backups []Backup) []line {
	// A full at revision R counts as an empty piece behind R: it continues what
	// reaches R and is continued by what begins at R+1, and joins nothing else.
	type part struct {
		epoch       uint64
		first, last manifest.Revision
		seq         manifest.Sequence
		piece       *piece
		full        *Backup
	}
	var parts []part
	for i := range pieces {
		p := &pieces[i]
		parts = append(parts, part{p.Epoch, p.First, p.Last, p.entry.Sequence, p, nil})
	}
	for i := range backups {
		if b := &backups[i]; b.Etcd != nil {
			parts = append(parts, part{b.Epoch, b.Etcd.Revision + 1, b.Etcd.Revision, b.Sequence, nil, b})
		}
	}
	slices.SortFunc(parts, func(a, b part) int {
		return cmp.Or(cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.first, b.first), cmp.Compare(a.seq, b.seq))
	})
	var lines []line
	for _, p := range parts {
		if n := len(lines); n == 0 || lines[n-1].epoch != p.epoch || p.first > lines[n-1].to+1 {
			lines = append(lines, line{epoch: p.epoch, from: p.first, to: p.first - 1})
		}
		l := &lines[len(lines)-1]
		l.to = max(l.to, p.last)
		if p.full != nil {
			l.fulls = append(l.fulls, *p.full)
		} else {
			l.pieces = append(l.pieces, *p.piece)
		}
	}
	for i := range lines {
		lines[i].setUntil()
	}
	return lines
}

func (l *line) setUntil() {
	for _, p := range l.pieces {
		if p.LastTime.After(l.until) {
			l.until = p.LastTime
		}
	}
	for _, b := range l.fulls {
		// A degraded full may be of a member that lagged: that it found nothing
		// new says nothing.
		if alone := len(l.pieces) == 0; (alone || len(b.Degraded) == 0) && b.Etcd.Revision == l.to && b.Created.After(l.until) {
			l.until = b.Created
		}
	}
}

// restorable reports whether the line can be entered at all.
func (l *line) restorable() bool { return len(l.fulls) > 0 }

// holds reports whether a revision can be restored from the line.
func (l *line) holds(rev manifest.Revision) bool {
	return l.restorable() && l.fulls[0].Etcd.Revision <= rev && rev <= l.to
}

// begins is when the line's first full was captured; of several that are alike,
// the first of them.
func (l *line) begins() time.Time {
	at := l.fulls[0].Created
	for _, b := range l.fulls {
		if b.Etcd.Revision == l.fulls[0].Etcd.Revision && b.Created.Before(at) {
			at = b.Created
		}
	}
	return at
}

// first and last are the line's ends, as points.
func (l *line) first() NearPoint {
	b := l.fulls[0]
	for _, other := range l.fulls {
		if other.Etcd.Revision == b.Etcd.Revision && len(other.Degraded) < len(b.Degraded) {
			b = other
		}
	}
	return NearPoint{Epoch: l.epoch, Revision: b.Etcd.Revision, Time: l.begins(), Backup: b.ID}
}

func (l *line) last() NearPoint {
	p := NearPoint{Epoch: l.epoch, Revision: l.to, Time: l.until}
	if b := bestBase(l.fulls, l.to); b.Etcd.Revision == l.to {
		p.Backup = b.ID
	}
	return p
}

// bestBase is the full to start from for a revision; nil if all lie above it. A
// whole one of exactly that revision needs no segments. Else better ones come
// before newer ones: an unproved full may hold more than its manifest says, a
// degraded one may be of a member that went wrong, and segments cost only time.
func bestBase(fulls []Backup, rev manifest.Revision) *Backup {
	var best *Backup
	rank := func(b *Backup) int {
		switch {
		case len(b.Degraded) > 0:
			return 0
		case b.Etcd.Revision == rev:
			return 3
		case b.Proved:
			return 2
		}
		return 1
	}
	for i := range fulls {
		b := &fulls[i]
		if b.Etcd.Revision > rev {
			continue
		}
		if best == nil || cmp.Or(cmp.Compare(rank(b), rank(best)), cmp.Compare(b.Etcd.Revision, best.Etcd.Revision),
			boolCompare(b.Proved, best.Proved), cmp.Compare(b.Sequence, best.Sequence)) > 0 {
			best = b
		}
	}
	return best
}

// cover chooses the fewest of the pieces, given by their first revision, that
// hold all of from to to. It reports whether they do.
func cover(pieces []piece, from, to manifest.Revision) ([]piece, bool) {
	var chosen []piece
	var best *piece
	better := func(p *piece) bool {
		if best == nil {
			return true
		}
		return cmp.Or(cmp.Compare(min(p.Last, to), min(best.Last, to)), boolCompare(p.RollUp, best.RollUp),
			cmp.Compare(p.First, best.First), cmp.Compare(p.entry.Sequence, best.entry.Sequence)) > 0
	}
	for i := 0; from <= to; from = best.Last + 1 {
		for ; i < len(pieces) && pieces[i].First <= from; i++ {
			if better(&pieces[i]) {
				best = &pieces[i]
			}
		}
		if best == nil || best.Last < from {
			return chosen, false
		}
		chosen = append(chosen, *best)
	}
	return chosen, true
}
