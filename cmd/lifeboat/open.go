package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime/debug"

	"lifeboat/backup"
	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/session"
)

// readConfig reads the configuration.
func (a *app) readConfig() (*config.Config, error) {
	c, err := config.Load(a.configPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w; make one with `lifeboat init`, name it with --config, or read with --store, --cluster and --trust", errUsage, err)
	}
	return c, err
}

// loadConfig reads the configuration and the trust file that it names.
func (a *app) loadConfig() (*config.Config, *manifest.Trust, error) {
	c, err := a.readConfig()
	if err != nil {
		return nil, nil, err
	}
	trust, err := session.LoadTrust(c.Signing.TrustFile, c.Cluster)
	return c, trust, err
}

// options are what every session of this process has in common.
func (a *app) options() session.Options {
	return session.Options{Now: a.now, Rand: a.rand, Version: version(), Events: a.listener()}
}

// open opens the configured stores, or the one that --store names, for reading.
func (a *app) open(ctx context.Context) (*session.Session, error) {
	if a.trustPath == "" {
		c, trust, err := a.loadConfig()
		if err != nil {
			return nil, err
		}
		return a.openConfigured(ctx, c, trust, nil)
	}
	trust, err := session.LoadTrust(a.trustPath, a.cluster)
	if err != nil {
		return nil, err
	}
	c := config.Default()
	if c.StateDir, err = filepath.Abs(a.stateDir); err != nil {
		return nil, err
	}
	c.Cluster, c.Signing.TrustFile, c.Stores = a.cluster, a.trustPath, []config.Store{config.DefaultStore(a.storeURL)}
	return session.OpenUnconfigured(ctx, c, trust, a.options()), nil
}

// openConfigured opens a configuration's stores; without a signer for reading.
func (a *app) openConfigured(ctx context.Context, c *config.Config, trust *manifest.Trust, signer *manifest.Signer) (*session.Session, error) {
	s, err := session.Open(ctx, c, trust, signer, a.storeURL, a.options())
	if errors.Is(err, session.ErrNoStore) {
		return nil, fmt.Errorf("%w: %s is not a store of %s; give --cluster and --trust to read it all the same", errUsage, a.storeURL, a.configPath)
	}
	return s, err
}

// runner opens everything that a backup needs.
func (a *app) runner(ctx context.Context) (*backup.Runner, *session.Session, error) {
	c, err := a.readConfig()
	if err != nil {
		return nil, nil, err
	}
	if c, _, err = session.Discovered(c); err != nil {
		a.warn("%v", err)
	}
	s, err := session.OpenToWrite(ctx, c, a.options())
	if err != nil {
		return nil, nil, err
	}
	runner, err := s.Runner()
	return runner, s, err
}

// remember keeps the heads that the stores showed. Not being able to is worth a
// warning only: the work is done.
func (a *app) remember(s *session.Session) {
	if err := s.Remember(); err != nil && !a.quiet {
		fmt.Fprintf(a.err, "warning: %v\n", err)
	}
}

// buildVersion is set by the linker: -X main.buildVersion=v1.2.3.
var buildVersion string

func version() string {
	if buildVersion != "" {
		return buildVersion
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
