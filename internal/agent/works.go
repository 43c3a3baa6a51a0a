package agent

import (
	"context"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

// Works is what an agent does to the world and sees of it. The real one is in
// internal/agent/work, and the simulation has another. All methods may be
// called at once; each opens what it needs and closes it again, so that new
// credentials and certificates count from the next call on.
type Works interface {
	// Look reads what the stores hold. A store that does not answer is part of
	// the picture; the error is ctx's or the configuration's.
	Look(ctx context.Context) (*Picture, error)

	// Standing asks an etcd cluster for this agent's place in the order of
	// turns. It fails when no member answers.
	Standing(ctx context.Context, cluster string) (*Standing, error)

	// Full backs up one etcd cluster, Files this node's files. They touch etcd
	// only when a store answers to commit to, and fail when fewer than enough
	// committed. An Outcome may come with an error: what was done in spite of it.
	Full(ctx context.Context, cluster string) (*Outcome, error)
	Files(ctx context.Context) (*Outcome, error)

	// Record records the changes of one etcd cluster until ctx ends, or stands
	// by while another agent does. Any other end is a failure, and it is called
	// again.
	Record(ctx context.Context, cluster string, r Recording) error

	// Verify reads every stored byte of the chains, in every store.
	Verify(ctx context.Context, chains []manifest.Chain) (*Outcome, error)

	// Prune applies retention to every chain of every store, and sweeps.
	Prune(ctx context.Context) (*Outcome, error)

	// Certificates lists those of this node.
	Certificates(ctx context.Context) ([]status.Certificate, error)

	// Reload takes another configuration for all later calls. On an error the
	// old one stays.
	Reload(ctx context.Context, c *config.Config) error
}

// Picture is what the stores hold.
type Picture struct {
	Stores []StorePicture // in the configured order
}

// StorePicture is one store. Chains is nil when it did not answer.
type StorePicture struct {
	URL       string
	Err       error
	Skew      time.Duration // the store's clock less ours
	SkewKnown bool
	Chains    map[manifest.Chain]status.InStore // Store and Read are filled in by the agent
}

// Standing is an agent's place among those that could back up an etcd cluster.
type Standing struct {
	Rank   int    // 0 goes first
	Quorum bool   // a linearizable read succeeds
	First  string // who has rank 0, for people: a member's name or a node's
}

// Outcome is what a run did.
type Outcome struct {
	Chain       manifest.Chain
	ID          manifest.ID // empty: nothing was committed
	Created     time.Time
	Revision    manifest.Revision
	PlainBytes  int64
	StoredBytes int64
	Degraded    []string
	Unproved    []string
	Overtaken   bool   // another agent's newer backup was there at the commit: ours was dropped
	Message     string // one line, for people
	Mismatches  int    // members whose HashKV differs from the majority's
}
