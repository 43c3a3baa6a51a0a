package repository

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// Backup is one full of etcd, or one node's files or images; or one blob.
type Backup struct {
	*manifest.Manifest
	Hash   manifest.Hash // of the manifest's text
	Proved bool          // compared with live members, or proved later; and not degraded

	// Rekeyed is the id of the rekey whose objects, recipients and lock the
	// manifest shows in place of its own; empty if there is none.
	Rekeyed manifest.ID

	// Base says, to a prune that chooses, that points of the window, or the
	// latest, are restored from it.
	Base bool

	rekey  *Loaded
	signed bool // its own signature was checked; else an index vouches for it
}

// chainsAtOnce bounds the chains that are loaded side by side; each reads its
// manifests in parallel.
const chainsAtOnce = 4

// Backups lists the backups of all chains, newest first, and everything that is
// wrong with the chains and with the presence and size of the backups' data
// objects. A backup with a problem is listed all the same.
func (r *Repository) Backups(ctx context.Context) ([]Backup, []Problem, error) {
	l, views, err := r.loadWhileListing(ctx)
	if err != nil {
		return nil, nil, err
	}
	if views, err = r.addWitnessed(ctx, l, views); err != nil {
		return nil, nil, err
	}
	var backups []Backup
	var problems []Problem
	for _, v := range views {
		problems = append(problems, v.Problems...)
		problems = append(problems, r.witnessed(v, views)...)
		ofChain := v.Backups()
		for i, b := range ofChain {
			folder := b.ID
			if b.Rekeyed != "" {
				folder = b.Rekeyed
			}
			data := l.chain(v.Chain).data[folder]
			if len(data) < len(b.Objects) && (i >= len(ofChain)-recent || b.Rekeyed != "") {
				if data, err = r.listData(ctx, v.Chain, folder); err != nil {
					return nil, nil, err
				}
			}
			problems = append(problems, r.checkListed(b.Manifest, data)...)
		}
		backups = append(backups, ofChain...)
	}
	slices.SortStableFunc(backups, func(a, b Backup) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.Chain, b.Chain), cmp.Compare(b.Sequence, a.Sequence))
	})
	return backups, sortProblems(problems), nil
}

// recent bounds the backups of a chain that may have been committed while the
// store was listed: their data objects are looked for again before they are
// called missing.
const recent = 16

func (r *Repository) listData(ctx context.Context, chain manifest.Chain, id manifest.ID) ([]storage.Info, error) {
	var list []storage.Info
	for info, err := range r.store.List(ctx, r.stored(chain.DataFolder(id))) {
		if err != nil {
			return nil, fmt.Errorf("list data objects of backup %s: %w", id, err)
		}
		list = append(list, info)
	}
	return list, nil
}

