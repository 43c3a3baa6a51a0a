package repository

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lifeboat/storage"
)

// maxSkew is how far the store's clock and ours may differ where anything is
// deleted.
const maxSkew = 5 * time.Minute

// ErrClock: the store's clock and ours differ by more than maxSkew, so nobody
// knows how old anything is. Nothing is pruned until both are right.
var ErrClock = errors.New("the clocks differ too much to delete anything")

// surely is how late it surely is, as two clocks say that need not know each
// other: ours and the store's. Deletion waits for the slower one. A store that
// tells no time shows how late it is by the newest object in the cluster's
// folder; there, time stands still while nobody commits.
func (r *Repository) surely(ctx context.Context, l *listing) (time.Time, error) {
	before := r.now()
	theirs, told, err := storage.NowOf(ctx, r.store)
	if err != nil {
		return time.Time{}, fmt.Errorf("compare the clock of %s with ours: %w", r.opts.Name, err)
	}
	after := r.now() // the answer may have taken long: its time lies between these two
	what := "the store's clock says"
	if !told {
		theirs, what = l.newest, "its newest object was stored at"
	}
	theirs = whole(theirs) // as ours are
	switch {
	case theirs.After(after.Add(maxSkew)):
		return time.Time{}, skewed(what, theirs, after)
	case told && theirs.Before(before.Add(-maxSkew)):
		return time.Time{}, skewed(what, theirs, before)
	case theirs.Before(before):
		return theirs, nil
	}
	return before, nil
}

func skewed(what string, theirs, ours time.Time) error {
	return fmt.Errorf("%w: %s %s, ours says %s; the limit is %s", ErrClock,
		what, theirs.UTC().Format(time.RFC3339), ours.UTC().Format(time.RFC3339), maxSkew)
}

// CheckClock compares the store's clock with ours, as every prune and sweep
// does. It fails with ErrClock where nothing may be deleted because of it.
func (r *Repository) CheckClock(ctx context.Context) error {
	l := &listing{}
	if _, told, err := storage.NowOf(ctx, r.store); err == nil && !told {
		if l, err = r.list(ctx); err != nil {
			return err
		}
	}
	_, err := r.surely(ctx, l)
	return err
}
