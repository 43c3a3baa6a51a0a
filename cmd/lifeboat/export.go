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

func newExport(a *app) *cobra.Command {
	var point pointFlags
	var out string
	var bump uint64
	var force bool
	var quota quotaFlag
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write etcd as it was at a point as an ordinary snapshot file",
		Long: `Unseals and checks the full backup before the point, applies the recorded
changes up to it, and writes the result as an etcd snapshot with its hash
trailer, which stock "etcdutl snapshot restore", k3s and others accept. --bump
raises its last revision and marks everything before it compacted, for tools
that don't do that themselves.

Revisions, versions and leases are exactly what they were, and HashKV must be
what etcd's members gave. "lifeboat list --points" shows what can be had.`,
		Example: `  lifeboat export --identity recovery.key --out snapshot.db
  lifeboat export --identity recovery.key --out snapshot.db --at "10 minutes ago"
  lifeboat export --identity recovery.key --out snapshot.db --revision 48210337
  lifeboat export --identity recovery.key --out snapshot.db --bump 1000000000`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.export(cmd.Context(), point, restore.ExportOptions{Out: out, Bump: bump, Force: force, Quota: quota.bytes})
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "the file to write, 0600")
	cmd.Flags().Uint64Var(&bump, "bump", 0, "raise the last revision by this and mark what was before compacted; 0: neither")
	cmd.Flags().BoolVar(&force, "force", false, "replace the file if it exists")
	quota.add(cmd)
	point.addEtcd(a, cmd)
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
	from := &rerouting{a, s, "export", tried{}, func(ctx context.Context, repo *repository.Repository, at aim) (err error) {
		options.Chain, options.Point, options.Without = at.chain, at.point, at.without
		result, err = restore.Export(ctx, repo, options)
		return err
	}}
	if err := from.from(ctx, flags); err != nil {
		return err
	}
	if a.format == "json" {
		return a.printJSON(map[string]any{
			"id": result.Backup.ID, "path": result.Path, "bytes": result.Bytes, "revision": result.Revision, "hashKV": result.HashKV, "compactRevision": result.CompactRevision,
			"point": describePoint(result.Choice), "applied": describeApplied(result.Applied),
		})
	}
	_, err = fmt.Fprintf(a.out, "%s: backup %s of %s, revision %d, %s\n",
		result.Path, result.Backup.ID, result.Backup.Created.Format(time.RFC3339), result.Revision, humanBytes(result.Bytes))
	if err != nil {
		return err
	}
	return a.printChoice(result.Choice, result.Applied)
}

// printChoice says which state the result is, and what lies after it.
func (a *app) printChoice(c restore.Choice, applied *restore.Applied) error {
	if applied != nil {
		fmt.Fprintf(a.out, "applied: %s\n", applied)
	}
	_, err := fmt.Fprintf(a.out, "this is %s; %s\n", c, c.Behind())
	return err
}

// appliedJSON is what applying segments has shown.
type appliedJSON struct {
	Segments       int               `json:"segments"`
	Changes        int64             `json:"changes"`
	Superseded     int64             `json:"superseded"`
	MadeUpLeases   int               `json:"madeUpLeases"`
	ProvedRevision manifest.Revision `json:"provedRevision"` // at which HashKV is what members gave; 0: only the full's was compared, if it has one
}

func describeApplied(applied *restore.Applied) *appliedJSON {
	if applied == nil {
		return nil
	}
	out := &appliedJSON{Segments: applied.Segments, Changes: applied.Events, Superseded: applied.Skipped, MadeUpLeases: applied.MadeUp}
	if applied.ProvedAt != nil {
		out.ProvedRevision = applied.ProvedAt.Revision
	}
	return out
}
