package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/session"
	"lifeboat/storage"
)

// lookTimeout bounds how long reading waits for a store to show what it has
// while there are others.
const lookTimeout = 30 * time.Second

// looked is a store that answered, with the newest backup of each chain.
type looked struct {
	session.Store
	newest map[manifest.Chain]repository.Backup
	reach  time.Time // as of when the changes recorded in the chain that was asked for can be restored; zero: not known
}

// read finds what a verb wants in the stores: find is called with one after
// the other until one has it. The store with the chain's newest backup comes
// first, of equal ones the one that is configured first; an empty chain means
// the newest of all. repository.ErrNothing is what find returns for a store to
// be passed over, as repository.ErrUnreachable is for a point that another one
// may reach; any other error is final.
func (a *app) read(ctx context.Context, s *session.Session, chain manifest.Chain, find func(*repository.Repository) error) error {
	stores, failed := a.look(ctx, s, chain)
	if len(stores) == 0 {
		return errors.Join(failed...)
	}
	for _, err := range failed {
		a.warn("%v; reading another store instead", err)
	}
	a.warnOfLag(stores)
	slices.SortStableFunc(stores, func(x, y looked) int { return y.when(chain).Compare(x.when(chain)) })
	var nothing error
	for _, store := range stores {
		err := find(store.Repository)
		a.remember(s)
		if !isAny(err, repository.ErrNothing, repository.ErrUnreachable) {
			if err == nil && nothing != nil {
				a.warn("%v; reading %s instead", nothing, store.URL)
			}
			return err
		}
		nothing = cmp.Or(nothing, err)
	}
	return nothing
}

// tried are the stores, by URL, whose copy of a backup is known to be damaged.
type tried map[string]bool

// elsewhere finds a backup in another store than those tried, when the reason is
// that stored bytes are damaged or gone: a verb goes on with the same backup from there.
// Otherwise the reason is the error.
func (a *app) elsewhere(ctx context.Context, s *session.Session, m *manifest.Manifest, tried tried, reason error) (*repository.Repository, error) {
	return a.elsewhereIf(ctx, s, "the same backup", tried, reason, func(ctx context.Context, repo *repository.Repository) error {
		_, err := repo.Resolve(ctx, m.Chain, repository.Point{Backup: m.ID})
		return err
	})
}

// isDamage reports whether an error is about stored bytes that are damaged or
// gone.
func isDamage(err error) bool {
	return exitCode(context.Background(), err) == exitVerify || errors.Is(err, storage.ErrNotExist)
}

// elsewhereIf is elsewhere for whatever has tells that a store has.
func (a *app) elsewhereIf(ctx context.Context, s *session.Session, what string, tried tried, reason error, has func(context.Context, *repository.Repository) error) (*repository.Repository, error) {
	if ctx.Err() != nil || !isDamage(reason) {
		return nil, reason
	}
	for _, o := range s.Stores {
		if o.Err != nil || tried[o.URL] {
			continue
		}
		tried[o.URL] = true
		limited, cancel := context.WithTimeout(ctx, lookTimeout)
		err := has(limited, o.Repository)
		cancel()
		if err == nil {
			a.warn("%v; going on with %s from %s", reason, what, o.URL)
			return o.Repository, nil
		}
	}
	return nil, reason
}

// look asks all stores at once what they have. A store alone is not asked: there
// is nothing to compare it with.
func (a *app) look(ctx context.Context, s *session.Session, chain manifest.Chain) (stores []looked, failed []error) {
	found := make([]looked, len(s.Stores))
	var running sync.WaitGroup
	for i, o := range s.Stores {
		found[i].Store = o
		if o.Err != nil || len(s.Stores) == 1 {
			continue
		}
		running.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, lookTimeout)
			defer cancel()
			backups, _, err := o.Repository.Backups(ctx)
			found[i].Err, found[i].newest = err, newestOf(backups)
			if err != nil || !strings.HasPrefix(string(chain), "etcd/") {
				return
			}
			if route, err := o.Repository.Route(ctx, chain, repository.Point{}); err == nil { // else the verb says what is wrong
				found[i].reach = route.At
			}
		})
	}
	running.Wait()
	for _, store := range found {
		if store.Err != nil {
			failed = append(failed, fmt.Errorf("store %s: %w", store.URL, store.Err))
		} else {
			stores = append(stores, store)
		}
	}
	return stores, failed
}

