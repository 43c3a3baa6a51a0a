package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"lifeboat/internal/demo"
)

func newDemo(a *app) *cobra.Command {
	opts := demo.Options{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "The whole story on this machine, without any set-up",
		Long: `Starts an etcd of its own on free loopback ports, fills it with Kubernetes-shaped
objects, lays out a control-plane node's files in a temporary folder, takes a
backup, destroys etcd's data and the files, restores both, and proves by
etcd's own hash and by comparing files that everything is back.

It needs no root, changes nothing outside its folder, and removes that at the
end and when interrupted. --keep leaves it, with the commands to go on by hand.`,
		Example: `  lifeboat demo
  lifeboat demo --keep /tmp/lifeboat-demo`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.demo(cmd.Context(), opts) },
	}
	cmd.Flags().StringVar(&opts.Keep, "keep", "", "leave everything in this folder, which must be new or empty")
	cmd.Flags().IntVar(&opts.Objects, "objects", demo.DefaultObjects, "how many objects etcd gets")
	check(cmd, func() error {
		if opts.Objects < 1 {
			return fmt.Errorf("%w: --objects %d, want 1 or more", errUsage, opts.Objects)
		}
		return nil
	})
	return cmd
}

func (a *app) demo(ctx context.Context, opts demo.Options) error {
	opts.Out, opts.Version, opts.Now, opts.Rand, opts.Events = a.out, version(), a.now, a.rand, a.listener()
	err := demo.Run(ctx, opts)
	if errors.Is(err, demo.ErrNotEmpty) {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return err
}
