package session

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"lifeboat/backup"
	"lifeboat/backup/etcd"
	"lifeboat/internal/config"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/patience"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
	"lifeboat/internal/segment"
	"lifeboat/internal/witness"
)

// storeStall is how long a store may take no bytes while others wait for it.
const storeStall = 2 * time.Minute

// OpenToWrite opens a configuration for one who commits, and readies its stores.
func OpenToWrite(ctx context.Context, c *config.Config, options Options) (*Session, error) {
	trust, signer, err := Keys(c)
	if err != nil {
		return nil, err
	}
	s, err := Open(ctx, c, trust, signer, "", options)
	if err != nil {
		return nil, err
	}
	if s.forgot != nil {
		s.options.Events.Emit(events.Warning{Subject: c.StateDir, Message: s.forgot.Error() + "; going on without: whether a store was rolled back can't be told"})
	}
	s.ready(ctx)
	return s, nil
}

// ready looks at all stores at once and prepares those that are to be written
// to.
func (s *Session) ready(ctx context.Context) {
	var running sync.WaitGroup
	for i := range s.Stores {
		o := &s.Stores[i]
		if o.Err != nil {
			continue
		}
		running.Go(func() {
			o.Err = s.within(ctx, o.URL, func(ctx context.Context) error {
				if err := Vanished(ctx, o.Repository, s.Memory); err != nil {
					return err
				}
				return o.Repository.Init(ctx)
			})
		})
	}
	running.Wait()
	for _, o := range s.Stores {
		if o.Err != nil {
			s.options.Events.Emit(events.StoreFailed{Store: o.URL, Err: o.Err})
		}
	}
}

// ErrVanished says that a store is empty that was not when this machine saw it
// last.
var ErrVanished = errors.New("backups were seen in this store, and nothing of them is there now")

// Vanished refuses a store that held backups of the cluster when this machine
// saw it last and holds nothing now: a disk that is not mounted must not be
// written under its mount point, as if all were well.
func Vanished(ctx context.Context, repo *repository.Repository, memory *witness.Memory) error {
	if len(memory.Of(repo.Name())) == 0 {
		return nil
	}
	p, err := repo.Present(ctx)
	if err != nil || p.Found {
		return err
	}
	return fmt.Errorf("%w: is it mounted? If it was emptied on purpose, remove the entries of %s from %s", ErrVanished, repo.Name(), memory.Path())
}

// Runner makes backups to the stores of a session that was opened to write.
func (s *Session) Runner() (*backup.Runner, error) {
	c := s.Config
	recipients, err := seal.ParseRecipients(c.Recipients)
	if err != nil {
		return nil, fmt.Errorf("%w: recipients: %w", config.ErrInvalid, err)
	}
	runner := &backup.Runner{
		MinStores: c.MinStores, Recipients: recipients, RecipientNames: c.Recipients,
		Writer: s.Writer(), Scratch: scratchOf(c), StoreStall: storeStall,
		Witnesses: s.Memory.Heads(), Now: s.options.Now, Rand: s.options.Rand, Events: s.options.Events,
		NextExpectedBy: func(chain manifest.Chain) *time.Time { return c.NextExpectedBy(string(chain), s.options.Now()) },
	}
	if s.signer != nil {
		runner.Marker = segment.NewMarker(s.signer.MarkKey())
	}
	for _, o := range s.Stores {
		runner.Stores = append(runner.Stores, backup.Store{
			URL: o.URL, Repository: o.Repository, Err: o.Err, RetainDays: o.Settings.S3.ObjectLock.Days,
		})
	}
	return runner, nil
}

// scratchOf is where backups keep what they have not sealed yet.
func scratchOf(c *config.Config) string { return filepath.Join(c.StateDir, "scratch") }

// EtcdConfig maps a cluster's settings to those of the package that talks to it.
func EtcdConfig(e config.Etcd) etcd.Config {
	return etcd.Config{Name: e.Name, Endpoints: e.Endpoints, CAFile: e.CAFile, CertFile: e.CertFile, KeyFile: e.KeyFile}
}

// Limits are a configuration's bounds on what a capture may cost.
func Limits(c *config.Config) etcd.Limits {
	return etcd.Limits{MaxStall: time.Duration(c.Proof.MaxStall)}
}

// EncryptionUses are the encryption keys that etcd holds values of: of every
// configured cluster by the full that was just taken or else by the newest in a
// store.
func (s *Session) EncryptionUses(ctx context.Context, taken []*manifest.Manifest) []manifest.KeyUse {
	fulls := map[manifest.Chain]*manifest.Manifest{}
	for _, m := range taken {
		if m != nil && m.Etcd != nil {
			fulls[m.Chain] = m
		}
	}
	var uses []manifest.KeyUse
	for _, e := range s.Config.Etcd {
		chain := EtcdConfig(e).Chain()
		m := fulls[chain]
		if m == nil {
			m = s.newestFull(ctx, chain)
		}
		if m != nil {
			uses = append(uses, m.Etcd.Encryption...)
		}
	}
	return uses
}

// WarnOfKeys tells which encryption keys a full's values need that no node's
// newest files hold, by the first store that answers. Backups of files say so
// themselves; it is for who backs up etcd alone.
func (s *Session) WarnOfKeys(ctx context.Context, full *manifest.Manifest) {
	if full == nil || full.Etcd == nil || len(full.Etcd.Encryption) == 0 {
		return
	}
	for _, o := range s.Stores {
		if o.Err != nil {
			continue
		}
		keys, err := patience.Within(ctx, openLimit, patience.Farewell, func(ctx context.Context) (repository.KeyCoverage, error) {
			return o.Repository.KeyCoverage(ctx, full.Chain)
		})
		if err != nil {
			continue
		}
		for _, g := range keys.Gaps {
			if len(g.Held) == 0 {
				s.options.Events.Emit(events.Warning{Chain: string(full.Chain), Subject: "encryption keys", Message: g.String()})
			}
		}
		return
	}
}

// newestFull is a chain's newest full in any store; nil if there is none or no
// store answers.
func (s *Session) newestFull(ctx context.Context, chain manifest.Chain) (newest *manifest.Manifest) {
	found := make([]*manifest.Manifest, len(s.Stores))
	var running sync.WaitGroup
	for i, o := range s.Stores {
		if o.Err != nil {
			continue
		}
		running.Go(func() {
			m, err := patience.Within(ctx, openLimit, patience.Farewell, func(ctx context.Context) (*manifest.Manifest, error) {
				return o.Repository.NewestFull(ctx, chain)
			})
			if err == nil {
				found[i] = m
			}
		})
	}
	running.Wait()
	for _, m := range found {
		if m != nil && (newest == nil || m.Created.After(newest.Created)) {
			newest = m
		}
	}
	return newest
}
