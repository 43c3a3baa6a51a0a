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

// Burst is a minute in which etcd changed much.
type Burst struct {
	Epoch   uint64
	Minute  time.Time // its beginning
	First   manifest.Revision
	Last    manifest.Revision
	Changes int64 // of keys; a revision may change many
}

// mostForBursts bounds the segments that are read to find bursts: those that hold
// the most revisions a second.
const mostForBursts = 300

// Busiest finds the minutes in which the most was changed, of all that a time line
// of this repository has, at most n of them and the busiest first. A segment says
// how many keys it changed, and now and then which revision it was: in between
// they count as spread evenly.
func (r *Repository) Busiest(ctx context.Context, t *Timeline, n int) ([]Burst, error) {
	type candidate struct {
		piece
		after manifest.Revision // what of it no piece before has
		rate  float64
	}
	var candidates []candidate
	for _, l := range t.view.lines() {
		if !l.restorable() {
			continue
		}
		reached, at := l.fulls[0].Etcd.Revision, l.fulls[0].Created
		for _, p := range l.pieces {
			if p.Last <= reached {
				continue
			}
			took := max(p.LastTime.Sub(at).Seconds(), 1)
			candidates = append(candidates, candidate{p, max(reached, p.First-1), float64(p.Last-max(reached, p.First-1)) / took})
			reached, at = p.Last, p.LastTime
		}
	}
	slices.SortStableFunc(candidates, func(a, b candidate) int { return cmp.Compare(b.rate, a.rate) })
	candidates = candidates[:min(len(candidates), mostForBursts)]
	var seqs []manifest.Sequence
	for _, c := range candidates {
		seqs = append(seqs, c.entry.Sequence)
	}
	slots, err := r.reader(t.Chain).readAll(ctx, seqs, nil)
	if err != nil {
		return nil, fmt.Errorf("find what changed most in %s of %s: %w", t.Chain, r.opts.Name, err)
	}
	read := map[manifest.Sequence]*slot{}
	for _, s := range slots {
		read[s.seq] = s
	}
	minutes := minutes{}
	for _, c := range candidates {
		s := read[c.entry.Sequence]
		if s == nil || s.m == nil || s.m.Span == nil || s.hash != c.entry.Hash {
			continue // it says nothing that counts; Verify says so
		}
		minutes.add(s.m, c.after)
	}
	return minutes.busiest(n), nil
}

// minutes are the changes of each, by its beginning.
type minutes map[int64]*minute

type minute struct {
	Burst
	changes float64
}

// add spreads what a segment holds behind a revision over the minutes in which
// that was made.
func (ms minutes) add(m *manifest.Manifest, after manifest.Revision) {
	span := m.Span
	if span.Last <= after {
		return
	}
	each := float64(span.Events) / float64(span.Last-span.First+1)
	at, before := span.FirstTime, after
	spread := func(until time.Time, to manifest.Revision) {
		if to = min(to, span.Last); to <= before {
			at = until
			return
		}
		// What was made between two moments goes to the minute that it ended in.
		begin := until.Truncate(time.Minute)
		one := ms[begin.Unix()]
		if one == nil {
			one = &minute{Burst: Burst{Epoch: m.Epoch, Minute: begin, First: before + 1, Last: to}}
			ms[begin.Unix()] = one
		}
		one.First, one.Last = min(one.First, before+1), max(one.Last, to)
		one.changes += each * float64(to-before)
		at, before = until, to
	}
	for _, moment := range span.Moments() {
		if moment.At.After(at) {
			spread(moment.At, moment.AtLeast)
		}
	}
	spread(span.LastTime, span.Last)
}

func (ms minutes) busiest(n int) []Burst {
	all := slices.SortedFunc(maps.Values(ms), func(a, b *minute) int {
		return cmp.Or(cmp.Compare(b.changes, a.changes), b.Minute.Compare(a.Minute))
	})
	bursts := []Burst{}
	for _, one := range all[:min(len(all), n)] {
		one.Changes = int64(one.changes + 0.5)
		bursts = append(bursts, one.Burst)
	}
	return bursts
}
