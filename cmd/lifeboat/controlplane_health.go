package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"lifeboat/backup"
	"lifeboat/backup/host"
	"lifeboat/internal/config"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
	"lifeboat/internal/session"
	"lifeboat/restore/nodefiles"
	"lifeboat/restore/plane"
)

// newBackups are those that the restore itself took.
type newBackups struct {
	results []*backup.Result
	missing string // why there is not all that there should be; empty if there is
}

// health asks the restored control plane, and notes when it answers.
func (r *rebuild) health(ctx context.Context, staged *nodefiles.Staged) (plane.Health, error) {
	reach := r.plan.Reach()
	o := plane.LivingOptions{
		Etcd: &reach, Staged: staged, Root: r.flags.root, Order: r.plan.Order, Node: r.plan.Node(), Revision: int64(r.plan.Etcd.Choice.Revision) + int64(r.plan.Order.Bump),
		Backup:   func(limited context.Context) (manifest.ID, error) { return r.backUp(ctx, limited, &reach) },
		Progress: r.say,
	}
	var asked plane.Health
	var err error
	if r.app.living != nil {
		asked, err = r.app.living(o)
	} else {
		asked, err = plane.NewLiving(o)
	}
	if err != nil {
		return nil, err
	}
	r.living = asked
	return timed{asked, &r.clock}, nil
}

// timed is a Health whose first good answers are noted.
type timed struct {
	plane.Health
	clock *stopwatch
}

func (t timed) note(what string, err error) error {
	if err == nil {
		t.clock.mark(what)
	}
	return err
}

func (t timed) Etcd(ctx context.Context) error { return t.note(markEtcd, t.Health.Etcd(ctx)) }
func (t timed) API(ctx context.Context) error  { return t.note(markAPI, t.Health.API(ctx)) }
func (t timed) Node(ctx context.Context, since time.Time) error {
	return t.note(markNode, t.Health.Node(ctx, since))
}

// backUp takes a full of etcd and the node's files. That it can't is no failure
// of the restore, and something left to do; only a person's Ctrl-C ends it.
func (r *rebuild) backUp(ctx, limited context.Context, etcd *hostfacts.Discovery) (manifest.ID, error) {
	err := r.takeBackups(limited, etcd)
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		r.backups.missing = err.Error()
	}
	if len(r.backups.results) > 0 && r.backups.results[0].Manifest != nil {
		return r.backups.results[0].Manifest.ID, nil
	}
	return "", nil
}

// takeBackups goes by the configuration, which has the stores, the recipients and
// the signing key, and by the restored credentials of etcd.
func (r *rebuild) takeBackups(ctx context.Context, etcd *hostfacts.Discovery) error {
	r.backups = newBackups{}
	c, err := config.Load(r.configPath)
	if err != nil {
		return fmt.Errorf("a backup needs the configuration and its signing key on this machine: %w", err)
	}
	s, err := session.OpenToWrite(ctx, c, r.options())
	if err != nil {
		return err
	}
	if s.Trust.Cluster != r.s.Trust.Cluster {
		return fmt.Errorf("%s is of cluster %s, not of %s", r.configPath, s.Trust.Cluster, r.s.Trust.Cluster)
	}
	runner, err := s.Runner()
	if err != nil {
		return err
	}
	under := func(file string) string {
		if file == "" {
			return ""
		}
		return filepath.Join(r.flags.root, file)
	}
	full, err := runner.Etcd(ctx, session.EtcdConfig(config.Etcd{
		Name: strings.TrimPrefix(string(r.plan.Etcd.Choice.Chain), "etcd/"), Endpoints: etcd.EtcdEndpoints,
		CAFile: under(etcd.CAFile), CertFile: under(etcd.CertFile), KeyFile: under(etcd.KeyFile),
	}), session.Limits(c))
	errs := []error{err}
	var taken []*manifest.Manifest
	if full != nil && full.Manifest != nil {
		r.backups.results, taken = append(r.backups.results, full), append(taken, full.Manifest)
	}
	if ctx.Err() == nil {
		files, err := runner.Files(ctx, host.Options{
			Root: r.flags.root, ExtraPaths: c.Host.ExtraPaths, Node: r.plan.Node(), Now: r.now, Events: runner.Events,
			Images: session.HostImages(r.flags.root),
		}, s.EncryptionUses(ctx, taken))
		errs = append(errs, err)
		if files != nil && files.Manifest != nil {
			r.backups.results = append(r.backups.results, files)
		}
	}
	r.remember(s)
	return errors.Join(errs...)
}
