package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// Swept says what a sweep deleted, or with DryRun would delete.
type Swept struct {
	Objects   int
	Manifests int
	Bytes     int64
	Waiting   int       // named by a prune manifest, and not yet due
	Next      time.Time // when the first of those waiting is due; zero: none waits
	Protected []string  // the store refuses to delete these for now; a dry run does not try
	Problems  []Problem // failures of chains that were left alone because of them
}

// SweepOptions says what to sweep.
type SweepOptions struct {
	Chains []manifest.Chain // only these; empty: all
	DryRun bool             // delete nothing

	// RolledUp deletes only what prunes name that name nothing but segments which
	// roll-ups have replaced. It needs Chains, and reads only what it needs of them.
	RolledUp bool
}

// deletes bounds the deletions that a sweep has open at a time.
const deletes = 16

// sweepWithin bounds how long a sweep goes by what it read of a chain. Should it
// sleep for weeks, the prune that it goes by may be gone, and the name that it
// is about to delete be that of a copy which somebody has made since.
const sweepWithin = 2 * time.Hour

// ErrStale: a sweep took longer than sweepWithin. The next one goes on.
var ErrStale = errors.New("what is due was decided too long ago")

// Sweep deletes what committed prune manifests have named for long enough:
// data objects after ObjectGrace, manifests after ManifestGrace. It deletes
// nothing that a manifest which counts names (but for what a rekey has replaced,
// while what replaced it is there), nothing in a chain with failures, and no
// manifest whose text is not the one that was named. Time passes for it by the
// store's clock and ours, whichever is slower, and it refuses with ErrClock where
// they differ by much. An error comes with what was deleted before it; where the
// credentials may not delete it is storage.ErrPermission, at the first attempt.
func (r *Repository) Sweep(ctx context.Context, opts SweepOptions) (*Swept, error) {
	swept := &Swept{}
	doing := "sweep " + r.opts.Name
	if opts.RolledUp {
		for _, chain := range opts.Chains {
			if err := r.sweepRolledUp(ctx, chain, opts, swept); err != nil {
				return swept, fmt.Errorf("%s: %s: %w", doing, chain, err)
			}
		}
		return swept, nil
	}
	l, err := r.list(ctx)
	if err != nil {
		return swept, fmt.Errorf("%s: %w", doing, err)
	}
	now, err := r.surely(ctx, l)
	if err != nil {
		return swept, fmt.Errorf("%s: %w", doing, err)
	}
	for _, chain := range l.names() {
		if len(opts.Chains) > 0 && !slices.Contains(opts.Chains, chain) {
			continue
		}
		decided := r.now()
		v, err := r.loadListed(ctx, chain, l.chains[chain], depth{signatures: true})
		if err != nil {
			return swept, fmt.Errorf("%s: %w", doing, err)
		}
		if failures := v.losses(); len(failures) > 0 {
			swept.Problems = append(swept.Problems, failures...)
			continue
		}
		if err := r.sweepChain(ctx, chain, r.due(v, v.Manifests, l.chains[chain], now, swept), decided, opts, swept); err != nil {
			return swept, fmt.Errorf("%s: %s: %w", doing, chain, err)
		}
	}
	return swept, nil
}

// sweepRolledUp sweeps what the prunes of a recorder name.
func (r *Repository) sweepRolledUp(ctx context.Context, chain manifest.Chain, opts SweepOptions, swept *Swept) error {
	decided := r.now()
	listed, err := r.listWhole(ctx, chain)
	if err != nil {
		return err
	}
	now, err := r.surely(ctx, &listing{newest: listed.newest})
	if err != nil {
		return err
	}
	v, err := r.load(ctx, chain, depth{})
	if err != nil {
		return err
	}
	if failures := v.losses(); len(failures) > 0 {
		swept.Problems = append(swept.Problems, failures...)
		return nil
	}
	prunes := v.Manifests[:0:0]
	var seqs []manifest.Sequence
	for _, m := range v.Manifests {
		if m.Prune == nil || !light(m.Prune) {
			continue
		}
		prunes = append(prunes, m)
		for _, e := range m.Prune.Manifests {
			if v.st.slots[e.Sequence] == nil && listed.has(e.Sequence) && m.age(now) >= RolledUpGrace+skewMargin {
				seqs = append(seqs, e.Sequence)
			}
		}
	}
	if err := errors.Join(r.readInto(ctx, v, seqs, nil), r.readRollUps(ctx, v)); err != nil {
		return err
	}
	return r.sweepChain(ctx, chain, r.due(v, prunes, listed.listedChain, now, swept), decided, opts, swept)
}

