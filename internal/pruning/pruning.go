// Package pruning applies a retention policy to the chains of one repository:
// internal/retention decides, internal/repository promises the deletions in a
// signed prune manifest of each chain, and what was promised long enough ago is
// swept. The command and the agent call it, once for each store. Start reading
// at Run.
//
// It keeps nothing between two calls. Two that run at once, anywhere, are safe:
// whoever comes second to a chain's next place decides again.
package pruning

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/retention"
)

// Options says what to prune. The zero value applies a policy that keeps next
// to nothing, so Policy is practically required.
type Options struct {
	Policy retention.Policy
	Chains []manifest.Chain // only these; empty: every chain of the repository

	// Only bounds what is removed to what a person has seen and confirmed; nil:
	// whatever the policy lets go.
	Only map[manifest.ID]bool

	// DryRun reads and decides, and changes nothing. It needs no signing key.
	DryRun bool

	Now    func() time.Time // nil: time.Now. It measures how long stages took; ages are the repository's business
	Events events.Listener  // may be nil
}

// Report is what was, or with DryRun would be, done to one repository.
type Report struct {
	Chains []Chain           // in the order of their names
	Swept  *repository.Swept // nil: it did not come to that
}

// Chain is what became of one chain.
type Chain struct {
	Chain     manifest.Chain
	Backups   []Backup          // all of them, newest first
	Removed   int               // backups
	Freed     int64             // stored bytes of all that the prune manifest names
	Garbage   int               // backups that were never finished, whose data goes
	Segments  int               // that a roll-up has replaced, or that no point in the window needs
	Changes   bool              // a prune manifest was committed, or with DryRun would be
	Committed manifest.Sequence // of the prune manifest; 0: there was nothing to do, or it was a dry run
	Err       error             // why the chain was left alone
}

// Backup is one backup with what was decided.
type Backup struct {
	retention.Decision
	Revision    manifest.Revision // 0 for files
	StoredBytes int64
}

// PolicyOf is the policy that a configuration asks for.
func PolicyOf(c config.Retention) retention.Policy {
	return retention.Policy{
		Hourly: c.Hourly, Daily: c.Daily, Weekly: c.Weekly, Monthly: c.Monthly,
		Minimum: c.Minimum, PointInTime: time.Duration(c.PointInTime),
	}
}

// Run prunes one repository. It goes on past a chain that can't be pruned, such
// as one with failures (repository.ErrVerification) or one that the signing key
// may not prune (repository.ErrMayNotPrune), and ends at once where no other
// chain would fare better: the clocks differ (repository.ErrClock), the store
// does not answer or refuses to delete (storage.ErrPermission), ctx is done. The
// report is never nil and says what was done until then; the error joins all.
// Nothing is tried twice: the next run is the next try.
func Run(ctx context.Context, repo *repository.Repository, o Options) (*Report, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	report := &Report{}
	if err := repo.CheckClock(ctx); err != nil {
		return report, err
	}
	chains, err := o.chains(ctx, repo)
	if err != nil {
		return report, err
	}
	var errs []error
	for _, name := range chains {
		chain := prune(ctx, repo, name, o)
		report.Chains = append(report.Chains, chain)
		if chain.Err == nil {
			continue
		}
		errs = append(errs, chain.Err)
		if !ofTheChain(chain.Err) {
			return report, errors.Join(errs...)
		}
	}
	// The promises come first: they need no right to delete.
	swept, err := repo.Sweep(ctx, repository.SweepOptions{Chains: o.Chains, DryRun: o.DryRun})
	report.Swept = swept
	return report, errors.Join(append(errs, err)...)
}

// chains are those to prune, in the order of their names.
func (o Options) chains(ctx context.Context, repo *repository.Repository) ([]manifest.Chain, error) {
	all, err := repo.Chains(ctx)
	if err != nil {
		return nil, err
	}
	for _, head := range repo.Heads() { // a chain that was seen must not vanish unnoticed
		if !slices.Contains(all, head.Chain) {
			all = append(all, head.Chain)
		}
	}
	slices.Sort(all)
	if len(o.Chains) == 0 {
		return all, nil
	}
	for _, chain := range o.Chains {
		if !slices.Contains(all, chain) {
			return nil, fmt.Errorf("prune %s in %s: no such chain: %w", chain, repo.Name(), repository.ErrNothing)
		}
	}
	return slices.DeleteFunc(all, func(chain manifest.Chain) bool { return !slices.Contains(o.Chains, chain) }), nil
}

