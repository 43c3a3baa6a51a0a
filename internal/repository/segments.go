package repository

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/manifest"
)

// Which segments a prune may take. Two reasons let one go: a roll-up that counts
// holds all that it holds, or no point in time that is to stay needs it.

// RolledUpGrace lies between a prune manifest and the deletion of the small
// segments that it names, if a roll-up that counts holds what they held. A
// restore that was about to read one finds its way anew. It is longer than a
// writer may take for a commit.
const RolledUpGrace = 2 * time.Hour

// holdsAll reports whether others hold all that a segment does: its revisions,
// and how long nothing more was made.
func holdsAll(others []piece, p manifest.Reach) bool {
	var same []piece
	for _, r := range others {
		if r.Epoch == p.Epoch && r.First <= p.Last+1 && r.Last >= p.First-1 {
			same = append(same, r)
		}
	}
	slices.SortFunc(same, func(a, b piece) int { return cmp.Compare(a.First, b.First) })
	if _, ok := cover(same, p.First, p.Last); !ok {
		return false
	}
	return slices.ContainsFunc(same, func(r piece) bool {
		return r.First-1 <= p.Last && p.Last <= r.Last && !r.LastTime.Before(p.LastTime)
	})
}

// rollUps are those of a view's that pass.
func (v *View) rollUps(counts func(piece) bool) []piece {
	return slices.DeleteFunc(v.pieces(), func(p piece) bool { return !p.RollUp || !counts(p) })
}

// sound reports whether a roll-up's own signature was checked and the store
// holds its data, in the size that it says. No other one replaces anything.
func (v *View) sound(p piece, size func(name string) int64) bool {
	s := v.st.slots[p.entry.Sequence]
	return s != nil && s.m != nil && s.signers != nil && s.hash == p.entry.Hash && !v.st.bad[p.entry.Sequence] &&
		size(s.m.Objects[0].Name) == s.m.Objects[0].Size
}

// replaced are the places of the small segments that roll-ups hold whole.
func (v *View) replaced(rollUps []piece) map[manifest.Sequence]bool {
	gone := map[manifest.Sequence]bool{}
	for _, p := range v.pieces() {
		if !p.RollUp && holdsAll(rollUps, p.Reach) && !v.disputed(rollUps, p) {
			gone[p.entry.Sequence] = true
		}
	}
	return gone
}

// disputed reports whether a small segment says what the roll-ups don't: it ends
// with other events than one of them says its last revision had, which are two
// histories in one epoch, or knows of times before theirs. Then none goes.
func (v *View) disputed(rollUps []piece, p piece) bool {
	mark := v.mark(p)
	if slices.ContainsFunc(rollUps, func(r piece) bool {
		if r.Epoch != p.Epoch || r.Last != p.Last {
			return false
		}
		a, _, _ := strings.Cut(mark, ":")
		b, _, _ := strings.Cut(v.mark(r), ":")
		return a == b && mark != v.mark(r)
	}) {
		return true
	}
	since := v.tells(p)
	return !since.IsZero() && !slices.ContainsFunc(rollUps, func(r piece) bool {
		return r.Epoch == p.Epoch && r.First <= p.First && p.First <= r.Last+1 && !v.tells(r).After(since)
	})
}

// tells is the first time that a segment knows a revision for; zero if none.
func (v *View) tells(p piece) time.Time {
	if s := v.st.slots[p.entry.Sequence]; s != nil && s.m != nil && s.m.Span != nil {
		if moments := s.m.Span.Moments(); len(moments) > 0 {
			return moments[0].At
		}
	}
	return time.Time{}
}

func (v *View) mark(p piece) string {
	if s := v.st.slots[p.entry.Sequence]; s != nil && s.m != nil && s.m.Span != nil {
		return s.m.Span.Mark
	}
	return ""
}

// window is what the points of a time until now, and the latest, are restored
// from.
type window struct {
	bases  map[manifest.ID]bool       // fulls
	pieces map[manifest.Sequence]bool // places of segments
}

// window finds what the points since start need. It errs on the side of keeping:
// a segment counts as recorded when it says or when the store took it, whichever
// is later, so no wrong clock of a recorder takes it away early. Segments that
// wait for a full stay as long as one may be on its way that leads into them.
func (v *View) window(start, now time.Time) window {
	w := window{bases: map[manifest.ID]bool{}, pieces: map[manifest.Sequence]bool{}}
	lines := v.lines()
	latest := -1
	for i, l := range lines {
		if l.restorable() { // the last of the newest epoch that can be restored
			latest = i
		}
	}
	for i := range lines {
		since := start
		if waits := now.Add(-GiveUpAfter - skewMargin); !lines[i].restorable() && waits.Before(since) {
			since = waits
		}
		v.keepLine(&w, &lines[i], since, i == latest)
	}
	return w
}

func (v *View) keepLine(w *window, l *line, start time.Time, latest bool) {
	recorded := func(p piece) time.Time {
		at := p.LastTime
		if s := v.st.slots[p.entry.Sequence]; s != nil && s.modified.After(at) {
			at = s.modified
		}
		return at
	}
	pieces := slices.Clone(l.pieces)
	slices.SortStableFunc(pieces, func(a, b piece) int { return recorded(a).Compare(recorded(b)) })
	within := slices.IndexFunc(pieces, func(p piece) bool { return !recorded(p).Before(start) })
	if within < 0 {
		within = len(pieces)
	}
	if len(pieces) == 0 || within == len(pieces) && l.until.Before(start) && !latest {
		return
	}
	// What was true in the window's first second the segment before tells.
	needed := pieces[max(0, within-1):]
	from := l.to
	for _, p := range needed {
		from = min(from, p.First-1)
	}
	base := from
	if len(l.fulls) > 0 {
		base = max(base, l.fulls[0].Etcd.Revision) // from there on
		for _, class := range []func(Backup) bool{
			func(Backup) bool { return true },
			func(b Backup) bool { return len(b.Degraded) == 0 },
			func(b Backup) bool { return b.Proved },
		} {
			for _, b := range slices.Backward(l.fulls) {
				if class(b) && b.Etcd.Revision <= max(from, l.fulls[0].Etcd.Revision) {
					w.bases[b.ID] = true
					base = min(base, b.Etcd.Revision)
					break
				}
			}
		}
	} else {
		base = 0 // a full may be on its way that leads into them
	}
	for _, p := range needed {
		if p.Last >= base { // also if nothing was made in it: it tells the time
			w.pieces[p.entry.Sequence] = true
		}
	}
	for _, p := range l.pieces {
		if p.Last > base {
			w.pieces[p.entry.Sequence] = true
		}
	}
}

// light reports whether a prune names nothing but small segments and other
// prunes. It waits no longer than they do.
func light(p *manifest.Prune) bool {
	if len(p.Drop) > 0 || len(p.Manifests) == 0 {
		return false
	}
	ids := map[manifest.ID]bool{}
	for _, e := range p.Manifests {
		if e.Kind != manifest.KindPrune && !(e.Kind == manifest.KindSegment && e.Reach != nil && !e.Reach.RollUp) {
			return false
		}
		ids[e.ID] = true
	}
	return !slices.ContainsFunc(p.Objects, func(name string) bool { return !ids[idOf(name)] })
}

// idOf is the backup that a data object belongs to.
func idOf(name string) manifest.ID {
	parts := strings.Split(name, "/")
	if len(parts) < 2 {
		return ""
	}
	return manifest.ID(parts[len(parts)-2])
}
