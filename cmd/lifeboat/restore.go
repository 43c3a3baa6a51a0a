package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/backup"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
	"lifeboat/restore"
	"lifeboat/restore/files"
)

func newRestore(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Restore a control plane, or etcd's data or a node's files alone",
		Long: `Restores need no API server, no DNS and no agent: only this binary, the
identity, the trust file, and the store.

Each one first says what it would do and asks; --yes answers. What is replaced
moves aside and is never deleted. If a majority of etcd's members is alive, replace
the lost one instead of restoring: "restore control-plane" looks for that, and says
how; "restore etcd" contacts no etcd.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newRestoreControlPlane(a), newRestoreEtcd(a), newRestoreFiles(a), newRestoreAbort(a), newRestoreClean(a))
	return cmd
}

// confirmation asks before anything changes.
type confirmation struct{ yes, dryRun bool }

func (f *confirmation) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "print the plan and stop")
	cmd.MarkFlagsMutuallyExclusive("yes", "dry-run")
}

// asideDir is where restores keep what they replace.
func asideDir(stateDir string) string { return filepath.Join(stateDir, "aside") }

func newRestoreEtcd(a *app) *cobra.Command {
	var point pointFlags
	var confirm confirmation
	var options restore.EtcdOptions
	var bump uint64
	var quota quotaFlag
	var from survivorFlags
	cmd := &cobra.Command{
		Use:   "etcd",
		Short: "Make a data directory that one etcd member starts from",
		Long: `Fetches, unseals and checks the full backup before the point, applies the
recorded changes up to it, and writes the result as the data directory of one
etcd member, with a fresh random cluster token, the last revision raised and
everything before it marked compacted. A member directory that is there moves
aside. One that is in use is refused.

Without a point it is the latest state that is recorded. --at and --revision aim
at any other; "lifeboat list --points" shows what can be had. The plan says which
revision and time that is and what lies after it.

For a cluster of several members, run it on each with its own --name and
--peer-url, and on all with the same point, --initial-cluster, --token and
--bump, as the plan of the first one says.

With --from-data-dir the state is that of a member's data directory which has
survived, on this disk or on one that was carried here: what its database holds, and
what its write-ahead log holds beyond that. The directory is not changed, unless it is
the one to be replaced, which moves aside. The newest backup is only compared with it:
the plan says which is fresher. It needs no identity, and with --without-backups no
store.`,
		Example: `  lifeboat restore etcd --identity recovery.key --data-dir /var/lib/etcd \
    --name cp1 --peer-url https://10.0.0.11:2380
  lifeboat restore etcd --identity recovery.key --data-dir /var/lib/etcd \
    --name cp1 --peer-url https://10.0.0.11:2380 --at "10 minutes ago"
  lifeboat restore etcd --from-data-dir /var/lib/etcd --data-dir /var/lib/etcd \
    --name cp1 --peer-url https://10.0.0.11:2380
  lifeboat restore etcd --identity recovery.key --data-dir /tmp/etcd --name m --peer-url http://127.0.0.1:2380 --dry-run`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("bump") {
				options.Bump = &bump
			}
			options.Quota = quota.bytes
			options.TargetFrom = "The target is what --target-version says: give that of the etcd that will really start, or a point from before etcd's upgrade with --at"
			if from.dir != "" {
				return a.salvageEtcd(cmd.Context(), point, from, options, confirm)
			}
			return a.restoreEtcd(cmd.Context(), point, options, confirm)
		},
	}
	f := cmd.Flags()
	f.StringVar(&options.DataDir, "data-dir", "", "etcd's data directory, such as /var/lib/etcd")
	f.StringVar(&options.Name, "name", "", "the member's name, etcd's --name")
	f.StringSliceVar(&options.PeerURLs, "peer-url", nil, "the member's advertised peer URL")
	f.StringVar(&options.InitialCluster, "initial-cluster", "", "all members, NAME=URL,...; default is this one alone")
	f.StringVar(&options.Token, "token", "", "cluster token, the same on all members; default is a fresh random one")
	f.Uint64Var(&bump, "bump", 0, "raise the last revision by this and mark what was before compacted; 0: neither (default: safe for the point's age)")
	f.StringVar(&options.TargetVersion, "target-version", "", "etcd version that will start from it; default is the snapshot's own")
	quota.add(cmd)
	point.addEtcd(a, cmd)
	confirm.add(cmd)
	a.readFlags(cmd)
	a.identityFlag(cmd, false)
	a.outputFlag(cmd)
	from.add(cmd)
	from.addWithout(cmd)
	check(cmd, func() error {
		if from.dir == "" && len(a.identities) == 0 {
			return fmt.Errorf("%w: %s needs --identity FILE, the key that unseals", errUsage, cmd.CommandPath())
		}
		if options.DataDir == "" || options.Name == "" || len(options.PeerURLs) == 0 {
			return fmt.Errorf("%w: restore etcd needs --data-dir, --name and --peer-url", errUsage)
		}
		return nil
	})
	return cmd
}

