package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// View is one chain as it was read.
type View struct {
	Chain     manifest.Chain
	Head      *Loaded           // nil: the chain is empty
	Manifests []Loaded          // those that count, ascending; older ones are read without their index
	Base      manifest.Sequence // what lies below was pruned; 0: nothing was
	Problems  []Problem

	st *state
}

// Loaded is one manifest that counts.
type Loaded struct {
	*manifest.Manifest
	Hash     manifest.Hash // of its text
	Modified time.Time     // when the store took it, by the store's clock
}

// Failures returns the view's problems that are not notes.
func (v *View) Failures() []Problem { return Failures(v.Problems) }

// losses are the failures that nothing may be deleted behind.
func (v *View) losses() []Problem {
	return slices.DeleteFunc(v.Failures(), func(p Problem) bool { return p.Kind.foreign() })
}

// Find returns the manifest of a backup; nil if the view has none of that id.
func (v *View) Find(id manifest.ID) *Loaded {
	for i := range v.Manifests {
		if k := v.Manifests[i].Kind; v.Manifests[i].ID == id && k != manifest.KindPrune && k != manifest.KindRekey {
			return &v.Manifests[i]
		}
	}
	return nil
}

// Load reads a chain: the newest manifests back to an index with their
// signatures, and what the index lists by its hashes. A chain that does not
// exist is empty. What does not verify becomes a Problem; an error means that
// the store could not be read.
func (r *Repository) Load(ctx context.Context, chain manifest.Chain) (*View, error) {
	return r.load(ctx, chain, depth{})
}

// depth says how far back a load reads.
type depth struct {
	newest     bool      // only the newest few that count, for the heads that they carry
	tail       bool      // only back to the newest index, and of what it lists
	since      time.Time // the prunes, back to one that is older than this
	signatures bool      // everything that is there, nothing by an index's word
}

func (r *Repository) load(ctx context.Context, chain manifest.Chain, d depth) (*View, error) {
	if err := chain.Check(); err != nil {
		return nil, fmt.Errorf("load chain: %w", err)
	}
	if ranger, ok := r.store.(storage.Ranger); ok && !d.signatures {
		listed, err := r.listEnd(ctx, ranger, chain)
		if err != nil {
			return nil, err
		}
		v, err := r.loadListed(ctx, chain, listed, d)
		if !errors.Is(err, errSparse) {
			return v, err
		}
	}
	l := &listing{}
	for info, err := range r.store.List(ctx, r.stored(string(chain)+"/manifests/")) {
		if err != nil {
			return nil, fmt.Errorf("list manifests of %s: %w", chain, err)
		}
		l.add(r.cluster, info)
	}
	return r.loadListed(ctx, chain, l.chain(chain), d)
}

// loadListed reads a chain whose manifests were listed.
func (r *Repository) loadListed(ctx context.Context, chain manifest.Chain, listed *listedChain, d depth) (*View, error) {
	ld := r.loader(chain, listed)
	steps := []step{ld.tail, ld.probe, ld.index, ld.holes}
	if d.newest {
		steps = steps[:1]
	}
	if err := ld.run(ctx, d, steps...); err != nil {
		return nil, err
	}
	return r.loaded(ld, listed), nil
}

// loaded makes the view of a chain that was read.
func (r *Repository) loaded(ld *loader, listed *listedChain) *View {
	v, chain := ld.view(), ld.rd.chain
	for _, name := range listed.unknown {
		v.Problems = append(v.Problems, Problem{Object: name, Chain: chain, Kind: Unknown, Message: "it is not named as a manifest is"})
	}
	if seen, ok := r.seenHead(chain); ok {
		v.Problems = append(v.Problems, v.st.witness(seen, "this machine")...)
	}
	v.Problems = append(v.Problems, v.late(r.now())...)
	_, misfits := v.rekeys()
	v.Problems = append(v.Problems, misfits...)
	v.Problems = append(v.Problems, v.incomplete()...)
	if v.Head != nil {
		r.noteHead(chain, v.Head.Sequence, v.Head.Hash)
	}
	v.Problems = sortProblems(v.Problems)
	return v
}

// step is one part of a load.
type step func(context.Context, depth) error

func (ld *loader) run(ctx context.Context, d depth, steps ...step) error {
	for _, step := range steps {
		if err := step(ctx, d); err != nil {
			return fmt.Errorf("load chain %s: %w", ld.rd.chain, err)
		}
	}
	return nil
}

func (r *Repository) loader(chain manifest.Chain, listed *listedChain) *loader {
	return &loader{rd: r.reader(chain), listed: listed, slots: map[manifest.Sequence]*slot{}}
}

// loader collects slots until walk has what it needs.
type loader struct {
	rd      *reader
	listed  *listedChain
	slots   map[manifest.Sequence]*slot
	horizon manifest.Sequence // all places from here upwards were read, or are vouched for
	st      *state
}

func (ld *loader) walk() {
	name := func(seq manifest.Sequence) string { return ld.rd.r.stored(ManifestName(ld.rd.chain, seq)) }
	ld.st = walk(name, ld.rd.chain, ld.slots, ld.horizon)
}

func (ld *loader) fetch(ctx context.Context, seqs []manifest.Sequence, want map[manifest.Sequence]claim) error {
	slots, err := ld.rd.readAll(ctx, seqs, want)
	if err != nil {
		return err
	}
	for _, s := range slots {
		if s.absent && ld.slots[s.seq] != nil {
			continue
		}
		ld.slots[s.seq] = s
	}
	return nil
}

