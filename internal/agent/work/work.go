// Package work does what an agent decides: it is agent.Works on real stores, a
// real etcd and the node's real files.
//
// Every call opens what it needs and closes it again, so that renewed keys,
// certificates and credentials count from the next call on. What stays between
// calls is what the last Look saw of each store, so that the next one reads
// only what changed, and which stores hang.
package work

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"lifeboat/backup"
	"lifeboat/backup/etcd"
	"lifeboat/backup/host"
	"lifeboat/internal/agent"
	"lifeboat/internal/config"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/patience"
	"lifeboat/internal/repository"
	"lifeboat/internal/session"
	"lifeboat/internal/status"
	"lifeboat/storage"
)

// Options says how to work. Config, Now, Rand and Version are required.
type Options struct {
	Config  *config.Config
	Now     func() time.Time
	Rand    io.Reader
	Version string          // of lifeboat, for manifests
	Events  events.Listener // may be nil

	// Wrap puts something between a store and all who use it, such as a meter;
	// may be nil.
	Wrap func(url string, s storage.Store) storage.Store
}

// Work is agent.Works. It is safe for concurrent use.
type Work struct {
	session    session.Options
	checkEvery time.Duration // whether a recorder must begin anew

	mu     sync.Mutex
	config *config.Config
	stores map[string]*seen  // by URL
	nodes  []string          // whose agents work, as the last Look saw
	epochs map[string]uint64 // of each etcd cluster: the least for its next full, as its recorder asked
}

var _ agent.Works = (*Work)(nil)

// New prepares to work. It reads nothing yet.
func New(o Options) *Work {
	return &Work{
		session: session.Options{
			Now: o.Now, Rand: o.Rand, Version: o.Version, Events: o.Events, Wrap: o.Wrap, Ledger: &patience.Ledger{},
		},
		config: o.Config, stores: map[string]*seen{}, epochs: map[string]uint64{}, checkEvery: checkEvery,
	}
}

// Reload takes another configuration for all later calls, if the keys that it
// names can be used.
func (w *Work) Reload(_ context.Context, c *config.Config) error {
	if _, _, err := session.Keys(c); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.config = c
	for url := range w.stores { // those that are gone take their memory along
		if !configured(c, url) {
			delete(w.stores, url)
		}
	}
	return nil
}

func configured(c *config.Config, url string) bool {
	for _, s := range c.Stores {
		if s.URL == url {
			return true
		}
	}
	return false
}

func (w *Work) current() *config.Config {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.config
}

// open opens everything for one who commits.
func (w *Work) open(ctx context.Context) (*session.Session, *backup.Runner, error) {
	s, err := session.OpenToWrite(ctx, w.current(), w.forgetful())
	if err != nil {
		return nil, nil, agent.Because(status.Config, err)
	}
	runner, err := s.Runner()
	if err != nil {
		return nil, nil, agent.Because(status.Config, err)
	}
	runner.Unattended = true
	return s, runner, nil
}

// forgetful opens although the memory of heads is damaged, for backups and looks:
// no such thing stops a backup. Verification and pruning rest on it, fail, and
// say so.
func (w *Work) forgetful() session.Options {
	options := w.session
	options.Forgetful = true
	return options
}

// remember keeps the heads that the stores have shown. The work is done, so not
// being able to is a warning.
func (w *Work) remember(s *session.Session) {
	if err := s.Remember(); err != nil {
		w.session.Events.Emit(events.Warning{Subject: s.Config.StateDir, Message: err.Error()})
	}
}

// Full backs up one etcd cluster.
func (w *Work) Full(ctx context.Context, cluster string) (*agent.Outcome, error) {
	e, err := find(w.current(), cluster)
	if err != nil {
		return nil, err
	}
	s, runner, err := w.open(ctx)
	if err != nil {
		return nil, err
	}
	defer w.remember(s)
	runner.Epoch = w.wantedEpoch(cluster)
	result, err := runner.Etcd(ctx, session.EtcdConfig(e), session.Limits(s.Config))
	if err == nil {
		s.WarnOfKeys(ctx, result.Manifest)
	}
	return outcome(result), because(ctx, status.EtcdDown, err)
}

// Files backs up the node's files.
func (w *Work) Files(ctx context.Context) (*agent.Outcome, error) {
	s, runner, err := w.open(ctx)
	if err != nil {
		return nil, err
	}
	defer w.remember(s)
	c := s.Config
	result, err := runner.Files(ctx, host.Options{
		Root: c.Host.Root, ExtraPaths: c.Host.ExtraPaths, Node: c.Node, Now: w.session.Now, Events: w.session.Events,
		Images: session.HostImages(c.Host.Root),
	}, s.EncryptionUses(ctx, nil))
	return outcome(result), because(ctx, status.Other, err)
}

