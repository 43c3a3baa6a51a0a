package repository

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"lifeboat/internal/manifest"
)

// walk decides what the slots of a chain mean together. It is pure: the same
// slots give the same answer to every reader with the same trust, which is
// what makes one conditional create enough to order all writers.
//
// slots holds every place from horizon upwards that is not empty, and some
// below. Places below the horizon that are not in slots are unknown, not empty;
// so are places above it that a segment's list of recent ones names (recent.go).
//
// The order of belief: a manifest counts unless a later one that counts says
// otherwise (a prune's base or names, a newer index that leaves it out) or an
// earlier prune dropped its id. So the evidence is gathered from the newest
// down; then links are checked from the oldest up.
func walk(name func(manifest.Sequence) string, chain manifest.Chain, slots map[manifest.Sequence]*slot, horizon manifest.Sequence) *state {
	st := &state{
		chain: chain, slots: slots, horizon: horizon, name: name,
		counts: map[manifest.Sequence]bool{}, pruned: map[manifest.Sequence]manifest.Hash{},
		dropped: map[manifest.ID]manifest.Sequence{}, skipped: map[manifest.Sequence]manifest.Sequence{},
		bad: map[manifest.Sequence]bool{},
	}
	st.order = slices.Sorted(maps.Keys(slots))
	for { // an id that was dropped can't bear evidence: twice round at most per dropped manifest
		st.gather()
		if !st.drop() {
			break
		}
	}
	st.link()
	st.explain()
	return st
}

// maxHoles bounds the missing manifests that are named one by one.
const maxHoles = 10_000

// state is what walk found.
type state struct {
	chain   manifest.Chain
	name    func(manifest.Sequence) string
	slots   map[manifest.Sequence]*slot
	order   []manifest.Sequence // of slots, ascending
	horizon manifest.Sequence

	counts  map[manifest.Sequence]bool              // places whose manifest counts
	base    manifest.Sequence                       // the highest base of any prune; 0: none
	anchor  *slot                                   // the newest manifest with an index; nil: none was read
	pruned  map[manifest.Sequence]manifest.Hash     // named by a prune
	dropped map[manifest.ID]manifest.Sequence       // id -> the prune that dropped it
	skipped map[manifest.Sequence]manifest.Sequence // place -> the manifest that skipped it
	late    map[manifest.Sequence]bool              // places of dropped manifests
	recent  map[manifest.Sequence]vouched           // named by a segment's list, between the newest index and the head
	bad     map[manifest.Sequence]bool              // places whose own link is broken

	head     manifest.Sequence // 0: an empty chain
	live     []manifest.Entry  // ascending, the index's and the slots'
	problems []Problem
	holes    []manifest.Sequence // places that should hold a manifest and are empty
}

// gather finds the manifests that count, newest first.
func (st *state) gather() {
	clear(st.counts)
	clear(st.pruned)
	st.recent = nil
	st.base, st.anchor, st.head = 0, nil, 0
	for _, seq := range slices.Backward(st.order) {
		s := st.slots[seq]
		if s.m == nil || st.late[seq] || st.dead(seq) {
			continue
		}
		st.counts[seq] = true
		st.head = max(st.head, seq)
		if p := s.m.Prune; p != nil {
			st.base = max(st.base, p.Base)
			for _, e := range p.Manifests {
				st.pruned[e.Sequence] = e.Hash
			}
		}
		if s.lists && st.anchor == nil {
			st.vouch(s)
		}
		if len(s.m.Index) > 0 && st.anchor == nil {
			st.anchor = s
		}
	}
	st.dropVouched()
}

// dead reports whether a place may be empty: it lies below the base, a prune
// named it, or the newest index behind it leaves it out. What the indexed
// manifest itself skipped is not dead by that: it must be looked at.
func (st *state) dead(seq manifest.Sequence) bool {
	if seq < st.base {
		return true
	}
	if _, named := st.pruned[seq]; named {
		return true
	}
	if st.anchor == nil || seq >= st.anchor.seq || seq >= st.anchor.seq-manifest.Sequence(len(st.anchor.m.Skipped)) {
		return false
	}
	_, listed := st.indexed(seq)
	return !listed
}

// forked reports whether a place holds a genuine manifest that no prune let go
// and that the newest index leaves out, as if by a writer that did not trust its
// key. Somebody was told that it counts. Nobody was if it came long after what is
// behind it: its writer slept, and found that its place had been pruned.
func (st *state) forked(seq manifest.Sequence) bool {
	s := st.slots[seq]
	_, named := st.pruned[seq]
	if s == nil || s.m == nil || st.counts[seq] || st.late[seq] || named || seq < st.base {
		return false
	}
	i, _ := slices.BinarySearch(st.order, seq)
	for _, behind := range st.order[i:] {
		if st.counts[behind] {
			return !s.modified.After(st.slots[behind].modified.Add(skewMargin))
		}
	}
	return true
}

