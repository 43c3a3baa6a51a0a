package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/backup"
	"lifeboat/internal/manifest"
)

func newImport(a *app) *cobra.Command {
	chain := "etcd/imported"
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Adopt an etcd snapshot made by another tool",
		Long: `Checks an etcd snapshot file, seals it and commits it as a full backup, marked
imported and unproved: no live member can vouch for it. It goes to a chain of
its own, so that "the latest" of your cluster stays what it is. Restore it by id
or with --etcd imported.`,
		Example: `  etcdctl snapshot save old.db
  lifeboat import old.db
  lifeboat restore etcd --etcd imported ...`,
		Args: exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.importFile(cmd.Context(), manifest.Chain(chain), args[0])
		},
	}
	cmd.Flags().StringVar(&chain, "chain", chain, "chain of etcd to commit to, etcd/NAME")
	a.outputFlag(cmd)
	return cmd
}

func (a *app) importFile(ctx context.Context, chain manifest.Chain, path string) error {
	if err := chain.Check(); err != nil {
		return fmt.Errorf("%w: --chain: %w", errUsage, err)
	}
	if !strings.HasPrefix(string(chain), "etcd/") {
		return fmt.Errorf("%w: --chain %s: a snapshot of etcd goes to a chain etcd/NAME", errUsage, chain)
	}
	runner, s, err := a.runner(ctx)
	if err != nil {
		return err
	}
	result, err := runner.Import(ctx, chain, path)
	a.remember(s)
	if result == nil {
		return err
	}
	if printErr := a.printBackup(s.Stores, []*backup.Result{result}); err == nil {
		err = printErr
	}
	return err
}
