package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/backup"
	"lifeboat/backup/etcd"
	"lifeboat/backup/host"
	"lifeboat/internal/config"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
	"lifeboat/internal/witness"
)

// storeStall is how long a store may take no bytes while others wait for it.
const storeStall = 2 * time.Minute

func newBackup(a *app) *cobra.Command {
	var only string
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Take one backup now",
		Long: `Takes one full backup of every configured etcd cluster and of this node's
files, proves the etcd snapshot against the live members, and commits both to
every configured store. Nothing is written to etcd.

It succeeds when at least minStores stores committed each backup; a store that
failed is reported. In the JSON output, degraded lists why a backup is less
than it should be; an empty list is good.`,
		Example: `  lifeboat backup
  lifeboat backup --only etcd -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.backup(cmd.Context(), only) },
	}
	cmd.Flags().StringVar(&only, "only", "", "etcd or files: just that")
	_ = cmd.RegisterFlagCompletionFunc("only", cobra.FixedCompletions([]string{"etcd", "files"}, cobra.ShellCompDirectiveNoFileComp))
	check(cmd, func() error {
		if only != "" && only != "etcd" && only != "files" {
			return fmt.Errorf("%w: --only %q, want etcd or files", errUsage, only)
		}
		return nil
	})
	a.outputFlag(cmd)
	return cmd
}

// backupJSON is one committed backup in the output.
type backupJSON struct {
	ID           manifest.ID       `json:"id"`
	Chain        manifest.Chain    `json:"chain"`
	Kind         manifest.Kind     `json:"kind"`
	Created      time.Time         `json:"created"`
	Revision     manifest.Revision `json:"revision"`
	HashKV       uint32            `json:"hashKV"`
	ComparedWith []manifest.EtcdID `json:"comparedWith"`
	PlainBytes   int64             `json:"plainBytes"`
	StoredBytes  int64             `json:"storedBytes"`
	Degraded     []string          `json:"degraded"`
	Unproved     []string          `json:"unproved"`
}

type storeJSON struct {
	URL   string `json:"url"`
	OK    bool   `json:"ok"`
	Error string `json:"error"`
}

func (a *app) backup(ctx context.Context, only string) error {
	runner, s, err := a.runner(ctx)
	if err != nil {
		return err
	}
	c := s.config
	if only == "etcd" && len(c.Etcd) == 0 {
		return fmt.Errorf("%w: %s names no etcd cluster", config.ErrInvalid, a.configPath)
	}
	var results []*backup.Result
	var errs []error
	note := func(result *backup.Result, err error) {
		if result != nil {
			results = append(results, result)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	if only != "files" {
		for _, e := range c.Etcd {
			note(runner.Etcd(ctx, etcdConfig(e), etcd.Limits{MaxStall: time.Duration(c.Proof.MaxStall)}))
		}
	}
	if only != "etcd" && ctx.Err() == nil {
		uses := encryptionUses(ctx, c.Etcd, results, s.stores)
		note(runner.Files(ctx, host.Options{
			Root: c.Host.Root, ExtraPaths: c.Host.ExtraPaths, Node: c.Node, Now: a.now, Events: runner.Events,
		}, uses))
	}
	for _, o := range s.stores {
		a.remember(s.memory, o)
	}
	return errors.Join(a.printBackup(s.stores, results), errors.Join(errs...))
}

func etcdConfig(e config.Etcd) etcd.Config {
	return etcd.Config{Name: e.Name, Endpoints: e.Endpoints, CAFile: e.CAFile, CertFile: e.CertFile, KeyFile: e.KeyFile}
}

// encryptionUses are the encryption keys that etcd holds values of: of every
// configured cluster by the full just taken or else by the newest in a store.
func encryptionUses(ctx context.Context, clusters []config.Etcd, results []*backup.Result, stores []opened) []manifest.KeyUse {
	fulls := map[manifest.Chain]*manifest.Manifest{}
	for _, r := range results {
		if r.Manifest != nil && r.Manifest.Etcd != nil {
			fulls[r.Manifest.Chain] = r.Manifest
		}
	}
	if len(fulls) < len(clusters) {
		taken := maps.Clone(fulls)
		for _, o := range stores {
			if o.err != nil {
				continue
			}
			backups, _, err := o.repository.Backups(ctx)
			if err != nil {
				continue
			}
			for _, b := range backups {
				old := fulls[b.Chain]
				if b.Etcd != nil && taken[b.Chain] == nil && (old == nil || b.Created.After(old.Created)) {
					fulls[b.Chain] = b.Manifest
				}
			}
		}
	}
	var uses []manifest.KeyUse
	for _, e := range clusters {
		if m := fulls[manifest.Chain("etcd/"+e.Name)]; m != nil {
			uses = append(uses, m.Etcd.Encryption...)
		}
	}
	return uses
}

// runner opens everything that a backup needs.
func (a *app) runner(ctx context.Context) (*backup.Runner, *session, error) {
	c, trust, err := a.loadConfig()
	if err != nil {
		return nil, nil, err
	}
	signer, err := loadSigner(c.Signing.KeyFile)
	if err != nil {
		return nil, nil, err
	}
	// A manifest that its own writer would not believe is worse than none.
	if !believes(trust, signer) {
		return nil, nil, fmt.Errorf("%w: the signing key %s is not one that the trust file %s believes; use the pair that `lifeboat init` made",
			config.ErrInvalid, c.Signing.KeyFile, c.Signing.TrustFile)
	}
	recipients, err := seal.ParseRecipients(c.Recipients)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: recipients: %w", config.ErrInvalid, err)
	}
	s, err := a.openConfigured(ctx, c, trust, signer)
	if err != nil {
		return nil, nil, err
	}
	runner := &backup.Runner{
		MinStores: c.MinStores, Recipients: recipients, RecipientNames: c.Recipients,
		Writer: a.writer(c), Scratch: filepath.Join(c.StateDir, "scratch"), StoreStall: storeStall,
		Witnesses: s.memory.Heads(), Now: a.now, Rand: a.rand, Events: a.listener(),
		NextExpectedBy: func(chain manifest.Chain) *time.Time { return c.NextExpectedBy(string(chain), a.now()) },
	}
	for i := range s.stores {
		o := &s.stores[i]
		if o.err == nil {
			o.err = vanished(ctx, o.repository, s.memory)
		}
		if o.err == nil {
			o.err = o.repository.Init(ctx)
		}
		if o.err != nil {
			runner.Events.Emit(events.StoreFailed{Store: o.url, Err: o.err})
		}
		runner.Stores = append(runner.Stores, backup.Store{
			URL: o.url, Repository: o.repository, Err: o.err, RetainDays: o.settings.S3.ObjectLock.Days,
		})
	}
	return runner, s, nil
}

// vanished refuses a store that held backups of the cluster when this machine
// saw it last and holds nothing now: a disk that is not mounted must not be
// written under its mount point, as if all were well.
func vanished(ctx context.Context, repo *repository.Repository, memory *witness.Memory) error {
	if len(memory.Of(repo.Name())) == 0 {
		return nil
	}
	p, err := repo.Present(ctx)
	if err != nil || p.Found {
		return err
	}
	return fmt.Errorf("backups of %s were seen in this store, and nothing of them is there now: is it mounted? If it was emptied on purpose, remove its lines from %s",
		repo.Cluster(), memory.Path())
}

func (a *app) printBackup(list []opened, results []*backup.Result) error {
	out := struct {
		Backups []backupJSON `json:"backups"`
		Stores  []storeJSON  `json:"stores"`
	}{Backups: []backupJSON{}, Stores: []storeJSON{}}
	failures := map[string]error{}
	for _, o := range list {
		failures[o.url] = o.err
	}
	for _, r := range results {
		if r.Manifest != nil {
			out.Backups = append(out.Backups, describe(r.Manifest))
		}
		for _, commit := range r.Commits {
			if commit.Err != nil && failures[commit.Store] == nil {
				failures[commit.Store] = commit.Err
			}
		}
	}
	for _, o := range list {
		s := storeJSON{URL: o.url, OK: failures[o.url] == nil && len(results) > 0}
		if err := failures[o.url]; err != nil {
			s.Error = err.Error()
		} else if !s.OK {
			s.Error = "not tried: there was nothing to commit"
		}
		out.Stores = append(out.Stores, s)
	}
	if a.format == "json" {
		return a.printJSON(out)
	}
	for _, b := range out.Backups {
		printBackupLine(a.out, b)
	}
	for _, s := range out.Stores {
		if s.OK {
			fmt.Fprintf(a.out, "committed to %s\n", s.URL)
		} else if s.Error != "" {
			fmt.Fprintf(a.out, "NOT committed to %s: %s\n", s.URL, s.Error)
		}
	}
	return nil
}

func printBackupLine(w io.Writer, b backupJSON) {
	fmt.Fprintf(w, "%s  %s  %s, %s stored", b.ID, b.Chain, humanBytes(b.PlainBytes), humanBytes(b.StoredBytes))
	switch {
	case b.Kind != manifest.KindFull:
	case len(b.Unproved) == 0:
		fmt.Fprintf(w, ", revision %d, HashKV %d equal on %d member(s)", b.Revision, b.HashKV, len(b.ComparedWith))
	default:
		fmt.Fprintf(w, ", revision %d, not proved: %s", b.Revision, b.Unproved[0])
	}
	fmt.Fprintln(w)
	for _, why := range b.Degraded {
		fmt.Fprintf(w, "  degraded: %s\n", why)
	}
}

func describe(m *manifest.Manifest) backupJSON {
	b := backupJSON{
		ID: m.ID, Chain: m.Chain, Kind: m.Kind, Created: m.Created,
		ComparedWith: []manifest.EtcdID{}, Degraded: orEmpty(m.Degraded), Unproved: orEmpty(m.Unproved),
	}
	if m.Etcd != nil {
		b.Revision, b.HashKV, b.ComparedWith = m.Etcd.Revision, m.Etcd.HashKV, orEmpty(m.Etcd.ComparedWith)
	}
	for _, o := range m.Objects {
		b.PlainBytes += o.PlainSize
		b.StoredBytes += o.Size
	}
	return b
}
