package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/manifest"
)

// Route finds the way to a point. The latest is the furthest that the newest
// epoch reaches, with its segments. A revision is exact. Of a time it is the last
// revision that is known to have been made by then, and nothing after it. A full
// is a point of its own: its revision, the second in which its capture began, and
// its id, which means it alone.
//
// It returns *UnreachableError for a point that the chain can't give back,
// ErrNothing if the chain holds no backup, and ErrVerification, as Resolve does,
// if something is lost or damaged that could hide the right answer or is needed
// for it. It never gives an older answer instead.
func (r *Repository) Route(ctx context.Context, chain manifest.Chain, point Point) (*Route, error) {
	return r.RouteWithout(ctx, chain, point, nil)
}

// RouteWithout is Route for one who found the data of some segments or fulls
// missing or damaged: it comes to the same point without them, or says that it
// can't.
func (r *Repository) RouteWithout(ctx context.Context, chain manifest.Chain, point Point, lost []manifest.ID) (*Route, error) {
	doing := fmt.Sprintf("find %s in %s of %s", point, chain, r.opts.Name)
	if point.Backup != "" || !strings.HasPrefix(string(chain), "etcd/") {
		return r.routeToBackup(ctx, chain, point)
	}
	v, views, err := r.withWitnesses(ctx, chain)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	v.Problems = sortProblems(append(v.Problems, r.witnessed(v, views)...))
	w := &router{
		r: r, v: v, point: point, lines: v.lines(), bad: map[manifest.Sequence]Problem{},
		read: map[manifest.Sequence]*manifest.Manifest{}, badBases: map[manifest.ID]Problem{}, noData: map[manifest.Sequence]Problem{},
	}
	w.without(lost)
	route, err := w.route(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return route, nil
}

// routeToBackup is the way to one full, or to a node's files.
func (r *Repository) routeToBackup(ctx context.Context, chain manifest.Chain, point Point) (*Route, error) {
	b, v, err := r.resolve(ctx, chain, point)
	if err != nil {
		return nil, err
	}
	route := &Route{Point: point, Chain: chain, Epoch: b.Epoch, Base: *b, At: b.Created}
	if b.Etcd != nil {
		route.Revision = b.Etcd.Revision
		w := &router{v: v, lines: v.lines()}
		if i := w.holding(b.Epoch, route.Revision); i >= 0 {
			route.After = w.after(&w.lines[i], route.Revision)
		}
	}
	return route, nil
}

// router looks for one route in one view.
type router struct {
	r     *Repository
	v     *View
	point Point
	lines []line // by the word of the whole chain, whatever turns out to be lost

	read     map[manifest.Sequence]*manifest.Manifest // segments whose own signature counts
	bad      map[manifest.Sequence]Problem            // places of segments that are not what the chain says
	noData   map[manifest.Sequence]Problem            // segments that the caller can't use; what they say of times counts
	badBases map[manifest.ID]Problem                  // fulls that are not what the chain says, or that the caller can't use
}

// without takes out what the caller has found to be lost.
func (w *router) without(lost []manifest.ID) {
	for i := range w.lines {
		for _, b := range w.lines[i].fulls {
			if slices.Contains(lost, b.ID) {
				w.badBases[b.ID] = Problem{
					Object: w.v.st.name(b.Sequence), Chain: w.v.Chain, Sequence: b.Sequence, Kind: ObjectDamaged,
					Message: fmt.Sprintf("the data of backup %s, revision %d, is missing or damaged", b.ID, b.Etcd.Revision),
				}
			}
		}
		for _, p := range w.lines[i].pieces {
			if slices.Contains(lost, p.entry.ID) {
				w.noData[p.entry.Sequence] = Problem{
					Object: w.v.st.name(p.entry.Sequence), Chain: w.v.Chain, Sequence: p.entry.Sequence, Kind: ObjectDamaged,
					Message: fmt.Sprintf("the data of segment %s, revisions %d to %d, is missing or damaged", p.entry.ID, p.First, p.Last),
				}
			}
		}
	}
}

// aimed is the revision that a point means.
type aimed struct {
	line  *line
	rev   manifest.Revision
	limit time.Time // what At may not pass; zero: nothing
	exact bool      // no segment that we don't know could make it another revision of this epoch
}

func (w *router) route(ctx context.Context) (*Route, error) {
	if !slices.ContainsFunc(w.lines, func(l line) bool { return l.restorable() }) {
		if bad := w.v.hiding(nil); len(bad) > 0 {
			return nil, w.refuse(bad)
		}
		return nil, ErrNothing
	}
	t, err := w.aim(ctx)
	if err != nil {
		var unreachable *UnreachableError
		if errors.As(err, &unreachable) { // what is lost may be what would lead there
			if bad := w.v.hiding(nil); len(bad) > 0 {
				return nil, fmt.Errorf("%w (%w)", err, w.refuse(bad))
			}
		}
		return nil, err
	}
	route, err := w.plan(ctx, t)
	if err != nil {
		return nil, err
	}
	if bad := w.hiding(route, t); len(bad) > 0 {
		return nil, w.refuse(bad)
	}
	return route, w.describe(ctx, route, t)
}

func (w *router) refuse(problems []Problem) error {
	return &VerificationError{Doing: "look for the right answer", Problems: sortProblems(problems)}
}

// plan chooses the base and the segments. What turns out not to count is left
// out, and the next best way is tried, as long as one leads to the same revision.
func (w *router) plan(ctx context.Context, t aimed) (*Route, error) {
	for {
		base, pieces := w.way(t.line, t.rev)
		if base == nil {
			return nil, w.lost(t)
		}
		if err := w.r.confirm(ctx, base); err != nil {
			var refused *VerificationError
			if !errors.As(err, &refused) {
				return nil, err
			}
			w.badBases[base.ID] = refused.Problems[0]
			continue
		}
		segments, err := w.confirm(ctx, pieces)
		if err != nil {
			return nil, err
		}
		if slices.Contains(segments, nil) {
			continue
		}
		route := &Route{Point: w.point, Chain: w.v.Chain, Epoch: t.line.epoch, Base: *base, Revision: t.rev, Problems: w.problems(t.line)}
		for i, m := range segments {
			route.Segments = append(route.Segments, Segment{Manifest: m, Hash: pieces[i].entry.Hash})
		}
		return route, nil
	}
}

// way is the best base and cover of those that are not known to be bad; nil if
// there is none.
func (w *router) way(l *line, rev manifest.Revision) (*Backup, []piece) {
	fulls := slices.DeleteFunc(slices.Clone(l.fulls), func(b Backup) bool { _, bad := w.badBases[b.ID]; return bad })
	pieces := slices.DeleteFunc(slices.Clone(l.pieces), w.unusable)
	for {
		base := bestBase(fulls, rev)
		if base == nil {
			return nil, nil
		}
		if chosen, ok := cover(pieces, base.Etcd.Revision+1, rev); ok {
			return base, chosen
		}
		fulls = slices.DeleteFunc(fulls, func(b Backup) bool { return b.ID == base.ID })
	}
}

// lost is the error where nothing leads to a target that the chain knows of.
func (w *router) lost(t aimed) error {
	doing := fmt.Sprintf("restore revision %d of epoch %d", t.rev, t.line.epoch)
	before, after := w.left().nearRevision(t.line.epoch, t.rev)
	switch {
	case before != nil && after != nil:
		doing += fmt.Sprintf(" (before it %s can be had, after it %s)", before, after)
	case before != nil:
		doing += fmt.Sprintf(" (before it %s can be had)", before)
	case after != nil:
		doing += fmt.Sprintf(" (after it %s can be had)", after)
	}
	return &VerificationError{Doing: doing, Problems: sortProblems(w.problems(t.line))}
}

// left is what the chain holds without what was found to be bad.
func (w *router) left() *router {
	pieces := slices.DeleteFunc(w.v.pieces(), w.unusable)
	backups := slices.DeleteFunc(w.v.Backups(), func(b Backup) bool { _, bad := w.badBases[b.ID]; return bad })
	return &router{v: w.v, point: w.point, lines: linesOf(pieces, backups)}
}

// unusable reports whether a segment can't be part of a way.
func (w *router) unusable(p piece) bool {
	_, bad := w.bad[p.entry.Sequence]
	_, noData := w.noData[p.entry.Sequence]
	return bad || noData
}

// problems are those of a line's bad parts.
func (w *router) problems(l *line) []Problem {
	var list []Problem
	for _, p := range l.pieces {
		if bad, is := w.bad[p.entry.Sequence]; is {
			list = append(list, bad)
		} else if bad, is := w.noData[p.entry.Sequence]; is {
			list = append(list, bad)
		}
	}
	for _, b := range l.fulls {
		if bad, is := w.badBases[b.ID]; is {
			list = append(list, bad)
		}
	}
	return list
}

// confirm reads segments whose own signature was not checked yet. It returns nil
// in place of those that don't count, and notes why.
func (w *router) confirm(ctx context.Context, pieces []piece) ([]*manifest.Manifest, error) {
	var seqs []manifest.Sequence
	for _, p := range pieces {
		seq := p.entry.Sequence
		if s := w.v.st.slots[seq]; s != nil && s.m != nil && s.signers != nil && s.hash == p.entry.Hash && !w.v.st.bad[seq] {
			w.read[seq] = s.m
		}
		if _, bad := w.bad[seq]; !bad && w.read[seq] == nil {
			seqs = append(seqs, seq)
		}
	}
	slots, err := w.r.reader(w.v.Chain).readAll(ctx, seqs, nil)
	if err != nil {
		return nil, err
	}
	read := map[manifest.Sequence]*slot{}
	for _, s := range slots {
		read[s.seq] = s
	}
	out := make([]*manifest.Manifest, len(pieces))
	for i, p := range pieces {
		if s := read[p.entry.Sequence]; s != nil {
			w.judge(p, s)
		}
		if _, bad := w.bad[p.entry.Sequence]; !bad {
			out[i] = w.read[p.entry.Sequence]
		}
	}
	return out, nil
}

// judge notes what one place holds.
func (w *router) judge(p piece, s *slot) {
	bad := Problem{Object: w.v.st.name(s.seq), Chain: w.v.Chain, Sequence: s.seq}
	switch {
	case s.absent:
		bad.Kind, bad.Message = Hole, fmt.Sprintf("the manifest of revisions %d to %d is missing", p.First, p.Last)
	case s.m == nil:
		bad.Kind, bad.Message = s.kind, s.err.Error()
	case s.hash != p.entry.Hash || w.v.st.bad[s.seq]:
		bad.Kind, bad.Message = Unlinked, "it is a genuine manifest, and not the one that the chain names here"
	case !sameReach(s.m.Reach(), &p.Reach):
		bad.Kind, bad.Message = Unlinked, "it holds something else than an index of the chain says"
	default:
		w.read[s.seq] = s.m
		return
	}
	w.bad[s.seq] = bad
}

// hiding lists the failures because of which a route might not be the right
// answer. What an index says of a lost segment was heeded when the point was
// aimed at, so its loss hides nothing. The epochs of a chain never fall, so what
// is lost before the last manifest of an epoch is not of a later one.
func (w *router) hiding(route *Route, t aimed) []Problem {
	last := w.settled(route, t.line)
	if t.exact {
		for _, m := range w.v.Manifests {
			if m.Epoch == route.Epoch {
				last = max(last, m.Sequence)
			}
		}
		for _, p := range w.v.pieces() {
			if p.Epoch == route.Epoch {
				last = max(last, p.entry.Sequence)
			}
		}
	}
	if !t.limit.IsZero() && !t.exact { // whatever is lost may have known better
		return w.v.hiding(nil)
	}
	known := map[manifest.Sequence]bool{}
	for _, p := range w.v.pieces() {
		known[p.entry.Sequence] = true
	}
	return slices.DeleteFunc(w.v.hiding(nil), func(p Problem) bool {
		switch {
		case p.Sequence <= last:
			return true
		case p.Kind == RolledBack:
			return false
		case t.exact && w.point.Epoch != 0:
			return true
		}
		return known[p.Sequence]
	})
}

// settled is the last place of those of which none can reach further than a line
// does. A small segment goes on from what was there when it was committed, and a
// full holds all that was committed before its capture began. Neither is so of a
// roll-up, nor of what came while a full was captured.
func (w *router) settled(route *Route, l *line) (last manifest.Sequence) {
	recorded := false
	for i := range w.lines {
		recorded = recorded || w.lines[i].epoch == l.epoch && len(w.lines[i].pieces) > 0
	}
	if !recorded {
		return route.Base.Sequence
	}
	for _, p := range l.pieces {
		if !p.RollUp {
			last = max(last, p.entry.Sequence)
		}
	}
	for _, b := range l.fulls {
		for _, m := range w.v.Manifests {
			stored := m.Modified
			if m.Copied != nil { // by the store's clock it is of when it was copied
				stored = m.Created
			}
			if len(b.Degraded) == 0 && m.Sequence < b.Sequence && stored.Add(skewMargin).Before(b.Created) {
				last = max(last, m.Sequence)
			}
		}
	}
	return last
}

// after says what lies behind a revision.
func (w *router) after(l *line, rev manifest.Revision) After {
	return After{Revisions: int64(l.to - rev), Revision: l.to, Until: l.until, Epoch: w.lines[len(w.lines)-1].epoch}
}

// describe fills in what a route says of itself beyond the way.
func (w *router) describe(ctx context.Context, route *Route, t aimed) error {
	route.After = w.after(t.line, t.rev)
	behind, err := w.behind(ctx, t)
	if err != nil {
		return err
	}
	route.At = w.asOf(route, t)
	seen := map[manifest.Revision]bool{}
	add := func(m *manifest.Manifest) {
		for _, h := range m.Span.Hashes {
			if h.Revision > route.Base.Etcd.Revision && h.Revision <= t.rev && !seen[h.Revision] {
				seen[h.Revision] = true
				route.Hashes = append(route.Hashes, h)
			}
		}
	}
	for _, s := range route.Segments {
		add(s.Manifest)
	}
	for _, m := range behind {
		add(m)
	}
	slices.SortFunc(route.Hashes, func(a, b manifest.HashKV) int { return cmp.Compare(a.Revision, b.Revision) })
	for i := range w.lines { // what is recorded of this epoch and can't be restored yet
		if l := &w.lines[i]; w.point == (Point{}) && l.epoch == route.Epoch && l.to > t.line.to {
			route.Problems = append(route.Problems, Problem{
				Object: w.v.st.name(l.pieces[len(l.pieces)-1].entry.Sequence), Chain: w.v.Chain, Kind: Unrecorded,
				Message: fmt.Sprintf("segments hold revisions %d to %d, and no full leads into them: they wait for the next one", l.from, l.to),
			})
		}
	}
	return nil
}

// mostBehind bounds the segments that are read behind a route's end.
const mostBehind = 256

// behind reads some of what follows a target: the members' hash of a compaction
// is known, and recorded, only when the next one was seen. One roll-up is enough.
// What can't be used is left out.
func (w *router) behind(ctx context.Context, t aimed) ([]*manifest.Manifest, error) {
	pieces, _ := cover(t.line.pieces, t.rev+1, t.line.to)
	for i, p := range pieces {
		if p.RollUp || i+1 == mostBehind {
			pieces = pieces[:i+1]
			break
		}
	}
	list, err := w.confirm(ctx, pieces)
	return slices.DeleteFunc(list, func(m *manifest.Manifest) bool { return m == nil }), err
}

// asOf is the last time before which nothing was acknowledged that is not in the
// aimed, as far as the route's segments and the ends of the others tell.
func (w *router) asOf(route *Route, t aimed) time.Time {
	var at time.Time
	add := func(when time.Time, most manifest.Revision) {
		if most > t.rev {
			return
		}
		if !t.limit.IsZero() && when.After(t.limit) {
			when = t.limit
		}
		if when.After(at) {
			at = when
		}
	}
	for _, b := range t.line.fulls {
		if len(b.Degraded) == 0 || b.ID == route.Base.ID {
			add(b.Created, b.Etcd.Revision)
		}
	}
	for _, p := range t.line.pieces {
		add(p.LastTime, p.Last)
	}
	for _, m := range w.read {
		if m.Epoch != route.Epoch || m.Span.First > t.line.to+1 || m.Span.Last < t.line.from-1 {
			continue
		}
		for _, moment := range m.Span.Moments() {
			add(moment.At, moment.AtMost)
		}
	}
	return at
}