// ofTheChain reports whether an error concerns one chain alone.
func ofTheChain(err error) bool {
	for _, target := range []error{repository.ErrVerification, repository.ErrMayNotPrune, repository.ErrRefused} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// prune decides about one chain and commits what was decided.
func prune(ctx context.Context, repo *repository.Repository, name manifest.Chain, o Options) Chain {
	chain := Chain{Chain: name}
	began := o.Now()
	o.Events.Emit(events.StageStarted{Stage: "prune", Chain: string(name)})
	pruned, err := repo.Prune(ctx, name, nil, repository.PruneOptions{
		DryRun: o.DryRun,
		Window: func(now time.Time) time.Time { return now.Add(-max(0, o.Policy.PointInTime)) },
		// It may be asked several times; the last answer is what counts.
		Choose: func(backups []repository.Backup, now time.Time) (remove []manifest.ID) {
			chain.Backups, remove = o.choose(backups, now)
			return remove
		},
	})
	chain.Err = err
	if err == nil {
		chain.Removed, chain.Freed, chain.Garbage = len(removedBackups(chain.Backups, pruned.Removed)), pruned.Bytes, len(pruned.Dropped)
		chain.Segments = pruned.Segments
		chain.Changes = pruned.Manifests > 0 || len(pruned.Objects) > 0
		if pruned.Commit != nil {
			chain.Committed = pruned.Commit.Sequence
		}
	}
	o.Events.Emit(events.StageDone{Stage: "prune", Chain: string(name), Duration: o.Now().Sub(began), Err: err})
	return chain
}

// choose asks the policy about a chain's backups. Images are several nodes' in one
// chain: what one node saves pushes out nothing of another's.
func (o Options) choose(backups []repository.Backup, now time.Time) (decided []Backup, remove []manifest.ID) {
	if len(backups) > 0 && backups[0].Images != nil {
		of := map[string][]repository.Backup{}
		for _, b := range backups {
			of[b.Images.Node] = append(of[b.Images.Node], b)
		}
		for _, node := range slices.Sorted(maps.Keys(of)) {
			d, r := o.chooseOf(of[node], now)
			decided, remove = append(decided, d...), append(remove, r...)
		}
		slices.SortStableFunc(decided, func(a, b Backup) int { return b.Created.Compare(a.Created) })
		return decided, remove
	}
	return o.chooseOf(backups, now)
}

func (o Options) chooseOf(backups []repository.Backup, now time.Time) ([]Backup, []manifest.ID) {
	items := make([]retention.Item, len(backups))
	of := map[string]repository.Backup{}
	for i, b := range backups {
		items[i] = item(b)
		of[items[i].ID] = b
	}
	if latest, _ := repository.Latest(backups); latest != nil {
		i := slices.IndexFunc(items, func(i retention.Item) bool { return i.ID == string(latest.ID) })
		items[i].Latest = true
	}
	var decided []Backup
	var remove []manifest.ID
	for _, d := range retention.Apply(items, o.Policy, now) {
		b := of[d.ID]
		if !d.Keep && o.Only != nil && !o.Only[b.ID] {
			d.Keep, d.Reasons = true, []string{"not confirmed: " + d.Reasons[0]}
		}
		if !d.Keep {
			remove = append(remove, b.ID)
		}
		decided = append(decided, describe(b, d))
	}
	return decided, remove
}

func item(b repository.Backup) retention.Item {
	i := retention.Item{
		ID: string(b.ID), Kind: string(b.Kind), Created: b.Created, Proved: b.Proved, Base: b.Base,
		Degraded: len(b.Degraded) > 0, Imported: b.Imported != "",
	}
	if b.RetainUntil != nil {
		i.RetainUntil = *b.RetainUntil
	}
	return i
}

func describe(b repository.Backup, d retention.Decision) Backup {
	out := Backup{Decision: d}
	if b.Etcd != nil {
		out.Revision = b.Etcd.Revision
	}
	for _, o := range b.Objects {
		out.StoredBytes += o.Size
	}
	return out
}

// removedBackups leaves out proofs and prunes, which go with what they are about.
func removedBackups(backups []Backup, removed []manifest.ID) []manifest.ID {
	return slices.DeleteFunc(slices.Clone(removed), func(id manifest.ID) bool {
		return !slices.ContainsFunc(backups, func(b Backup) bool { return b.ID == string(id) })
	})
}
