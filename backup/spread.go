package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/patience"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
)

// copyBuffer is how much plaintext one step of sealing reads.
const copyBuffer = 256 << 10

// spread seals plain once and puts the result under one name into every
// store. The last bytes reach the stores only when plain ends with io.EOF, so
// a reader that withholds its end withholds the object. It fails only when no
// store is left or plain fails; a single store's failure is in sealed.errs.
func (r *Runner) spread(ctx context.Context, chain manifest.Chain, id manifest.ID, role manifest.Role, file string, plain io.Reader) (sealed, error) {
	name := repository.ObjectName(chain, id, file)
	created := r.now()
	result := sealed{errs: make([]error, len(r.Stores))}
	fan := newFan(len(r.Stores), r.StoreStall)
	puts := make([]*put, len(r.Stores))
	for i, store := range r.Stores {
		if store.Err != nil {
			result.errs[i] = store.Err
			fan.branches[i].abandon()
			continue
		}
		puts[i] = startPut(ctx, fan.branches[i], func(ctx context.Context, body io.Reader) error {
			return store.Repository.PutObject(ctx, name, body, store.RetainUntil(created))
		})
	}

	start := time.Now()
	r.Events.Emit(events.StageStarted{Stage: "seal", Chain: string(chain)})
	sums, err := r.seal(fan, plain)
	fan.Close(err)
	limit := time.NewTimer(FinishStalls * r.StoreStall) // the same for all
	defer limit.Stop()
	for i, p := range puts {
		if p == nil {
			continue
		}
		if putErr := p.wait(limit, FinishStalls*r.StoreStall, r.farewell()); putErr != nil {
			result.errs[i] = putErr
		}
	}
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	r.Events.Emit(events.StageDone{Stage: "seal", Chain: string(chain), Duration: time.Since(start), Bytes: sums.StoredSize, Err: err})
	if err != nil {
		return result, r.notSpread(err, result.errs)
	}
	result.object = manifest.Object{
		Name: name, Role: role, Size: sums.StoredSize, SHA256: manifest.Hash(sums.StoredSHA256), PlainSize: sums.PlainSize,
	}
	return result, nil
}

// notSpread says why nothing was sealed, and of each store why it took nothing.
func (r *Runner) notSpread(err error, stores []error) error {
	if errors.Is(err, errNoneLeft) {
		err = fmt.Errorf("%w: none of %d took the data", ErrTooFewStores, len(stores))
	}
	all := []error{err}
	for i, e := range stores {
		if e != nil {
			all = append(all, fmt.Errorf("%s: %w", r.Stores[i].URL, e))
		}
	}
	return errors.Join(all...)
}

// put is one store's Put on its way.
type put struct {
	branch *branch
	ctx    context.Context
	done   chan error
}

func startPut(ctx context.Context, b *branch, do func(context.Context, io.Reader) error) *put {
	ctx, b.stop = context.WithCancelCause(ctx)
	p := &put{branch: b, ctx: ctx, done: make(chan error, 1)}
	go func() {
		err := do(ctx, b)
		b.abandon()
		p.done <- err
	}()
	return p
}

// wait is called when the fan is closed. The store may take until the limit to
// make durable what it was given.
func (p *put) wait(limit *time.Timer, length, farewell time.Duration) error {
	defer p.branch.stop(nil)
	select {
	case err := <-p.done:
		return patience.Because(p.ctx, err)
	case <-p.ctx.Done():
	case <-limit.C:
		limit.Reset(0) // for the next
		p.branch.drop(patience.StalledFor(length))
	}
	err, returned := patience.Awaited(p.ctx, p.done, farewell)
	if !returned {
		return context.Cause(p.ctx)
	}
	return patience.Because(p.ctx, err)
}

func (r *Runner) seal(dst io.Writer, plain io.Reader) (seal.Sums, error) {
	w, err := seal.NewWriter(dst, r.Recipients)
	if err != nil {
		return seal.Sums{}, fmt.Errorf("start sealing: %w", err)
	}
	_, err = io.CopyBuffer(onlyWriter{w}, plain, make([]byte, copyBuffer))
	if err != nil {
		return seal.Sums{}, err
	}
	if err := w.Close(); err != nil {
		return seal.Sums{}, fmt.Errorf("finish sealing: %w", err)
	}
	return w.Sums(), nil
}

// onlyWriter hides ReadFrom, which would choose its own buffer.
type onlyWriter struct{ io.Writer }