// probe asks for the place behind the head by name, in case the list was stale
// or the newest manifest is hidden by a delete marker.
func (ld *loader) probe(ctx context.Context, _ depth) error {
	for {
		next, _ := ld.st.next()
		s, err := ld.find(ctx, next, claim{})
		if err != nil || s.absent {
			return err
		}
		ld.slots[next] = s
		ld.walk()
	}
}

// find reads one place by name, among older versions too if it is empty.
func (ld *loader) find(ctx context.Context, seq manifest.Sequence, want claim) (*slot, error) {
	s, err := ld.rd.read(ctx, seq, want)
	if err != nil || !s.absent {
		return s, err
	}
	return ld.rd.fallBack(ctx, s, want)
}

// index reads what the newest index lists and the tail did not reach.
func (ld *loader) index(ctx context.Context, d depth) error {
	if d.tail {
		return ld.prunes(ctx, d.since)
	}
	want := map[manifest.Sequence]claim{}
	var seqs []manifest.Sequence
	for _, e := range ld.st.live {
		if s := ld.slots[e.Sequence]; s == nil {
			if e.Reach != nil && !d.signatures && ld.there(e.Sequence) {
				continue // that says enough; whoever needs the segment reads it
			}
			seqs = append(seqs, e.Sequence)
			if !d.signatures {
				want[e.Sequence] = ld.st.claim(e.Sequence)
			}
		}
	}
	if len(seqs) == 0 {
		return nil
	}
	if err := ld.fetch(ctx, seqs, want); err != nil {
		return err
	}
	ld.walk()
	return nil
}

// there reports whether a place was listed, or was not among those that were.
func (ld *loader) there(seq manifest.Sequence) bool {
	_, found := slices.BinarySearch(ld.listed.sequences, seq)
	return found || seq <= ld.listed.from
}

// prunes reads the newest prune manifests that the index lists.
func (ld *loader) prunes(ctx context.Context, since time.Time) error {
	for _, e := range slices.Backward(ld.st.live) {
		if e.Kind != manifest.KindPrune {
			continue
		}
		s := ld.slots[e.Sequence]
		if s == nil {
			var err error
			if s, err = ld.rd.read(ctx, e.Sequence, ld.st.claim(e.Sequence)); err != nil {
				return err
			}
			ld.slots[e.Sequence] = s
		}
		if s.m != nil && s.m.Created.Before(since) {
			break
		}
	}
	ld.walk()
	return nil
}

// holes asks for missing manifests by name before they are called missing.
func (ld *loader) holes(ctx context.Context, d depth) error {
	found := false
	for _, seq := range ld.st.holes {
		var want claim
		if !d.signatures {
			want = ld.st.claim(seq)
		}
		s, err := ld.find(ctx, seq, want)
		if err != nil {
			return err
		}
		if !s.absent {
			ld.slots[seq], found = s, true
		}
	}
	if found {
		ld.walk()
	}
	return nil
}

func (ld *loader) view() *View {
	st := ld.st
	v := &View{Chain: st.chain, Base: st.base, Problems: slices.Clone(st.problems), st: st}
	for _, seq := range st.order {
		if st.counts[seq] {
			s := st.slots[seq]
			v.Manifests = append(v.Manifests, Loaded{Manifest: s.m, Hash: s.hash, Modified: s.modified})
		}
	}
	if st.head != 0 {
		v.Head = &v.Manifests[len(v.Manifests)-1]
	}
	return v
}

// witness compares the chain with a head that somebody saw earlier.
func (st *state) witness(h manifest.Head, who string) []Problem {
	gone := func(format string, args ...any) []Problem {
		return []Problem{{
			Object: st.name(h.Sequence), Chain: st.chain, Sequence: h.Sequence, Kind: RolledBack,
			Message: fmt.Sprintf("%s saw it as the chain's head; now ", who) + fmt.Sprintf(format, args...),
		}}
	}
	if h.Sequence > st.head {
		return gone("the head is %d", uint64(st.head))
	}
	hash, named := st.named(h.Sequence)
	if named && hash != h.Hash {
		return gone("the chain names another manifest in its place")
	}
	s := st.slots[h.Sequence]
	switch {
	case s == nil && named: // and nobody has looked at it
	case s != nil && s.m != nil && s.hash != h.Hash && !st.dead(h.Sequence):
		return gone("another manifest is in its place")
	case s != nil && s.m == nil && h.Sequence >= st.horizon && !st.dead(h.Sequence):
		return gone("no manifest is in its place")
	case s == nil && h.Sequence >= max(st.horizon, 1) && !st.dead(h.Sequence):
		return gone("its place is empty")
	}
	return nil
}

// late says when the chain's newest backup has announced a next one that did
// not come.
func (v *View) late(now time.Time) []Problem {
	for _, m := range slices.Backward(v.Manifests) {
		if m.NextExpectedBy == nil {
			continue
		}
		if now.After(*m.NextExpectedBy) {
			return []Problem{{
				Object: v.st.name(m.Sequence), Chain: v.Chain, Sequence: m.Sequence, Kind: Late,
				Message: fmt.Sprintf("the next backup was expected by %s", m.NextExpectedBy.Format(time.RFC3339)),
			}}
		}
		return nil
	}
	return nil
}

// trimCluster cuts the cluster's folder off a stored name.
func trimCluster(cluster, name string) string { return strings.TrimPrefix(name, cluster+"/") }
