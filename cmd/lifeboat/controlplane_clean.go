package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/when"
	"lifeboat/restore/datadir"
	"lifeboat/restore/journal"
	"lifeboat/restore/plane"
)

func newRestoreClean(a *app) *cobra.Command {
	var confirm confirmation
	var state stateFlags
	var root, olderThan string
	var before time.Time // what olderThan means; zero: any age
	cmd := &cobra.Command{
		Use:   "clean",
		Short: "Remove what ended restores have kept aside",
		Long: `Lists what restores have moved aside on this machine (replaced files, etcd's old
members, manifests) and the journals of restores of control planes that have ended,
each with its size and age, and removes them after asking. What belongs to a restore
that is not finished is never removed.

This is the one command that deletes what was here before a restore. Old members and
files hold private keys and Secrets: do not keep them longer than they may be wanted.`,
		Example: `  lifeboat restore clean --dry-run
  lifeboat restore clean --older-than 30d`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.restoreClean(cmd.Context(), state, root, before, confirm)
		},
	}
	cmd.Flags().StringVar(&olderThan, "older-than", "", "only what is older: 30d, \"2 weeks\", 36h")
	state.add(cmd)
	confirm.add(cmd)
	a.outputFlag(cmd)
	rootFlag(cmd, &root)
	check(cmd, func() (err error) {
		if !cmd.Flags().Changed("older-than") {
			return nil
		}
		if before, err = when.Parse(olderThan+" ago", a.now(), time.UTC); err != nil {
			return fmt.Errorf("%w: --older-than %q: %w", errUsage, olderThan, err)
		}
		return nil
	})
	return cmd
}

// keptJSON is one folder that a restore has left.
type keptJSON struct {
	Path      string    `json:"path"`
	RestoreID string    `json:"restoreID"`
	Kind      string    `json:"kind"` // aside or journal
	Bytes     int64     `json:"bytes"`
	Time      time.Time `json:"time"`    // of the restore, as far as that is known
	Stays     string    `json:"stays"`   // why it is not removed; empty if it is
	Removed   bool      `json:"removed"` // false too in a dry run
}

func (a *app) restoreClean(ctx context.Context, state stateFlags, root string, before time.Time, confirm confirmation) error {
	dir, err := state.find(a)
	if err != nil {
		return err
	}
	var folder *journal.Folder
	if _, err := os.Stat(journalsDir(dir)); !confirm.dryRun || !errors.Is(err, fs.ErrNotExist) {
		open := plane.OpenJournals
		if confirm.dryRun {
			open = journal.Open // which removes nothing
		}
		if folder, err = open(journalsDir(dir), a.now); err != nil { // so that none begins meanwhile
			return err
		}
		defer folder.Close()
	}
	list, err := a.leftovers(folder, dir, root, before)
	if err != nil {
		return err
	}
	if a.format != "json" || !confirm.dryRun {
		a.printLeftovers(confirm, list)
	}
	gone := func(k keptJSON) bool { return k.Stays == "" }
	if confirm.dryRun || !slices.ContainsFunc(list, gone) {
		if a.format == "json" {
			return a.printJSON(orEmpty(list))
		}
		return nil
	}
	if err := a.confirm(ctx, confirm); err != nil {
		return err
	}
	var errs []error
	var freed int64
	for i := range list {
		k := &list[i]
		if k.Stays != "" {
			continue
		}
		if ctx.Err() != nil {
			errs = append(errs, context.Cause(ctx))
			break
		}
		if err := os.RemoveAll(k.Path); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", k.Path, err))
			continue
		}
		k.Removed = true
		freed += k.Bytes
	}
	if a.format == "json" {
		errs = append(errs, a.printJSON(orEmpty(list)))
	} else {
		fmt.Fprintf(a.out, "removed; %s are free again\n", humanBytes(freed))
	}
	return errors.Join(errs...)
}

