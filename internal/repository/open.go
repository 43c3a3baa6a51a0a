package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// A long chain is opened from its end, without listing all of it. Between the
// newest index and the head no place may be empty, since every prune carries an
// index. So below the names that were listed a reader can ask for place by
// place, as long as each holds what it must. Whatever else it meets (a hole,
// junk that no manifest explains, a stray far ahead of the head) sends it back
// to the full listing: such things cost time, and change no answer. The reasons
// are in docs/decisions/0010-opening-from-the-end.md.

// errSparse: places that were not listed are not what the end of a sound chain
// would be.
var errSparse = errors.New("the chain has to be listed whole")

// pageLen is how many names are taken of one listing: what S3 gives at a time.
const pageLen = 1000

// listEnd lists the end of a chain: everything from the result's from on. A
// chain of a page's length is listed whole.
func (r *Repository) listEnd(ctx context.Context, store storage.Ranger, chain manifest.Chain) (*listedChain, error) {
	l := &listing{}
	from, after := manifest.Sequence(0), ""
	if seen, ok := r.seenHead(chain); ok {
		there, err := r.there(ctx, chain, seen.Sequence)
		if err != nil {
			return nil, err
		}
		if there {
			from, after = seen.Sequence, r.stored(ManifestName(chain, seen.Sequence))
		}
	}
	for {
		n, err := r.listPage(ctx, store, chain, after, l)
		if err != nil {
			return nil, err
		}
		c := l.chain(chain)
		if n < r.page || len(c.sequences) == 0 {
			if n == r.page { // a page of names that are none of a manifest
				return nil, errSparse
			}
			c.from = from
			return c, nil
		}
		last := c.sequences[len(c.sequences)-1]
		end, err := r.gallop(ctx, chain, last)
		if err != nil {
			return nil, err
		}
		after = r.stored(ManifestName(chain, end))
		if end != last { // the names between are not known
			l, from = &listing{}, end
		}
	}
}

// listPage lists a page of names and returns their number.
func (r *Repository) listPage(ctx context.Context, store storage.Ranger, chain manifest.Chain, after string, l *listing) (n int, err error) {
	for info, err := range store.ListAfter(ctx, r.stored(string(chain)+"/manifests/"), after) {
		if err != nil {
			return n, fmt.Errorf("list manifests of %s: %w", chain, err)
		}
		l.add(r.cluster, info)
		if n++; n == r.page {
			break
		}
	}
	return n, nil
}

// gallop finds a place from which on the next is empty, by growing steps from
// one that is not. In a chain without holes behind it that is the last.
func (r *Repository) gallop(ctx context.Context, chain manifest.Chain, from manifest.Sequence) (manifest.Sequence, error) {
	full, empty := from, manifest.Sequence(0)
	for step := manifest.Sequence(1); empty == 0; step *= 2 {
		there, err := r.there(ctx, chain, from+step)
		if err != nil {
			return 0, err
		}
		if there && step < 1<<40 {
			full = from + step
		} else {
			empty = from + step
		}
	}
	for full+1 < empty {
		middle := full + (empty-full)/2
		there, err := r.there(ctx, chain, middle)
		if err != nil {
			return 0, err
		}
		if there {
			full = middle
		} else {
			empty = middle
		}
	}
	return full, nil
}

// there reports whether a place holds any object.
func (r *Repository) there(ctx context.Context, chain manifest.Chain, seq manifest.Sequence) (bool, error) {
	body, _, err := r.store.Open(ctx, r.stored(ManifestName(chain, seq)), storage.Range{Length: 1})
	if errors.Is(err, storage.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for %s: %w", ref(chain, seq), err)
	}
	return true, body.Close()
}

// frontier goes down a chain from its end.
type frontier struct {
	listed []manifest.Sequence        // left of those that were listed
	below  manifest.Sequence          // places below this were not listed
	known  map[manifest.Sequence]bool // need not be read, since a list vouches for them
	edges  map[manifest.Sequence]bool // where a list begins: there is probably another
	skips  map[manifest.Sequence]bool // a manifest above says that junk lies there
	lowest manifest.Sequence          // all places from here upwards are dealt with
}