type restoredEtcdJSON struct {
	ID        manifest.ID       `json:"id"`
	Revision  manifest.Revision `json:"revision"`
	DataDir   string            `json:"dataDir"`
	Token     string            `json:"token"`
	Bump      uint64            `json:"bump"`
	RestoreID string            `json:"restoreID"`
	Aside     string            `json:"aside"`
	Seconds   float64           `json:"seconds"`
	Point     pointJSON         `json:"point"`
	Applied   *appliedJSON      `json:"applied"`            // null: no segments had to be applied
	Survivor  *survivorJSON     `json:"survivor,omitempty"` // where the state came from, if not from a backup
}

func (a *app) restoreEtcd(ctx context.Context, flags pointFlags, options restore.EtcdOptions, confirm confirmation) error {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	if options.Identities, err = a.loadIdentities(ctx); err != nil {
		return err
	}
	options.AsideDir, options.Now, options.Rand = asideDir(s.Config.StateDir), a.now, a.rand
	used := tried{}
	plan, err := a.planEtcd(ctx, s, flags, options, used)
	if err != nil {
		return err
	}
	if confirm.dryRun && a.format == "json" {
		return a.printJSON(describeEtcdPlan(plan, options.DataDir))
	}
	if err := plan.Print(a.planStream(confirm)); err != nil || confirm.dryRun {
		return err
	}
	if err := a.confirm(ctx, confirm); err != nil {
		return err
	}
	start := a.now()
	for {
		err := plan.Execute(ctx, a.listener())
		if err == nil {
			break
		}
		// What was agreed to stays: only the bytes come from elsewhere.
		options.Token, options.Bump = plan.Token, &plan.Bump
		if plan, err = a.replanEtcd(ctx, s, plan, options, used, err); err != nil {
			return err
		}
	}
	took := a.now().Sub(start)
	if a.format == "json" {
		return a.printJSON(restoredEtcdJSON{
			ID: plan.Backup.ID, Revision: manifest.Revision(plan.Result.Last), DataDir: options.DataDir, Token: plan.Token,
			Bump: plan.Bump, RestoreID: plan.RestoreID, Aside: plan.Result.Aside, Seconds: took.Seconds(),
			Point: describePoint(plan.Choice), Applied: describeApplied(plan.Applied),
		})
	}
	fmt.Fprintf(a.out, "restored backup %s of %s to %s in %s\n", plan.Backup.ID, plan.Backup.Created.Format(time.RFC3339), options.DataDir, humanTook(took))
	if plan.Result.Aside != "" {
		fmt.Fprintf(a.out, "the old member is kept in %s\n", plan.Result.Aside)
	}
	return a.printChoice(plan.Choice, plan.Applied)
}

// planStream is where plans go: standard error, so that standard output holds
// the result alone, but for a dry run, whose result the plan is.
func (a *app) planStream(confirm confirmation) io.Writer {
	if confirm.dryRun && a.format == "text" {
		return a.out
	}
	return a.err
}

