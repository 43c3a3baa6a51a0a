package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/internal/manifest"
	"lifeboat/restore/node"
	"lifeboat/restore/plane"
	"lifeboat/restore/readdress"
)

// planeFlags are what a restore of a control plane is asked for.
type planeFlags struct {
	point       pointFlags
	confirm     confirmation
	quota       quotaFlag
	order       plane.Order
	members     string
	filesBackup string
	events      string // name of an etcd chain; empty: events begin empty
	with, share string
	from        survivorFlags
	root        string
}

func newRestoreControlPlane(a *app) *cobra.Command {
	var flags planeFlags
	cmd := &cobra.Command{
		Use:   "control-plane",
		Short: "Give this machine its control plane back: files, etcd, static pods",
		Long: `Rebuilds the control plane of a kubeadm node on this machine, with nothing else
alive: finds out what is here and what of the cluster still lives, fetches,
unseals and checks everything, and only then stops kubelet and the static pods,
puts the node's files back, exchanges etcd's data for the restored one, and starts
kubelet and the pods in order: etcd, the API server when etcd serves, the others
when that is ready. It waits for a heartbeat from after the restore, tidies what
belonged to machines that are gone, takes a full backup, and reports how long each
step took, how old the restored state is, and what is left to do.

It refuses where a majority of etcd's members lives (it says how to replace the
lost one instead), where another cluster's etcd or files are, and where the
restored API server could not read what is encrypted in etcd. Nothing is deleted:
what was here is kept aside, until "lifeboat restore clean" removes it.

Killed or interrupted at any moment, the same command goes on where it was, and
"lifeboat restore abort" puts the old state back.

One node, or the first of several: with --members one (the default) the restored
etcd has this member alone. On the other nodes remove what is left with
"kubeadm reset" and join them as new ones with "kubeadm join": the report says how.

All nodes from one backup: with --members all the restored etcd has the members of
the backup, and serves when most of them are there. Write the order for the others
with --share restore.json, take it to each of them, and run this at the same time

    lifeboat restore control-plane --identity FILE --with restore.json

Another machine: --rename and --address say what is called and reached in another
way now. Manifests, kubeconfigs, peer URLs and certificates get the new names, and
those that expired are renewed; expired authorities are refused.

An etcd outside of Kubernetes: on a host of etcd, whether it is a master too or not,
its unit, settings, certificates and member come back, and it is started; one that
no unit runs a person stops before and starts when told. On a master whose etcd is
on other hosts only the node comes back, and is refused until that etcd lives: it
says what to type on which host first. An etcd that holds events alone
(--etcd-servers-overrides) begins empty, unless --events-from names its chain.

k3s, rke2 and k0s restore their own etcd. There this command changes nothing: it
prints, with the node's values, the commands by which they do, and is refused unless
it is a dry run.

A data directory of etcd that survived, here or on a disk that was carried here, may
hold more than any backup: --from-data-dir takes etcd's state from it, with what its
write-ahead log holds, and the plan says which is fresher. It is only read, and kept
aside where it is the one that is replaced. The files come from the backup as ever.

With --root other than / it works on the files below that folder, for tests:
services and containers are this machine's all the same.`,
		Example: `  lifeboat restore control-plane --identity recovery.key --dry-run
  lifeboat restore control-plane --identity recovery.key
  lifeboat restore control-plane --identity recovery.key --at "10 minutes ago"
  lifeboat restore control-plane --identity recovery.key --from-data-dir /var/lib/etcd
  lifeboat restore control-plane --identity recovery.key --rename cp1=cp4 --address 10.0.0.11=10.0.0.44
  lifeboat restore control-plane --identity recovery.key --members all --share restore.json
  lifeboat restore control-plane --identity recovery.key --with restore.json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags.order.Members = plane.Members(flags.members)
			if flags.events != "" {
				flags.order.Events = manifest.Chain("etcd/" + flags.events)
			}
			return a.restoreControlPlane(cmd.Context(), flags)
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.order.Node, "node", "", "whose files, by the name in the backup (default: this host's, or what --rename makes to it)")
	f.StringArrayVar(&flags.order.Rename, "rename", nil, "old=new: a node that has another name now; may be repeated")
	f.StringArrayVar(&flags.order.Address, "address", nil, "old=new: a node address that is another now; may be repeated")
	f.StringArrayVar(&flags.order.Endpoint, "endpoint", nil, "old=new: the control plane's endpoint, such as k8s.example.com:6443, where it changes")
	f.StringVar(&flags.members, "members", string(plane.One), "the restored etcd's members: one, this node alone; or all those of the backup")
	f.StringVar(&flags.with, "with", "", "the restore.json of another node, which this one is to do alike")
	f.StringVar(&flags.share, "share", "", "write the order for the other nodes to this file")
	f.StringVar(&flags.events, "events-from", "", "restore the separate etcd of events from this chain, such as events (default: it begins empty)")
	f.StringVar(&flags.filesBackup, "files-backup", "", "exactly this backup of the node's files, by its id or the id's beginning; default is the latest")
	flags.quota.add(cmd)
	flags.point.addEtcd(a, cmd)
	flags.from.add(cmd)
	flags.confirm.add(cmd)
	a.readFlags(cmd)
	a.identityFlag(cmd, true)
	a.outputFlag(cmd)
	rootFlag(cmd, &flags.root)
	for _, own := range []string{"rename", "address", "endpoint", "members", "share", "backup", "at", "revision", "epoch", "etcd", "from-data-dir", "wal", "events-from"} {
		cmd.MarkFlagsMutuallyExclusive("with", own)
	}
	_ = cmd.RegisterFlagCompletionFunc("members", cobra.FixedCompletions([]string{string(plane.One), string(plane.All)}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("node", a.completeNodes)
	_ = cmd.RegisterFlagCompletionFunc("files-backup", a.completeIDs)
	check(cmd, flags.check)
	return cmd
}

// check finds what can be told to be wrong before anything is read.
func (f *planeFlags) check() error {
	if f.members != string(plane.One) && f.members != string(plane.All) {
		return fmt.Errorf("%w: --members %q, want one or all", errUsage, f.members)
	}
	if f.share != "" && f.members != string(plane.All) {
		return fmt.Errorf("%w: --share needs --members all: nodes that are each the only member of an etcd have no order in common", errUsage)
	}
	o := f.order
	if _, err := readdress.New(readdress.Options{Names: o.Rename, Addresses: o.Address, Endpoints: o.Endpoint}); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return nil
}

// rootFlag adds the flag that says whose files are worked on.
func rootFlag(cmd *cobra.Command, root *string) {
	cmd.Flags().StringVar(root, "root", "/", "folder that stands for the machine's root")
	_ = cmd.Flags().MarkHidden("root")
}

// theMachine is the one that restores work on.
func (a *app) theMachine(root string) node.Machine {
	if a.machine != nil {
		return a.machine(root)
	}
	return node.New(node.Options{})
}

// nodeOf is whose files are meant if nobody says: this host's, by the name that
// it had before it was renamed.
func nodeOf(rename []string, m node.Machine) (string, error) {
	here, err := m.Identity()
	if err != nil {
		return "", fmt.Errorf("whose files are meant, since --node is not given: %w", err)
	}
	name := strings.ToLower(here.Hostname) // as kubelet registers it
	for _, pair := range rename {
		if from, to, _ := strings.Cut(pair, "="); to == name {
			return from, nil
		}
	}
	return name, nil
}

// completeNodes offers the nodes whose files are backed up to the shell.
func (a *app) completeNodes(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	a.quiet = true
	_, backups, _, err := a.backups(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nodesOf(backups), cobra.ShellCompDirectiveNoFileComp
}

// nodeOfChain says whose files a chain is of.
func nodeOfChain(chain manifest.Chain) (node string, ok bool) {
	return strings.CutPrefix(string(chain), "hosts/")
}
