package restore

import (
	"context"
	"fmt"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
)

// Choice is the state that a point has come to mean.
type Choice struct {
	Chain     manifest.Chain
	Epoch     uint64
	Revision  manifest.Revision
	At        time.Time       // as of when Revision held all that etcd had acknowledged, as far as that was recorded
	Base      manifest.ID     // the full to begin with
	ClusterID manifest.EtcdID // of etcd, in that full
	Segments  int             // to apply to it; 0: the full is the state
	After     repository.After
}

// ChoiceOf tells what a route leads to.
func ChoiceOf(route *repository.Route) Choice {
	return Choice{
		Chain: route.Base.Chain, Epoch: route.Epoch, Revision: route.Revision, At: route.At, Base: route.Base.ID, ClusterID: route.Base.Etcd.ClusterID,
		Segments: len(route.Segments), After: route.After,
	}
}

// Point is the same state, said so that nothing committed later changes it.
func (c Choice) Point() repository.Point {
	if c.Segments == 0 {
		return repository.Point{Backup: c.Base}
	}
	return repository.Point{Revision: c.Revision, Epoch: c.Epoch}
}

// Flags are what to give on a command line for the same state.
func (c Choice) Flags() string {
	if c.Segments == 0 {
		return "--backup " + string(c.Base)
	}
	return fmt.Sprintf("--revision %d --epoch %d", c.Revision, c.Epoch)
}

// String names revision, epoch and time.
func (c Choice) String() string { return c.Told(zulu) }

// Told is String with its time as the caller writes times.
func (c Choice) Told(write func(time.Time) string) string {
	return fmt.Sprintf("revision %d of epoch %d, as of %s", c.Revision, c.Epoch, write(c.At))
}

// Behind says what lies after it and is left out.
func (c Choice) Behind() string { return c.BehindTold(zulu) }

// BehindTold is Behind with its time as the caller writes times.
func (c Choice) BehindTold(write func(time.Time) string) string {
	var text string
	switch n := c.After.Revisions; {
	case n == 1:
		text = fmt.Sprintf("1 revision lies after it, %d, as of %s", c.After.Revision, write(c.After.Until))
	case n > 1:
		text = fmt.Sprintf("%d revisions lie after it, to %d, as of %s", n, c.After.Revision, write(c.After.Until))
	case c.After.Epoch > c.Epoch:
		text = "its epoch ends with it"
	default:
		text = "nothing that is recorded lies after it"
	}
	if c.After.Epoch > c.Epoch {
		text += fmt.Sprintf("; epoch %d began later, another history", c.After.Epoch)
	}
	return text
}

func zulu(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// resolve finds the way to a point of an etcd and the chain's latest full.
func resolve(ctx context.Context, repo *repository.Repository, chain manifest.Chain, point repository.Point, lost []manifest.ID) (route *repository.Route, head *manifest.Manifest, err error) {
	if route, err = routeTo(ctx, repo, chain, point, lost); err != nil {
		return nil, nil, err
	}
	view, err := repo.Load(ctx, chain)
	if err != nil {
		return nil, nil, err
	}
	if latest, _ := repository.Latest(view.Backups()); latest != nil {
		head = latest.Manifest
	}
	return route, head, nil
}

// Choose finds out which state a point means, and reads no data.
func Choose(ctx context.Context, repo *repository.Repository, chain manifest.Chain, point repository.Point) (*Choice, error) {
	route, err := routeTo(ctx, repo, chain, point, nil)
	if err != nil {
		return nil, err
	}
	c := ChoiceOf(route)
	return &c, nil
}

// routeTo finds the way to a point of an etcd.
func routeTo(ctx context.Context, repo *repository.Repository, chain manifest.Chain, point repository.Point, lost []manifest.ID) (*repository.Route, error) {
	route, err := repo.RouteWithout(ctx, chain, point, lost)
	if err != nil {
		return nil, err
	}
	if m := route.Base.Manifest; m.Kind != manifest.KindFull || m.Etcd == nil {
		return nil, fmt.Errorf("backup %s of %s is not one of etcd: %w", m.ID, m.Chain, repository.ErrNothing)
	}
	return route, nil
}

// place is a revision of a history, with what is known of the time around it.
type place struct {
	epoch    uint64
	revision manifest.Revision
	at       time.Time
	rate     float64 // revisions a second
}

// placeOf is where a route leads.
func placeOf(route *repository.Route) place {
	return place{route.Epoch, route.Revision, route.At, route.Base.Etcd.Rate}
}

// tipOf is the furthest that clients are known to have seen: the chain's latest
// full, or what segments have recorded since. Its rate is the highest that is
// known.
func tipOf(route *repository.Route, head *manifest.Manifest) place {
	base := route.Base.Manifest
	tip := place{route.Epoch, max(route.Revision, route.After.Revision), route.At, base.Etcd.Rate}
	if route.After.Until.After(tip.at) {
		tip.at = route.After.Until
	}
	if d := tip.at.Sub(base.Created).Seconds(); d >= 1 {
		tip.rate = max(tip.rate, float64(tip.revision-base.Etcd.Revision)/d)
	}
	if head == nil || head.Etcd == nil {
		return tip
	}
	tip.rate = max(tip.rate, head.Etcd.Rate)
	switch {
	case head.Epoch > tip.epoch:
		tip.epoch, tip.revision, tip.at = head.Epoch, head.Etcd.Revision, head.Created
	case head.Epoch == tip.epoch:
		tip.revision = max(tip.revision, head.Etcd.Revision)
		if head.Created.After(tip.at) {
			tip.at = head.Created
		}
	}
	return tip
}
