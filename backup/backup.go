// Package backup makes one backup as one straight line: capture, seal once,
// fan out to every store, prove, commit in each store.
//
// An etcd backup is Runner.Etcd, a node's files Runner.Files, a snapshot made
// elsewhere Runner.Import. Capturing is in backup/etcd and backup/host;
// what a commit means is in internal/repository.
package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"filippo.io/age"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/patience"
	"lifeboat/internal/repository"
)

// Store is one configured store. A store that could not be opened takes part
// with its error, so that it is reported like one that failed later.
type Store struct {
	URL        string // without credentials
	Repository *repository.Repository
	Err        error
	RetainDays int // Object Lock; 0 for none
}

// Runner holds what all backups of a node share. All fields but Events,
// Scratch and NextExpectedBy are required.
type Runner struct {
	Stores         []Store
	MinStores      int // a backup that fewer stores committed has failed
	Recipients     []age.Recipient
	RecipientNames []string // their public text, for the manifest
	Writer         manifest.Writer
	Scratch        string        // parent folder of scratch; empty streams straight through
	StoreStall     time.Duration // longest that a store may take no bytes while others wait for it; five times that to finish
	NextExpectedBy func(manifest.Chain) *time.Time
	Witnesses      []manifest.Head // heads seen in other chains and stores
	Now            func() time.Time
	Rand           io.Reader
	Events         events.Listener

	// Unattended is for one who tries again by itself. It drops a full at its
	// commit in every store where a newer one of the same etcd cluster is already:
	// it took so long that another agent served its slot. By hand, a backup that
	// was asked for is kept.
	Unattended bool
}

// Result says what became of one backup.
type Result struct {
	Manifest *manifest.Manifest // as the first store committed it
	Commits  []Commit           // one a store, in the configured order

	Object    manifest.Object // the data object, in the stores that took it
	Overtaken bool            // dropped in so many stores, for newer ones, that it counts as served by those
}

// Commit is one store's part of a result.
type Commit struct {
	Store    string
	Manifest *manifest.Manifest // nil when it failed
	Hash     manifest.Hash      // of the manifest's text
	Err      error
}

// finishStalls is how many stall limits a store may take to make durable what
// it was given, and for a commit: an S3 server that joins a large object's
// parts is silent for minutes.
const finishStalls = 5

func (r *Runner) farewell() time.Duration { return min(patience.Farewell, r.StoreStall) }

// ErrOvertaken is a commit's error where the store holds a newer full already.
var ErrOvertaken = errors.New("dropped: a newer full of the same etcd is there already")

// ErrTooFewStores says that a backup reached fewer stores than configured.
var ErrTooFewStores = errors.New("too few stores took the backup")

// sealed is one data object on its way: in some stores durable, in others
// failed.
type sealed struct {
	object manifest.Object
	errs   []error // one a store; nil where the object is durable
}

// draft starts a manifest.
func (r *Runner) draft(chain manifest.Chain, kind manifest.Kind, id manifest.ID, created time.Time) *manifest.Manifest {
	m := &manifest.Manifest{
		Chain: chain, Kind: kind, ID: id, Created: created,
		Writer: r.Writer, Heads: r.Witnesses, Recipients: r.RecipientNames,
	}
	if r.NextExpectedBy != nil {
		m.NextExpectedBy = r.NextExpectedBy(chain)
	}
	return m
}

// now is the clock in a manifest's resolution.
func (r *Runner) now() time.Time { return r.Now().UTC().Truncate(time.Millisecond) }

// commit appends the draft to its chain in every store that holds the object
// and decides whether that is enough.
func (r *Runner) commit(ctx context.Context, draft *manifest.Manifest, data sealed) (*Result, error) {
	draft.Objects = []manifest.Object{data.object}
	result := &Result{Object: data.object}
	committed, overtaken := 0, 0
	result.Commits = r.commitToAll(ctx, draft, data.errs)
	for i, commit := range result.Commits {
		store := r.Stores[i]
		if errors.Is(commit.Err, ErrOvertaken) {
			overtaken++
			continue
		}
		if commit.Err != nil {
			r.Events.Emit(events.StoreFailed{Store: store.URL, Chain: string(draft.Chain), Err: commit.Err})
			continue
		}
		committed++
		if result.Manifest == nil {
			result.Manifest = commit.Manifest
		}
	}
	result.Overtaken = overtaken > 0 && committed == 0
	if committed+overtaken < max(1, r.MinStores) {
		errs := []error{fmt.Errorf("%w: %s in %d of %d, at least %d needed", ErrTooFewStores, draft.Chain, committed, len(r.Stores), max(1, r.MinStores))}
		for _, c := range result.Commits {
			if c.Err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", c.Store, c.Err))
			}
		}
		return result, errors.Join(errs...)
	}
	return result, nil
}

// commitToAll commits in all stores at once, so that none waits for another's
// answer.
func (r *Runner) commitToAll(ctx context.Context, draft *manifest.Manifest, putErrs []error) []Commit {
	commits := make([]Commit, len(r.Stores))
	var running sync.WaitGroup
	for i, store := range r.Stores {
		running.Go(func() { commits[i] = r.commitTo(ctx, store, draft, putErrs[i]) })
	}
	running.Wait()
	return commits
}

func (r *Runner) commitTo(ctx context.Context, store Store, draft *manifest.Manifest, putErr error) Commit {
	if putErr != nil {
		return Commit{Store: store.URL, Err: putErr}
	}
	m := *draft
	m.Heads = slices.DeleteFunc(slices.Clone(draft.Heads), func(h manifest.Head) bool {
		return h.Store == store.URL && h.Chain == draft.Chain
	})
	if until := retainUntil(store, draft.Created); !until.IsZero() {
		m.RetainUntil = &until
	}
	// The commit point: before this call the store holds an object that no
	// manifest names; after it, a whole backup.
	committed, err := patience.Within(ctx, finishStalls*r.StoreStall, r.farewell(), func(ctx context.Context) (*repository.Committed, error) {
		return store.Repository.Commit(ctx, &m)
	})
	if err != nil {
		return Commit{Store: store.URL, Err: fmt.Errorf("commit %s %s: %w", draft.Chain, draft.ID, err)}
	}
	return Commit{Store: store.URL, Manifest: committed.Manifest, Hash: committed.Hash}
}

func retainUntil(store Store, created time.Time) time.Time {
	if store.RetainDays <= 0 {
		return time.Time{}
	}
	return created.AddDate(0, 0, store.RetainDays)
}