// leftovers finds what restores have left, the oldest first. Of one that is not
// finished, all stays. folder is nil where there is none.
func (a *app) leftovers(folder *journal.Folder, dir, root string, before time.Time) ([]keptJSON, error) {
	o, err := a.ownersOf(folder, dir)
	if err != nil {
		return nil, err
	}
	places := []string{asideDir(dir), filepath.Join(root, "/var/lib/etcd", datadir.AsideName)}
	for _, r := range o.records {
		for _, d := range plane.DataDirs(r) {
			places = append(places, filepath.Join(d, datadir.AsideName))
		}
	}
	slices.Sort(places)
	var list []keptJSON
	add := func(kind, path string) error {
		k, err := measure(path)
		if err != nil {
			return err
		}
		r, unreadable := o.of(path)
		k.Kind, k.RestoreID = kind, strings.TrimSuffix(filepath.Base(path), ".undone")
		if r != nil {
			k.RestoreID, k.Time = r.ID, r.Created
		}
		switch {
		case r != nil && r.Outcome == journal.UnderWay:
			k.Stays = "its restore is not finished"
		case unreadable:
			k.Stays = "its journal can't be read"
		case k.unfinished():
			k.Stays = "its restore of files is not finished: give that command again with --restore-id " + k.RestoreID +
				" or, if nothing of it is wanted any more, remove " + unfinishedMark(k.Path)
		case !before.IsZero() && k.Time.After(before):
			k.Stays = "it is not old enough"
		}
		list = append(list, k)
		return nil
	}
	for _, place := range slices.Compact(places) {
		if err := eachFolder(place, func(path string) error { return add("aside", path) }); err != nil {
			return nil, err
		}
	}
	// A journal goes last: it knows where the rest is.
	slices.SortStableFunc(list, func(x, y keptJSON) int { return x.Time.Compare(y.Time) })
	journalsFrom := len(list)
	if err := eachFolder(journalsDir(dir), func(path string) error { return add("journal", path) }); err != nil {
		return nil, err
	}
	slices.SortStableFunc(list[journalsFrom:], func(x, y keptJSON) int { return x.Time.Compare(y.Time) })
	return list, nil
}

// owners know which restore a folder is of.
type owners struct {
	records    []journal.Record
	folders    []ownFolder
	unreadable []string // the ids of restores whose journals can't be read
}

type ownFolder struct {
	info   fs.FileInfo
	record *journal.Record
}

func (a *app) ownersOf(folder *journal.Folder, dir string) (*owners, error) {
	if folder == nil {
		return &owners{}, nil
	}
	journals, err := folder.List()
	if err != nil && !errors.Is(err, journal.ErrDamaged) && !errors.Is(err, journal.ErrNewer) {
		return nil, err
	}
	if err != nil {
		a.warn("%v; what belongs to it can't be told and stays", err)
	}
	o := &owners{}
	readable := map[string]bool{}
	for _, j := range journals {
		r := j.Record()
		o.records, readable[r.ID] = append(o.records, r), true
		for _, path := range append(plane.Kept(r), j.Dir()) {
			info, err := os.Lstat(path)
			if err != nil {
				return nil, err
			}
			o.folders = append(o.folders, ownFolder{info, &r})
		}
	}
	err = eachFolder(journalsDir(dir), func(path string) error {
		_, err := os.Lstat(filepath.Join(path, journal.FileName))
		if err == nil && !readable[filepath.Base(path)] {
			o.unreadable = append(o.unreadable, filepath.Base(path))
		}
		return nil
	})
	return o, err
}

// of finds the restore whose journal names a folder, in whatever spelling. Where a
// journal can't be read the folder's name must do: it begins with the restore's id.
func (o *owners) of(path string) (r *journal.Record, unreadable bool) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, false
	}
	for _, f := range o.folders {
		if os.SameFile(f.info, info) {
			return f.record, false
		}
	}
	return nil, slices.ContainsFunc(o.unreadable, func(id string) bool {
		return strings.HasPrefix(filepath.Base(path)+".", id+".")
	})
}

// unfinished says whether "restore files" was interrupted while it filled the folder.
func (k *keptJSON) unfinished() bool {
	_, err := os.Lstat(unfinishedMark(k.Path))
	return !errors.Is(err, fs.ErrNotExist)
}

func eachFolder(place string, do func(path string) error) error {
	entries, err := os.ReadDir(place)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = cmp.Or(err, do(filepath.Join(place, e.Name())))
		}
	}
	return err
}

// measure adds up the files below a folder. What is there twice by hard links
// counts twice.
func measure(path string) (keptJSON, error) {
	k := keptJSON{Path: path}
	info, err := os.Lstat(path)
	if err != nil {
		return k, err
	}
	k.Time = info.ModTime().UTC()
	err = filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			k.Bytes += info.Size()
		}
		return err
	})
	return k, err
}

func (a *app) printLeftovers(confirm confirmation, list []keptJSON) {
	w := a.planStream(confirm)
	if len(list) == 0 {
		fmt.Fprintln(w, "restores have left nothing here")
		return
	}
	rows := [][]string{{"AGE", "SIZE", "WHAT", "FOLDER", ""}}
	for _, k := range list {
		stays := ""
		if k.Stays != "" {
			stays = "stays: " + k.Stays
		}
		rows = append(rows, []string{humanAge(a.now().Sub(k.Time)), humanBytes(k.Bytes), k.Kind, k.Path, stays})
	}
	_ = table(w, rows) // to a terminal or a log
}
