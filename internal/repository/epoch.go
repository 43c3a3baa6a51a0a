package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lifeboat/internal/manifest"
)

// ErrReplaced: the etcd that a backup is of was replaced while it was on its
// way: what comes next has to be captured anew.
var ErrReplaced = errors.New("another history of etcd has begun since: take a new backup")

// snapshotWithin is how long after its capture began a full's revision may still
// be taken: dead members are waited for, bad ones are passed over. It is a guess
// on the long side. Within it a revision that went back is not seen; the next full
// sees it, unless etcd has come further by then.
const snapshotWithin = 5 * time.Minute

// epoch is the view's, or the next when a full shows that etcd's history is
// another one: its cluster id changed, its revision went back, or its writer
// says so. Two captures may overlap and commit in the opposite order, whatever
// began first, and a degraded one may be of a member that lags: only a whole
// capture that began so long after another that the other's snapshot was surely
// taken can say that the revision went back. A full of the history before, by a
// writer that slept while etcd was replaced, must not become the newest history.
func (r *Repository) epoch(ctx context.Context, view *View, draft *manifest.Manifest) (uint64, error) {
	if draft.Kind != manifest.KindFull || draft.Etcd == nil {
		return view.epoch(), nil
	}
	if view.Head == nil {
		return max(1, draft.Epoch), nil
	}
	epoch := view.Head.Epoch
	recent, err := r.recentFulls(ctx, view)
	if err != nil {
		return 0, err
	}
	newest := newestOf(recent)
	if newest != nil && newest.Etcd.ClusterID != draft.Etcd.ClusterID {
		// A time from the future says nothing, and a cluster that the chain does
		// not know is the new one, however wrong its node's clock is.
		if draft.Created.Before(newest.Created) && !newest.Created.After(r.now().Add(skewMargin)) {
			known, err := r.knowsCluster(ctx, view, draft.Etcd.ClusterID)
			if err != nil {
				return 0, err
			}
			if known {
				return 0, fmt.Errorf("%w: backup %s of %s is of another cluster", ErrReplaced, newest.ID, newest.Created.Format(time.RFC3339))
			}
		}
		return max(epoch+1, draft.Epoch), nil
	}
	if err := r.checkNotForked(ctx, view, recent, draft); err != nil {
		return 0, err
	}
	if draft.Epoch <= epoch && len(draft.Degraded) == 0 && wentBack(view, recent, draft) {
		return epoch + 1, nil
	}
	return max(epoch, draft.Epoch), nil
}

// checkNotForked refuses a full whose capture began before any of the epoch's,
// where the epoch before was of the same etcd cluster: etcd was taken back without
// a new cluster id (a forced new cluster, an old data directory) while the full
// was on its way, and nothing in it shows of which of the two histories it is.
func (r *Repository) checkNotForked(ctx context.Context, view *View, recent []*manifest.Manifest, draft *manifest.Manifest) error {
	if draft.Copied != nil || draft.Epoch >= view.Head.Epoch || len(recent) == 0 || recent[0].Epoch != view.Head.Epoch {
		return nil
	}
	for _, m := range recent {
		if !draft.Created.Before(m.Created) || m.Created.After(r.now().Add(skewMargin)) {
			return nil
		}
	}
	for _, e := range slices.Backward(view.st.live) {
		if e.Kind != manifest.KindFull {
			continue
		}
		s, err := r.slotOf(ctx, view, e)
		if err != nil {
			return err
		}
		if s.m == nil || s.m.Etcd == nil || s.m.Epoch == view.Head.Epoch {
			continue
		}
		if s.m.Etcd.ClusterID == draft.Etcd.ClusterID {
			return fmt.Errorf("%w: epoch %d of the same cluster began after its capture did", ErrReplaced, view.Head.Epoch)
		}
		return nil
	}
	return nil
}

// wentBack reports whether a full shows less than what was surely there before
// its capture began.
func wentBack(view *View, recent []*manifest.Manifest, draft *manifest.Manifest) bool {
	if newestOf(recent) != nil {
		for _, m := range recent {
			if draft.Etcd.Revision < m.Etcd.Revision && draft.Created.Sub(m.Created) > snapshotWithin {
				return true
			}
		}
	}
	for _, e := range view.st.live {
		if e.Kind != manifest.KindSegment || e.Reach == nil || e.Reach.Epoch != view.Head.Epoch || e.Reach.Last <= draft.Etcd.Revision {
			continue
		}
		if seen := view.st.seen(e.Sequence); !seen.IsZero() && draft.Created.Sub(seen) > snapshotWithin {
			return true
		}
	}
	return false
}

// seen is a time by which the revisions of a live segment had surely been seen:
// when it was cut, or when a manifest was made that lists it. Zero if unknown.
func (st *state) seen(seq manifest.Sequence) time.Time {
	if s := st.slots[seq]; s != nil && s.m != nil {
		return s.m.Created
	}
	if v, ok := st.recent[seq]; ok {
		return v.by.m.Created
	}
	if _, ok := st.indexed(seq); ok { // a full may be committed long after its capture began
		return st.anchor.m.Created.Add(GiveUpAfter)
	}
	return time.Time{}
}
