package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/age"

	"lifeboat/backup"
	"lifeboat/internal/config"
	"lifeboat/internal/durable"
	"lifeboat/internal/repository"
	"lifeboat/internal/session"
	"lifeboat/restore/node"
	"lifeboat/restore/nodefiles"
	"lifeboat/restore/plane"
	"lifeboat/restore/salvage"
)

// rebuild is one run of restore control-plane.
type rebuild struct {
	*app
	flags      planeFlags
	s          *session.Session
	identities []age.Identity
	machine    node.Machine
	order      plane.Order
	shared     *plane.Shared // nil: this node decides
	used       tried
	plan       *plane.Plan
	reset      *resetting   // nil: a control plane that is not k3s's, rke2's or k0s's
	living     plane.Health // nil before it is asked
	clock      stopwatch
	backups    newBackups
}

func (a *app) restoreControlPlane(ctx context.Context, flags planeFlags) error {
	r := &rebuild{app: a, flags: flags, order: flags.order, used: tried{}, clock: stopwatch{now: a.now, began: a.now()}}
	defer r.close()
	if err := r.open(ctx); err != nil {
		return err
	}
	if err := r.prepare(ctx); err != nil {
		return r.unfinished(err)
	}
	if r.reset != nil {
		return r.showReset()
	}
	r.clock.planned()
	if err := r.show(); err != nil || flags.confirm.dryRun {
		return err
	}
	if err := a.confirm(ctx, flags.confirm); err != nil {
		return err
	}
	r.clock.answered()
	if err := r.execute(ctx); err != nil {
		return err
	}
	return r.report()
}

// open reads all that the flags name but backups.
func (r *rebuild) open(ctx context.Context) (err error) {
	if r.flags.with != "" {
		text, err := readSmall(r.flags.with)
		if err != nil {
			return fmt.Errorf("%w: --with: %w", errUsage, err)
		}
		if r.shared, err = plane.ParseShared(text); err != nil {
			return fmt.Errorf("--with %s: %w", r.flags.with, err)
		}
		r.flags.point.etcd = strings.TrimPrefix(string(r.shared.Chain), "etcd/")
	}
	if r.s, err = r.app.open(ctx); err != nil {
		return err
	}
	if r.identities, err = r.loadIdentities(ctx); err != nil {
		return err
	}
	r.machine = r.theMachine(r.flags.root)
	r.order.Aim = r.flags.point.words()
	if r.flags.from.dir != "" {
		if r.order.FromDataDir, err = filepath.Abs(r.flags.from.dir); err != nil {
			return err
		}
		r.order.Log = salvage.Take(r.flags.from.log)
	}
	if r.order.Node == "" && r.flags.filesBackup == "" {
		rename := r.order.Rename
		if r.shared != nil {
			rename = r.shared.Order.Rename
		}
		r.order.Node, err = nodeOf(rename, r.machine)
	}
	return err
}

// readSmall reads a file of a person's, bounded.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 2<<20))
}

// prepare plans with what the flags mean in the store that has the most.
func (r *rebuild) prepare(ctx context.Context) error {
	err := r.planning().from(ctx, r.flags.point)
	if errors.Is(err, repository.ErrNothing) {
		err = r.explainNothing(ctx, err)
	}
	return err
}

// planning prepares the restore with one store's repository.
func (r *rebuild) planning() *rerouting {
	return &rerouting{r.app, r.s, "restore", r.used, func(ctx context.Context, repo *repository.Repository, at aim) (err error) {
		if err := r.release(); err != nil { // one at a time has the journals
			return err
		}
		if err := r.findFiles(ctx, repo); err != nil {
			return err
		}
		if r.reset, err = r.planReset(ctx, repo, at); err != nil || r.reset != nil {
			return err
		}
		order := r.order
		if order.Point == (repository.Point{}) {
			order.Point = at.point
		}
		r.plan, err = plane.Prepare(ctx, plane.Options{
			Repo: repo, Chain: at.chain, Files: backup.FilesChain(order.Node), Identities: r.identities, Order: order, Shared: r.shared,
			Without: at.without, Quota: r.flags.quota.bytes, Root: r.flags.root, StateDir: r.s.Config.StateDir, Machine: r.machine,
			Health: func(staged *nodefiles.Staged) (plane.Health, error) { return r.health(ctx, staged) },
			Now:    r.now, Rand: r.rand,
		})
		return err
	}}
}

// findFiles finds the files backup that is named by its id's beginning.
func (r *rebuild) findFiles(ctx context.Context, repo *repository.Repository) error {
	if r.flags.filesBackup == "" || r.order.FilesID != "" {
		return nil
	}
	b, err := repo.Find(ctx, r.flags.filesBackup)
	if err != nil {
		return err
	}
	node, isFiles := nodeOfChain(b.Chain)
	if !isFiles || r.order.Node != "" && r.order.Node != node {
		return fmt.Errorf("%w: --files-backup: backup %s is of %s, not of the files of %s", errUsage, b.ID, b.Chain, cmp.Or(r.order.Node, "a node"))
	}
	r.order.Node, r.order.FilesID = node, b.ID
	return nil
}

