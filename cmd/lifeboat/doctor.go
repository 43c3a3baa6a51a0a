package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/internal/doctor"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/session"
	"lifeboat/internal/witness"
	"lifeboat/storage"
	"lifeboat/storage/open"
)

func newDoctor(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check all that backups depend on",
		Long: `Checks the configuration and the keys it names, etcd, the node's files, each
store (a round trip with one small object, conditional creation, protection from
deletion, its clock, whether the newest backups of nodes' files hold every
encryption key that the newest snapshots need) and the scratch space. Every line is ok, a warning or a
problem, with what to do. It succeeds when there is no problem.`,
		Example: `  lifeboat doctor
  lifeboat doctor -o json | jq '.[] | select(.level != "ok")'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd.Context()) },
	}
	a.outputFlag(cmd)
	return cmd
}

func (a *app) doctor(ctx context.Context) error {
	c, err := a.readConfig()
	if err != nil {
		return err
	}
	if c, _, err = session.Discovered(c); err != nil {
		a.warn("%v", err)
	}
	findings := doctor.Run(ctx, doctor.Options{
		Config: c, ConfigDir: filepath.Dir(a.configPath), Now: a.now, Rand: a.rand, UID: os.Geteuid(),
		OpenStore: func(ctx context.Context, s config.Store) (storage.Store, error) {
			return open.Store(ctx, s.URL, session.S3Config(s))
		},
		Vanished: func(ctx context.Context, settings config.Store, store storage.Store) error {
			trust, err := session.LoadTrust(c.Signing.TrustFile, c.Cluster)
			if err != nil {
				return nil // found elsewhere
			}
			memory, err := witness.Open(c.StateDir, trust.Cluster)
			if err != nil {
				return nil // backups go on without it, and verify says so
			}
			repo, err := a.repositoryIn(store, settings, trust)
			if err != nil {
				return err
			}
			if err := session.Vanished(ctx, repo, memory); errors.Is(err, session.ErrVanished) {
				return err
			}
			return nil // the round trip will tell what else is wrong
		},
		KeyCoverage: func(ctx context.Context, settings config.Store, store storage.Store) (found repository.KeyCoverage, err error) {
			trust, err := session.LoadTrust(c.Signing.TrustFile, c.Cluster)
			if err != nil {
				return found, err
			}
			repo, err := a.repositoryIn(store, settings, trust)
			if err != nil {
				return found, err
			}
			var chains []manifest.Chain
			for _, e := range c.Etcd {
				chains = append(chains, session.EtcdConfig(e).Chain())
			}
			return repo.KeyCoverage(ctx, chains...)
		},
		Report: func(f doctor.Finding) {
			if a.format == "text" {
				fmt.Fprintf(a.out, "%-8s %s: %s\n", f.Level, f.Check, f.Message)
				if f.Remedy != "" {
					fmt.Fprintf(a.out, "%s-> %s\n", strings.Repeat(" ", 9), f.Remedy)
				}
			}
		},
	})
	if a.format == "json" {
		if err := a.printJSON(orEmpty(findings)); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	problems := 0
	for _, f := range findings {
		if f.Level == doctor.Problem {
			problems++
		}
	}
	if problems > 0 {
		return fmt.Errorf("doctor found %d problem(s)", problems)
	}
	return nil
}

// repositoryIn is the cluster's repository in a store, to read from.
func (a *app) repositoryIn(store storage.Store, settings config.Store, trust *manifest.Trust) (*repository.Repository, error) {
	return repository.Open(store, repository.Options{Trust: trust, Name: settings.URL, Now: a.now})
}
