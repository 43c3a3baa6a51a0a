// Package transfer moves backups between places and keys: it copies them from
// one store to another as they are, and seals them anew for other recipients.
// Both add to chains and take nothing away, both can be interrupted at any
// moment and run again, and what each commits is decided in
// internal/repository. Start reading at Copy and Rekey.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
)

// CopyOptions says what to copy. From, To and Now are required.
type CopyOptions struct {
	From, To *repository.Repository

	Chains []manifest.Chain // only these; empty: all that From has
	IDs    []string         // only backups whose id begins so, and no segments; empty: all
	Since  time.Time        // only backups captured since then; zero: all

	RetainDays int  // the destination's Object Lock, from now; 0: none
	DryRun     bool // decide, and write nothing

	Now    func() time.Time
	Events events.Listener // may be nil
}

// Copied is what became of one backup, segment, proof or blob.
type Copied struct {
	*manifest.Manifest                 // in the source, with the objects in effect
	Fate               repository.Fate // with DryRun, "wanted" is what would be copied
	Sequence           manifest.Sequence
	Err                error
}

// CopyReport is what became of all, in the order of chains and in each chain's.
type CopyReport struct {
	Copies   []Copied
	Bytes    int64                // that were copied
	Problems []repository.Problem // of the source's chains
}

// Copy copies backups, their proofs, the segments between them and the blobs that
// images need from one store to another, the stored bytes as they are. Each commits by itself, as soon as its data is there, in
// the destination's own chain behind what that holds. What the destination has
// is left out, so another run goes on where one ended. What is damaged in the
// source is left out, too, and an error. At any other failure a chain stops,
// since a later copy would keep the earlier one out for ever; other chains go on. The report is never nil.
func Copy(ctx context.Context, o CopyOptions) (*CopyReport, error) {
	report := &CopyReport{}
	chains := o.Chains
	if len(chains) == 0 {
		var err error
		if chains, err = o.From.Chains(ctx); err != nil {
			return report, err
		}
	}
	found := map[string]manifest.ID{}
	var plans []*plan
	var errs []error
	for _, chain := range chains {
		p, err := o.plan(ctx, chain, found, report)
		if err != nil {
			return report, fmt.Errorf("copy %s from %s to %s: %w", chain, o.From.Name(), o.To.Name(), err)
		}
		plans = append(plans, p)
	}
	for _, prefix := range o.IDs {
		if found[prefix] == "" {
			errs = append(errs, fmt.Errorf("find backup %q in %s: %w", prefix, o.From.Name(), repository.ErrNothing))
		}
	}
	if err := errors.Join(errs...); err != nil { // a mistyped id is no reason to copy the others
		return report, err
	}
	total := int64(0)
	for _, p := range plans {
		total += p.bytes()
	}
	began := o.Now()
	if !o.DryRun {
		if err := o.To.Init(ctx); err != nil {
			return report, err
		}
		o.Events.Emit(events.StageStarted{Stage: "copy", Total: total})
	}
	for _, p := range plans {
		errs = append(errs, p.run(ctx, o, report))
	}
	err := errors.Join(errs...)
	if !o.DryRun {
		o.Events.Emit(events.StageDone{Stage: "copy", Duration: o.Now().Sub(began), Bytes: report.Bytes, Err: err})
	}
	return report, err
}

// plan is one chain's part of a copy.
type plan struct {
	chain   manifest.Chain
	copying *repository.Copying
	list    []repository.Original
	fates   map[manifest.ID]repository.Fate
}

// plan chooses from one chain, and asks the destination what it makes of it.
func (o CopyOptions) plan(ctx context.Context, chain manifest.Chain, found map[string]manifest.ID, report *CopyReport) (*plan, error) {
	originals, problems, err := o.From.Originals(ctx, chain)
	if err != nil {
		return nil, err
	}
	report.Problems = append(report.Problems, problems...)
	p := &plan{chain: chain, copying: o.To.Copy(chain, o.From.Name(), originals)}
	chosen := map[manifest.ID]bool{}
	for _, m := range originals {
		if m.Proof != nil || m.Blob != nil {
			continue
		}
		if chosen[m.ID], err = o.wants(m.Manifest, found); err != nil {
			return nil, err
		}
	}
	var ids []manifest.ID
	for _, m := range originals {
		of := m.ID
		if m.Proof != nil {
			of = m.Proof.Of
		}
		if chosen[of] || m.Blob != nil {
			p.list = append(p.list, m)
			ids = append(ids, m.ID)
		}
	}
	if p.fates, err = p.copying.Plan(ctx, ids); err != nil {
		return nil, err
	}
	needed := map[manifest.Hash]bool{} // blobs, which lie before the images
	for _, m := range p.list {
		if fate := p.fates[m.ID]; m.Images != nil && (fate == repository.FateWanted || fate == repository.FatePresent) {
			for _, sum := range m.Images.Blobs {
				needed[sum] = true
			}
		}
	}
	p.list = slices.DeleteFunc(p.list, func(m repository.Original) bool { return m.Blob != nil && !needed[m.Blob.SHA256] })
	return p, nil
}

