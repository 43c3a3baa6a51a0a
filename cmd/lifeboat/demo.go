package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

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
backup, records what changes then, a mistake included, destroys etcd's data and
the files, restores both, etcd to the moment before the mistake, and proves by
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
	opts.Program = program()
	err := demo.Run(ctx, opts)
	if errors.Is(err, demo.ErrNotEmpty) {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return err
}

// program is how a shell on this machine calls this binary: by its bare name
// only if that leads to it.
func program() string {
	self, err := os.Executable()
	if err != nil {
		return "lifeboat"
	}
	if found, err := exec.LookPath("lifeboat"); err == nil && sameFile(found, self) {
		return "lifeboat"
	}
	// The way it was called is shorter, where it is a path at all.
	if name := os.Args[0]; strings.ContainsRune(name, filepath.Separator) && sameFile(name, self) {
		self = name
	}
	if strings.ContainsAny(self, " \t'\"$&;()*?[]<>|\\`") {
		return "'" + strings.ReplaceAll(self, "'", `'\''`) + "'"
	}
	return self
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
