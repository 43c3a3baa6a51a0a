package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lifeboat/storage"
)

// Swept says what a sweep deleted.
type Swept struct {
	Objects   int
	Manifests int
	Bytes     int64
	Waiting   int       // named by a prune manifest, and not yet due
	Protected []string  // the store refuses to delete these for now
	Problems  []Problem // failures of chains that were left alone because of them
}

// Sweep deletes what committed prune manifests have named for long enough:
// data objects after ObjectGrace, manifests after ManifestGrace. It deletes
// nothing that a manifest which counts names, nothing in a chain with
// failures, and no manifest whose text is not the one that was named. Time
// passes for it as objects arrive in the store: our own clock may only delay it.
func (r *Repository) Sweep(ctx context.Context) (*Swept, error) {
	l, err := r.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("sweep: %w", err)
	}
	swept := &Swept{}
	for _, chain := range l.names() {
		v, err := r.loadListed(ctx, chain, l.chains[chain], depth{signatures: true})
		if err != nil {
			return swept, fmt.Errorf("sweep: %w", err)
		}
		if failures := v.losses(); len(failures) > 0 {
			swept.Problems = append(swept.Problems, failures...)
			continue
		}
		if err := r.sweepChain(ctx, v, l.chains[chain], l.surely(r.now()), swept); err != nil {
			return swept, fmt.Errorf("sweep %s in %s: %w", chain, r.opts.Name, err)
		}
	}
	return swept, nil
}

func (r *Repository) sweepChain(ctx context.Context, v *View, listed *listedChain, now time.Time, swept *Swept) error {
	named := map[string]bool{}
	for _, m := range v.Manifests {
		for _, o := range m.Objects {
			named[o.Name] = true
		}
	}
	sizes := map[string]int64{}
	for _, infos := range listed.data {
		for _, info := range infos {
			sizes[trimCluster(r.cluster, info.Name)] = info.Size
		}
	}
	for _, m := range v.Manifests {
		if m.Prune == nil {
			continue
		}
		age := m.age(now)
		for _, name := range m.Prune.Objects {
			size, there := sizes[name]
			switch {
			case !there || named[name]:
			case age < ObjectGrace+skewMargin:
				swept.Waiting++
			default:
				deleted, err := r.delete(ctx, name, swept)
				if err != nil {
					return err
				}
				if deleted {
					swept.Objects++
					swept.Bytes += size
				}
				delete(sizes, name)
			}
		}
		for _, e := range m.Prune.Manifests {
			s := v.st.slots[e.Sequence]
			switch {
			case s == nil || s.m == nil || s.hash != e.Hash || v.st.counts[e.Sequence] || !slices.Contains(listed.sequences, e.Sequence):
			case age < ManifestGrace+skewMargin:
				swept.Waiting++
			default:
				deleted, err := r.delete(ctx, ManifestName(v.Chain, e.Sequence), swept)
				if err != nil {
					return err
				}
				if deleted {
					swept.Manifests++
				}
			}
		}
	}
	return nil
}

// age is how long a prune manifest has surely stood: by its writer's clock and
// by the store's, whichever says less.
func (m *Loaded) age(now time.Time) time.Duration {
	since := m.Created
	if m.Modified.After(since) {
		since = m.Modified
	}
	return now.Sub(since)
}

// delete removes one object. It reports false where the store protects it.
func (r *Repository) delete(ctx context.Context, name string, swept *Swept) (bool, error) {
	err := r.store.Delete(ctx, r.stored(name))
	if errors.Is(err, storage.ErrProtected) {
		swept.Protected = append(swept.Protected, r.stored(name))
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete %s: %w", r.stored(name), err)
	}
	return true, nil
}
