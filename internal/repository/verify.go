package repository

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// VerifyOptions narrows a verification. The zero value verifies everything.
type VerifyOptions struct {
	Chains []manifest.Chain // only these
	IDs    []manifest.ID    // the stored bytes of only these backups; their chains are verified whole
}

// Report is what a verification looked at and found.
type Report struct {
	Chains    []manifest.Chain
	Manifests int   // that count
	Objects   int   // data objects read
	Bytes     int64 // of them
	Problems  []Problem
}

// Err is nil if the report has no failures, and a *VerificationError if it has.
func (rep *Report) Err() error {
	if failures := Failures(rep.Problems); len(failures) > 0 {
		return &VerificationError{Doing: "verify", Problems: failures}
	}
	return nil
}

// objectsAtOnce bounds the data objects that are read side by side.
const objectsAtOnce = 4

// Verify checks everything that can be checked without unsealing: every
// signature and link, that no manifest is missing, that the heads seen by this
// machine and by other chains are still there, and size and SHA-256 of every
// stored byte that a manifest names. Findings are in the report; an error
// means that something could not be read, and the report holds the rest.
func (r *Repository) Verify(ctx context.Context, opts VerifyOptions) (*Report, error) {
	l, err := r.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	chains, err := opts.chains(l)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	views, err := r.loadAll(ctx, l, chains, depth{signatures: true})
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	if len(opts.Chains) == 0 {
		if views, err = r.addWitnessed(ctx, l, views); err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
	}
	rep := &Report{Chains: chains}
	if rep.Problems, err = r.checkReadme(ctx); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	for _, info := range l.other {
		if info.Name != r.stored(readmeName) {
			rep.Problems = append(rep.Problems, Problem{Object: info.Name, Kind: Garbage, Message: "it belongs to no chain"})
		}
	}
	var read []target
	for _, v := range views {
		rep.Manifests += len(v.Manifests)
		rep.Problems = append(rep.Problems, v.Problems...)
		rep.Problems = append(rep.Problems, v.st.leftovers()...)
		rep.Problems = append(rep.Problems, v.unrecorded()...)
		rep.Problems = append(rep.Problems, r.witnessed(v, views)...)
		rep.Problems = append(rep.Problems, r.unnamed(v, l.chains[v.Chain], r.now())...)
		read = append(read, targets(v, opts.IDs)...)
	}
	for _, id := range opts.IDs {
		if !slices.ContainsFunc(views, func(v *View) bool { return v.Find(id) != nil }) {
			return nil, fmt.Errorf("verify backup %s: %w", id, ErrNothing)
		}
	}
	err = r.verifyObjects(ctx, read, rep)
	rep.Problems = sortProblems(rep.Problems)
	return rep, err
}

func (opts VerifyOptions) chains(l *listing) ([]manifest.Chain, error) {
	if len(opts.Chains) == 0 {
		return l.names(), nil
	}
	for _, chain := range opts.Chains {
		if l.chains[chain] == nil {
			return nil, fmt.Errorf("chain %s: %w", chain, ErrNothing)
		}
	}
	return opts.Chains, nil
}

// leftovers looks at what is stored and does not count.
func (st *state) leftovers() []Problem {
	reported := map[manifest.Sequence]bool{}
	for _, p := range st.problems {
		reported[p.Sequence] = true
	}
	clear := &state{chain: st.chain, name: st.name}
	for _, seq := range st.order {
		s := st.slots[seq]
		_, named := st.pruned[seq]
		switch {
		case s.absent || st.counts[seq] || reported[seq]:
		case s.m == nil:
			clear.report(seq, s.kind, "%v; it is no part of the chain any more: look at it, then delete it by hand", s.err)
		case named && st.pruned[seq] != s.hash:
			clear.report(seq, Leftover, "it was created in a place that had been pruned, and does not count; the next prune names it")
		case named || seq < st.base:
			clear.report(seq, Leftover, "it was pruned, and is deleted when its time has come")
		default:
			clear.report(seq, Fork, "it is a genuine manifest, and the index of %s leaves it out", ref(st.chain, st.anchor.seq))
		}
	}
	return clear.problems
}