// because tells a failure's reason. What neither the context nor a store
// caused is the source's.
func because(ctx context.Context, source status.Reason, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return agent.Because(status.Timeout, err)
	case ctx.Err() != nil:
		return agent.Because(status.Interrupted, err)
	case errors.Is(err, backup.ErrTooFewStores), errors.Is(err, backup.ErrNoStore), errors.Is(err, patience.ErrStalled):
		return agent.Because(status.StoreDown, err)
	case errors.Is(err, repository.ErrVerification):
		return agent.Because(status.Verification, err)
	case errors.Is(err, config.ErrInvalid):
		return agent.Because(status.Config, err)
	case errors.Is(err, etcd.ErrConfig):
		return agent.Because(status.Config, err)
	}
	return agent.Because(source, err)
}

// outcome tells what a run left in the stores.
func outcome(r *backup.Result) *agent.Outcome {
	if r == nil {
		return nil
	}
	o := &agent.Outcome{Overtaken: r.Overtaken}
	missed := 0
	for _, c := range r.Commits {
		if c.Err != nil && !errors.Is(c.Err, backup.ErrOvertaken) {
			missed++
		}
	}
	m := r.Manifest
	if m == nil {
		if r.Overtaken {
			o.Message = "a newer backup was there at the commit"
		}
		return o
	}
	o.Chain, o.ID, o.Created, o.Degraded, o.Unproved = m.Chain, m.ID, m.Created, m.Degraded, m.Unproved
	for _, object := range m.Objects {
		o.PlainBytes += object.PlainSize
		o.StoredBytes += object.Size
	}
	if m.Etcd != nil {
		o.Revision, o.Mismatches = m.Etcd.Revision, len(m.Etcd.Dissenting)
	}
	o.Message = fmt.Sprintf("committed to %d of %d stores", len(r.Commits)-missed, len(r.Commits))
	return o
}

// find is one etcd cluster of the configuration.
func find(c *config.Config, cluster string) (config.Etcd, error) {
	for _, e := range c.Etcd {
		if e.Name == cluster {
			return e, nil
		}
	}
	return config.Etcd{}, agent.Because(status.Config, fmt.Errorf("etcd %q is not configured", cluster))
}

// verifyAtMost bounds a verification of one store; the agent's own deadline is
// sooner. It is here so that a store that hangs is left behind.
const verifyAtMost = 7 * time.Hour

// Verify reads every stored byte of the chains, in all stores at once.
func (w *Work) Verify(ctx context.Context, chains []manifest.Chain) (*agent.Outcome, error) {
	c := w.current()
	trust, err := session.LoadTrust(c.Signing.TrustFile, c.Cluster)
	if err != nil {
		return nil, agent.Because(status.Config, err)
	}
	s, err := session.Open(ctx, c, trust, nil, "", w.session)
	if err != nil {
		return nil, agent.Because(status.Config, err)
	}
	defer w.remember(s)
	reports := make([]*repository.Report, len(s.Stores))
	errs := make([]error, len(s.Stores))
	var running sync.WaitGroup
	for i, o := range s.Stores {
		running.Go(func() {
			if errs[i] = o.Err; errs[i] != nil {
				return
			}
			reports[i], errs[i] = verifyStore(ctx, o, chains)
		})
	}
	running.Wait()
	o := &agent.Outcome{}
	manifests, objects := 0, 0
	var failed, down []error
	for i, store := range s.Stores {
		if r := reports[i]; r != nil {
			manifests, objects, o.StoredBytes = manifests+r.Manifests, objects+r.Objects, o.StoredBytes+r.Bytes
			if err := r.Err(); err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", store.URL, err))
			}
		}
		if errs[i] != nil {
			down = append(down, fmt.Errorf("%s: %w", store.URL, errs[i]))
		}
	}
	o.Message = fmt.Sprintf("read %d manifests and %d objects in %d stores", manifests, objects, len(s.Stores))
	switch all := errors.Join(append(failed, down...)...); {
	case len(failed) > 0:
		return o, agent.Because(status.Verification, all)
	case len(down) > 0:
		return o, because(ctx, status.StoreDown, all)
	}
	return o, nil
}

// verifyStore verifies the chains that a store has. That one is missing
// altogether is seen by those who look for its age.
func verifyStore(ctx context.Context, o session.Store, chains []manifest.Chain) (*repository.Report, error) {
	return patience.Within(ctx, verifyAtMost, patience.Farewell, func(ctx context.Context) (*repository.Report, error) {
		has, err := o.Repository.Chains(ctx)
		if err != nil {
			return nil, err
		}
		for _, h := range o.Repository.Heads() { // one that was seen and is gone is a loss
			has = append(has, h.Chain)
		}
		var there []manifest.Chain
		for _, chain := range chains {
			for _, h := range has {
				if h == chain {
					there = append(there, chain)
					break
				}
			}
		}
		if len(there) == 0 {
			return &repository.Report{}, nil
		}
		return o.Repository.Verify(ctx, repository.VerifyOptions{Chains: there})
	})
}

// Certificates lists those of this node.
func (w *Work) Certificates(ctx context.Context) ([]status.Certificate, error) {
	found, err := host.Certificates(ctx, w.current().Host.Root)
	if err != nil {
		return nil, err
	}
	var list []status.Certificate
	for _, c := range found {
		list = append(list, status.Certificate{Name: c.File, Subject: c.Subject, NotAfter: c.NotAfter, CA: c.CA})
	}
	return list, nil
}
