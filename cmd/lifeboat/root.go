package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/restore/node"
	"lifeboat/restore/plane"
	"lifeboat/storage/open"
)

// app is what all verbs share: streams, clock, chance and the common flags.
type app struct {
	streams
	now  func() time.Time
	rand io.Reader

	shown *progress // by listener

	// What restores of a whole node work on; tests put others in their place.
	machine func(root string) node.Machine                  // nil: this one
	living  func(plane.LivingOptions) (plane.Health, error) // nil: the real control plane

	configPath string
	storeURL   string // read this store only
	cluster    string // with storeURL: read without a configuration
	trustPath  string
	stateDir   string // with storeURL
	identities []string
	format     string // "text" or "json"
	quiet      bool
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "lifeboat",
		Short: "Keep a Kubernetes control plane recoverable",
		Long: `Lifeboat backs up etcd, every change of it, and a control-plane node's
certificates, kubeconfigs and static manifests, proves the backups against the
live cluster, encrypts them with age, commits them signed and chained to S3 or a
directory, and restores them, as they were at any second, with nothing else
alive.

See it at work, without any set-up:   lifeboat demo
Begin:                                lifeboat init --help
When all is lost:                     lifeboat restore --help`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		// Cobra looks at flags that exclude each other too, but only later and
		// with an error that nothing tells from a verb's own.
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := cmd.ValidateFlagGroups(); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return nil
		},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	root.PersistentFlags().StringVar(&a.configPath, "config", config.DefaultPath, "configuration file")
	root.PersistentFlags().BoolVarP(&a.quiet, "quiet", "q", false, "no progress and no warnings on standard error")
	root.CompletionOptions.HiddenDefaultCmd = false
	root.AddCommand(
		newInit(a), newKit(a), newBackup(a), newRecord(a), newList(a), newShow(a), newLs(a), newCat(a),
		newVerify(a), newPrune(a), newExport(a), newImport(a), newCopy(a), newRekey(a), newImages(a), newRestore(a), newDoctor(a), newAgent(a), newDemo(a), newVersion(a),
	)
	return root
}

// strictCompletion adds cobra's completion command, and makes it refuse what is
// no shell.
func strictCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Args = cobra.ArbitraryArgs // so that RunE is what refuses
			cmd.RunE = func(_ *cobra.Command, args []string) error {
				return fmt.Errorf("%w: completion takes a shell: bash, zsh, fish or powershell; got %q", errUsage, args)
			}
		}
	}
}

// noArgs and exactArgs are cobra's with our exit code.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%w: unknown argument or command %q for %q", errUsage, args[0], cmd.CommandPath())
	}
	return nil
}

func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return fmt.Errorf("%w: %s takes %d argument(s), %v; got %d", errUsage, cmd.CommandPath(), len(names), names, len(args))
		}
		return nil
	}
}

// outputFlag adds -o to a verb that prints a result.
func (a *app) outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&a.format, "output", "o", "text", "text or json")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	check(cmd, func() error {
		if a.format != "text" && a.format != "json" {
			return fmt.Errorf("%w: --output %q, want text or json", errUsage, a.format)
		}
		return nil
	})
}

// readFlags adds the flags that read a store without a configuration.
func (a *app) readFlags(cmd *cobra.Command) {
	storeFlag(cmd, &a.storeURL, "store", "read only this store: a configured one, or any with --cluster and --trust")
	cmd.Flags().StringVar(&a.cluster, "cluster", "", "cluster name, to read without a configuration")
	cmd.Flags().StringVar(&a.trustPath, "trust", "", "trust file, to read without a configuration")
	cmd.Flags().StringVar(&a.stateDir, "state-dir", config.DefaultStateDir(), "scratch space and what restores replace, without a configuration")
	check(cmd, func() error {
		if (a.cluster != "" || a.trustPath != "") && (a.storeURL == "" || a.trustPath == "") {
			return fmt.Errorf("%w: reading without a configuration takes --store, --trust and --cluster together", errUsage)
		}
		return nil
	})
}

// storeFlag adds a flag that takes a store's URL. One that can't be is refused
// before anything repeats it: it may hold a password.
func storeFlag(cmd *cobra.Command, url *string, name, usage string) {
	cmd.Flags().StringVar(url, name, "", usage)
	check(cmd, func() error {
		if *url == "" {
			return nil
		}
		if _, err := open.Parse(*url); err != nil {
			return fmt.Errorf("%w: --%s: %w", errUsage, name, err)
		}
		return nil
	})
}

// identityFlag adds --identity.
func (a *app) identityFlag(cmd *cobra.Command, required bool) {
	cmd.Flags().StringArrayVar(&a.identities, "identity", nil, "file with an age identity or SSH key that unseals; - is standard input; may be repeated")
	if required {
		check(cmd, func() error {
			if len(a.identities) == 0 {
				return fmt.Errorf("%w: %s needs --identity FILE, the key that unseals", errUsage, cmd.CommandPath())
			}
			return nil
		})
	}
}

// check adds a check of the flags that runs before the verb.
func check(cmd *cobra.Command, f func() error) {
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if before != nil {
			if err := before(cmd, args); err != nil {
				return err
			}
		}
		return f()
	}
}