// loadWhileListing loads all chains, each from when its names are known. Before
// it looks behind a chain's head it waits for the end of the listing, so that
// no manifest that it lists can carry a head that it does not see.
func (r *Repository) loadWhileListing(ctx context.Context) (*listing, []*View, error) {
	group, ctx := errgroup.WithContext(ctx)
	atOnce := semaphore.NewWeighted(chainsAtOnce)
	listed := make(chan struct{})
	var mu sync.Mutex
	views := map[manifest.Chain]*View{}
	load := func(chain manifest.Chain, names *listedChain) error {
		ld := r.loader(chain, names)
		run := func(steps ...step) error {
			if err := atOnce.Acquire(ctx, 1); err != nil {
				return err
			}
			defer atOnce.Release(1)
			return ld.run(ctx, depth{}, steps...)
		}
		if err := run(ld.tail, ld.index); err != nil {
			return err
		}
		select {
		case <-listed:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := run(ld.probe, ld.index, ld.holes); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		views[chain] = r.loaded(ld, names)
		return nil
	}
	var l *listing
	group.Go(func() (err error) {
		l, err = r.listEach(ctx, func(chain manifest.Chain, names *listedChain) {
			group.Go(func() error { return load(chain, names) })
		})
		close(listed)
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, nil, err
	}
	var list []*View
	for _, chain := range l.names() {
		list = append(list, views[chain])
	}
	return l, list, nil
}

// loadAll loads several chains of one listing.
func (r *Repository) loadAll(ctx context.Context, l *listing, chains []manifest.Chain, d depth) ([]*View, error) {
	views := make([]*View, len(chains))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(chainsAtOnce)
	for i, chain := range chains {
		listed := l.chain(chain)
		group.Go(func() (err error) {
			views[i], err = r.loadListed(ctx, chain, listed, d)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return views, nil
}

// Backups lists the view's fulls, files and images, in the chain's order, each with the
// objects in effect.
func (v *View) Backups() []Backup {
	proofs := map[manifest.ID]*manifest.Proof{}
	for _, m := range v.Manifests {
		if m.Proof != nil {
			proofs[m.Proof.Of] = m.Proof
		}
	}
	rekeys, _ := v.rekeys()
	var backups []Backup
	for _, m := range v.Manifests {
		if !backupKind(m.Kind) {
			continue
		}
		b := Backup{
			Manifest: m.Manifest, Hash: m.Hash, Proved: proved(m.Manifest, proofs[m.ID]),
			signed: v.st.slots[m.Sequence].signers != nil,
		}
		if list := rekeys[m.ID]; len(list) > 0 {
			b.rekey = list[len(list)-1]
			b.Manifest, b.Rekeyed = effective(m.Manifest, b.rekey), b.rekey.ID
		}
		backups = append(backups, b)
	}
	return backups
}

// proved says whether a backup counts as proved for retention. A degraded one
// never does. A proof manifest makes up for a comparison that did not happen at
// capture, if it is of what the manifest describes.
func proved(m *manifest.Manifest, p *manifest.Proof) bool {
	if len(m.Degraded) > 0 {
		return false
	}
	if len(m.Unproved) == 0 {
		return true
	}
	if p == nil || m.Etcd == nil || p.Revision < m.Etcd.Revision {
		return false
	}
	return p.Revision > m.Etcd.Revision || m.Etcd.HashKV == 0 || p.HashKV == m.Etcd.HashKV
}

// checkListed compares a manifest's data objects with what the store lists.
func (r *Repository) checkListed(m *manifest.Manifest, listed []storage.Info) []Problem {
	var problems []Problem
	for _, o := range m.Objects {
		name := r.stored(o.Name)
		p := Problem{Object: name, Chain: m.Chain, Sequence: m.Sequence}
		i := slices.IndexFunc(listed, func(info storage.Info) bool { return info.Name == name })
		switch {
		case i < 0:
			p.Kind, p.Message = ObjectMissing, fmt.Sprintf("backup %s names it, and it is not in the store", m.ID)
		case listed[i].Size != o.Size:
			p.Kind, p.Message = ObjectSize, fmt.Sprintf("%d bytes, backup %s says %d", listed[i].Size, m.ID, o.Size)
		default:
			continue
		}
		problems = append(problems, p)
	}
	return problems
}

// confirm checks a backup's own signature, if an index has vouched for it until
// now, and reads its manifest whole. What may be listed by another manifest's
// word is not restored by it: the key that signed it may have been revoked
// since.
func (r *Repository) confirm(ctx context.Context, b *Backup) error {
	if b.signed {
		return nil
	}
	s, err := r.reader(b.Chain).read(ctx, b.Sequence, claim{})
	if err != nil {
		return err
	}
	p := Problem{Object: r.stored(ManifestName(b.Chain, b.Sequence)), Chain: b.Chain, Sequence: b.Sequence}
	switch {
	case s.absent:
		p.Kind, p.Message = Hole, "the manifest is missing"
	case s.m == nil:
		p.Kind, p.Message = s.kind, s.err.Error()
	case s.hash != b.Hash:
		p.Kind, p.Message = Unlinked, "it is a genuine manifest, and not the one that the chain names here"
	default:
		b.Manifest, b.signed = effective(s.m, b.rekey), true
		return nil
	}
	return &VerificationError{Doing: fmt.Sprintf("check the signature of backup %s", b.ID), Problems: []Problem{p}}
}

// Find returns the one backup whose id is, or begins with, id, with its own
// signature checked. None is ErrNothing, several are ErrAmbiguous.
func (r *Repository) Find(ctx context.Context, id string) (*Backup, error) {
	backups, _, err := r.Backups(ctx)
	if err != nil {
		return nil, err
	}
	var found []*Backup
	for i := range backups {
		if id != "" && strings.HasPrefix(string(backups[i].ID), id) {
			found = append(found, &backups[i])
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("find backup %q in %s: %w", id, r.opts.Name, ErrNothing)
	case 1:
		if err := r.confirm(ctx, found[0]); err != nil {
			return nil, fmt.Errorf("find backup %q in %s: %w", id, r.opts.Name, err)
		}
		return found[0], nil
	}
	return nil, fmt.Errorf("find backup %q in %s: %w: %d backups begin so; give more of it", id, r.opts.Name, ErrAmbiguous, len(found))
}
