package repository

import (
	"context"
	"slices"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// Heads that manifests carry are witnesses: they notice what is gone without
// any machine's memory, since an attacker can't sign others.

// withWitnesses loads one chain, and of the cluster's other chains the newest
// manifests. These come first: what is not there of the chain when it is read
// afterwards can't have been committed only after they had been.
func (r *Repository) withWitnesses(ctx context.Context, chain manifest.Chain) (*View, []*View, error) {
	chains, load, err := r.ends(ctx)
	if err != nil {
		return nil, nil, err
	}
	views := make([]*View, len(chains))
	group, inGroup := errgroup.WithContext(ctx)
	group.SetLimit(chainsAtOnce)
	for i, other := range chains {
		if other == chain {
			continue
		}
		group.Go(func() (err error) {
			views[i], err = load(inGroup, other)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, nil, err
	}
	v, err := r.load(ctx, chain, depth{})
	if err != nil {
		return nil, nil, err
	}
	views = slices.DeleteFunc(views, func(v *View) bool { return v == nil })
	return v, append(views, v), nil
}

// ends are the cluster's chains, and how to load the newest manifests of each.
func (r *Repository) ends(ctx context.Context) ([]manifest.Chain, func(context.Context, manifest.Chain) (*View, error), error) {
	if ranger, ok := r.store.(storage.Ranger); ok {
		chains, err := r.chainsOf(ctx, ranger)
		return chains, func(ctx context.Context, chain manifest.Chain) (*View, error) {
			return r.load(ctx, chain, depth{newest: true})
		}, err
	}
	l, err := r.list(ctx)
	if err != nil {
		return nil, nil, err
	}
	chains := l.names()
	listed := map[manifest.Chain]*listedChain{}
	for _, chain := range chains {
		listed[chain] = l.chain(chain)
	}
	return chains, func(ctx context.Context, chain manifest.Chain) (*View, error) {
		return r.loadListed(ctx, chain, listed[chain], depth{newest: true})
	}, nil
}

// addWitnessed adds views of the chains that manifests have seen in this store
// and that nothing is left of.
func (r *Repository) addWitnessed(ctx context.Context, l *listing, views []*View) ([]*View, error) {
	ours := r.ownNames(views)
	var gone []manifest.Chain
	for _, v := range views {
		for _, m := range v.Manifests {
			for _, h := range m.Heads {
				if ours[h.Store] && l.chains[h.Chain] == nil && !slices.Contains(gone, h.Chain) {
					gone = append(gone, h.Chain)
				}
			}
		}
	}
	more, err := r.loadAll(ctx, l, gone, depth{})
	return append(views, more...), err
}

// witnessed checks the heads of v's chain that manifests of all chains carry.
func (r *Repository) witnessed(v *View, views []*View) []Problem {
	ours := r.ownNames(views)
	var problems []Problem
	done := map[manifest.Head]bool{}
	for _, other := range views {
		for _, m := range other.Manifests {
			for _, h := range m.Heads {
				if h.Chain != v.Chain || !ours[h.Store] || done[h] {
					continue
				}
				done[h] = true
				problems = append(problems, v.st.witness(h, "the writer of "+ref(m.Chain, m.Sequence))...)
			}
		}
	}
	return problems
}

// lostWitnessed reports whether manifests of this chain or of the others saw one
// of this chain that is gone.
func (r *Repository) lostWitnessed(ctx context.Context, v *View, l *listing) (bool, error) {
	others := slices.DeleteFunc(l.names(), func(chain manifest.Chain) bool { return chain == v.Chain })
	views, err := r.loadAll(ctx, l, others, depth{newest: true})
	if err != nil {
		return false, err
	}
	if len(r.witnessed(v, append(slices.Clone(views), v))) == 0 {
		return false, nil
	}
	v, err = r.load(ctx, v.Chain, depth{signatures: true}) // what they saw may have come since it was read
	if err != nil {
		return false, err
	}
	return len(r.witnessed(v, append(views, v))) > 0, nil
}

// ownNames are the names by which manifests call this store: the one that it
// was opened by, and others if they prove to be of the same store, as when a
// copy or a mount is read. Another store's heads say nothing of this one, which
// has sequences of its own; but a manifest's hash is made once, in one store.
//
// So a name is ours if a head by that name is the hash of a manifest that lies
// here in its place, and that manifest carries the name, too. A chain's first
// manifest proves nothing: sibling stores may hold equal ones. Nor is a name
// ours that a manifest carries beside the one that the store was opened by: its
// writer knew two stores.
func (r *Repository) ownNames(views []*View) map[string]bool {
	here := map[manifest.Chain]*View{}
	for _, v := range views {
		here[v.Chain] = v
	}
	ours, apart := map[string]bool{}, map[string]bool{}
	for _, v := range views {
		for _, m := range v.Manifests {
			own := carries(m.Manifest, r.opts.Name)
			for _, h := range m.Heads {
				if own {
					apart[h.Store] = true
				}
				if ours[h.Store] || here[h.Chain] == nil {
					continue
				}
				held := here[h.Chain].at(h.Sequence)
				ours[h.Store] = held != nil && held.Hash == h.Hash && held.Previous != (manifest.Hash{}) && carries(held.Manifest, h.Store)
			}
		}
	}
	for name := range apart {
		delete(ours, name)
	}
	ours[r.opts.Name] = true
	return ours
}

func carries(m *manifest.Manifest, store string) bool {
	return slices.ContainsFunc(m.Heads, func(h manifest.Head) bool { return h.Store == store })
}
