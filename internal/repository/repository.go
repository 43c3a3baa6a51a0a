// Package repository keeps the chains of one cluster in one store: it loads,
// verifies and extends them, resolves what a restore aims at, and deletes what
// a signed manifest allows to be deleted. It serves the first promise of the
// design: nothing acknowledged is lost silently.
//
// It knows nothing of etcd, of sealing or of retention policies. Opening and
// signing one manifest is internal/manifest's; what the manifests of a chain
// mean together is decided here, in walk.go, by a pure function. The protocol
// and its reasons are in docs/decisions/0001-the-commit-protocol.md; start
// reading at Commit.
//
// Rules that hold throughout:
//
//  1. A chain's manifests are created with a conditional create, never
//     replaced, and deleted only after a committed prune named them.
//  2. Whatever a signed manifest says exists is either loaded and verified or
//     reported as a Problem. No problem is dropped because reading went on.
//  3. Nothing is believed that no trusted key signed: an unsigned object is
//     junk, whatever its name.
package repository

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// The times of the protocol.
const (
	// GiveUpAfter is how long after its capture began a writer may still
	// commit. Data objects that are older and named by no manifest are garbage.
	GiveUpAfter = time.Hour

	// ObjectGrace lies between a prune manifest and the deletion of the data
	// objects that it names. It protects a restore that is reading them.
	ObjectGrace = 24 * time.Hour

	// ManifestGrace lies between a prune manifest and the deletion of the
	// manifests that it names.
	ManifestGrace = 7 * 24 * time.Hour

	// skewMargin is added wherever another machine's clock is compared with
	// ours. Callers refuse to work when clocks differ by more than five minutes.
	skewMargin = 10 * time.Minute
)

// parallel bounds the requests that one operation has open at a time.
const parallel = 32

// What a caller branches on.
var (
	// ErrNothing: there is nothing to restore, or no such backup.
	ErrNothing = errors.New("nothing to restore")

	// ErrAmbiguous: the beginning of an id fits several backups.
	ErrAmbiguous = errors.New("the id is ambiguous")

	// ErrVerification: stored bytes, signatures or the chain are not what they
	// must be. VerificationError says which object and how.
	ErrVerification = errors.New("verification failed")

	// ErrSuperseded: a prune manifest told this writer to give up.
	ErrSuperseded = errors.New("the backup was given up by a prune manifest")

	// ErrTooOld: the capture began more than GiveUpAfter ago.
	ErrTooOld = errors.New("the backup is too old to be committed")

	// ErrNoSigner: the repository was opened for reading only.
	ErrNoSigner = errors.New("no signing key")

	// ErrMayNotRekey: the trust file does not let this signing key replace a
	// backup's data.
	ErrMayNotRekey = errors.New("this signing key may not rekey")

	// ErrRefused: a prune would remove what must stay.
	ErrRefused = errors.New("refused to prune")
)

// Options says how to open a repository.
type Options struct {
	Trust  *manifest.Trust                  // whose manifests count; names the cluster
	Signer *manifest.Signer                 // nil: read only
	Name   string                           // the store's URL without credentials, for messages and witnesses
	Now    func() time.Time                 // nil: time.Now
	Rand   io.Reader                        // nil: crypto/rand; makes the ids of prune manifests
	Writer manifest.Writer                  // who commits prunes
	Events events.Listener                  // may be nil
	Seen   map[manifest.Chain]manifest.Head // heads of this store seen earlier; lower ones now are a rollback

	// Folder: the store is a directory, which is another one without any error when
	// its file system is unmounted, or mounted again. There the head is looked at
	// before each commit of a segment, which costs next to nothing.
	Folder bool
}

// Repository is the chains of one cluster in one store. It is safe for
// concurrent use.
type Repository struct {
	store   storage.Store
	opts    Options
	cluster string

	listEvery manifest.Sequence // recentEvery and pageLen; tests have smaller ones
	page      int

	unparsed *semaphore.Weighted // bytes of manifests that are being read, of all chains

	mu   sync.Mutex
	seen map[manifest.Chain]manifest.Head // the highest known
}

// Open prepares to work on a cluster's folder in store. It reads nothing yet.
func Open(store storage.Store, opts Options) (*Repository, error) {
	if opts.Trust == nil {
		return nil, fmt.Errorf("open repository %s: no trust given", opts.Name)
	}
	if err := opts.Trust.Check(); err != nil {
		return nil, fmt.Errorf("open repository %s: %w", opts.Name, err)
	}
	if opts.Name == "" {
		opts.Name = "store"
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Rand == nil {
		opts.Rand = rand.Reader
	}
	r := &Repository{
		store: store, opts: opts, cluster: opts.Trust.Cluster, seen: maps.Clone(opts.Seen),
		listEvery: recentEvery, page: pageLen, unparsed: semaphore.NewWeighted(budget),
	}
	if r.seen == nil {
		r.seen = map[manifest.Chain]manifest.Head{}
	}
	return r, nil
}

// Cluster is the cluster's full name, which is its folder in the store.
func (r *Repository) Cluster() string { return r.cluster }

// Name is the store's name for people.
func (r *Repository) Name() string { return r.opts.Name }

// Heads lists the highest head of every chain that this repository was told of
// or has seen, by chain. Callers keep them where the store can't change them.
func (r *Repository) Heads() []manifest.Head {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.seen), func(a, b manifest.Head) int { return cmp.Compare(a.Chain, b.Chain) })
}

func (r *Repository) seenHead(chain manifest.Chain) (manifest.Head, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	head, ok := r.seen[chain]
	return head, ok
}

func (r *Repository) noteHead(chain manifest.Chain, seq manifest.Sequence, hash manifest.Hash) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.seen[chain]; !ok || old.Sequence < seq {
		r.seen[chain] = manifest.Head{Store: r.opts.Name, Chain: chain, Sequence: seq, Hash: hash}
	}
}

func (r *Repository) now() time.Time { return whole(r.opts.Now()) }

func (r *Repository) warn(chain manifest.Chain, subject, format string, args ...any) {
	r.opts.Events.Emit(events.Warning{Chain: string(chain), Subject: subject, Message: fmt.Sprintf(format, args...)})
}

// exists reports whether an object is there.
func (r *Repository) exists(ctx context.Context, name string) (bool, error) {
	body, _, err := r.store.Open(ctx, name, storage.Range{})
	if errors.Is(err, storage.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, body.Close()
}