// indexed finds a place in the newest index.
func (st *state) indexed(seq manifest.Sequence) (manifest.Entry, bool) {
	if st.anchor == nil {
		return manifest.Entry{}, false
	}
	index := st.anchor.m.Index
	i, ok := slices.BinarySearchFunc(index, seq, func(e manifest.Entry, seq manifest.Sequence) int {
		return int(int64(e.Sequence) - int64(seq))
	})
	if !ok {
		return manifest.Entry{}, false
	}
	return index[i], true
}

// claim is what the newest index says of a place.
//
// A rekey is believed by nobody's word but its own signature's: whose it is
// decides whether it stands for a backup.
func (st *state) claim(seq manifest.Sequence) claim {
	if v, ok := st.recent[seq]; ok {
		return claim{hash: v.entry.Hash, by: v.by.signers}
	}
	e, ok := st.indexed(seq)
	if !ok || e.Kind == manifest.KindRekey {
		return claim{}
	}
	return claim{hash: e.Hash, by: st.anchor.signers}
}

// drop discounts manifests whose id an earlier prune dropped. It reports
// whether it discounted a new one.
func (st *state) drop() bool {
	clear(st.dropped)
	found := false
	for _, seq := range st.order {
		if !st.counts[seq] {
			continue
		}
		m := st.slots[seq].m
		if _, gone := st.dropped[m.ID]; gone {
			if st.late == nil {
				st.late = map[manifest.Sequence]bool{}
			}
			st.late[seq], found = true, true
			continue
		}
		if m.Prune != nil {
			for _, id := range m.Prune.Drop {
				st.dropped[id] = seq
			}
			for _, e := range m.Prune.Manifests { // an id that was removed does not come back
				st.dropped[e.ID] = seq
			}
		}
	}
	return found
}

func (st *state) report(seq manifest.Sequence, kind Kind, format string, args ...any) {
	st.problems = append(st.problems, Problem{
		Object: st.name(seq), Chain: st.chain, Sequence: seq, Kind: kind, Message: fmt.Sprintf(format, args...),
	})
}

// before is the place of the manifest that m follows; 0 for a chain's first.
func before(m *manifest.Manifest) manifest.Sequence {
	return m.Sequence - manifest.Sequence(len(m.Skipped)) - 1
}

// link checks every manifest that counts against its predecessor and what it
// skipped.
func (st *state) link() {
	for _, seq := range st.order {
		s := st.slots[seq]
		if s.m != nil && s.kind == Overwritten {
			st.report(seq, Overwritten, "%v", s.err)
		}
		if !st.counts[seq] {
			continue
		}
		if e, ok := st.indexed(seq); ok && e.Hash != s.hash {
			st.bad[seq] = true
			st.report(seq, Unlinked, "it is a genuine manifest, and not the one that the index of %s names here", ref(st.chain, st.anchor.seq))
		}
		st.checkVouched(s)
		for _, skip := range s.m.Skipped {
			st.skipped[skip.Sequence] = seq
			st.checkSkipped(seq, skip)
		}
		if _, ok := st.indexed(seq); ok {
			continue // the index says that it belongs here, whatever lay before it
		}
		prev := before(s.m)
		if p := st.slots[prev]; p != nil && p.m != nil && p.hash != s.m.Previous && !(st.dead(prev) && !st.counts[prev]) {
			st.bad[seq] = true
			st.report(seq, Unlinked, "it follows another manifest than the one in place %d", uint64(prev))
		}
		if hash, named := st.named(prev); named && hash != s.m.Previous && !st.bad[seq] {
			st.bad[seq] = true
			st.report(seq, Unlinked, "it follows another manifest than the one that the chain names in place %d", uint64(prev))
		}
	}
}

// named is the hash by which a later manifest knows a place.
func (st *state) named(seq manifest.Sequence) (manifest.Hash, bool) {
	if hash, ok := st.pruned[seq]; ok {
		return hash, true
	}
	if v, ok := st.recent[seq]; ok && st.slots[seq] == nil {
		return v.entry.Hash, true
	}
	e, ok := st.indexed(seq)
	return e.Hash, ok
}

