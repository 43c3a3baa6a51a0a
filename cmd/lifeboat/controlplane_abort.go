package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/restore/plane"
)

// errNothingBegun says that no restore waits for being gone on with or undone.
var errNothingBegun = errors.New("no restore of a control plane is unfinished here")

// stateFlags say where the state of this machine's restores lies.
type stateFlags struct {
	dir string // empty: the configuration's, else the default
}

func (f *stateFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.dir, "state-dir", "", "where restores keep their state, if another was given to them (default: the configuration's)")
}

// find is the folder. Without a configuration it is the default one.
func (f *stateFlags) find(a *app) (string, error) {
	if f.dir != "" {
		return filepath.Abs(f.dir)
	}
	c, err := config.Load(a.configPath)
	if errors.Is(err, fs.ErrNotExist) && a.configPath == config.DefaultPath {
		return config.DefaultStateDir(), nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %w: give the one with which the restore was begun, or --state-dir with the folder that it used", config.ErrInvalid, err)
	}
	if err != nil {
		return "", err
	}
	return c.StateDir, nil
}

// journalsDir is where restores of control planes have their journals.
func journalsDir(stateDir string) string { return filepath.Join(stateDir, "restores") }

func newRestoreAbort(a *app) *cobra.Command {
	var confirm confirmation
	var state stateFlags
	var root string
	cmd := &cobra.Command{
		Use:   "abort",
		Short: "Put back what an unfinished restore of the control plane has replaced",
		Long: `Takes back what an interrupted "lifeboat restore control-plane" has done on this
machine, the newest change first: stops what was started, puts etcd's old member and
the old files back, and starts kubelet if it ran before. It needs no store, no
identity and no backup: all of it is on this machine. What the restore had put in
place is kept aside, until "lifeboat restore clean" removes it.

It can be killed and run again, and once begun it must be finished: the restore's own
command is refused until then. A restore that has ended can't be aborted: what was
there before lies where its report said, and "lifeboat restore clean" lists it.`,
		Example: `  lifeboat restore abort --dry-run
  lifeboat restore abort`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.restoreAbort(cmd.Context(), state, root, confirm) },
	}
	state.add(cmd)
	confirm.add(cmd)
	a.outputFlag(cmd)
	rootFlag(cmd, &root)
	return cmd
}

type abortJSON struct {
	RestoreID string          `json:"restoreID"`
	Created   time.Time       `json:"created"`
	Node      string          `json:"node"`
	Steps     []planeStepJSON `json:"steps"`
	Warnings  []string        `json:"warnings"`
	Aborted   bool            `json:"aborted"` // false: it is a dry run
	Seconds   float64         `json:"seconds"`
	Aside     []string        `json:"aside"` // folders that hold what was put away
}

func (a *app) restoreAbort(ctx context.Context, state stateFlags, root string, confirm confirmation) error {
	dir, err := state.find(a)
	if err != nil {
		return err
	}
	nothing := fmt.Errorf("%w: nothing in %s waits for being undone", errNothingBegun, journalsDir(dir))
	if _, err := os.Stat(journalsDir(dir)); errors.Is(err, fs.ErrNotExist) {
		return nothing // and the folder is not made to say so
	}
	folder, err := plane.OpenJournals(journalsDir(dir), a.now)
	if err != nil {
		return err
	}
	defer folder.Close()
	j, err := plane.Unfinished(folder)
	if err != nil {
		return err
	}
	if j == nil {
		return nothing
	}
	var order plane.Order
	if err := j.Order(&order); err != nil {
		return err
	}
	plan := plane.AbortPlan(j.Record())
	out := abortJSON{RestoreID: j.Record().ID, Created: j.Record().Created, Node: order.Node, Steps: []planeStepJSON{}, Warnings: orEmpty(plan.Warnings), Aside: []string{}}
	for _, s := range plan.Steps {
		out.Steps = append(out.Steps, planeStepJSON{Stage: s.Stage, Title: s.Title})
	}
	if confirm.dryRun && a.format == "json" {
		return a.printJSON(out)
	}
	if err := plan.Print(a.planStream(confirm)); err != nil || confirm.dryRun {
		return err
	}
	if err := a.confirm(ctx, confirm); err != nil {
		return err
	}
	told := &narrator{w: a.err, steps: plan.Steps, clock: &stopwatch{now: a.now, began: a.now()}}
	if a.quiet {
		told.w = io.Discard
	}
	start := a.now()
	if err := plane.Abort(ctx, j, a.theMachine(root), a.listener().Both(told.event)); err != nil {
		return fmt.Errorf("%w; run it again to go on", err)
	}
	out.Aborted, out.Seconds, out.Aside = true, a.now().Sub(start).Seconds(), orEmpty(plane.Kept(j.Record()))
	if a.format == "json" {
		return a.printJSON(out)
	}
	fmt.Fprintf(a.out, "restore %s is undone, in %s: what was here before is in its place\n", out.RestoreID, humanTook(a.now().Sub(start)))
	for _, path := range out.Aside {
		fmt.Fprintf(a.out, "kept: %s\n", path)
	}
	return nil
}
