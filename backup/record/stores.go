package record

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"lifeboat/backup"
	"lifeboat/internal/manifest"
	"lifeboat/internal/patience"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
)

// chain is one store's chain as a committer uses it.
type chain interface {
	Head(ctx context.Context) (*repository.Tip, error)
	Put(ctx context.Context, name string, body io.Reader, retainUntil time.Time) error
	Commit(ctx context.Context, draft *manifest.Manifest) (*repository.Committed, error)
	Prune(ctx context.Context) error // of the segments that roll-ups have replaced
	Sweep(ctx context.Context) error // of what such prunes have named for long enough
}

// stored is a chain in a repository.
type stored struct {
	repository *repository.Repository
	appender   *repository.Appender
	chain      manifest.Chain
}

func openChain(store backup.Store, c manifest.Chain) chain {
	return &stored{store.Repository, store.Repository.Appender(c), c}
}

func (s *stored) Head(ctx context.Context) (*repository.Tip, error) { return s.appender.Head(ctx) }

func (s *stored) Put(ctx context.Context, name string, body io.Reader, retainUntil time.Time) error {
	return s.repository.PutObject(ctx, name, body, retainUntil)
}

func (s *stored) Commit(ctx context.Context, draft *manifest.Manifest) (*repository.Committed, error) {
	return s.appender.Commit(ctx, draft)
}

func (s *stored) Prune(ctx context.Context) error {
	_, err := s.repository.Prune(ctx, s.chain, nil, repository.PruneOptions{RolledUp: true})
	return err
}

func (s *stored) Sweep(ctx context.Context) error {
	_, err := s.repository.Sweep(ctx, repository.SweepOptions{RolledUp: true, Chains: []manifest.Chain{s.chain}})
	return err
}

// eventsFile is a segment's data object: what it becomes as each layer is taken
// off can be read from its name.
const eventsFile = "events.zst.age"

var errNotTaken = errors.New("the store ended the upload")

// rollUpPatience is how many requests' time a roll-up may take: it may be half
// the spool.
const rollUpPatience = 10

// The kinds of requests. A prune that hangs is no reason to commit nothing.
const (
	toCommit = "commit"
	toPrune  = "prune"
	toSweep  = "sweep"
)

// within makes a request of the store. One that hangs is left behind, and while
// some of a kind hang there is no other: a dead NFS server may hold them for weeks.
func within[T any](ctx context.Context, c *committer, kind string, limit time.Duration, f func(context.Context) (T, error)) (T, error) {
	done := make(chan T, 1)
	err := c.hanging.Within(ctx, kind, limit, patience.Farewell, func(ctx context.Context) error {
		value, err := f(ctx)
		if err == nil {
			done <- value
		}
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return <-done, nil
}

func (c *committer) patience(rollUp bool) time.Duration {
	if rollUp {
		return rollUpPatience * c.r.opts.StoreStall
	}
	return c.r.opts.StoreStall
}

// upload seals a cut on its way to the store. Nothing is visible afterwards: the
// object counts once a manifest names it.
func (c *committer) upload(ctx context.Context, cut *cut, id manifest.ID, retainUntil time.Time) (*written, manifest.Object, error) {
	type sealed struct {
		written *written
		sums    seal.Sums
		err     error
	}
	reader, writer := io.Pipe()
	done := make(chan sealed, 1)
	go func() {
		var s sealed
		s.written, s.sums, s.err = c.seal(writer, cut)
		writer.CloseWithError(s.err)
		done <- s
	}()
	name := repository.ObjectName(c.r.chain, id, eventsFile)
	_, err := within(ctx, c, toCommit, c.patience(cut.rollUp), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, c.chain.Put(ctx, name, reader, retainUntil)
	})
	reader.CloseWithError(errNotTaken) // frees a sealing that still writes
	s := <-done
	if s.err != nil && !errors.Is(s.err, errNotTaken) {
		return nil, manifest.Object{}, fmt.Errorf("seal changes from revision %d on: %w", cut.first, s.err)
	}
	if err == nil {
		err = s.err
	}
	if err != nil {
		return nil, manifest.Object{}, err
	}
	return s.written, manifest.Object{
		Name: name, Role: manifest.RoleEvents, Size: s.sums.StoredSize, SHA256: manifest.Hash(s.sums.StoredSHA256), PlainSize: s.sums.PlainSize,
	}, nil
}

func (c *committer) seal(dst io.Writer, cut *cut) (*written, seal.Sums, error) {
	w, err := seal.NewWriter(dst, c.r.opts.Recipients)
	if err != nil {
		return nil, seal.Sums{}, err
	}
	done, err := cut.write(w, c.r.tape, c.r.marker, c.r.opts.Now())
	if err != nil {
		return nil, seal.Sums{}, err
	}
	if err := w.Close(); err != nil {
		return nil, seal.Sums{}, err
	}
	return done, w.Sums(), nil
}

// draft is the manifest of a segment.
func (c *committer) draft(id manifest.ID, created time.Time, epoch uint64, span manifest.Span, object manifest.Object) *manifest.Manifest {
	m := &manifest.Manifest{
		Chain: c.r.chain, Kind: manifest.KindSegment, ID: id, Created: created, Epoch: epoch,
		Writer: c.r.opts.Writer, Recipients: c.r.opts.RecipientNames, Span: &span, Objects: []manifest.Object{object},
	}
	if c.r.opts.NextExpectedBy != nil {
		m.NextExpectedBy = c.r.opts.NextExpectedBy(c.r.chain)
	}
	return m
}

// retention is how long the store is asked to protect a roll-up; small segments
// are not protected, since a roll-up replaces them.
func (c *committer) retention(rollUp bool, created time.Time) time.Time {
	if !rollUp || c.retainDays <= 0 {
		return time.Time{}
	}
	return created.AddDate(0, 0, c.retainDays)
}
