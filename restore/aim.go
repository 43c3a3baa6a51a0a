package restore

import (
	"context"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
)

// Aim is what a restore of etcd would begin with.
type Aim struct {
	Choice Choice
	Etcd   *manifest.Etcd // of the full that it begins with
	Bump   uint64         // of the revision, which is safe for the point's age
}

// AimAt finds out what a point of an etcd means now, and reads no data.
func AimAt(ctx context.Context, repo *repository.Repository, chain manifest.Chain, point repository.Point, without []manifest.ID, now time.Time) (*Aim, error) {
	route, head, err := resolve(ctx, repo, chain, point, without)
	if err != nil {
		return nil, err
	}
	return &Aim{Choice: ChoiceOf(route), Etcd: route.Base.Etcd, Bump: defaultBump(placeOf(route), tipOf(route, head), now)}, nil
}
