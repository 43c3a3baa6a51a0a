package images

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"lifeboat/backup"
	"lifeboat/internal/manifest"
	"lifeboat/internal/patience"
	"lifeboat/internal/repository"
)

// looked is what one store has of a plan.
type looked struct {
	newest  *repository.Backup // of the node's images; nil if there are none that count
	lacking []manifest.Hash    // small ones first: so that a wrong key or policy shows early
	bytes   int64              // of those that it lacks
}

// look finds out what a store has that a load could use. put are blobs that count
// even for a save that puts all anew. A store that goes on answering may take its
// time: each of the many requests has a limit of its own.
func (p *Plan) look(ctx context.Context, store backup.Store, put map[manifest.Hash]manifest.ID) (looked, error) {
	l := looked{}
	there, err := within(ctx, p, store.Repository.Blobs)
	if err != nil {
		return l, err
	}
	for sum, d := range p.blobs {
		held, err := p.holds(ctx, store.Repository, there.Copies(sum), put[sum])
		if err != nil {
			return l, err
		}
		if !held {
			l.lacking = append(l.lacking, sum)
			l.bytes += d.Size
		}
	}
	slices.SortFunc(l.lacking, func(a, b manifest.Hash) int {
		if p.blobs[a].Size != p.blobs[b].Size {
			return int(min(1, max(-1, p.blobs[a].Size-p.blobs[b].Size)))
		}
		return strings.Compare(a.String(), b.String())
	})
	for i := range slices.Backward(there.Images) {
		b := &there.Images[i]
		if b.Images.Node != p.o.Node {
			continue
		}
		counts, err := p.confirmed(ctx, store.Repository, *b)
		if err == nil && counts {
			l.newest = b
		}
		return l, err
	}
	return l, nil
}

// holds reports whether one of a blob's copies is of use: the one that this save has
// put, or one that all recipients open and whose signature counts.
func (p *Plan) holds(ctx context.Context, r *repository.Repository, copies []repository.Backup, put manifest.ID) (bool, error) {
	if slices.ContainsFunc(copies, func(b repository.Backup) bool { return b.ID == put }) {
		return true, nil
	}
	if p.o.Anew {
		return false, nil
	}
	for _, b := range copies {
		if !b.SealedFor(p.o.RecipientNames) {
			continue
		}
		if held, err := p.confirmed(ctx, r, b); held || err != nil {
			return held, err
		}
	}
	return false, nil
}

// confirmed reports whether what an index names counts by its own signature too: a
// load goes by nothing else, as when its key was taken from the trust file.
func (p *Plan) confirmed(ctx context.Context, r *repository.Repository, b repository.Backup) (bool, error) {
	_, err := within(ctx, p, func(ctx context.Context) ([]repository.Backup, error) {
		return r.Confirmed(ctx, []repository.Backup{b})
	})
	if errors.Is(err, repository.ErrVerification) {
		return false, nil
	}
	return err == nil, err
}

// within gives up on a store that does not answer one request.
func within[T any](ctx context.Context, p *Plan, f func(context.Context) (T, error)) (T, error) {
	return patience.Within(ctx, backup.FinishStalls*p.o.StoreStall, backup.Farewell(p.o.StoreStall), f)
}

// Lack is what one store does not have.
type Lack struct {
	Blobs int
	Bytes int64
	Err   error
}

// Missing says of each store how many of the plan's blobs it lacks, and their bytes.
// It is for a dry run.
func (p *Plan) Missing(ctx context.Context) map[string]Lack {
	lacks := make([]Lack, len(p.o.Stores))
	var running sync.WaitGroup
	for i, store := range p.o.Stores {
		if lacks[i].Err = store.Err; store.Err != nil {
			continue
		}
		running.Go(func() {
			there, err := p.look(ctx, store, nil)
			lacks[i] = Lack{Blobs: len(there.lacking), Bytes: there.bytes, Err: err}
		})
	}
	running.Wait()
	out := map[string]Lack{}
	for i, store := range p.o.Stores {
		out[store.URL] = lacks[i]
	}
	return out
}