// checkSkipped looks at a place that the manifest by skipped.
func (st *state) checkSkipped(by manifest.Sequence, skip manifest.Skipped) {
	s := st.slots[skip.Sequence]
	_, indexed := st.indexed(skip.Sequence)
	switch {
	case s == nil || s.absent || indexed:
	case s.m == nil && s.stored == skip.SHA256:
		st.report(skip.Sequence, Skipped, "it is no manifest (%v); %s goes on behind it and names it", s.err, ref(st.chain, by))
	case s.m == nil:
		st.report(skip.Sequence, s.kind, "it is no manifest (%v), and changed after %s had named it", s.err, ref(st.chain, by))
	case st.counts[skip.Sequence] && s.stored == skip.SHA256:
		st.report(skip.Sequence, Fork, "it verifies here, and the writer of %s skipped it: the two do not trust the same keys", ref(st.chain, by))
	case st.counts[skip.Sequence]:
		st.report(skip.Sequence, Fork, "it verifies now, and was skipped as something else by %s", ref(st.chain, by))
	}
}

// explain accounts for every place that must hold a manifest, and lists what
// is live.
func (st *state) explain() {
	lowest := max(st.horizon, st.base, 1)
	for seq := range st.unexplained(lowest) {
		s := st.slots[seq]
		if s == nil || s.absent {
			if st.holes = append(st.holes, seq); len(st.holes) > maxHoles {
				break
			}
			st.report(seq, Hole, "the manifest is missing, and no prune manifest names it")
			continue
		}
		st.report(seq, s.kind, "%v", s.err)
	}
	next, _ := st.next()
	for _, seq := range st.order {
		s := st.slots[seq]
		switch {
		case s.m != nil || s.absent || seq <= st.head:
		case seq > next && s.kind != NewerFormat:
			st.report(seq, Stray, "%v; it lies ahead of the chain, whose next place is %d", s.err, uint64(next))
		default:
			st.report(seq, s.kind, "%v; it lies beyond the chain's head", s.err)
		}
		if st.late[seq] {
			st.report(seq, Leftover, "its id was dropped by a prune manifest before it was created; it does not count")
		}
	}
	if st.anchor != nil {
		for _, e := range st.anchor.m.Index {
			if !st.dead(e.Sequence) {
				st.live = append(st.live, e)
			}
		}
	}
	for _, seq := range st.order {
		if _, listed := st.indexed(seq); st.counts[seq] && !listed {
			st.live = append(st.live, entryOf(st.slots[seq]))
		}
	}
	for seq, v := range st.recent {
		by, gone := st.dropped[v.entry.ID]
		if s := st.slots[seq]; !st.counts[seq] && (s == nil || s.m == nil) && !(gone && by < seq) { // lost, perhaps; then it goes on being missed
			st.live = append(st.live, v.entry)
		}
	}
	slices.SortFunc(st.live, func(a, b manifest.Entry) int { return cmp.Compare(a.Sequence, b.Sequence) })
}

// unexplained yields the places from lowest to the head that hold no manifest
// that counts and that nothing accounts for.
func (st *state) unexplained(lowest manifest.Sequence) func(func(manifest.Sequence) bool) {
	return func(yield func(manifest.Sequence) bool) {
		check := func(seq manifest.Sequence) bool {
			if st.counts[seq] || st.late[seq] || st.dead(seq) || st.unread(seq) {
				return true
			}
			if _, ok := st.skipped[seq]; ok {
				return true
			}
			return yield(seq)
		}
		from := lowest
		if st.anchor != nil && st.anchor.seq >= lowest { // below an index only what it lists can be missing
			for _, e := range st.anchor.m.Index {
				if _, read := st.slots[e.Sequence]; !read && e.Sequence < st.horizon {
					continue
				}
				if e.Sequence >= st.base && !check(e.Sequence) {
					return
				}
			}
			from = st.anchor.seq
		}
		for seq := from; seq <= st.head; seq++ {
			if !check(seq) {
				return
			}
		}
	}
}

func entryOf(s *slot) manifest.Entry {
	return manifest.Entry{Sequence: s.seq, Hash: s.hash, Kind: s.m.Kind, ID: s.m.ID, Reach: s.m.Reach()}
}

// next is the place of the next commit, and the junk that lies before it.
func (st *state) next() (manifest.Sequence, []manifest.Skipped) {
	var skipped []manifest.Skipped
	seq := st.head + 1
	for ; ; seq++ {
		s := st.slots[seq]
		if s == nil || s.absent {
			return seq, skipped
		}
		skipped = append(skipped, manifest.Skipped{Sequence: seq, SHA256: s.stored})
	}
}

// broken reports failures that keep a new index from being complete. A loss in
// a place that the last index lists is none: the new one goes on listing it.
func (st *state) broken() bool {
	return slices.ContainsFunc(st.problems, func(p Problem) bool {
		_, listed := st.indexed(p.Sequence)
		return !p.Kind.Note() && p.Sequence <= st.head && p.Kind != Overwritten && !listed
	})
}