// newestOf picks what a restore of each chain's latest would give back.
func newestOf(backups []repository.Backup) map[manifest.Chain]repository.Backup {
	chains := map[manifest.Chain][]repository.Backup{}
	for _, b := range backups {
		chains[b.Chain] = append(chains[b.Chain], b)
	}
	heads := map[manifest.Chain]repository.Backup{}
	for name, list := range chains {
		slices.SortFunc(list, func(x, y repository.Backup) int { return cmp.Compare(x.Sequence, y.Sequence) })
		latest, _ := repository.Latest(list)
		if name == manifest.ImagesChain { // of several nodes, whose order among each other copies may change
			newest := slices.MaxFunc(list, func(x, y repository.Backup) int { return x.Created.Compare(y.Created) })
			latest = &newest
		}
		heads[name] = *latest
	}
	return heads
}

// when is the time of the latest state of a chain, or of the newest backup of
// all.
func (l looked) when(chain manifest.Chain) (when time.Time) {
	when = l.reach
	for name, b := range l.newest {
		if (chain == "" || name == chain) && b.Created.After(when) {
			when = b.Created
		}
	}
	return when
}

// warnOfLag names every store that lacks a chain's newest backup.
func (a *app) warnOfLag(stores []looked) {
	type head struct {
		repository.Backup
		url string
	}
	best := map[manifest.Chain]head{}
	for _, store := range stores {
		for chain, b := range store.newest {
			if old, known := best[chain]; !known || b.Created.After(old.Created) {
				best[chain] = head{b, store.URL}
			}
		}
	}
	for _, store := range stores {
		for chain, most := range best {
			has, known := store.newest[chain]
			switch {
			case !known:
				a.warn("store %s lags: it has no backup of %s, and %s has one of %s", store.URL, chain, most.url, most.Created.Format(time.RFC3339))
			case has.ID != most.ID:
				a.warn("store %s lags: its newest backup of %s is of %s, that of %s is of %s",
					store.URL, chain, has.Created.Format(time.RFC3339), most.url, most.Created.Format(time.RFC3339))
			}
		}
	}
}

// find looks for a backup by the beginning of its id.
func (a *app) find(ctx context.Context, id string) (repo *repository.Repository, b *repository.Backup, err error) {
	s, err := a.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	err = a.read(ctx, s, "", func(r *repository.Repository) (err error) {
		repo = r
		b, err = r.Find(ctx, id)
		return err
	})
	return repo, b, err
}

// backups lists what one store has: none only if no store has any.
func (a *app) backups(ctx context.Context) (repo *repository.Repository, backups []repository.Backup, problems []repository.Problem, err error) {
	s, err := a.open(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	err = a.read(ctx, s, "", func(r *repository.Repository) (err error) {
		repo = r
		if backups, problems, err = r.Backups(ctx); err != nil {
			return fmt.Errorf("list %s: %w", r.Name(), err)
		}
		if len(backups) == 0 && s.Memory == nil { // nothing tells an empty store from a wrong one
			if err := r.Require(ctx); err != nil {
				return errAbsent{err}
			}
		}
		if len(backups) == 0 && len(problems) == 0 {
			return fmt.Errorf("list %s: %w", r.Name(), repository.ErrNothing)
		}
		return nil
	})
	if errors.Is(err, repository.ErrNothing) && !errors.As(err, new(errAbsent)) {
		err = nil
	}
	return repo, backups, problems, err
}

// errAbsent: the cluster has nothing in the store, not even a folder.
type errAbsent struct{ error }

func (e errAbsent) Unwrap() error { return e.error }

func (a *app) warn(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.err, "warning: "+format+"\n", args...)
	}
}