func newRestoreFiles(a *app) *cobra.Command {
	var point pointFlags
	var confirm confirmation
	var options files.Options
	var node string
	cmd := &cobra.Command{
		Use:   "files",
		Short: "Put a node's files back",
		Long: `Puts certificates, kubeconfigs, manifests and all else that was captured of a
node back below --root, with modes, owners (as root), times and links as they
were. The whole archive is checked before the first file is touched. A file that
is there and differs moves aside; one that the backup does not have stays and is
listed.

Kubelet starts whatever appears in etc/kubernetes/manifests: on a machine where
it runs, put those back last, with --include.`,
		Example: `  lifeboat restore files --identity recovery.key --node cp1 --root /
  lifeboat restore files --identity recovery.key --node cp1 --root /mnt/new --include 'etc/kubernetes/pki/*'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.restoreFiles(cmd.Context(), point, node, options, confirm)
		},
	}
	f := cmd.Flags()
	f.StringVar(&options.Root, "root", "", "where the files go: / or the mounted root of another machine")
	f.StringVar(&node, "node", "", "whose files")
	f.StringArrayVar(&options.Include, "include", nil, "only names that match, such as 'etc/kubernetes/*.conf'; a folder's name means all below it; may be repeated")
	f.StringArrayVar(&options.Exclude, "exclude", nil, "all but names that match; may be repeated")
	f.StringVar(&options.RestoreID, "restore-id", "", "name of the aside folder; the same one continues an interrupted restore (default: random)")
	point.add(a, cmd)
	confirm.add(cmd)
	a.readFlags(cmd)
	a.identityFlag(cmd, true)
	a.outputFlag(cmd)
	check(cmd, func() error {
		if options.Root == "" || (node == "" && point.backup == "") {
			return fmt.Errorf("%w: restore files needs --root and --node", errUsage)
		}
		return nil
	})
	return cmd
}

type restoredFilesJSON struct {
	ID        manifest.ID `json:"id"`
	Root      string      `json:"root"`
	Created   int         `json:"created"`
	Replaced  int         `json:"replaced"`
	Adjusted  int         `json:"adjusted"`
	Identical int         `json:"identical"`
	Bytes     int64       `json:"bytes"`
	Left      []string    `json:"left"`
	Aside     string      `json:"aside"`
}

func (a *app) restoreFiles(ctx context.Context, flags pointFlags, node string, options files.Options, confirm confirmation) error {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	var repo *repository.Repository
	var m *manifest.Manifest
	err = a.read(ctx, s, backup.FilesChain(node), func(r *repository.Repository) (err error) {
		repo = r
		m, err = a.resolveFiles(ctx, r, flags, node)
		return err
	})
	if err != nil {
		return err
	}
	random := options.RestoreID == ""
	if random {
		id, err := manifest.NewID(a.rand)
		if err != nil {
			return err
		}
		options.RestoreID = string(id)
	}
	options.AsideDir = asideDir(s.Config.StateDir)
	var open func() (io.ReadCloser, seal.Limits, error)
	var plan *files.Plan
	for used := (tried{repo.Name(): true}); ; {
		if open, err = a.archive(ctx, repo, m); err != nil {
			return err
		}
		if plan, err = prepareFiles(ctx, open, &options); err == nil {
			break
		}
		err = fmt.Errorf("plan the restore of backup %s from %s to %s: %w", m.ID, repo.Name(), options.Root, err)
		if repo, err = a.elsewhere(ctx, s, m, used, err); err != nil {
			return err
		}
		if m, err = repo.Resolve(ctx, m.Chain, repository.Point{Backup: m.ID}); err != nil {
			return err
		}
	}
	defer plan.Close()
	if confirm.dryRun && a.format == "json" {
		return a.printJSON(describeFilesPlan(m, options, plan))
	}
	printFilesPlan(a.planStream(confirm), m, options, plan)
	if confirm.dryRun {
		return nil
	}
	if err := a.confirm(ctx, confirm); err != nil {
		return err
	}
	r, _, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	// From here on the only copy of a file may be the one that was moved aside.
	mark, marked := unfinishedMark(plan.Aside()), false
	if plan.Count(files.Replace) > 0 {
		if marked, err = markUnfinished(mark); err != nil {
			return fmt.Errorf("note that restore %s is begun: %w", options.RestoreID, err)
		}
	}
	result, err := plan.Apply(ctx, r)
	if err != nil {
		// The one that is under way may be this one, and the mark be for both.
		shared := errors.Is(err, files.ErrInUse) && !random
		if marked && !shared && isBare(plan.Aside()) {
			err = errors.Join(err, removeMark(mark))
		}
		return fmt.Errorf("restore backup %s to %s: %w; run it again with --restore-id %s to continue", m.ID, options.Root, err, options.RestoreID)
	}
	if err := removeMark(mark); err != nil {
		return fmt.Errorf("note that restore %s has ended: %w; all files are restored", options.RestoreID, err)
	}
	return a.printRestoredFiles(m, options, plan, result)
}

// prepareFiles reads the whole archive and plans its restore.
func prepareFiles(ctx context.Context, open func() (io.ReadCloser, seal.Limits, error), options *files.Options) (*files.Plan, error) {
	r, limits, err := open()
	if err != nil {
		return nil, err
	}
	options.Limits = limits
	plan, err := files.Prepare(ctx, r, *options)
	if err = errors.Join(err, r.Close()); err != nil && plan != nil {
		plan.Close()
	}
	return plan, err
}

// resolveFiles finds the backup of a node's files that is meant.
func (a *app) resolveFiles(ctx context.Context, repo *repository.Repository, flags pointFlags, node string) (*manifest.Manifest, error) {
	point, chain, err := flags.point(ctx, repo, backup.FilesChain(node))
	if err != nil {
		return nil, err
	}
	if node != "" && chain != backup.FilesChain(node) {
		return nil, fmt.Errorf("%w: backup %s is of %s, not of node %s", errUsage, point.Backup, chain, node)
	}
	return repo.Resolve(ctx, chain, point)
}

// planLines is how many files a plan lists by name for each action.
const planLines = 20

func printFilesPlan(w io.Writer, m *manifest.Manifest, options files.Options, plan *files.Plan) {
	fmt.Fprintf(w, "Restore the files of node %s, backup %s of %s, below %s:\n", m.Host.Node, m.ID, m.Created.Format(time.RFC3339), options.Root)
	for i, action := range []struct {
		action files.Action
		text   string
	}{
		{files.Create, "create %d that are not there"},
		{files.Replace, "replace %d that differ; what is there moves to " + plan.Aside()},
		{files.Adjust, "adjust mode, owner or time of %d"},
		{files.Identical, "leave %d that are as they were"},
	} {
		fmt.Fprintf(w, "%d. "+action.text+"\n", i+1, plan.Count(action.action))
		if action.action == files.Identical {
			continue
		}
		listed := 0
		for _, s := range plan.Steps {
			if s.Action != action.action {
				continue
			}
			if listed++; listed > planLines {
				fmt.Fprintf(w, "     ... and %d more\n", plan.Count(action.action)-planLines)
				break
			}
			fmt.Fprintf(w, "     %s\n", s.Name)
		}
	}
	fmt.Fprintln(w, "Nothing is deleted.")
	if len(plan.Left) > 0 {
		fmt.Fprintf(w, "On disk and not in the backup, left as they are: %s\n", strings.Join(plan.Left[:min(len(plan.Left), planLines)], ", "))
	}
	for _, warning := range plan.Warnings {
		fmt.Fprintf(w, "warning: %s\n", warning)
	}
}

// restoredFiles counts the files alone, without folders and links.
func restoredFiles(plan *files.Plan) (n int) {
	for _, s := range plan.Steps {
		if s.Type == seal.TypeFile && s.Action != files.Identical {
			n++
		}
	}
	return n
}

func (a *app) printRestoredFiles(m *manifest.Manifest, options files.Options, plan *files.Plan, result *files.Result) error {
	aside := ""
	if result.Replaced > 0 {
		aside = plan.Aside()
	}
	if a.format == "json" {
		return a.printJSON(restoredFilesJSON{
			ID: m.ID, Root: options.Root, Created: result.Created, Replaced: result.Replaced, Adjusted: result.Adjusted,
			Identical: result.Identical, Bytes: result.Bytes, Left: orEmpty(plan.Left), Aside: aside,
		})
	}
	fmt.Fprintf(a.out, "restored %d files to %s; of files, folders and links: %d created, %d replaced, %d adjusted, %d as they were\n",
		restoredFiles(plan), options.Root, result.Created, result.Replaced, result.Adjusted, result.Identical)
	if aside != "" {
		fmt.Fprintf(a.out, "what was there before is kept in %s\n", aside)
	}
	return nil
}
