package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/session"
	"lifeboat/internal/transfer"
)

type copyFlags struct {
	to, from string
	chains   []string
	since    string
	dryRun   bool

	after time.Time // since, parsed
}

func newCopy(a *app) *cobra.Command {
	var flags copyFlags
	cmd := &cobra.Command{
		Use:   "copy --to STORE [ID...]",
		Short: "Copy backups to another store, such as one added later",
		Long: `Copies backups from one store to another: the sealed bytes as they are, checked
on the way against their signed manifests, so that no identity is needed. Each
keeps its id, its time and its facts, and is signed by this machine's key in the
destination's own chain, with the place that it was copied from.

What the destination has already is left out: run it again after an interruption
and it goes on. Nothing that is half copied is ever listed.

A chain is in the order of capture: epochs and losses are told by it. So a backup
that is older than what the destination holds of its chain is refused (exit code
4): copy before the store goes into config.yaml, not after the first backup to it.

STORE is a store of config.yaml, whose S3 settings and Object Lock then hold, or
any file:///folder or s3://bucket/prefix. The lock is counted from now.`,
		Example: `  lifeboat copy --to file:///mnt/usb --dry-run
  lifeboat copy --to s3://other-bucket/lifeboat
  lifeboat copy --to file:///mnt/usb --chain etcd/main --since 2026-11-01T00:00:00Z
  lifeboat copy --to file:///mnt/usb --from s3://bucket/lifeboat 3k7q`,
		ValidArgsFunction: a.completeIDs,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.copy(cmd.Context(), flags, args) },
	}
	f := cmd.Flags()
	storeFlag(cmd, &flags.to, "to", "store to copy to: a configured one, or any file:// or s3:// URL")
	storeFlag(cmd, &flags.from, "from", "store to copy from (default: the first configured one that answers)")
	f.StringArrayVar(&flags.chains, "chain", nil, "copy only this chain, such as etcd/main or hosts/cp1; may be repeated")
	f.StringVar(&flags.since, "since", "", "copy only backups captured since then, as 2026-11-01T00:00:00Z")
	f.BoolVar(&flags.dryRun, "dry-run", false, "say what would be copied, and write nothing")
	a.outputFlag(cmd)
	check(cmd, func() (err error) {
		if flags.to == "" {
			return fmt.Errorf("%w: copy needs --to STORE; see \"lifeboat copy --help\"", errUsage)
		}
		if flags.to == flags.from {
			return fmt.Errorf("%w: --to and --from are the same store", errUsage)
		}
		if flags.since != "" {
			if flags.after, err = time.Parse(time.RFC3339, flags.since); err != nil {
				return fmt.Errorf("%w: --since %q is no time such as 2026-11-01T00:00:00Z", errUsage, flags.since)
			}
		}
		return checkChains(flags.chains)
	})
	return cmd
}

func checkChains(chains []string) error {
	for _, chain := range chains {
		if err := manifest.Chain(chain).Check(); err != nil {
			return fmt.Errorf("%w: --chain: %w", errUsage, err)
		}
	}
	return nil
}

func (a *app) copy(ctx context.Context, flags copyFlags, ids []string) error {
	s, from, to, err := a.openToCopy(ctx, flags)
	if err != nil {
		return err
	}
	defer a.remember(s)
	options := transfer.CopyOptions{
		From: from.Repository, To: to.Repository, IDs: ids, Since: flags.after, RetainDays: to.Settings.S3.ObjectLock.Days,
		DryRun: flags.dryRun, Now: a.now, Events: a.listener(),
	}
	for _, chain := range flags.chains {
		options.Chains = append(options.Chains, manifest.Chain(chain))
	}
	report, err := transfer.Copy(ctx, options)
	printErr := a.printCopy(from.URL, to.URL, flags.dryRun, report, err)
	// What the source has lost is no reason not to save the rest, and must be known.
	if failures := repository.Failures(report.Problems); len(failures) > 0 {
		err = errors.Join(err, &repository.VerificationError{Doing: "copy from " + from.URL, Problems: failures})
	}
	return errors.Join(err, printErr)
}