// next are up to batch places to read. It ends with the place where a list
// begins, since what lies below may be in that place's list.
func (f *frontier) next(batch int) (seqs []manifest.Sequence) {
	for len(seqs) < batch {
		var seq manifest.Sequence
		switch n := len(f.listed); {
		case n > 0:
			seq, f.listed = f.listed[n-1], f.listed[:n-1]
		case f.below > 1:
			f.below--
			seq = f.below
		default:
			return seqs
		}
		if f.known[seq] {
			continue
		}
		seqs, f.lowest = append(seqs, seq), seq
		if f.edges[seq] {
			break
		}
	}
	return seqs
}

func (f *frontier) done() bool { return len(f.listed) == 0 && f.below <= 1 }

// learn takes in what a manifest says of the places below it.
func (f *frontier) learn(s *slot) {
	if s.m == nil {
		return
	}
	for _, skip := range s.m.Skipped {
		f.skips[skip.Sequence] = true
	}
	if !s.lists {
		return
	}
	f.edges[s.m.Recent[0].Sequence] = true
	for _, e := range s.m.Recent[1:] {
		f.known[e.Sequence] = true
	}
}

// tail reads from the newest down, in growing batches, to an index.
func (ld *loader) tail(ctx context.Context, d depth) error {
	f := &frontier{
		listed: ld.listed.sequences, below: ld.listed.from + 1,
		known: map[manifest.Sequence]bool{}, edges: map[manifest.Sequence]bool{}, skips: map[manifest.Sequence]bool{},
	}
	batch := 4 // the newest is nearly always a full with its index, or a prune
	if d.signatures {
		batch = len(f.listed)
	}
	for !f.done() {
		seqs := f.next(batch)
		if err := ld.fetch(ctx, seqs, nil); err != nil {
			return err
		}
		indexed := d.newest
		for _, seq := range seqs {
			s := ld.slots[seq]
			if indexed = indexed || s.m != nil && len(s.m.Index) > 0; !d.signatures {
				f.learn(s)
			}
		}
		ld.horizon = f.lowest
		if indexed && !d.signatures {
			if ld.walk(); ld.st.anchor != nil && !ld.sparse(seqs, f, ld.st.anchor.seq) || d.newest && ld.st.head != 0 {
				return nil
			}
		}
		if ld.sparse(seqs, f, 0) {
			return errSparse
		}
		batch = min(4*batch, 256)
	}
	ld.horizon = 0
	ld.walk()
	return nil
}

// sparse reports whether a place above the index that was read without having
// been listed does not hold what it must.
func (ld *loader) sparse(seqs []manifest.Sequence, f *frontier, index manifest.Sequence) bool {
	return slices.ContainsFunc(seqs, func(seq manifest.Sequence) bool {
		return seq > index && seq <= ld.listed.from && ld.slots[seq].m == nil && !f.skips[seq]
	})
}

// chainsOf finds the cluster's chains without listing their folders.
func (r *Repository) chainsOf(ctx context.Context, store storage.Ranger) ([]manifest.Chain, error) {
	var chains []manifest.Chain
	prefix := r.cluster + "/"
	for after := prefix; after != ""; {
		next := ""
		for info, err := range store.ListAfter(ctx, prefix, after) {
			if err != nil {
				return nil, fmt.Errorf("list %s in %s: %w", r.cluster, r.opts.Name, err)
			}
			p, ok := locate(trimCluster(r.cluster, info.Name))
			if !ok {
				continue
			}
			folder := "data"
			if p.manifest {
				folder = "manifests"
			}
			if !slices.Contains(chains, p.chain) {
				chains = append(chains, p.chain)
			}
			next = r.stored(string(p.chain)) + "/" + folder + "0" // '0' comes after '/': behind all in the folder
			break
		}
		after = next
	}
	for _, seen := range r.Heads() { // a chain that was seen must not vanish unnoticed
		if !slices.Contains(chains, seen.Chain) {
			chains = append(chains, seen.Chain)
		}
	}
	slices.Sort(chains)
	return chains, nil
}
