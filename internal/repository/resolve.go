package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lifeboat/internal/manifest"
)

// Point is what a restore aims at. At most one of Backup, Revision and Time is
// set; none of them is the latest.
type Point struct {
	Backup   manifest.ID
	Revision manifest.Revision // the newest full at or below it
	Time     time.Time         // the newest backup whose capture began at or before it
	Epoch    uint64            // with Revision: of this epoch; 0: the newest epoch that reaches it
}

func (p Point) String() string {
	switch {
	case p.Backup != "":
		return "backup " + string(p.Backup)
	case p.Revision != 0 && p.Epoch != 0:
		return fmt.Sprintf("revision %d of epoch %d", p.Revision, p.Epoch)
	case p.Revision != 0:
		return fmt.Sprintf("revision %d", p.Revision)
	case !p.Time.IsZero():
		return p.Time.UTC().Format(time.RFC3339)
	}
	return "the latest"
}

// Resolve finds the backup of a chain that a point means, with its own
// signature checked. It returns ErrNothing if there is none. It returns
// ErrVerification if the chain has a failure that could hide a better answer;
// then only a point that names a backup by its id is resolved, since that can't
// be taken for another. Heads that this machine saw and heads that manifests of
// the cluster's other chains carry tell it of newer manifests that are gone.
func (r *Repository) Resolve(ctx context.Context, chain manifest.Chain, point Point) (*manifest.Manifest, error) {
	doing := fmt.Sprintf("resolve %s in %s of %s", point, chain, r.opts.Name)
	v, views, err := r.withWitnesses(ctx, chain)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	v.Problems = sortProblems(append(v.Problems, r.witnessed(v, views)...))
	candidates := v.candidates(point)
	b, bad, err := r.firstConfirmed(ctx, candidates)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	switch {
	case point.Backup != "":
		bad = append(bad, v.lost(point.Backup)...)
	case len(candidates) > 0:
		bad = append(bad, v.hiding(candidates[0].Manifest)...)
	default:
		bad = append(bad, v.hiding(nil)...)
	}
	if len(bad) > 0 {
		if b != nil {
			doing += fmt.Sprintf(" (backup %s of %s can be had by its id)", b.ID, b.Created.Format(time.RFC3339))
		}
		return nil, &VerificationError{Doing: doing, Problems: bad}
	}
	if b == nil {
		return nil, fmt.Errorf("%s: %w", doing, ErrNothing)
	}
	return b.Manifest, nil
}

// maxRefused bounds the candidates whose signatures are tried.
const maxRefused = 16

// firstConfirmed returns the first candidate whose own signature counts, nil if
// none of the first does, and what is wrong with those before it.
func (r *Repository) firstConfirmed(ctx context.Context, candidates []Backup) (*Backup, []Problem, error) {
	var bad []Problem
	for i := range candidates[:min(len(candidates), maxRefused)] {
		err := r.confirm(ctx, &candidates[i])
		var refused *VerificationError
		switch {
		case errors.As(err, &refused):
			bad = append(bad, refused.Problems...)
		case err != nil:
			return nil, nil, err
		default:
			return &candidates[i], bad, nil
		}
	}
	return nil, bad, nil
}

// candidates are the backups that answer a point, the best first.
func (v *View) candidates(point Point) []Backup {
	backups := v.Backups()
	if point.Revision != 0 { // by epoch, then by revision; a chain's order breaks ties
		slices.SortStableFunc(backups, func(a, b Backup) int {
			if a.Etcd == nil || b.Etcd == nil || a.Epoch != b.Epoch {
				return int(int64(a.Epoch) - int64(b.Epoch))
			}
			return int(a.Etcd.Revision - b.Etcd.Revision)
		})
	}
	slices.Reverse(backups)
	return slices.DeleteFunc(backups, func(b Backup) bool {
		switch {
		case point.Backup != "":
			return b.ID != point.Backup
		case point.Revision != 0:
			return b.Etcd == nil || b.Etcd.Revision > point.Revision || point.Epoch != 0 && b.Epoch != point.Epoch
		case !point.Time.IsZero():
			return b.Created.After(point.Time)
		}
		return false
	})
}

// lost lists the failures of the places that an index knows to hold a backup.
func (v *View) lost(id manifest.ID) []Problem {
	var lost []Problem
	for _, p := range v.Failures() {
		if e, ok := v.st.indexed(p.Sequence); ok && e.ID == id && !v.st.counts[p.Sequence] {
			lost = append(lost, p)
		}
	}
	return lost
}

// hiding lists the failures because of which m might not be the right answer:
// those of places behind it. What was lost before it is reported by Verify and
// changes nothing here.
func (v *View) hiding(m *manifest.Manifest) []Problem {
	var hidden []Problem
	for _, p := range v.Failures() {
		if p.Kind == Overwritten || p.Kind.foreign() || p.Sequence == 0 || m != nil && p.Sequence <= m.Sequence {
			continue
		}
		hidden = append(hidden, p)
	}
	return hidden
}
