package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/restore"
	"lifeboat/restore/salvage"
)

// survivorFlags say that a data directory which survived takes a backup's place.
type survivorFlags struct {
	dir     string
	log     string
	without bool // backups
}

// add adds them to a verb that has flags for a point of etcd.
func (f *survivorFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "from-data-dir", "", "take etcd's state from this data directory, which survived, and not from a backup")
	flags.StringVar(&f.log, "wal", string(salvage.TakeAll), "with --from-data-dir, how much of its write-ahead log is applied: all, committed or none")
	for _, point := range []string{"backup", "at", "revision", "epoch"} {
		cmd.MarkFlagsMutuallyExclusive("from-data-dir", point)
	}
	_ = cmd.MarkFlagDirname("from-data-dir")
	_ = cmd.RegisterFlagCompletionFunc("wal", cobra.FixedCompletions([]string{string(salvage.TakeAll), string(salvage.TakeCommitted), string(salvage.TakeNone)}, cobra.ShellCompDirectiveNoFileComp))
	check(cmd, func() error {
		if flags.Changed("from-data-dir") && f.dir == "" {
			return fmt.Errorf("%w: --from-data-dir is given, and empty", errUsage)
		}
		switch salvage.Take(f.log) {
		case salvage.TakeAll, salvage.TakeCommitted, salvage.TakeNone:
		default:
			return fmt.Errorf("%w: --wal %q, want all, committed or none", errUsage, f.log)
		}
		if f.dir == "" && (flags.Changed("wal") || f.without) {
			return fmt.Errorf("%w: --wal and --without-backups go with --from-data-dir", errUsage)
		}
		return nil
	})
}

// addWithout adds the flag of a verb that needs no backup then.
func (f *survivorFlags) addWithout(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.without, "without-backups", false, "with --from-data-dir: compare it with no backup, and read no configuration and no store")
	for _, reading := range []string{"store", "cluster", "trust"} {
		cmd.MarkFlagsMutuallyExclusive("without-backups", reading)
	}
}

// survivorJSON is a data directory that took a backup's place.
type survivorJSON struct {
	Dir      string       `json:"dir"`
	Written  time.Time    `json:"written"`
	Revision int64        `json:"revision"` // of its database
	AtMost   int64        `json:"atMost"`   // with what is applied of its log
	Take     salvage.Take `json:"wal"`
	Sole     bool         `json:"sole"` // it was the only member
	Log      salvage.Log  `json:"log"`
	Against  *againstJSON `json:"against"` // null: it was not compared with a backup
}

// againstJSON is the newest state that is backed up, beside a data directory.
type againstJSON struct {
	Backup    manifest.ID       `json:"backup"`
	Revision  manifest.Revision `json:"revision"`
	At        time.Time         `json:"at"`
	Directory restore.Freshness `json:"directory"` // "fresher", "older", ...
	Least     int64             `json:"least"`     // revisions between them
	Most      int64             `json:"most"`
	History   restore.History   `json:"history"`
	How       string            `json:"how"`
}

func describeSurvivor(s *restore.Survivor) *survivorJSON {
	if s == nil {
		return nil
	}
	least, most := s.Revision()
	out := &survivorJSON{Dir: s.Found.Dir, Written: s.Found.Written.UTC(), Revision: least, AtMost: most, Take: s.Take, Sole: s.Found.Sole(), Log: s.Found.Log}
	if a := s.Against; a != nil {
		out.Against = &againstJSON{a.Backup, a.Revision, a.At.UTC(), a.Freshness, a.Least, a.Most, a.History, a.HistoryHow}
	}
	return out
}

// salvageEtcd is restoreEtcd from a data directory.
func (a *app) salvageEtcd(ctx context.Context, flags pointFlags, from survivorFlags, options restore.EtcdOptions, confirm confirmation) (err error) {
	if options.Identities, err = a.loadIdentities(ctx); err != nil {
		return err
	}
	options.FromDataDir, options.Log, options.Chain = from.dir, salvage.Take(from.log), flags.chain()
	options.Now, options.Rand = a.now, a.rand
	plan, err := a.planSalvage(ctx, from, options)
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
	if err := plan.Execute(ctx, a.listener()); err != nil {
		return err
	}
	took := a.now().Sub(start)
	if a.format == "json" {
		return a.printJSON(restoredEtcdJSON{
			ID: backupOf(plan), Revision: manifest.Revision(plan.Result.Last), DataDir: options.DataDir, Token: plan.Token,
			Bump: plan.Bump, RestoreID: plan.RestoreID, Aside: plan.Result.Aside, Seconds: took.Seconds(),
			Point: describePoint(plan.Choice), Survivor: describeSurvivor(plan.Survivor),
		})
	}
	fmt.Fprintf(a.out, "made a member in %s from %s in %s, at revision %d\n", options.DataDir, plan.Survivor.Found.Dir, humanTook(took), plan.Result.Last)
	if did := plan.Survivor.Applied; did != nil {
		fmt.Fprintf(a.out, "%d entries of its write-ahead log were applied, from revision %d on\n", did.Entries, did.Before)
	}
	if plan.Result.Aside != "" {
		fmt.Fprintf(a.out, "the old member is kept in %s\n", plan.Result.Aside)
	}
	return nil
}

// planSalvage plans with the store that has the newest backup, or where none can
// be read without any.
func (a *app) planSalvage(ctx context.Context, from survivorFlags, options restore.EtcdOptions) (plan *restore.EtcdPlan, err error) {
	state := a.stateDir
	if !from.without {
		s, err := a.open(ctx)
		if err != nil {
			return nil, fmt.Errorf("%w; --without-backups needs no configuration and no store, and compares with nothing", err)
		}
		options.AsideDir = asideDir(s.Config.StateDir)
		planned := false
		err = a.read(ctx, s, options.Chain, func(repo *repository.Repository) (err error) {
			planned = true
			plan, err = restore.PlanEtcd(ctx, repo, options)
			return err
		})
		if planned || ctx.Err() != nil {
			return plan, err
		}
		options.Uncompared = cmp.Or(err, errors.New("no store")).Error()
		return restore.PlanEtcd(ctx, nil, options)
	}
	if state, err = filepath.Abs(state); err != nil {
		return nil, err
	}
	options.AsideDir = asideDir(state)
	return restore.PlanEtcd(ctx, nil, options)
}

// backupOf is the full that a plan begins with or compares with; empty: none.
func backupOf(plan *restore.EtcdPlan) manifest.ID {
	if plan.Backup == nil {
		return ""
	}
	return plan.Backup.ID
}
