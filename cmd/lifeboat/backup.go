package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/backup"
	"lifeboat/backup/host"
	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/session"
)

func newBackup(a *app) *cobra.Command {
	var only string
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Take one backup now",
		Long: `Takes one full backup of every configured etcd cluster and of this node's
files, proves the etcd snapshot against the live members, and commits both to
every configured store. Nothing is written to etcd.

It succeeds when at least minStores stores committed each backup; a store that
failed is reported. In the JSON output, degraded lists why a backup is less
than it should be; an empty list is good.`,
		Example: `  lifeboat backup
  lifeboat backup --only etcd -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.backup(cmd.Context(), only) },
	}
	cmd.Flags().StringVar(&only, "only", "", "etcd or files: just that")
	_ = cmd.RegisterFlagCompletionFunc("only", cobra.FixedCompletions([]string{"etcd", "files"}, cobra.ShellCompDirectiveNoFileComp))
	check(cmd, func() error {
		if only != "" && only != "etcd" && only != "files" {
			return fmt.Errorf("%w: --only %q, want etcd or files", errUsage, only)
		}
		return nil
	})
	a.outputFlag(cmd)
	return cmd
}

// backupJSON is one committed backup in the output.
type backupJSON struct {
	ID           manifest.ID       `json:"id"`
	Chain        manifest.Chain    `json:"chain"`
	Kind         manifest.Kind     `json:"kind"`
	Created      time.Time         `json:"created"`
	Revision     manifest.Revision `json:"revision"`
	HashKV       uint32            `json:"hashKV"`
	ComparedWith []manifest.EtcdID `json:"comparedWith"`
	PlainBytes   int64             `json:"plainBytes"`
	StoredBytes  int64             `json:"storedBytes"`
	Degraded     []string          `json:"degraded"`
	Unproved     []string          `json:"unproved"`
}

type storeJSON struct {
	URL   string `json:"url"`
	OK    bool   `json:"ok"`
	Error string `json:"error"`
}

func (a *app) backup(ctx context.Context, only string) error {
	runner, s, err := a.runner(ctx)
	if err != nil {
		return err
	}
	c := s.Config
	if only == "etcd" && len(c.Etcd) == 0 {
		return fmt.Errorf("%w: %s names no etcd cluster", config.ErrInvalid, a.configPath)
	}
	var results []*backup.Result
	var errs []error
	note := func(result *backup.Result, err error) {
		if result != nil {
			results = append(results, result)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	if only != "files" {
		for _, e := range c.Etcd {
			note(runner.Etcd(ctx, session.EtcdConfig(e), session.Limits(c)))
		}
	}
	if only != "etcd" && ctx.Err() == nil {
		var taken []*manifest.Manifest
		for _, r := range results {
			taken = append(taken, r.Manifest)
		}
		uses := s.EncryptionUses(ctx, taken)
		note(runner.Files(ctx, host.Options{
			Root: c.Host.Root, ExtraPaths: c.Host.ExtraPaths, Node: c.Node, Now: a.now, Events: runner.Events,
			Images: session.HostImages(c.Host.Root),
		}, uses))
	}
	if only == "etcd" {
		for _, r := range results {
			s.WarnOfKeys(ctx, r.Manifest)
		}
	}
	a.remember(s)
	return errors.Join(a.printBackup(s.Stores, results), errors.Join(errs...))
}

func (a *app) printBackup(list []session.Store, results []*backup.Result) error {
	out := struct {
		Backups []backupJSON `json:"backups"`
		Stores  []storeJSON  `json:"stores"`
	}{Backups: []backupJSON{}, Stores: []storeJSON{}}
	failures := map[string]error{}
	for _, o := range list {
		failures[o.URL] = o.Err
	}
	for _, r := range results {
		if r.Manifest != nil {
			out.Backups = append(out.Backups, describe(r.Manifest))
		}
		for _, commit := range r.Commits {
			if commit.Err != nil && failures[commit.Store] == nil {
				failures[commit.Store] = commit.Err
			}
		}
	}
	for _, o := range list {
		s := storeJSON{URL: o.URL, OK: failures[o.URL] == nil && len(results) > 0}
		if err := failures[o.URL]; err != nil {
			s.Error = err.Error()
		} else if !s.OK {
			s.Error = "there was nothing to commit: see the error"
		}
		out.Stores = append(out.Stores, s)
	}
	if a.format == "json" {
		return a.printJSON(out)
	}
	for _, b := range out.Backups {
		printBackupLine(a.out, b)
	}
	for i, o := range list {
		printCommits(a.out, o, results, out.Stores[i].Error)
	}
	return nil
}

// printCommits writes what one store has now, by chain: where one backup
// failed, that the other is committed must not read as if both were.
func printCommits(w io.Writer, o session.Store, results []*backup.Result, failure string) {
	var chains []string
	failed := o.Err != nil || len(results) == 0
	if failed {
		fmt.Fprintf(w, "NOT committed to %s: %s\n", o.URL, failure)
	}
	for _, r := range results {
		for _, c := range r.Commits {
			switch {
			case c.Store != o.URL || failed:
			case c.Err == nil:
				chains = append(chains, string(c.Manifest.Chain))
			case r.Manifest != nil:
				fmt.Fprintf(w, "%s: NOT committed to %s: %s\n", r.Manifest.Chain, o.URL, c.Err)
			default: // the error says which
				fmt.Fprintf(w, "NOT committed to %s: %s\n", o.URL, c.Err)
			}
		}
	}
	if len(chains) > 0 {
		fmt.Fprintf(w, "%s: committed to %s\n", strings.Join(chains, ", "), o.URL)
	}
}

func printBackupLine(w io.Writer, b backupJSON) {
	fmt.Fprintf(w, "%s  %s  %s, %s stored", b.ID, b.Chain, humanBytes(b.PlainBytes), humanBytes(b.StoredBytes))
	switch {
	case b.Kind != manifest.KindFull:
	case len(b.Unproved) == 0:
		fmt.Fprintf(w, ", revision %d, HashKV %d equal on %d member(s)", b.Revision, b.HashKV, len(b.ComparedWith))
	default:
		fmt.Fprintf(w, ", revision %d, not proved: %s", b.Revision, b.Unproved[0])
	}
	fmt.Fprintln(w)
	for _, why := range b.Degraded {
		fmt.Fprintf(w, "  degraded: %s\n", why)
	}
}

func describe(m *manifest.Manifest) backupJSON {
	b := backupJSON{
		ID: m.ID, Chain: m.Chain, Kind: m.Kind, Created: m.Created,
		ComparedWith: []manifest.EtcdID{}, Degraded: orEmpty(m.Degraded), Unproved: orEmpty(m.Unproved),
	}
	if m.Etcd != nil {
		b.Revision, b.HashKV, b.ComparedWith = m.Etcd.Revision, m.Etcd.HashKV, orEmpty(m.Etcd.ComparedWith)
	}
	for _, o := range m.Objects {
		b.PlainBytes += o.PlainSize
		b.StoredBytes += o.Size
	}
	return b
}