// openToCopy opens the two stores, and the destination to be written to unless
// nothing is to change.
func (a *app) openToCopy(ctx context.Context, flags copyFlags) (s *session.Session, from, to *session.Store, err error) {
	c, err := a.readConfig()
	if err != nil {
		return nil, nil, nil, err
	}
	trust, signer, err := session.Keys(c)
	if flags.dryRun {
		signer = nil
		trust, err = session.LoadTrust(c.Signing.TrustFile, c.Cluster)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	two := *c
	two.Stores = []config.Store{storeOf(c, flags.to)}
	if flags.from != "" {
		two.Stores = append(two.Stores, storeOf(c, flags.from))
	} else {
		for _, store := range c.Stores {
			if store.URL != flags.to {
				two.Stores = append(two.Stores, store)
			}
		}
	}
	if len(two.Stores) == 1 {
		return nil, nil, nil, fmt.Errorf("%w: %s is the only store; name another with --from", errUsage, flags.to)
	}
	if s, err = session.Open(ctx, &two, trust, signer, "", a.options()); err != nil {
		return nil, nil, nil, err
	}
	to = &s.Stores[0]
	if to.Err != nil {
		return nil, nil, nil, to.Err
	}
	if err := session.Vanished(ctx, to.Repository, s.Memory); err != nil { // a disk that is not mounted must not be filled under its mount point
		if errors.Is(err, session.ErrVanished) {
			err = fmt.Errorf("%w: %w", repository.ErrRefused, err)
		}
		return nil, nil, nil, fmt.Errorf("copy to %s: %w", to.URL, err)
	}
	var errs []error
	for i := range s.Stores[1:] {
		from = &s.Stores[1+i]
		err := from.Err
		if err == nil {
			err = from.Repository.Require(ctx)
		}
		if err == nil {
			return s, from, to, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", from.URL, err))
	}
	return nil, nil, nil, errors.Join(errs...)
}

// storeOf is the configured store of a URL, or one with default settings.
func storeOf(c *config.Config, url string) config.Store {
	for _, store := range c.Stores {
		if store.URL == url {
			return store
		}
	}
	return config.DefaultStore(url)
}

type copyJSON struct {
	From    string       `json:"from"`
	To      string       `json:"to"`
	OK      bool         `json:"ok"`
	Error   string       `json:"error,omitempty"`
	DryRun  bool         `json:"dryRun"`
	Copied  int          `json:"copied"`
	Bytes   int64        `json:"bytes"`
	Backups []copiedJSON `json:"backups"`
}

type copiedJSON struct {
	ID       manifest.ID       `json:"id"`
	Chain    manifest.Chain    `json:"chain"`
	Kind     manifest.Kind     `json:"kind"`
	Created  time.Time         `json:"created"`
	Bytes    int64             `json:"bytes"`
	Fate     repository.Fate   `json:"fate"`
	Sequence manifest.Sequence `json:"sequence"` // in the destination; 0: not committed now
	Error    string            `json:"error,omitempty"`
}

// fates are the fates of copies in words.
var fates = map[repository.Fate]string{
	repository.FateWanted: "would be copied", repository.FatePresent: "there already",
	repository.FatePruned: "pruned there, so left out", repository.FateDropped: "LEFT OUT: unfinished there, and given up by a prune",
	repository.FateOld:     "REFUSED: older than what is there",
	repository.FateCovered: "held by others there",
	repository.FateAlone:   "its backup is not there, so left out", repository.FateCopied: "copied", repository.FateFailed: "FAILED",
}

func (a *app) printCopy(from, to string, dryRun bool, report *transfer.CopyReport, err error) error {
	out := copyJSON{From: from, To: to, OK: err == nil, DryRun: dryRun, Bytes: report.Bytes, Backups: []copiedJSON{}}
	if err != nil {
		out.Error = err.Error()
	}
	rows := [][]string{{"ID", "CHAIN", "KIND", "AGE", "STORED", "RESULT"}}
	many := map[string]int{} // segments and blobs, by result
	for _, c := range report.Copies {
		b := copiedJSON{ID: c.ID, Chain: c.Chain, Kind: c.Kind, Created: c.Created, Fate: c.Fate, Sequence: c.Sequence}
		for _, o := range c.Objects {
			b.Bytes += o.Size
		}
		result := fates[c.Fate]
		if c.Err != nil {
			b.Error = c.Err.Error()
			result += ": " + b.Error
		}
		if c.Fate == repository.FateCopied {
			out.Copied++
		}
		out.Backups = append(out.Backups, b)
		if (c.Kind == manifest.KindSegment || c.Kind == manifest.KindBlob) && c.Err == nil { // there may be thousands
			many[string(c.Kind)+"s: "+result]++
			continue
		}
		rows = append(rows, []string{string(c.ID), string(c.Chain), string(c.Kind), humanAge(a.now().Sub(c.Created)), humanBytes(b.Bytes), result})
	}
	if a.format == "json" {
		return a.printJSON(out)
	}
	if len(rows) > 1 {
		if err := table(a.out, rows); err != nil {
			return err
		}
	}
	for _, result := range slices.Sorted(maps.Keys(many)) {
		if _, err := fmt.Fprintf(a.out, "%d %s\n", many[result], result); err != nil {
			return err
		}
	}
	if dryRun {
		return nil
	}
	_, err = fmt.Fprintf(a.out, "%s -> %s: %d copied, %s\n", from, to, out.Copied, humanBytes(report.Bytes))
	return err
}
