package repository

import (
	"context"
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

// Resolve finds the backup of a chain that a point means. It returns
// ErrNothing if there is none. It returns ErrVerification if the chain has a
// failure that could hide a better answer; then only a point that names a
// backup by its id is resolved, since that can't be taken for another.
func (r *Repository) Resolve(ctx context.Context, chain manifest.Chain, point Point) (*manifest.Manifest, error) {
	doing := fmt.Sprintf("resolve %s in %s of %s", point, chain, r.opts.Name)
	v, err := r.Load(ctx, chain)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	m := v.resolve(point)
	if point.Backup == "" {
		if hidden := v.hiding(m); len(hidden) > 0 {
			if m != nil {
				doing += fmt.Sprintf(" (backup %s of %s can be had by its id)", m.ID, m.Created.Format(time.RFC3339))
			}
			return nil, &VerificationError{Doing: doing, Problems: hidden}
		}
	}
	if m == nil {
		return nil, fmt.Errorf("%s: %w", doing, ErrNothing)
	}
	return m, nil
}

// resolve is the choice itself.
func (v *View) resolve(point Point) *manifest.Manifest {
	backups := v.Backups()
	if point.Revision != 0 { // by epoch, then by revision; a chain's order breaks ties
		slices.SortStableFunc(backups, func(a, b Backup) int {
			if a.Etcd == nil || b.Etcd == nil || a.Epoch != b.Epoch {
				return int(int64(a.Epoch) - int64(b.Epoch))
			}
			return int(a.Etcd.Revision - b.Etcd.Revision)
		})
	}
	for _, b := range slices.Backward(backups) {
		switch {
		case point.Backup != "":
			if b.ID != point.Backup {
				continue
			}
		case point.Revision != 0:
			if b.Etcd == nil || b.Etcd.Revision > point.Revision || point.Epoch != 0 && b.Epoch != point.Epoch {
				continue
			}
		case !point.Time.IsZero():
			if b.Created.After(point.Time) {
				continue
			}
		}
		return b.Manifest
	}
	return nil
}

// hiding lists the failures because of which m might not be the right answer:
// those of places behind it. What was lost before it is reported by Verify and
// changes nothing here.
func (v *View) hiding(m *manifest.Manifest) []Problem {
	var hidden []Problem
	for _, p := range v.Failures() {
		if p.Kind == Overwritten || p.Sequence == 0 || m != nil && p.Sequence <= m.Sequence {
			continue
		}
		hidden = append(hidden, p)
	}
	return hidden
}
