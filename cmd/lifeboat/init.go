package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/internal/kit"
	"lifeboat/internal/recoverykit"
	"lifeboat/restore"
)

func newInit(a *app) *cobra.Command {
	var opts kit.Options
	var withKit bool
	cmd := &cobra.Command{
		Use:   "init --cluster NAME --store URL --out DIR",
		Short: "Make keys, configuration and recovery kit",
		Long: `Makes four files in a folder, and overwrites none:

  config.yaml    every setting with its default and a comment
  recovery.key   the age identity that opens backups; take it off this machine
  signing.key    the key that signs manifests
  trust          the public keys that tell your backups from forged ones

On a server of kubeadm, k3s, rke2 or k0s it finds etcd and its certificates by
itself, from what lies below the host root. A flag beats what it finds.

With --kit the printed side of the recovery kit comes beside them; "lifeboat kit"
makes it anew, with more in it, when there are backups.

Other nodes of the same cluster get copies of config.yaml (with their own node
name), signing.key and trust; init runs once a cluster.`,
		Example: `  # on a control-plane node, as root
  lifeboat init --cluster prod-eu1 --store s3://bucket/lifeboat --out /etc/lifeboat

  # two stores, etcd named by hand, a second key for the safe
  lifeboat init --cluster prod-eu1 --out /etc/lifeboat \
    --store s3://bucket/lifeboat --store file:///mnt/backup \
    --etcd https://10.0.0.11:2379,https://10.0.0.12:2379 \
    --etcd-cacert ca.crt --etcd-cert client.crt --etcd-key client.key \
    --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.init(cmd.Context(), opts, withKit) },
	}
	f := cmd.Flags()
	f.StringVar(&opts.Cluster, "cluster", "", "the cluster's name")
	f.StringArrayVar(&opts.Stores, "store", nil, "where backups go: s3://bucket/prefix or file:///folder; may be repeated")
	f.StringVar(&opts.Out, "out", "", "folder for the files, such as "+filepath.Dir(config.DefaultPath))
	f.StringSliceVar(&opts.Endpoints, "etcd", nil, "etcd's client URLs, this node's member first")
	f.StringVar(&opts.CAFile, "etcd-cacert", "", "authority of etcd's server certificates")
	f.StringVar(&opts.CertFile, "etcd-cert", "", "client certificate for etcd")
	f.StringVar(&opts.KeyFile, "etcd-key", "", "its private key")
	f.StringVar(&opts.HostRoot, "host-root", "/", "where the host's root is")
	f.StringVar(&opts.Node, "node", "", "this node's name (default: the host name)")
	f.StringArrayVar(&opts.Recipients, "recipient", nil, "another public key that can open backups: age1..., ssh-...; may be repeated")
	f.BoolVar(&opts.PostQuantum, "post-quantum", false, "make a post-quantum recovery key; opening by hand then needs age 1.3")
	f.BoolVar(&withKit, "kit", false, "also make the printed side of the recovery kit, in the folder kit beside the files")
	check(cmd, func() error {
		for _, flag := range []struct{ name, value string }{
			{"cluster", opts.Cluster}, {"store", strings.Join(opts.Stores, "")}, {"out", opts.Out},
		} {
			if flag.value == "" {
				return fmt.Errorf("%w: init needs --%s; see \"lifeboat init --help\"", errUsage, flag.name)
			}
		}
		return nil
	})
	a.outputFlag(cmd)
	return cmd
}

// initJSON is init's result.
type initJSON struct {
	Cluster   string     `json:"cluster"`
	Recipient string     `json:"recipient"`
	Config    string     `json:"config"`
	Identity  string     `json:"identity"`
	Signer    string     `json:"signer"`
	Trust     string     `json:"trust"`
	Etcd      []etcdJSON `json:"etcd"`
	Kit       string     `json:"kit"` // the folder that --kit made; empty without it
	Warnings  []string   `json:"warnings"`
}

type etcdJSON struct {
	Name      string   `json:"name"`
	Endpoints []string `json:"endpoints"`
}

func (a *app) init(ctx context.Context, opts kit.Options, withKit bool) error {
	opts.Now, opts.Rand = a.now(), a.rand
	if opts.Node == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("%w: the host name can't be read, give --node: %w", errUsage, err)
		}
		opts.Node = name
	}
	k, err := kit.Create(opts)
	if errors.Is(err, kit.ErrInvalid) {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if errors.Is(err, kit.ErrExists) {
		return fmt.Errorf("%w: %w; name another folder with --out, or move it away if you are sure that no backup needs it", restore.ErrRefused, err)
	}
	if err != nil {
		return err
	}
	folder := ""
	if withKit {
		folder = filepath.Join(filepath.Dir(k.ConfigPath), "kit")
		a.configPath = k.ConfigPath
		if _, err := a.makeKit(ctx, kitFlags{out: folder}); err != nil {
			return fmt.Errorf("the keys and the configuration are made, the recovery kit is not: %w", err)
		}
	}
	if a.format == "json" {
		out := initJSON{
			Cluster: k.Cluster, Recipient: k.Recipient, Config: k.ConfigPath, Identity: k.IdentityPath,
			Signer: k.SignerPath, Trust: k.TrustPath, Etcd: []etcdJSON{}, Kit: folder, Warnings: orEmpty(k.Warnings),
		}
		for _, e := range k.Config.Etcd {
			out.Etcd = append(out.Etcd, etcdJSON{e.Name, orEmpty(e.Endpoints)})
		}
		return a.printJSON(out)
	}
	return a.printKit(k, opts.PostQuantum, len(opts.Endpoints) > 0, folder)
}

// printKit says what was made; named is whether etcd was named by a flag, folder
// where the printed side of the kit is, if it was made.
func (a *app) printKit(k *kit.Kit, postQuantum, named bool, folder string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Cluster %s is ready to be backed up.\n\n", k.Cluster)
	fmt.Fprintf(&b, "  %s\n  %s\n  %s\n  %s\n\n", k.ConfigPath, k.IdentityPath, k.SignerPath, k.TrustPath)
	for _, e := range k.Config.Etcd {
		how := ""
		switch {
		case k.Kind == "" || named:
		case k.Kind == "stacked", k.Kind == "external": // that says where etcd runs, not what the node is
			how = ", found in this node's static pods (" + k.Kind + " etcd)"
		default:
			how = ", found on this " + k.Kind + " node"
		}
		fmt.Fprintf(&b, "etcd %s: %s%s\n", e.Name, strings.Join(e.Endpoints, ", "), how)
	}
	for _, w := range k.Warnings {
		fmt.Fprintf(&b, "WARNING: %s\n", w)
	}
	b.WriteString("\nThe recovery kit: keep these together, OFF this machine, in two safe places.\n\n")
	fmt.Fprintf(&b, "  1. %s: the only thing that opens a backup. Move it away now.\n", k.IdentityPath)
	fmt.Fprintf(&b, "  2. %s: tells your backups from forged ones. A copy.\n", k.TrustPath)
	b.WriteString("  3. How to get credentials for where the backups are:\n")
	for _, s := range k.Config.Stores {
		fmt.Fprintf(&b, "       %s\n", s.URL)
	}
	b.WriteString("  4. The lifeboat binary.\n")
	b.WriteString("  5. The pages that say what to do, with this cluster's names in them, on paper:\n")
	if folder != "" {
		fmt.Fprintf(&b, "       %s; print it, and make it anew when there are backups:\n", filepath.Join(folder, recoverykit.HTMLFile))
	}
	fmt.Fprintf(&b, "       %s\n", kitCommand(k.ConfigPath))
	if postQuantum {
		b.WriteString("\nThe recovery key is a post-quantum one: opening a backup by hand takes age 1.3\nor newer. lifeboat itself opens it anyway.\n")
	}
	flag := ""
	if k.ConfigPath != config.DefaultPath {
		flag = " --config " + k.ConfigPath
	}
	fmt.Fprintf(&b, "\nNext:  lifeboat doctor%s\n       lifeboat backup%s\n", flag, flag)
	_, err := fmt.Fprint(a.out, b.String())
	return err
}
