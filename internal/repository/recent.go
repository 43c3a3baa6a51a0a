package repository

import (
	"context"
	"slices"

	"lifeboat/internal/manifest"
)

// A chain may hold a hundred thousand segments behind its newest index. So that
// its end can be read without reading each, every now and then a segment lists
// those just before it: since the newest index, or from the newest such segment
// on, which is the list's first. A list says only of the places that it names
// what they hold, and nothing of others; readers ask for those one by one.

// recentEvery is how many manifests lie between two lists.
const recentEvery = 1024

// listsFulls reports whether a segment's list is believed: one of the keys that
// signed it may sign fulls, too, and so an index. A key for segments alone could
// hide a full by calling it a segment.
func listsFulls(m *manifest.Manifest, signers []manifest.Verifier) bool {
	if len(m.Recent) == 0 {
		return false
	}
	full := &manifest.Manifest{Chain: m.Chain, Kind: manifest.KindFull, Created: m.Created}
	return slices.ContainsFunc(signers, func(v manifest.Verifier) bool { return v.Allows(full) == nil })
}

// vouched is what a segment's list says of a place.
type vouched struct {
	entry manifest.Entry
	by    *slot // the segment
}

// vouch takes in a segment's list. Of two that name a place the newer counts.
func (st *state) vouch(s *slot) {
	if st.recent == nil {
		st.recent = map[manifest.Sequence]vouched{}
	}
	for _, e := range s.m.Recent {
		if _, known := st.recent[e.Sequence]; !known {
			st.recent[e.Sequence] = vouched{e, s}
		}
	}
}

// dropVouched forgets what lists say of places that may be empty, or that the
// newest index knows better.
func (st *state) dropVouched() {
	for seq := range st.recent {
		if st.anchor != nil && seq <= st.anchor.seq || st.dead(seq) {
			delete(st.recent, seq)
		}
	}
}

// unread reports whether a place is known by a segment's list alone.
func (st *state) unread(seq manifest.Sequence) bool {
	_, listed := st.recent[seq]
	return listed && st.slots[seq] == nil
}

// checkVouched compares what was read with what other manifests say of it.
func (st *state) checkVouched(s *slot) {
	if v, ok := st.recent[s.seq]; ok {
		switch {
		case v.entry.Hash != s.hash:
			st.report(v.by.seq, Unlinked, "it lists another manifest in place %d than the one that is there", uint64(s.seq))
		case !sameReach(v.entry.Reach, s.m.Reach()):
			st.report(v.by.seq, Unlinked, "it says of segment %s in place %d what that does not say itself", s.m.ID, uint64(s.seq))
		}
	}
	if e, ok := st.indexed(s.seq); ok && e.Hash == s.hash && e.Reach != nil && !sameReach(e.Reach, s.m.Reach()) {
		st.report(st.anchor.seq, Unlinked, "its index says of segment %s in place %d what that does not say itself", s.m.ID, uint64(s.seq))
	}
}

func sameReach(a, b *manifest.Reach) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Epoch == b.Epoch && a.First == b.First && a.Last == b.Last && a.LastTime.Equal(b.LastTime) && a.RollUp == b.RollUp
}

// recentFor is the list of a segment that would follow the view; nil if none is
// due yet. Unlike an index it may come while the chain has failures: what it does
// not name goes on being missed.
func (r *Repository) recentFor(view *View) []manifest.Entry {
	st := view.st
	since := st.lister()
	if st.head+1-since < r.listEvery {
		return nil
	}
	var list []manifest.Entry
	for _, e := range st.live {
		if e.Sequence >= since && listable(st, e) {
			list = append(list, e)
		}
	}
	return list
}

// listable reports whether a list may name a live entry. Of what a manifest
// skipped it tells itself, so that one must be read.
func listable(st *state, e manifest.Entry) bool {
	if e.Kind != manifest.KindSegment || e.Reach == nil || st.bad[e.Sequence] {
		return false
	}
	s := st.slots[e.Sequence]
	return s == nil || s.m != nil && len(s.m.Skipped) == 0
}

// mayList reports whether a list that our own key signs would be believed.
func (r *Repository) mayList(m *manifest.Manifest) bool {
	own := r.opts.Signer.VerifierText()
	full := &manifest.Manifest{Chain: m.Chain, Kind: manifest.KindFull, Created: m.Created}
	return slices.ContainsFunc(r.opts.Trust.Verifiers, func(v manifest.Verifier) bool { return v.Key == own && v.Allows(full) == nil })
}

// lister is the newest place with an index or a list that is believed; the
// chain's lowest if it has none.
func (st *state) lister() manifest.Sequence {
	for _, seq := range slices.Backward(st.order) {
		if s := st.slots[seq]; st.counts[seq] && (s.lists || s == st.anchor) {
			return seq
		}
	}
	if len(st.live) > 0 {
		return st.live[0].Sequence
	}
	return st.head
}

// slotOf is what a live entry's place holds, read now if the view stopped short
// of it. Like a backup that an index vouches for, it must be confirmed before it
// is restored from.
func (r *Repository) slotOf(ctx context.Context, view *View, e manifest.Entry) (*slot, error) {
	if s := view.st.slots[e.Sequence]; s != nil {
		return s, nil
	}
	return r.reader(view.Chain).read(ctx, e.Sequence, view.st.claim(e.Sequence))
}
