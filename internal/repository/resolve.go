package repository

import (
	"cmp"
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
	Time     time.Time         // the furthest backup whose capture began at or before it
	Epoch    uint64            // with Revision or Time: of this epoch; 0: the newest that reaches it, or had begun by then
}

func (p Point) String() string {
	switch {
	case p.Backup != "":
		return "backup " + string(p.Backup)
	case p.Revision != 0 && p.Epoch != 0:
		return fmt.Sprintf("revision %d of epoch %d", p.Revision, p.Epoch)
	case p.Revision != 0:
		return fmt.Sprintf("revision %d", p.Revision)
	case !p.Time.IsZero() && p.Epoch != 0:
		return fmt.Sprintf("%s in epoch %d", p.Time.Format(time.RFC3339Nano), p.Epoch)
	case !p.Time.IsZero():
		return p.Time.Format(time.RFC3339Nano)
	case p.Epoch != 0:
		return fmt.Sprintf("the latest of epoch %d", p.Epoch)
	}
	return "the latest"
}

// Resolve finds the backup of a chain that a point means, with its own
// signature checked. It returns ErrNothing if there is none. It returns
// ErrVerification if the chain has a failure that could hide a better answer;
// then only a point that names a backup by its id is resolved, since that can't
// be taken for another. Heads that this machine saw and heads that manifests of
// the cluster's other chains carry tell it of newer manifests that are gone.
//
// It knows fulls and files only; of etcd, Route goes further.
func (r *Repository) Resolve(ctx context.Context, chain manifest.Chain, point Point) (*manifest.Manifest, error) {
	b, _, err := r.resolve(ctx, chain, point)
	if err != nil {
		return nil, err
	}
	return b.Manifest, nil
}

func (r *Repository) resolve(ctx context.Context, chain manifest.Chain, point Point) (*Backup, *View, error) {
	doing := fmt.Sprintf("resolve %s in %s of %s", point, chain, r.opts.Name)
	v, views, err := r.withWitnesses(ctx, chain)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", doing, err)
	}
	v.Problems = sortProblems(append(v.Problems, r.witnessed(v, views)...))
	candidates := v.candidates(point)
	b, bad, err := r.firstConfirmed(ctx, candidates)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", doing, err)
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
		return nil, nil, &VerificationError{Doing: doing, Problems: bad}
	}
	if b == nil {
		return nil, nil, fmt.Errorf("%s: %w", doing, ErrNothing)
	}
	return b, v, nil
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

// Latest is the one of a chain's backups, given in its order, that a restore of
// the latest gives back, unless its own signature speaks against it; nil if there
// are none. asOf is the last time at which etcd is known to have been in that
// state, or the time of capture.
func Latest(backups []Backup) (b *Backup, asOf time.Time) {
	if len(backups) == 0 {
		return nil, time.Time{}
	}
	backups = slices.Clone(backups)
	bestFirst(backups)
	b = &backups[0]
	asOf = b.Created
	for _, other := range backups[1:] {
		if b.Etcd != nil && reaches(other.Manifest, b.Manifest) == 0 && other.Created.After(asOf) {
			asOf = other.Created
		}
	}
	return b, asOf
}

// reaches compares how far two backups of a chain go: by epoch, then by etcd's
// revision, which no wrong clock, no late commit and no member that lags can
// make larger. Files are all alike; a chain's own order tells them apart.
func reaches(a, b *manifest.Manifest) int {
	if a.Etcd == nil || b.Etcd == nil {
		return 0
	}
	return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Etcd.Revision, b.Etcd.Revision))
}

// bestFirst sorts a chain's backups: first the one that goes furthest, and of two
// alike the one that is not degraded, then the later in the chain.
func bestFirst(backups []Backup) {
	slices.SortStableFunc(backups, func(a, b Backup) int {
		if order := reaches(a.Manifest, b.Manifest); order != 0 || a.Etcd == nil || b.Etcd == nil {
			return order
		}
		return cmp.Compare(min(len(b.Degraded), 1), min(len(a.Degraded), 1))
	})
	slices.Reverse(backups)
}

// candidates are the backups that answer a point, the best first.
func (v *View) candidates(point Point) []Backup {
	backups := v.Backups()
	bestFirst(backups)
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