// explainNothing says which nodes have backups, if it is this one's that are
// missing.
func (r *rebuild) explainNothing(ctx context.Context, err error) error {
	var nodes []string
	for _, o := range r.s.Stores {
		if o.Err != nil {
			continue
		}
		backups, _, berr := o.Repository.Backups(ctx)
		if berr != nil {
			return err
		}
		nodes = append(nodes, nodesOf(backups)...)
	}
	slices.Sort(nodes)
	nodes = slices.Compact(nodes)
	switch {
	case r.order.Node == "" || slices.Contains(nodes, r.order.Node):
		return err
	case len(nodes) == 0:
		return fmt.Errorf("%w: no node's files are backed up there: without them only etcd can be restored, with \"lifeboat restore etcd\"", err)
	}
	return fmt.Errorf("%w: no files of a node %s are backed up; there are those of %s: name one with --node, and with --rename if it gets another name here",
		repository.ErrNothing, r.order.Node, strings.Join(nodes, ", "))
}

// nodesOf are the nodes whose files are among backups, by name.
func nodesOf(backups []repository.Backup) (nodes []string) {
	for _, b := range backups {
		if node, ok := nodeOfChain(b.Chain); ok {
			nodes = append(nodes, node)
		}
	}
	slices.Sort(nodes)
	return slices.Compact(nodes)
}

// execute does what the plan says. Where stored bytes turn out to be damaged
// before anything was changed, the same state is fetched around them or from
// another store.
func (r *rebuild) execute(ctx context.Context) error {
	for {
		told := r.narrator()
		err := r.plan.Execute(ctx, r.listener().Both(told.event))
		switch {
		case err == nil:
			return nil
		case r.plan.Fetched():
			return r.toGoOn(ctx, err)
		case !isDamage(err) || ctx.Err() != nil:
			return r.nothingChanged(err)
		}
		failed := r.plan.Etcd
		r.order = r.plan.Order // what was agreed to stays: only the bytes come from elsewhere
		if err := r.planning().again(ctx, failed, err); err != nil {
			return r.nothingChanged(err)
		}
	}
}

// nothingChanged ends a run that has not come to its first change.
func (r *rebuild) nothingChanged(err error) error {
	if r.plan != nil && r.plan.Changing() {
		return err
	}
	return fmt.Errorf("%w; nothing on this machine was changed", err)
}

// toGoOn ends a run that was stopped between two changes, by an error or by
// Ctrl-C. The error itself says what to do.
func (r *rebuild) toGoOn(ctx context.Context, err error) error {
	if ctx.Err() != nil && r.plan.Changing() {
		fmt.Fprintf(r.err, "interrupted: restore %s is half done. Give the same command again to go on, or:\n  lifeboat restore abort%s\n", r.plan.ID(), r.where())
	}
	return err
}

// unfinished adds to the refusal of an order beside an interrupted one how to
// reach that one.
func (r *rebuild) unfinished(err error) error {
	if where := r.where(); where != "" && errors.Is(err, plane.ErrUnfinished) {
		return fmt.Errorf("%w\n  lifeboat restore abort%s", err, where)
	}
	return err
}

// share writes the order for the other nodes.
func (r *rebuild) share() error {
	if r.flags.share == "" {
		return nil
	}
	text, err := r.plan.Share()
	if err != nil {
		return err
	}
	if _, err := durable.WriteFile(r.flags.share, bytes.NewReader(text), durable.Options{Mode: 0o600}); err != nil {
		return fmt.Errorf("write the order for the other nodes: %w", err)
	}
	return nil
}

// release gives up a plan, and with it the lock on the journals.
func (r *rebuild) release() error {
	if r.plan == nil {
		return nil
	}
	err := r.plan.Close()
	r.plan = nil
	return err
}

func (r *rebuild) close() {
	if c, ok := r.living.(io.Closer); ok {
		_ = c.Close() // of connections that are not needed any more
	}
	if err := r.release(); err != nil {
		r.warn("%v", err)
	}
}

// words are the flags that aim, as they were given.
func (f *pointFlags) words() string {
	var out []string
	add := func(name, value string) {
		if value != "" && value != "0" {
			out = append(out, "--"+name+" "+value)
		}
	}
	add("backup", f.backup)
	add("at", f.at)
	add("revision", fmt.Sprint(f.revision))
	add("epoch", fmt.Sprint(f.epoch))
	return strings.Join(out, " ")
}

// where are the flags that say where the state lies, for commands that a person
// is told to type.
func (a *app) where() (flags string) {
	if a.configPath != config.DefaultPath && a.trustPath == "" {
		flags += " --config " + a.configPath
	}
	if a.trustPath != "" && a.stateDir != config.DefaultStateDir() {
		flags += " --state-dir " + a.stateDir
	}
	return flags
}

// reading are the flags that say what is read, likewise.
func (a *app) reading() (flags string) {
	flags = a.where()
	for _, f := range [][2]string{{"store", a.storeURL}, {"cluster", a.cluster}, {"trust", a.trustPath}} {
		if f[1] != "" {
			flags += " --" + f[0] + " " + f[1]
		}
	}
	return flags
}
