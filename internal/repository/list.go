package repository

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// listing sorts the names in a cluster's folder. One listing serves all chains.
type listing struct {
	chains map[manifest.Chain]*listedChain
	other  []storage.Info // that belong to no chain
	newest time.Time      // when the store took the newest of all, by its clock
}

// listedChain is what the store lists of one chain.
type listedChain struct {
	sequences []manifest.Sequence            // ascending
	from      manifest.Sequence              // places below it were not listed; 0: all were
	unknown   []string                       // names in manifests/ that are none of a manifest
	data      map[manifest.ID][]storage.Info // data objects by backup
	stray     []storage.Info                 // in data/, in no backup's folder
}

func (l *listing) chain(chain manifest.Chain) *listedChain {
	if l.chains == nil {
		l.chains = map[manifest.Chain]*listedChain{}
	}
	c := l.chains[chain]
	if c == nil {
		c = &listedChain{data: map[manifest.ID][]storage.Info{}}
		l.chains[chain] = c
	}
	return c
}

func (l *listing) add(cluster string, info storage.Info) place {
	if info.Modified.After(l.newest) {
		l.newest = info.Modified
	}
	p, ok := locate(trimCluster(cluster, info.Name))
	switch {
	case !ok:
		l.other = append(l.other, info)
	case p.manifest && p.seq == 0:
		c := l.chain(p.chain)
		c.unknown = append(c.unknown, info.Name)
	case p.manifest:
		c := l.chain(p.chain)
		c.sequences = append(c.sequences, p.seq)
	case p.id == "":
		c := l.chain(p.chain)
		c.stray = append(c.stray, info)
	default:
		c := l.chain(p.chain)
		c.data[p.id] = append(c.data[p.id], info)
	}
	return p
}

// list reads the names of everything in the cluster's folder.
func (r *Repository) list(ctx context.Context) (*listing, error) {
	return r.listEach(ctx, func(manifest.Chain, *listedChain) {})
}

// listEach is list, and hands out each chain as soon as all its names are known:
// in the order of names they lie together.
func (r *Repository) listEach(ctx context.Context, whole func(manifest.Chain, *listedChain)) (*listing, error) {
	l := &listing{}
	var last manifest.Chain
	next := func(chain manifest.Chain) {
		if last != "" && chain != last {
			whole(last, l.chains[last])
		}
		last = chain
	}
	for info, err := range r.store.List(ctx, r.cluster+"/") {
		if err != nil {
			return nil, fmt.Errorf("list %s in %s: %w", r.cluster, r.opts.Name, err)
		}
		if p := l.add(r.cluster, info); p.chain != "" {
			next(p.chain)
		}
	}
	next("")
	for _, seen := range r.Heads() { // a chain that was seen must not vanish unnoticed
		if l.chains[seen.Chain] == nil {
			whole(seen.Chain, l.chain(seen.Chain))
		}
	}
	return l, nil
}

func (l *listing) names() []manifest.Chain { return slices.Sorted(maps.Keys(l.chains)) }

// Chains lists the chains that have at least one object in manifests/.
func (r *Repository) Chains(ctx context.Context) ([]manifest.Chain, error) {
	l, err := r.list(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(l.names(), func(chain manifest.Chain) bool { return len(l.chains[chain].sequences) == 0 }), nil
}
