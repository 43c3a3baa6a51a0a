// Package session opens what a configuration names: trust, signing key, stores,
// the memory of heads seen, and the runner of backups. The command opens one a
// verb, the agent one a job, so that renewed keys and credentials count at once.
package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/durable"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/patience"
	"lifeboat/internal/repository"
	"lifeboat/internal/witness"
	"lifeboat/storage"
	"lifeboat/storage/open"
	"lifeboat/storage/s3"
)

// openLimit is how long a store may take to be opened, and for the first look
// at it.
const openLimit = 30 * time.Second

// Options says how to open. Now, Rand and Version are required.
type Options struct {
	Now     func() time.Time
	Rand    io.Reader
	Version string          // of lifeboat, for manifests
	Events  events.Listener // may be nil

	// Wrap puts something between a store and all who use it, such as a meter;
	// may be nil.
	Wrap func(url string, s storage.Store) storage.Store

	// Forgetful is for one whose work matters more than the memory of heads: a
	// memory that can't be read is done without, and told by whoever opens to
	// write. A store that was rolled back goes unnoticed until it is mended.
	Forgetful bool

	// Ledger remembers stores that hang, for a process that opens many
	// sessions; may be nil.
	Ledger *patience.Ledger
}

// Store is one store with its repository, or with the reason why not.
type Store struct {
	URL        string
	Settings   config.Store
	Backend    storage.Store // nil when it could not be opened
	Repository *repository.Repository
	Err        error
}

// Session is what one verb or job works on. Nothing in it needs closing.
type Session struct {
	Config *config.Config
	Trust  *manifest.Trust
	Stores []Store         // in the configured order
	Memory *witness.Memory // nil when reading without a configuration, or Forgetful: then nothing is remembered

	signer  *manifest.Signer
	options Options
	forgot  error // why there is no memory
}

// ErrNoStore says that a configuration has no store of the given URL.
var ErrNoStore = errors.New("no such store is configured")

// Open opens a configuration's stores, or the only one of the given URL if it
// is not empty; without a signer for reading. A store that can't be opened is
// part of the session, with its error.
func Open(ctx context.Context, c *config.Config, trust *manifest.Trust, signer *manifest.Signer, only string, options Options) (*Session, error) {
	s := &Session{Config: c, Trust: trust, signer: signer, options: options}
	// Whoever comes next on this machine, also an agent that only looks, removes
	// the plain snapshot of a backup that was killed.
	if err := durable.SweepScratch(scratchOf(c)); err != nil && !errors.Is(err, fs.ErrPermission) {
		options.Events.Emit(events.Warning{Subject: c.StateDir, Message: err.Error()})
	}
	memory, err := witness.Open(c.StateDir, trust.Cluster)
	switch {
	case err == nil:
		s.Memory = memory
	case options.Forgetful:
		s.forgot = err
	default:
		return nil, err
	}
	var stores []config.Store
	for _, store := range c.Stores {
		if only == "" || only == store.URL {
			stores = append(stores, store)
		}
	}
	if len(stores) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrNoStore, only)
	}
	s.open(ctx, stores)
	return s, nil
}

// OpenUnconfigured opens one store for reading, by what the configuration
// holds of it, and remembers nothing.
func OpenUnconfigured(ctx context.Context, c *config.Config, trust *manifest.Trust, options Options) *Session {
	s := &Session{Config: c, Trust: trust, options: options}
	s.open(ctx, c.Stores)
	return s
}

// open opens all stores at once, so that none waits for another.
func (s *Session) open(ctx context.Context, stores []config.Store) {
	s.Stores = make([]Store, len(stores))
	var running sync.WaitGroup
	for i, settings := range stores {
		running.Go(func() { s.Stores[i] = s.openStore(ctx, settings) })
	}
	running.Wait()
}

func (s *Session) openStore(ctx context.Context, settings config.Store) Store {
	o := Store{URL: settings.URL, Settings: settings}
	opened := make(chan storage.Store, 1)
	o.Err = s.within(ctx, settings.URL, func(ctx context.Context) error {
		store, err := open.Store(ctx, settings.URL, S3Config(settings))
		opened <- store
		return err
	})
	if o.Err != nil {
		return o
	}
	o.Backend = <-opened
	if s.options.Wrap != nil {
		o.Backend = s.options.Wrap(settings.URL, o.Backend)
	}
	options := repository.Options{
		Trust: s.Trust, Signer: s.signer, Name: settings.URL, Now: s.options.Now, Rand: s.options.Rand,
		Writer: s.Writer(), Events: s.options.Events, Folder: strings.HasPrefix(settings.URL, "file://"),
	}
	if s.Memory != nil {
		options.Seen = s.Memory.Of(settings.URL)
	}
	o.Repository, o.Err = repository.Open(o.Backend, options)
	return o
}

// within bounds a call to a store that nothing else bounds.
func (s *Session) within(ctx context.Context, url string, f func(context.Context) error) error {
	return s.options.Ledger.Within(ctx, url, openLimit, patience.Farewell, f)
}

// Writer says who commits. Reading without a configuration has no node.
func (s *Session) Writer() manifest.Writer {
	node := s.Config.Node
	if node == "" {
		node = "unnamed"
	}
	return manifest.Writer{Node: node, Version: s.options.Version}
}

// Remember keeps the heads that the stores have shown where they can't change
// them.
func (s *Session) Remember() error {
	if s.Memory == nil {
		return nil
	}
	var heads []manifest.Head
	for _, o := range s.Stores {
		if o.Repository != nil {
			heads = append(heads, o.Repository.Heads()...)
		}
	}
	return s.Memory.Note(heads...)
}

// S3Config maps a store's settings to the backend's.
func S3Config(store config.Store) s3.Config {
	c := s3.Config{
		Endpoint: store.S3.Endpoint, Region: store.S3.Region, Profile: store.S3.Profile,
		PathStyle: store.S3.PathStyle, CAFile: store.S3.CAFile, Checksums: store.S3.Checksums,
		SSE: store.S3.SSE, KMSKeyID: store.S3.KMSKeyID, StorageClass: store.S3.StorageClass,
	}
	c.ObjectLock.Mode, c.ObjectLock.Days = store.S3.ObjectLock.Mode, store.S3.ObjectLock.Days
	return c
}