// doomed is one object whose time has come.
type doomed struct {
	name     string // below the cluster's folder
	size     int64
	manifest bool
}

// due lists what of all that prunes name is to be deleted now, and counts what
// waits.
func (r *Repository) due(v *View, prunes []Loaded, listed *listedChain, now time.Time, swept *Swept) []doomed {
	sizes := map[string]int64{}
	for _, infos := range listed.data {
		for _, info := range infos {
			sizes[trimCluster(r.cluster, info.Name)] = info.Size
		}
	}
	named := map[string]bool{}
	replaced := v.replacements()
	for i := range v.Manifests {
		m := &v.Manifests[i]
		objects := replaced.objects(m)
		if by := replaced.by[m.Sequence]; by != nil && sizes[by.Objects[0].Name] != by.Objects[0].Size {
			objects = m.Objects // what stands for them is gone: they are the last that is left
		}
		for _, o := range objects {
			named[o.Name] = true
		}
	}
	for _, seq := range v.st.order {
		if !v.st.forked(seq) {
			continue
		}
		for _, o := range v.st.slots[seq].m.Objects {
			named[o.Name] = true
		}
	}
	live := map[manifest.ID]bool{} // should a view not have read all
	for _, e := range v.st.live {
		live[e.ID] = e.Kind == manifest.KindSegment
	}
	graces := v.graces(sizesOf(r.cluster, listed.data))
	var due []doomed
	add := func(m *Loaded, grace time.Duration, d doomed) {
		if left := grace + skewMargin - m.age(now); left > 0 {
			swept.Waiting++
			if at := now.Add(left); swept.Next.IsZero() || at.Before(swept.Next) {
				swept.Next = at
			}
			return
		}
		due = append(due, d)
	}
	for i := range prunes {
		m := &prunes[i]
		if m.Prune == nil {
			continue
		}
		ofObjects := graces.ofObjects(m.Prune)
		for _, name := range m.Prune.Objects {
			if size, there := sizes[name]; there && !named[name] && !live[idOf(name)] {
				add(m, cmp.Or(ofObjects[idOf(name)], ObjectGrace), doomed{name: name, size: size})
				named[name] = true // should another prune name it too, once is enough
			}
		}
		for _, e := range m.Prune.Manifests {
			s := v.st.slots[e.Sequence]
			if s == nil || s.m == nil || s.hash != e.Hash || v.st.counts[e.Sequence] || !slices.Contains(listed.sequences, e.Sequence) {
				continue
			}
			add(m, graces.of(e, ManifestGrace), doomed{name: ManifestName(v.Chain, e.Sequence), manifest: true})
		}
	}
	return due
}

// sweepChain deletes what is due of one chain, several objects at a time, and
// stops at the first error.
func (r *Repository) sweepChain(ctx context.Context, chain manifest.Chain, due []doomed, decided time.Time, opts SweepOptions, swept *Swept) (err error) {
	if opts.DryRun || len(due) == 0 {
		for _, d := range due {
			swept.count(d)
		}
		return nil
	}
	total := int64(0)
	for _, d := range due {
		total += d.size
	}
	began := r.now()
	deleted := int64(0)
	r.opts.Events.Emit(events.StageStarted{Stage: "sweep", Chain: string(chain), Total: total})
	defer func() {
		r.opts.Events.Emit(events.StageDone{Stage: "sweep", Chain: string(chain), Duration: r.now().Sub(began), Bytes: deleted, Err: err})
	}()
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(deletes)
	for _, d := range due {
		group.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if age := r.now().Sub(decided); age > sweepWithin {
				return fmt.Errorf("%w: %s ago, limit %s; the next prune goes on", ErrStale, age.Round(time.Second), sweepWithin)
			}
			err := r.store.Delete(ctx, r.stored(d.name))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, storage.ErrProtected):
				swept.Protected = append(swept.Protected, r.stored(d.name))
			case err != nil:
				return fmt.Errorf("delete %s: %w", r.stored(d.name), err)
			default:
				swept.count(d)
				deleted += d.size
				r.opts.Events.Emit(events.StageProgress{Stage: "sweep", Chain: string(chain), Done: deleted})
			}
			return nil
		})
	}
	err = group.Wait()
	slices.Sort(swept.Protected)
	return err
}

func (s *Swept) count(d doomed) {
	if d.manifest {
		s.Manifests++
		return
	}
	s.Objects++
	s.Bytes += d.size
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
