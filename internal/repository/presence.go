package repository

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"lifeboat/internal/manifest"
)

// Presence says what a store has where a cluster's folder should be.
type Presence struct {
	Found  bool     // the cluster's folder holds something
	Others []string // if not: full names of other clusters in the store, as far as was looked
}

// glance bounds the names that are looked at for other clusters: it is help for
// a person, not worth listing a whole bucket.
const glance = 20000

// Present looks whether the cluster has anything in the store. A mistyped URL,
// a disk that is not mounted and another cluster's trust all look like an empty
// repository otherwise.
func (r *Repository) Present(ctx context.Context) (Presence, error) {
	for _, err := range r.store.List(ctx, r.cluster+"/") {
		if err != nil {
			return Presence{}, fmt.Errorf("list %s in %s: %w", r.cluster, r.opts.Name, err)
		}
		return Presence{Found: true}, nil
	}
	var p Presence
	looked := 0
	for info, err := range r.store.List(ctx, "") {
		if looked++; err != nil || looked > glance {
			break // the answer is known; only its explanation is not
		}
		folder, _, ok := strings.Cut(info.Name, "/")
		if ok && manifest.CheckCluster(folder) == nil && !slices.Contains(p.Others, folder) {
			p.Others = append(p.Others, folder)
		}
	}
	return p, nil
}

// Require is ErrNothing, with what the store holds instead, if the cluster has
// nothing in it.
func (r *Repository) Require(ctx context.Context) error {
	p, err := r.Present(ctx)
	if err != nil || p.Found {
		return err
	}
	others := ""
	if len(p.Others) > 0 {
		others = "; it holds " + strings.Join(p.Others, ", ")
	}
	return fmt.Errorf("no backups of cluster %s in %s%s: %w", r.cluster, r.opts.Name, others, ErrNothing)
}