// unnamed lists data objects that no manifest names.
func (r *Repository) unnamed(v *View, listed *listedChain, now time.Time) []Problem {
	names := map[string]Kind{}
	for _, m := range v.Manifests {
		if m.Prune != nil {
			for _, name := range m.Prune.Objects {
				names[r.stored(name)] = Leftover
			}
		}
	}
	replaced := v.replacements()
	rekeyed := map[string]bool{}
	for i := range v.Manifests {
		m := &v.Manifests[i]
		for _, o := range replaced.objects(m) {
			names[r.stored(o.Name)] = ""
		}
		for _, o := range m.Objects {
			rekeyed[r.stored(o.Name)] = replaced.by[m.Sequence] != nil
		}
	}
	var problems []Problem
	add := func(info storage.Info, kind Kind, message string) {
		problems = append(problems, Problem{Object: info.Name, Chain: v.Chain, Kind: kind, Message: message})
	}
	for _, infos := range listed.data {
		for _, info := range infos {
			switch kind, ok := names[info.Name]; {
			case kind == Leftover:
				add(info, Leftover, "it was pruned, and is deleted when its time has come")
			case ok:
			case rekeyed[info.Name]:
				add(info, Leftover, "a rekey has replaced it; the next prune names it")
			case now.Sub(info.Modified) > GiveUpAfter+skewMargin:
				add(info, Garbage, "no manifest names it: its backup was never committed")
			default:
				add(info, Garbage, "no manifest names it yet")
			}
		}
	}
	for _, info := range listed.stray {
		add(info, Garbage, "it lies in no backup's folder")
	}
	return problems
}

// target is one data object to read.
type target struct {
	chain manifest.Chain
	seq   manifest.Sequence
	manifest.Object
}

func targets(v *View, ids []manifest.ID) []target {
	var list []target
	replaced := v.replacements()
	needed := map[manifest.ID]bool{} // blobs of images that are asked for
	for _, m := range v.Manifests {
		if m.Images == nil || !slices.Contains(ids, m.ID) {
			continue
		}
		for _, blob := range v.Manifests {
			if blob.Blob != nil && m.Images.Needs(blob.Blob.SHA256) {
				needed[blob.ID] = true
			}
		}
	}
	for i := range v.Manifests {
		m := &v.Manifests[i]
		of := m.ID
		if m.Rekey != nil {
			of = m.Rekey.Of
		}
		if len(ids) > 0 && !slices.Contains(ids, of) && !needed[of] {
			continue
		}
		for _, o := range replaced.objects(m) {
			list = append(list, target{v.Chain, m.Sequence, o})
		}
	}
	return list
}

// verifyObjects reads data objects and adds what it finds to rep. Objects that
// can't be read don't keep it from reading the others.
func (r *Repository) verifyObjects(ctx context.Context, list []target, rep *Report) error {
	const stage = "verify"
	var total int64
	for _, t := range list {
		total += t.Size
	}
	began := r.now()
	r.opts.Events.Emit(events.StageStarted{Stage: stage, Total: total})
	var mu sync.Mutex
	var errs []error
	group := new(errgroup.Group)
	group.SetLimit(objectsAtOnce)
	for _, t := range list {
		group.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			p, err := r.verifyObject(ctx, t)
			mu.Lock()
			defer mu.Unlock()
			rep.Objects++
			rep.Bytes += t.Size
			r.opts.Events.Emit(events.StageProgress{Stage: stage, Done: rep.Bytes})
			rep.Problems = append(rep.Problems, p...)
			if err != nil {
				errs = append(errs, err)
			}
			return nil
		})
	}
	_ = group.Wait() // the goroutines return nothing
	err := errors.Join(append(errs, ctx.Err())...)
	r.opts.Events.Emit(events.StageDone{Stage: stage, Duration: r.now().Sub(began), Bytes: rep.Bytes, Err: err})
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	return nil
}

// verifyObject reads the current version of a data object, and if it is not
// what the manifest says, the one that a restore would get.
func (r *Repository) verifyObject(ctx context.Context, t target) ([]Problem, error) {
	err := r.readCurrent(ctx, t.Object)
	var bad *VerificationError
	if err == nil || !errors.As(err, &bad) {
		return nil, err
	}
	p := bad.Problems[0]
	p.Chain, p.Sequence = t.chain, t.seq
	if _, ok := r.store.(storage.Versioned); ok {
		body, err := r.OpenObject(ctx, t.Object)
		if err == nil {
			_, err = io.Copy(io.Discard, body)
			body.Close()
		}
		if err == nil {
			p.Message = fmt.Sprintf("%s; an older version in the store is whole and is used", p.Message)
			p.Kind = Overwritten
		}
	}
	return []Problem{p}, nil
}

func (r *Repository) readCurrent(ctx context.Context, o manifest.Object) error {
	body, info, err := r.store.Open(ctx, r.stored(o.Name), storage.Range{})
	if errors.Is(err, storage.ErrNotExist) {
		return r.objectError(o, ObjectMissing, "it is not in the store")
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", r.stored(o.Name), err)
	}
	defer body.Close()
	if info.Size != o.Size {
		return r.objectError(o, ObjectSize, fmt.Sprintf("%d bytes, its manifest says %d", info.Size, o.Size))
	}
	_, err = io.Copy(io.Discard, &objectReader{r: r, body: body, o: o, sum: sha256.New()})
	return err
}
