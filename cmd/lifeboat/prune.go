package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/manifest"
	"lifeboat/internal/pruning"
	"lifeboat/internal/repository"
	"lifeboat/internal/session"
)

type pruneFlags struct {
	confirmation
	chains   []string
	imported bool
}

func newPrune(a *app) *cobra.Command {
	var flags pruneFlags
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove backups that retention no longer keeps",
		Long: `Decides by the configured retention which backups stay, says so, asks, and
commits a signed prune manifest to each chain that loses some. From then on they
are listed no more. Their data is deleted 24 hours later and their manifests
after seven days, by the prunes that run then: nothing is ever deleted that was
not promised before, so that a restore that is reading it can finish.

Never removed, whatever the policy says: the newest backup of a chain, the
newest whole and the newest proved one, what the store has locked, what was
imported (but with --imported), and backups from the future.

Needs a signing key that may sign "prune" in the trust file, and credentials
that may delete. Without the latter the promise is made, and another prune,
elsewhere, keeps it. A chain with failures is left alone (exit code 3). Nothing
at all happens while the store's clock and this machine's differ by more than
five minutes (exit code 4).`,
		Example: `  lifeboat prune --dry-run
  lifeboat prune --chain hosts/cp1
  lifeboat prune --yes --store s3://bucket/prefix -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.prune(cmd.Context(), flags) },
	}
	f := cmd.Flags()
	storeFlag(cmd, &a.storeURL, "store", "prune only this store, one of the configured")
	f.StringArrayVar(&flags.chains, "chain", nil, "prune only this chain, such as etcd/main or hosts/cp1; may be repeated")
	f.BoolVar(&flags.imported, "imported", false, "apply retention to imported backups too")
	flags.add(cmd)
	a.outputFlag(cmd)
	check(cmd, func() error {
		for _, chain := range flags.chains {
			if err := manifest.Chain(chain).Check(); err != nil {
				return fmt.Errorf("%w: --chain: %w", errUsage, err)
			}
		}
		return nil
	})
	return cmd
}

// pruned is what became of one store.
type pruned struct {
	url    string
	report *pruning.Report
	err    error
}

func (a *app) prune(ctx context.Context, flags pruneFlags) error {
	s, err := a.openToPrune(ctx, flags.dryRun)
	if err != nil {
		return err
	}
	defer a.remember(s)
	options := pruning.Options{Policy: pruning.PolicyOf(s.Config.Retention), Now: a.now, Events: a.listener()}
	options.Policy.Imported = flags.imported
	for _, chain := range flags.chains {
		options.Chains = append(options.Chains, manifest.Chain(chain))
	}
	if flags.yes {
		return a.printPruned(a.pruneStores(ctx, s, options, nil), false)
	}
	options.DryRun = true
	plan := a.pruneStores(ctx, s, options, nil)
	if flags.dryRun && a.format == "json" {
		return a.printPruned(plan, true)
	}
	if err := printPrunePlan(a.planStream(flags.confirmation), plan); err != nil {
		return err
	}
	// Where one store or chain is left alone, the others can still be pruned;
	// but not without a person having seen it.
	if flags.dryRun || idle(plan) {
		return joined(plan)
	}
	if err := a.confirm(ctx, flags.confirmation); err != nil {
		return err
	}
	options.DryRun = false
	return a.printPruned(a.pruneStores(ctx, s, options, confirmed(plan)), false)
}

// openToPrune opens the configured stores, to sign unless nothing is to change.
func (a *app) openToPrune(ctx context.Context, dryRun bool) (*session.Session, error) {
	c, trust, err := a.loadConfig()
	if err != nil {
		return nil, err
	}
	if dryRun {
		return a.openConfigured(ctx, c, trust, nil)
	}
	trust, signer, err := session.Keys(c)
	if err != nil {
		return nil, err
	}
	return a.openConfigured(ctx, c, trust, signer)
}

// pruneStores prunes one store after the other, and goes on past bad ones. Only
// bounds each to what was confirmed; nil: nobody was asked.
func (a *app) pruneStores(ctx context.Context, s *session.Session, options pruning.Options, only map[string]map[manifest.ID]bool) []pruned {
	var results []pruned
	for _, o := range s.Stores {
		result := pruned{url: o.URL, report: &pruning.Report{}, err: o.Err}
		if only != nil {
			options.Only = only[o.URL]
		}
		if o.Err == nil {
			result.report, result.err = pruning.Run(ctx, o.Repository, options)
		}
		results = append(results, result)
	}
	return results
}

// confirmed are the backups that a plan lets go, by store.
func confirmed(plan []pruned) map[string]map[manifest.ID]bool {
	only := map[string]map[manifest.ID]bool{}
	for _, p := range plan {
		only[p.url] = map[manifest.ID]bool{}
		for _, chain := range p.report.Chains {
			for _, b := range chain.Backups {
				if !b.Keep {
					only[p.url][manifest.ID(b.ID)] = true
				}
			}
		}
	}
	return only
}

// idle reports whether a plan changes nothing anywhere.
func idle(plan []pruned) bool {
	for _, p := range plan {
		for _, chain := range p.report.Chains {
			if chain.Changes {
				return false
			}
		}
		if swept := p.report.Swept; swept != nil && swept.Objects+swept.Manifests > 0 {
			return false
		}
	}
	return true
}

func joined(results []pruned) error {
	var errs []error
	for _, r := range results {
		errs = append(errs, r.err)
	}
	return errors.Join(errs...)
}

// printPrunePlan lists every backup with what would become of it.
func printPrunePlan(w io.Writer, plan []pruned) error {
	for _, p := range plan {
		fmt.Fprintf(w, "%s\n", p.url)
		rows := [][]string{{"CHAIN", "ID", "CREATED", "REVISION", "STORED", "PROVED", "", "WHY"}}
		for _, chain := range p.report.Chains {
			for _, b := range chain.Backups {
				revision, verdict := "", "stays"
				if b.Revision != 0 {
					revision = fmt.Sprint(b.Revision)
				}
				if !b.Keep {
					verdict = "goes"
				}
				rows = append(rows, []string{
					string(chain.Chain), b.ID, b.Created.UTC().Format("2006-01-02 15:04"), revision,
					humanBytes(b.StoredBytes), yesNo(b.Proved), verdict, strings.Join(b.Reasons, "; "),
				})
			}
		}
		if len(rows) > 1 {
			if err := table(w, rows); err != nil {
				return err
			}
		}
		for _, chain := range p.report.Chains {
			if chain.Err == nil && chain.Changes {
				fmt.Fprintf(w, "%s: %s; %s of data to be deleted in %s\n", chain.Chain, goes("would go", chain), humanBytes(chain.Freed), humanAge(repository.ObjectGrace))
			}
		}
		if swept := p.report.Swept; swept != nil && swept.Objects+swept.Manifests+swept.Waiting > 0 {
			fmt.Fprintf(w, "of earlier prunes: %s\n", deletions("would be deleted now", swept))
		}
		if p.err == nil && idle([]pruned{p}) {
			fmt.Fprintln(w, "nothing to prune")
		}
	}
	return nil
}

// goes says what leaves a chain.
func goes(verb string, c pruning.Chain) string {
	text := fmt.Sprintf("%d of %d backups %s", c.Removed, len(c.Backups), verb)
	if c.Garbage > 0 {
		text += fmt.Sprintf(", and what is left of %d that were never finished", c.Garbage)
	}
	return text
}

// deletions says what a sweep did.
func deletions(verb string, s *repository.Swept) string {
	text := fmt.Sprintf("%d data objects (%s) and %d manifests %s", s.Objects, humanBytes(s.Bytes), s.Manifests, verb)
	if s.Waiting > 0 {
		text += fmt.Sprintf(", %d wait, the first until %s", s.Waiting, s.Next.Format(time.RFC3339))
	}
	return text
}

// printPruned prints what was done and returns what went wrong.
func (a *app) printPruned(results []pruned, dryRun bool) error {
	if a.format == "json" {
		list := []pruneJSON{}
		for _, r := range results {
			list = append(list, describePruned(r, dryRun))
		}
		return errors.Join(joined(results), a.printJSON(list))
	}
	for _, r := range results {
		for _, chain := range r.report.Chains {
			if chain.Committed == 0 {
				continue
			}
			fmt.Fprintf(a.out, "%s: %s: %s, as manifest %d says\n", r.url, chain.Chain, goes("removed", chain), uint64(chain.Committed))
			for _, b := range chain.Backups {
				if !b.Keep {
					fmt.Fprintf(a.out, "  %s of %s\n", b.ID, b.Created.UTC().Format(time.RFC3339))
				}
			}
		}
		if swept := r.report.Swept; swept != nil {
			fmt.Fprintf(a.out, "%s: %s\n", r.url, deletions("deleted", swept))
			for _, name := range swept.Protected {
				fmt.Fprintf(a.out, "  %s is protected by the store, and left for later\n", name)
			}
		}
	}
	return joined(results)
}

type pruneJSON struct {
	Store  string           `json:"store"`
	DryRun bool             `json:"dryRun"`
	OK     bool             `json:"ok"`
	Error  string           `json:"error,omitempty"`
	Chains []pruneChainJSON `json:"chains"`
	Swept  pruneSweptJSON   `json:"swept"`
}

type pruneChainJSON struct {
	Chain     manifest.Chain    `json:"chain"`
	Error     string            `json:"error,omitempty"`
	Backups   []pruneBackupJSON `json:"backups"`
	Removed   int               `json:"removed"`
	Garbage   int               `json:"garbage"`
	Freed     int64             `json:"freedBytes"`
	Committed manifest.Sequence `json:"committed"` // 0: no manifest
}

type pruneBackupJSON struct {
	ID          string            `json:"id"`
	Kind        string            `json:"kind"`
	Created     time.Time         `json:"created"`
	Revision    manifest.Revision `json:"revision"`
	StoredBytes int64             `json:"storedBytes"`
	Proved      bool              `json:"proved"`
	Keep        bool              `json:"keep"`
	Reasons     []string          `json:"reasons"`
}

type pruneSweptJSON struct {
	Objects   int        `json:"objects"`
	Manifests int        `json:"manifests"`
	Bytes     int64      `json:"bytes"`
	Waiting   int        `json:"waiting"`
	Next      *time.Time `json:"next,omitempty"`
	Protected []string   `json:"protected"`
}

func describePruned(r pruned, dryRun bool) pruneJSON {
	out := pruneJSON{Store: r.url, DryRun: dryRun, OK: r.err == nil, Chains: []pruneChainJSON{}, Swept: pruneSweptJSON{Protected: []string{}}}
	if r.err != nil {
		out.Error = r.err.Error()
	}
	for _, chain := range r.report.Chains {
		c := pruneChainJSON{
			Chain: chain.Chain, Backups: []pruneBackupJSON{}, Removed: chain.Removed, Garbage: chain.Garbage,
			Freed: chain.Freed, Committed: chain.Committed,
		}
		if chain.Err != nil {
			c.Error = chain.Err.Error()
		}
		for _, b := range chain.Backups {
			c.Backups = append(c.Backups, pruneBackupJSON{
				ID: b.ID, Kind: b.Kind, Created: b.Created, Revision: b.Revision, StoredBytes: b.StoredBytes,
				Proved: b.Proved, Keep: b.Keep, Reasons: b.Reasons,
			})
		}
		out.Chains = append(out.Chains, c)
	}
	if s := r.report.Swept; s != nil {
		out.Swept = pruneSweptJSON{Objects: s.Objects, Manifests: s.Manifests, Bytes: s.Bytes, Waiting: s.Waiting, Protected: orEmpty(s.Protected)}
		if !s.Next.IsZero() {
			out.Swept.Next = &s.Next
		}
	}
	return out
}
