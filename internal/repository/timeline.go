package repository

import (
	"context"
	"fmt"
	"slices"

	"lifeboat/internal/manifest"
)

// Timeline is what can be restored of a chain.
type Timeline struct {
	Chain    manifest.Chain
	Spans    []Span    // by epoch and revision, ascending
	Gaps     []Gap     // between the spans of one epoch, and between epochs
	Problems []Problem // of the chain

	view *View // for Busiest, which need not load it again
}

// Span is a contiguous range of points: every revision and every time in it can
// be restored. A full that no segment continues is a span of one revision.
type Span struct {
	Epoch    uint64
	First    NearPoint // the oldest full's
	Last     NearPoint
	Fulls    []Backup // in the order of revisions
	Segments int      // small ones
	RollUps  int
}

// Gap lies between two spans: nothing behind From and before To can be restored.
type Gap struct {
	From, To NearPoint
	Why      string // as far as it is known
}

// Timeline reads what can be restored of a chain of etcd. It rests on what
// indexes say of segments; Route checks what it uses.
func (r *Repository) Timeline(ctx context.Context, chain manifest.Chain) (*Timeline, error) {
	v, err := r.load(ctx, chain, depth{})
	if err != nil {
		return nil, fmt.Errorf("read the time line of %s in %s: %w", chain, r.opts.Name, err)
	}
	return v.Timeline(), nil
}

// Timeline is what can be restored by the word of a view.
func (v *View) Timeline() *Timeline {
	t := &Timeline{Chain: v.Chain, Problems: v.Problems, view: v}
	why := ""
	lost := v.lostPieces()
	whole := slices.DeleteFunc(v.pieces(), func(p piece) bool { return lost[p.entry.Sequence] })
	for _, l := range linesOf(whole, v.Backups()) {
		if !l.restorable() {
			why = fmt.Sprintf("segments of revisions %d to %d have no full to begin from", l.from, l.to)
			continue
		}
		s := Span{Epoch: l.epoch, First: l.first(), Last: l.last(), Fulls: l.fulls}
		for _, p := range l.pieces {
			if p.RollUp {
				s.RollUps++
			} else {
				s.Segments++
			}
		}
		if n := len(t.Spans); n > 0 {
			g := Gap{From: t.Spans[n-1].Last, To: s.First, Why: why}
			switch {
			case g.From.Epoch != g.To.Epoch:
				g.Why = "a new history of etcd began"
			case g.Why == "" && v.lostBetween(lost, g):
				g.Why = "segments that were recorded are missing or damaged"
			case g.Why == "":
				g.Why = "no segments were recorded"
			}
			t.Gaps = append(t.Gaps, g)
		}
		t.Spans, why = append(t.Spans, s), ""
	}
	return t
}

// lostPieces are the places of segments that an index knows and that are not what
// they must be: no restore goes through them.
func (v *View) lostPieces() map[manifest.Sequence]bool {
	lost := map[manifest.Sequence]bool{}
	for _, p := range v.Failures() {
		if p.Sequence != 0 && !v.st.counts[p.Sequence] {
			lost[p.Sequence] = true
		}
	}
	return lost
}

func (v *View) lostBetween(lost map[manifest.Sequence]bool, g Gap) bool {
	return slices.ContainsFunc(v.pieces(), func(p piece) bool {
		return lost[p.entry.Sequence] && p.Epoch == g.From.Epoch && p.Last > g.From.Revision && p.First < g.To.Revision
	})
}

// unrecorded are notes of the gaps of one epoch that segments end at and begin
// behind: there a recorder was stopped, or has lost its place. Where none record,
// every two fulls have a gap between them, and nobody expects otherwise.
func (v *View) unrecorded() []Problem {
	var notes []Problem
	var before *line
	lines := v.lines()
	for i := range lines {
		l := &lines[i]
		if len(l.pieces) == 0 {
			continue
		}
		if before != nil && before.epoch == l.epoch {
			first := l.pieces[0].entry.Sequence
			notes = append(notes, Problem{
				Object: v.st.name(first), Chain: v.Chain, Sequence: first, Kind: Unrecorded,
				Message: fmt.Sprintf("revisions %d to %d of epoch %d were not recorded, or are lost: of these only fulls can be restored",
					before.to+1, l.from-1, l.epoch),
			})
		}
		before = l
	}
	return notes
}
