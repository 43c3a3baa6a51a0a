package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"

	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/witness"
	"lifeboat/storage/open"
	"lifeboat/storage/s3"
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
	trust, err := loadTrust(c.Signing.TrustFile, c.Cluster)
	return c, trust, err
}

// loadTrust reads a trust file and holds it to the cluster's name, which may
// be the short or the full one.
func loadTrust(path, cluster string) (*manifest.Trust, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: read trust file: %w", config.ErrInvalid, err)
	}
	trust, err := manifest.ParseTrust(text)
	if err != nil {
		return nil, fmt.Errorf("%w: trust file %s: %w", config.ErrInvalid, path, err)
	}
	name, _, _ := manifest.ClusterName(trust.Cluster)
	if cluster != "" && cluster != name && cluster != trust.Cluster {
		return nil, fmt.Errorf("%w: the trust file %s is of cluster %s, not of %q", config.ErrInvalid, path, trust.Cluster, cluster)
	}
	return trust, nil
}

func loadSigner(path string) (*manifest.Signer, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: read signing key: %w", config.ErrInvalid, err)
	}
	signer, err := manifest.ParseSigner(text)
	if err != nil {
		return nil, fmt.Errorf("%w: signing key %s: %w", config.ErrInvalid, path, err)
	}
	return signer, nil
}

// believes reports whether the trust holds the signer's key.
func believes(trust *manifest.Trust, signer *manifest.Signer) bool {
	return slices.ContainsFunc(trust.Verifiers, func(v manifest.Verifier) bool { return v.Key == signer.VerifierText() })
}

// opened is one store with its repository, or with the reason why not.
type opened struct {
	url        string
	settings   config.Store
	repository *repository.Repository
	err        error
}

// session is what a verb works on.
type session struct {
	config *config.Config
	stores []opened
	memory *witness.Memory // nil when reading without a configuration: then nothing is remembered
}

// open opens the configured stores, or the one that --store names, for reading.
func (a *app) open(ctx context.Context) (*session, error) {
	if a.trustPath == "" {
		c, trust, err := a.loadConfig()
		if err != nil {
			return nil, err
		}
		return a.openConfigured(ctx, c, trust, nil)
	}
	trust, err := loadTrust(a.trustPath, a.cluster)
	if err != nil {
		return nil, err
	}
	c := config.Default()
	if c.StateDir, err = filepath.Abs(a.stateDir); err != nil {
		return nil, err
	}
	c.Cluster, c.Signing.TrustFile, c.Stores = a.cluster, a.trustPath, []config.Store{config.DefaultStore(a.storeURL)}
	return &session{config: c, stores: []opened{a.openStore(ctx, c, c.Stores[0], trust, nil, nil)}}, nil
}

// openConfigured opens a configuration's stores; without a signer for reading.
func (a *app) openConfigured(ctx context.Context, c *config.Config, trust *manifest.Trust, signer *manifest.Signer) (*session, error) {
	memory, err := witness.Open(c.StateDir, trust.Cluster)
	if err != nil {
		return nil, err
	}
	s := &session{config: c, memory: memory}
	for _, store := range c.Stores {
		if a.storeURL == "" || a.storeURL == store.URL {
			s.stores = append(s.stores, a.openStore(ctx, c, store, trust, signer, memory))
		}
	}
	if len(s.stores) == 0 {
		return nil, fmt.Errorf("%w: %s is not a store of %s; give --cluster and --trust to read it all the same", errUsage, a.storeURL, a.configPath)
	}
	return s, nil
}

func (a *app) openStore(ctx context.Context, c *config.Config, settings config.Store, trust *manifest.Trust, signer *manifest.Signer, memory *witness.Memory) opened {
	o := opened{url: settings.URL, settings: settings}
	store, err := open.Store(ctx, settings.URL, s3Config(settings))
	if err != nil {
		o.err = err
		return o
	}
	options := repository.Options{
		Trust: trust, Signer: signer, Name: settings.URL, Now: a.now, Rand: a.rand,
		Writer: a.writer(c), Events: a.listener(),
	}
	if memory != nil {
		options.Seen = memory.Of(settings.URL)
	}
	o.repository, o.err = repository.Open(store, options)
	return o
}

// writer says who commits. Reading without a configuration has no node.
func (a *app) writer(c *config.Config) manifest.Writer {
	node := c.Node
	if node == "" {
		node = "unnamed"
	}
	return manifest.Writer{Node: node, Version: version()}
}

// s3Config maps the configuration's settings to the backend's.
func s3Config(store config.Store) s3.Config {
	c := s3.Config{
		Endpoint: store.S3.Endpoint, Region: store.S3.Region, Profile: store.S3.Profile,
		PathStyle: store.S3.PathStyle, CAFile: store.S3.CAFile, Checksums: store.S3.Checksums,
		SSE: store.S3.SSE, KMSKeyID: store.S3.KMSKeyID, StorageClass: store.S3.StorageClass,
	}
	c.ObjectLock.Mode, c.ObjectLock.Days = store.S3.ObjectLock.Mode, store.S3.ObjectLock.Days
	return c
}

// remember keeps the heads that a store showed. Not being able to is worth a
// warning only: the work is done.
func (a *app) remember(memory *witness.Memory, o opened) {
	if memory == nil || o.repository == nil {
		return
	}
	if err := memory.Note(o.repository.Heads()...); err != nil && !a.quiet {
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
