package repository

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// chooseSegments names the segments that go: small ones that a roll-up has
// replaced, which stays, and, with a window, those that it needs no more.
func (p *prunePlan) chooseSegments(v *View, keep *window, size func(string) int64, now time.Time) {
	stays := func(r piece) bool { return keep == nil || keep.pieces[r.entry.Sequence] }
	p.gone = v.replaced(v.rollUps(func(r piece) bool { return stays(r) && v.sound(r, size) }))
	for _, s := range v.pieces() {
		m := v.at(s.entry.Sequence)
		switch {
		case m == nil || lockedAt(m.Manifest, now):
			delete(p.gone, s.entry.Sequence)
		case !stays(s):
			p.gone[s.entry.Sequence] = true
		}
	}
	if places := slices.Sorted(maps.Keys(p.gone)); len(places) > mostOfPolicy { // the next prune goes on
		for _, seq := range places[mostOfPolicy:] {
			delete(p.gone, seq)
		}
	}
}

// sizesOf tells the size of data objects by their names below the cluster's
// folder; -1 of those that are not there.
func sizesOf(cluster string, data map[manifest.ID][]storage.Info) func(string) int64 {
	sizes := map[string]int64{}
	for _, infos := range data {
		for _, info := range infos {
			sizes[trimCluster(cluster, info.Name)] = info.Size
		}
	}
	return func(name string) int64 {
		if size, there := sizes[name]; there {
			return size
		}
		return -1
	}
}

// mostAtOnce bounds the small segments that one prune of a recorder names: some
// six hours of them. mostOfPolicy bounds those of any other, whose manifest would
// grow too long where nothing was pruned for days.
const (
	mostAtOnce   = 10_000
	mostOfPolicy = 50_000
)

// planRolledUp is the plan of a prune that names only what roll-ups have
// replaced. It reads the roll-ups' own signatures and the small ones that go, and
// otherwise rests on the word of the chain's index, as its own index will.
func (r *Repository) planRolledUp(ctx context.Context, v *View) (*prunePlan, error) {
	listed, err := r.listWhole(ctx, v.Chain)
	if err != nil {
		return nil, err
	}
	now, err := r.surely(ctx, &listing{newest: listed.newest})
	if err != nil {
		return nil, err
	}
	size := sizesOf(r.cluster, listed.data)
	if err := r.readRollUps(ctx, v); err != nil {
		return nil, err
	}
	rollUps := v.rollUps(func(p piece) bool { return v.sound(p, size) })
	small := slices.DeleteFunc(v.pieces(), func(p piece) bool { return p.RollUp || !holdsAll(rollUps, p.Reach) })
	small = small[:min(len(small), mostAtOnce)]
	if err := r.readPieces(ctx, v, small); err != nil {
		return nil, err
	}
	p := &prunePlan{chain: v.Chain, gone: map[manifest.Sequence]bool{}}
	for _, s := range small {
		if v.holdsText(s.entry) && !lockedAt(v.st.slots[s.entry.Sequence].m, now) && !v.disputed(rollUps, s) {
			p.gone[s.entry.Sequence] = true
		}
	}
	there := func(name string) bool { return size(name) >= 0 }
	stored := func(e manifest.Entry) bool { return listed.has(e.Sequence) }
	for _, e := range v.st.live {
		m := v.at(e.Sequence)
		switch {
		case p.gone[e.Sequence]:
			for _, o := range v.st.slots[e.Sequence].m.Objects {
				if there(o.Name) {
					p.objects = append(p.objects, o.Name)
					p.bytes += o.Size
				}
			}
		case m != nil && m.Prune != nil && light(m.Prune) && v.done(m, now, there, stored):
		default:
			p.index = append(p.index, e)
			continue
		}
		p.entries = append(p.entries, e)
	}
	if len(p.gone) == 0 {
		return nil, nil
	}
	slices.Sort(p.objects)
	p.setBase(v)
	return p, nil
}

// wholeChain is everything that a store lists of one chain.
type wholeChain struct {
	*listedChain
	newest time.Time
}

// has reports whether a place held an object when the chain was listed.
func (l *wholeChain) has(seq manifest.Sequence) bool {
	_, there := slices.BinarySearch(l.sequences, seq)
	return there
}

func (r *Repository) listWhole(ctx context.Context, chain manifest.Chain) (*wholeChain, error) {
	l := &listing{}
	for info, err := range r.store.List(ctx, r.stored(string(chain)+"/")) {
		if err != nil {
			return nil, fmt.Errorf("list %s in %s: %w", chain, r.opts.Name, err)
		}
		l.add(r.cluster, info)
	}
	whole := &wholeChain{l.chain(chain), l.newest}
	slices.Sort(whole.sequences)
	return whole, nil
}

// readRollUps reads those roll-ups of a view that an index vouched for, for their
// own signatures.
func (r *Repository) readRollUps(ctx context.Context, v *View) error {
	var seqs []manifest.Sequence
	for _, p := range v.pieces() {
		if s := v.st.slots[p.entry.Sequence]; p.RollUp && (s == nil || s.signers == nil) {
			seqs = append(seqs, p.entry.Sequence)
		}
	}
	return r.readInto(ctx, v, seqs, nil)
}

// readPieces reads those of the segments that were not read.
func (r *Repository) readPieces(ctx context.Context, v *View, pieces []piece) error {
	var seqs []manifest.Sequence
	want := map[manifest.Sequence]claim{}
	for _, p := range pieces {
		if v.st.slots[p.entry.Sequence] == nil {
			seqs = append(seqs, p.entry.Sequence)
			want[p.entry.Sequence] = v.st.claim(p.entry.Sequence)
		}
	}
	return r.readInto(ctx, v, seqs, want)
}

// readInto reads places that the view has not read. What they hold decides
// nothing in the view: it names what is there.
func (r *Repository) readInto(ctx context.Context, v *View, seqs []manifest.Sequence, want map[manifest.Sequence]claim) error {
	slots, err := r.reader(v.Chain).readAll(ctx, seqs, want)
	if err != nil {
		return err
	}
	for _, s := range slots {
		if s.m != nil {
			v.st.slots[s.seq] = s
		}
	}
	return nil
}

// graces says how long what a prune names stays, by the roll-ups that count now.
type graces struct {
	v       *View
	rollUps []piece
}

func (v *View) graces(size func(string) int64) graces {
	return graces{v, v.rollUps(func(p piece) bool { return v.sound(p, size) })}
}

// of is the grace of a named manifest, or of its objects, which is long unless a
// roll-up holds what it held, or it is a prune of such.
func (g graces) of(e manifest.Entry, long time.Duration) time.Duration {
	s := g.v.st.slots[e.Sequence]
	reach := e.Reach
	if s != nil && s.m != nil && s.hash == e.Hash {
		if e.Kind == manifest.KindPrune && s.m.Prune != nil && light(s.m.Prune) {
			return RolledUpGrace
		}
		if s.m.Span != nil {
			reach = s.m.Reach()
		}
	}
	if e.Kind == manifest.KindSegment && reach != nil && !reach.RollUp && holdsAll(g.rollUps, *reach) {
		return RolledUpGrace
	}
	return long
}

// ofObjects are the graces of the objects of what a prune names, by id.
func (g graces) ofObjects(p *manifest.Prune) map[manifest.ID]time.Duration {
	by := map[manifest.ID]time.Duration{}
	for _, e := range p.Manifests {
		by[e.ID] = cmp.Or(by[e.ID], g.of(e, ObjectGrace))
	}
	return by
}
