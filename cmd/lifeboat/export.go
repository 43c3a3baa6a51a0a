package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/restore"
)

// pointFlags are how every verb aims at a point.
type pointFlags struct {
	backup   string
	revision int64
	at       string
	etcd     string
}

func (f *pointFlags) add(a *app, cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.backup, "backup", "", "a backup's id; default is the latest")
	cmd.Flags().Int64Var(&f.revision, "revision", 0, "the newest full at or below this etcd revision")
	cmd.Flags().StringVar(&f.at, "at", "", "the newest backup at or before this time, RFC 3339")
	cmd.MarkFlagsMutuallyExclusive("backup", "revision", "at")
	_ = cmd.RegisterFlagCompletionFunc("backup", a.completeIDs)
}

func (f *pointFlags) addEtcd(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.etcd, "etcd", "main", "which etcd cluster: chain etcd/NAME")
}

// chain is the chain of etcd that is meant.
func (f *pointFlags) chain() manifest.Chain { return manifest.Chain("etcd/" + f.etcd) }

// point resolves the flags; an id's beginning is enough, and an id leads to
// its own chain.
func (f *pointFlags) point(ctx context.Context, repo *repository.Repository, chain manifest.Chain) (repository.Point, manifest.Chain, error) {
	switch {
	case f.backup != "":
		b, err := repo.Find(ctx, f.backup)
		if err != nil {
			return repository.Point{}, "", err
		}
		return repository.Point{Backup: b.ID}, b.Chain, nil
	case f.at != "":
		at, err := time.Parse(time.RFC3339, f.at)
		if err != nil {
			return repository.Point{}, "", fmt.Errorf("%w: --at %q: want a time such as 2026-11-21T03:00:00Z", errUsage, f.at)
		}
		return repository.Point{Time: at}, chain, nil
	case f.revision < 0:
		return repository.Point{}, "", fmt.Errorf("%w: --revision %d is negative", errUsage, f.revision)
	}
	return repository.Point{Revision: manifest.Revision(f.revision)}, chain, nil
}

func newExport(a *app) *cobra.Command {
	var point pointFlags
	var out string
	var bump uint64
	var force bool
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write a backup as an ordinary etcd snapshot file",
		Long: `Unseals and checks a backup and writes it as an etcd snapshot with its hash
trailer, which stock "etcdutl snapshot restore", k3s and others accept. --bump
raises its last revision and marks everything before it compacted, for tools
that don't do that themselves.`,
		Example: `  lifeboat export --identity recovery.key --out snapshot.db
  lifeboat export --identity recovery.key --out snapshot.db --bump 1000000000`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.export(cmd.Context(), point, restore.ExportOptions{Out: out, Bump: bump, Force: force})
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "the file to write, 0600")
	cmd.Flags().Uint64Var(&bump, "bump", 0, "raise the last revision by this and mark what was before compacted; 0: neither")
	cmd.Flags().BoolVar(&force, "force", false, "replace the file if it exists")
	point.add(a, cmd)
	point.addEtcd(cmd)
	a.readFlags(cmd)
	a.identityFlag(cmd, true)
	a.outputFlag(cmd)
	check(cmd, func() error {
		if out == "" {
			return fmt.Errorf("%w: export needs --out FILE", errUsage)
		}
		return nil
	})
	return cmd
}

func (a *app) export(ctx context.Context, flags pointFlags, options restore.ExportOptions) error {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	if options.Identities, err = a.loadIdentities(ctx); err != nil {
		return err
	}
	options.Now, options.Rand, options.Events = a.now, a.rand, a.listener()
	var result *restore.ExportResult
	err = a.read(ctx, s, flags.chain(), func(repo *repository.Repository) (err error) {
		if options.Point, options.Chain, err = flags.point(ctx, repo, flags.chain()); err != nil {
			return err
		}
		result, err = restore.Export(ctx, repo, options)
		return err
	})
	if err != nil {
		return err
	}
	if a.format == "json" {
		return a.printJSON(map[string]any{
			"id": result.Backup.ID, "path": result.Path, "bytes": result.Bytes, "revision": result.Revision, "hashKV": result.HashKV,
		})
	}
	_, err = fmt.Fprintf(a.out, "%s: backup %s of %s, revision %d, %s\n",
		result.Path, result.Backup.ID, result.Backup.Created.Format(time.RFC3339), result.Revision, humanBytes(result.Bytes))
	return err
}
