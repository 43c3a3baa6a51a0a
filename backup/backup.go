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
	"lifeboat/internal/segment"
)

// Store is one configured store. A store that could not be opened takes part
// with its error, so that it is reported like one that failed later.
type Store struct {
	URL        string // without credentials
	Repository *repository.Repository
	Err        error
	RetainDays int // Object Lock; 0 for none
}

// FinishStalls is how many stall limits a store may take to make durable what
// it was given, and for a commit: an S3 server that joins a large object's
// parts is silent for minutes.
const FinishStalls = 5

// Farewell is how long a store with such a stall limit may clean up after itself.
func Farewell(stall time.Duration) time.Duration { return min(patience.Farewell, stall) }

// RetainUntil is the end of the store's Object Lock on what is put at a time; zero
// without one.
func (s Store) RetainUntil(created time.Time) time.Time {
	if s.RetainDays <= 0 {
		return time.Time{}
	}
	return created.AddDate(0, 0, s.RetainDays)
}

// Commit appends a draft to its chain, with the store's own lock, and without the
// head that it knows best itself. It gives up on a store that does not answer.
func (s Store) Commit(ctx context.Context, draft *manifest.Manifest, stall time.Duration) (*repository.Committed, error) {
	m := *draft
	m.Heads = slices.DeleteFunc(slices.Clone(draft.Heads), func(h manifest.Head) bool { return h.Store == s.URL && h.Chain == draft.Chain })
	if until := s.RetainUntil(draft.Created); !until.IsZero() {
		m.RetainUntil = &until
	}
	// The commit point: before this call the store holds an object that no
	// manifest names; after it, a whole backup.
	return patience.Within(ctx, FinishStalls*stall, Farewell(stall), func(ctx context.Context) (*repository.Committed, error) {
		return s.Repository.Commit(ctx, &m)
	})
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

	// Epoch is the least that a full is committed in: a new one where a recorder
	// has seen that etcd's history is another than the chain's, which neither the
	// cluster's id nor its revision shows. 0: the chain decides.
	Epoch uint64

	// Marker marks the last revision of fulls, so that a recorder which goes on
	// there sees whether etcd's history is the same. nil: they are not marked.
	Marker *segment.Marker
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

func (r *Runner) farewell() time.Duration { return Farewell(r.StoreStall) }

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
	committed, err := store.Commit(ctx, draft, r.StoreStall)
	if err != nil {
		return Commit{Store: store.URL, Err: fmt.Errorf("commit %s %s: %w", draft.Chain, draft.ID, err)}
	}
	return Commit{Store: store.URL, Manifest: committed.Manifest, Hash: committed.Hash}
}
