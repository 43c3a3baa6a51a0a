package repository

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// Backup is one full of etcd or one node's files.
type Backup struct {
	*manifest.Manifest
	Hash   manifest.Hash // of the manifest's text
	Proved bool          // compared with live members, or proved later; and not degraded
}

// chainsAtOnce bounds the chains that are loaded side by side; each reads its
// manifests in parallel.
const chainsAtOnce = 4

// Backups lists the backups of all chains, newest first, and everything that is
// wrong with the chains and with the presence and size of the backups' data
// objects. A backup with a problem is listed all the same.
func (r *Repository) Backups(ctx context.Context) ([]Backup, []Problem, error) {
	l, err := r.list(ctx)
	if err != nil {
		return nil, nil, err
	}
	views, err := r.loadAll(ctx, l, l.names(), depth{})
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
		for _, b := range v.Backups() {
			backups = append(backups, b)
			problems = append(problems, r.checkListed(b.Manifest, l.chains[v.Chain].data[b.ID])...)
		}
	}
	slices.SortStableFunc(backups, func(a, b Backup) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.Chain, b.Chain), cmp.Compare(b.Sequence, a.Sequence))
	})
	return backups, sortProblems(problems), nil
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

// Backups lists the view's fulls and files, in the chain's order.
func (v *View) Backups() []Backup {
	proofs := map[manifest.ID]*manifest.Proof{}
	for _, m := range v.Manifests {
		if m.Proof != nil {
			proofs[m.Proof.Of] = m.Proof
		}
	}
	var backups []Backup
	for _, m := range v.Manifests {
		if m.Kind == manifest.KindFull || m.Kind == manifest.KindFiles {
			backups = append(backups, Backup{Manifest: m.Manifest, Hash: m.Hash, Proved: proved(m.Manifest, proofs[m.ID])})
		}
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

// Find returns the one backup whose id is, or begins with, id. None is
// ErrNothing; several are an error.
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
		return found[0], nil
	}
	return nil, fmt.Errorf("find backup %q in %s: %d backups begin so; give more of the id", id, r.opts.Name, len(found))
}
