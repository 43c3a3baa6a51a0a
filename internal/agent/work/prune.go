package work

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"lifeboat/internal/agent"
	"lifeboat/internal/patience"
	"lifeboat/internal/pruning"
	"lifeboat/internal/repository"
	"lifeboat/internal/session"
	"lifeboat/internal/status"
	"lifeboat/storage"
)

// pruneAtMost is to pruning what verifyAtMost is to verification.
const pruneAtMost = 2 * time.Hour

// Prune applies retention to every chain of every store, and sweeps. One store
// that can't be pruned keeps no other from it.
func (w *Work) Prune(ctx context.Context) (*agent.Outcome, error) {
	c := w.current()
	trust, signer, err := session.Keys(c)
	if err != nil {
		return nil, agent.Because(status.Config, err)
	}
	s, err := session.Open(ctx, c, trust, signer, "", w.session)
	if err != nil {
		return nil, agent.Because(status.Config, err)
	}
	defer w.remember(s)
	options := pruning.Options{Policy: pruning.PolicyOf(c.Retention), Now: w.session.Now, Events: w.session.Events}
	reports := make([]*pruning.Report, len(s.Stores))
	errs := make([]error, len(s.Stores))
	var running sync.WaitGroup
	for i, o := range s.Stores {
		running.Go(func() {
			if errs[i] = o.Err; errs[i] != nil {
				return
			}
			reports[i], errs[i] = patience.Within(ctx, pruneAtMost, patience.Farewell, func(ctx context.Context) (*pruning.Report, error) {
				return pruning.Run(ctx, o.Repository, options)
			})
		})
	}
	running.Wait()
	o, removed := &agent.Outcome{}, 0
	var failed []error
	for i, store := range s.Stores {
		if r := reports[i]; r != nil {
			for _, chain := range r.Chains {
				removed += chain.Removed
			}
		}
		if errs[i] != nil {
			failed = append(failed, fmt.Errorf("%s: %w", store.URL, errs[i]))
		}
	}
	o.Message = fmt.Sprintf("%d backups let go in %d stores", removed, len(s.Stores))
	return o, pruneBecause(ctx, errors.Join(failed...))
}

// pruneBecause tells why pruning failed.
func pruneBecause(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return because(ctx, status.Other, err)
	case errors.Is(err, repository.ErrClock):
		return agent.Because(status.Clock, err)
	case errors.Is(err, repository.ErrMayNotPrune), errors.Is(err, storage.ErrPermission):
		return agent.Because(status.Config, err)
	}
	return because(ctx, status.StoreDown, err)
}
