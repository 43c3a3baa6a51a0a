package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// agentOptions are the verb's flags.
type agentOptions struct {
	once      bool
	node      string
	logFormat string
	logLevel  string
}

func newAgent(a *app) *cobra.Command {
	var opts agentOptions
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Back up on schedule, and tell Prometheus",
		Long: `Runs on every control-plane node until it is told to stop: takes fulls of etcd
and of this node's files on schedule, records every change of etcd in between,
verifies and prunes, and serves metrics, health checks and a status page. Agents
take turns at etcd by themselves.

SIGHUP reads the configuration again; one that can't be used is refused, and the
old one goes on. Renewed keys, certificates and credentials need neither.
SIGTERM ends it; what is under way is given up, and nothing half-done counts.

--once serves what is due now and exits: for a timer instead of a daemon. It
waits for nobody's turn, and records no changes.`,
		Example: `  lifeboat agent
  lifeboat agent --once --log-format json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.agent(cmd.Context(), opts) },
	}
	f := cmd.Flags()
	f.BoolVar(&opts.once, "once", false, "serve what is due, then exit; the exit code says whether it went well")
	f.StringVar(&opts.node, "node", "", "this node's name, instead of the configuration's")
	f.StringVar(&opts.logFormat, "log-format", "text", "text or json")
	f.StringVar(&opts.logLevel, "log-level", "info", "debug, info, warn or error")
	_ = cmd.RegisterFlagCompletionFunc("log-format", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp))
	check(cmd, func() error {
		_, err := a.logger(opts)
		return err
	})
	return cmd
}

// logger writes to standard error, as systemd and Kubernetes collect it.
func (a *app) logger(opts agentOptions) (*slog.Logger, error) {
	var level slog.Level
	switch opts.logLevel {
	case "debug", "info", "warn", "error":
		if err := level.UnmarshalText([]byte(opts.logLevel)); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%w: --log-level %q, want debug, info, warn or error", errUsage, opts.logLevel)
	}
	if a.quiet {
		level = max(level, slog.LevelError)
	}
	o := &slog.HandlerOptions{Level: level}
	switch opts.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(a.err, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(a.err, o)), nil
	}
	return nil, fmt.Errorf("%w: --log-format %q, want text or json", errUsage, opts.logFormat)
}

// agent runs the daemon, or what is due once.
func (a *app) agent(ctx context.Context, opts agentOptions) error {
	stayLight()
	log, err := a.logger(opts)
	if err != nil {
		return err
	}
	d, err := a.newDaemon(log, opts.node)
	if err != nil {
		return err
	}
	if opts.once {
		return d.once(ctx)
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	err = d.run(ctx, hup)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil // told to stop, and did
	}
	return err
}

// The daemon shares a machine with etcd. It collects garbage early, and early
// in a backup too, where it works with buffers of fixed sizes: both limits are
// far above what it needs, and soft.
const (
	memoryLimit = 256 << 20
	gcPercent   = 50
)

// stayLight sets the limits that the environment does not.
func stayLight() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}
