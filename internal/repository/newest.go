package repository

import (
	"context"
	"fmt"
	"slices"

	"lifeboat/internal/manifest"
)

// NewestFull returns the full of a chain whose capture began last, nil if there
// is none. It reads the chain's end only, and tells of no problems: it is for
// one who is about to commit, not for one who restores.
func (r *Repository) NewestFull(ctx context.Context, chain manifest.Chain) (*manifest.Manifest, error) {
	view, err := r.load(ctx, chain, depth{tail: true, since: r.now()})
	if err != nil {
		return nil, err
	}
	recent, err := r.recentFulls(ctx, view)
	if err != nil {
		return nil, fmt.Errorf("look for the newest full of %s in %s: %w", chain, r.opts.Name, err)
	}
	return newestOf(recent), nil
}

// mostRecent bounds what recentFulls reads one by one.
const mostRecent = 64

// recentFulls are the newest fulls of the chain's last history, the newest by
// sequence first. Commits come up to GiveUpAfter later than their captures, so
// the list goes back to a full that is older by more than that than the newest
// capture, and that is not degraded: whatever lies behind it tells nothing more
// of how far etcd has come.
func (r *Repository) recentFulls(ctx context.Context, view *View) ([]*manifest.Manifest, error) {
	var recent []*manifest.Manifest
	for _, e := range slices.Backward(view.st.live) {
		if e.Kind != manifest.KindFull {
			continue
		}
		s, err := r.slotOf(ctx, view, e)
		if err != nil {
			return nil, err
		}
		if s.m == nil || s.m.Etcd == nil {
			continue // reported elsewhere
		}
		if len(recent) > 0 && recent[0].Epoch != s.m.Epoch {
			break
		}
		recent = append(recent, s.m)
		newest := newestOf(recent)
		if len(recent) == mostRecent || len(s.m.Degraded) == 0 && newest.Created.Sub(s.m.Created) > GiveUpAfter+skewMargin {
			break
		}
	}
	return recent, nil
}

// knowsCluster reports whether one of the chain's last fulls is of an etcd cluster.
func (r *Repository) knowsCluster(ctx context.Context, view *View, id manifest.EtcdID) (bool, error) {
	fulls := 0
	for _, e := range slices.Backward(view.st.live) {
		if e.Kind != manifest.KindFull {
			continue
		}
		if fulls++; fulls > mostRecent {
			break
		}
		s, err := r.slotOf(ctx, view, e)
		if err != nil {
			return false, err
		}
		if s.m != nil && s.m.Etcd != nil && s.m.Etcd.ClusterID == id {
			return true, nil
		}
	}
	return false, nil
}

// newestOf is the full whose capture began last.
func newestOf(list []*manifest.Manifest) (newest *manifest.Manifest) {
	for _, m := range list {
		if m.Kind == manifest.KindFull && m.Etcd != nil && (newest == nil || m.Created.After(newest.Created)) {
			newest = m
		}
	}
	return newest
}