func (o CopyOptions) wants(m *manifest.Manifest, found map[string]manifest.ID) (bool, error) {
	if m.Created.Before(o.Since) || m.Kind == manifest.KindSegment && len(o.IDs) > 0 {
		return false, nil
	}
	if len(o.IDs) == 0 {
		return true, nil
	}
	wanted := false
	for _, prefix := range o.IDs {
		if !strings.HasPrefix(string(m.ID), prefix) {
			continue
		}
		if other := found[prefix]; other != "" && other != m.ID {
			return false, fmt.Errorf("find backup %q: %w; give more of it", prefix, repository.ErrAmbiguous)
		}
		found[prefix], wanted = m.ID, true
	}
	return wanted, nil
}

// bytes are those that are to be copied.
func (p *plan) bytes() (n int64) {
	for _, m := range p.list {
		if p.fates[m.ID] == repository.FateWanted {
			for _, object := range m.Objects {
				n += object.Size
			}
		}
	}
	return n
}

// run copies what is wanted of a chain.
func (p *plan) run(ctx context.Context, o CopyOptions, report *CopyReport) error {
	var errs []error
	if old := p.count(repository.FateOld); old > 0 {
		errs = append(errs, fmt.Errorf("%s: %d backups are left out: %w", p.chain, old, repository.ErrOrder))
	}
	dropped := p.count(repository.FateDropped)
	failed := false
	for _, m := range p.list {
		c := Copied{Manifest: m.Manifest, Fate: p.fates[m.ID]}
		if c.Fate == repository.FateWanted && !o.DryRun {
			switch {
			case failed:
				c.Err = errors.New("not tried: an earlier one of the chain failed")
			case ctx.Err() != nil:
				c.Err = context.Cause(ctx)
			default:
				c.Sequence, c.Err = p.copy(ctx, o, m, report)
			}
			c.Fate = repository.FateCopied
			switch {
			case errors.Is(c.Err, repository.ErrSuperseded):
				c.Fate, c.Err = repository.FateDropped, nil
				dropped++
			case errors.Is(c.Err, repository.ErrCovered): // by a recorder, meanwhile
				c.Fate, c.Err = repository.FateCovered, nil
			case c.Err != nil:
				c.Fate = repository.FateFailed
				if !failed {
					errs = append(errs, c.Err)
				}
				failed = failed || !errors.Is(c.Err, repository.ErrVerification) && !errors.Is(c.Err, repository.ErrIncomplete)
			}
		}
		report.Copies = append(report.Copies, c)
	}
	if dropped > 0 {
		errs = append(errs, fmt.Errorf("%s: %d are left out, of which the destination holds nothing that counts: a prune there took what an unfinished copy had left for garbage: %w; copy them to another store",
			p.chain, dropped, repository.ErrSuperseded))
	}
	return errors.Join(errs...)
}

func (p *plan) count(fate repository.Fate) (n int) {
	for _, m := range p.list {
		if p.fates[m.ID] == fate {
			n++
		}
	}
	return n
}

// copy copies one backup: its data first, then its manifest.
func (p *plan) copy(ctx context.Context, o CopyOptions, m repository.Original, report *CopyReport) (manifest.Sequence, error) {
	retain := time.Time{}
	if o.RetainDays > 0 && (m.Span == nil || m.Span.RollUp) { // a small segment gives way to a roll-up
		retain = o.Now().UTC().Truncate(time.Millisecond).AddDate(0, 0, o.RetainDays)
	}
	draft := p.copying.Draft(m.ID, retain)
	for i, object := range m.Objects {
		there, err := o.To.Holds(ctx, draft.Objects[i]) // from a run that was interrupted
		if err != nil {
			return 0, fmt.Errorf("copy %s: %w", m.ID, err)
		}
		if there {
			continue
		}
		before := report.Bytes
		err = o.To.CopyObject(ctx, o.From, object, draft.Objects[i].Name, retain, func(n int) {
			report.Bytes += int64(n)
			o.Events.Emit(events.StageProgress{Stage: "copy", Done: report.Bytes})
		})
		if err != nil {
			report.Bytes = before
			return 0, fmt.Errorf("copy %s: %w", m.ID, err)
		}
	}
	done, err := p.copying.Commit(ctx, draft)
	if err != nil {
		return 0, err
	}
	return done.Sequence, nil
}
