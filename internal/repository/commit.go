package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// Committed is a manifest that counts.
type Committed struct {
	Manifest *manifest.Manifest
	Sequence manifest.Sequence
	Hash     manifest.Hash // of its text
	Problems []Problem     // of the chain, as the commit found it
}

// Head is the commit as a witness for other chains and stores.
func (c *Committed) Head(store string) manifest.Head {
	return manifest.Head{Store: store, Chain: c.Manifest.Chain, Sequence: c.Sequence, Hash: c.Hash}
}

// attempts bounds how often one commit tries. Each lost attempt means that
// another writer's commit went through.
const attempts = 64

// failedAttempts bounds how often a create that failed for no named reason is
// tried again.
const failedAttempts = 3

// Commit makes a backup visible. The caller has put the draft's data objects
// with PutObject and filled in what it knows; Commit fills in format, cluster,
// epoch, sequence, previous, skipped, index and the witnesses of this store's
// other chains, and leaves the draft as it is.
//
// Calling it again with the same draft after an error is safe: a commit that
// took effect is found by its id. It fails with ErrSuperseded, ErrTooOld,
// ErrReplaced or ErrNoSigner when there is no point in trying again.
//
// A full's Epoch is the least that it is committed in: with one above the
// chain's it starts a new epoch, for a writer that knows what neither cluster id
// nor revision shows. A segment's is the one that it continues, 0 for any; see
// Appender.Commit, which is faster.
func (r *Repository) Commit(ctx context.Context, draft *manifest.Manifest) (*Committed, error) {
	done, err := r.commitOf(draft).run(ctx)
	if err != nil {
		return nil, fmt.Errorf("commit %s to %s in %s: %w", draft.ID, draft.Chain, r.opts.Name, err)
	}
	return done, nil
}

func (r *Repository) commitOf(draft *manifest.Manifest) *commit {
	c := &commit{
		r: r, chain: draft.Chain, id: draft.ID, created: draft.Created, objects: draft.Objects, depth: depth{tail: true},
	}
	c.draft = func(view *View) (*manifest.Manifest, error) { return draft, nil }
	if draft.Kind == manifest.KindImages {
		c.depth.tail = false // all blobs are looked for
	}
	if draft.Kind == manifest.KindSegment {
		c.fits = func(ctx context.Context, view *View) error { return r.fits(ctx, view, draft) }
	}
	return c
}

// commit is one commit on its way.
type commit struct {
	r       *Repository
	chain   manifest.Chain
	id      manifest.ID
	created time.Time
	objects []manifest.Object
	depth   depth // of the views it works on
	anyAge  bool  // it was captured long ago, and that is no reason to give up

	// draft gives what to commit behind a view: for a backup always the same,
	// for a prune what that view leaves to prune; nil means nothing.
	draft func(*View) (*manifest.Manifest, error)

	// fits says why the draft has no place behind a view; nil: it always has.
	fits func(context.Context, *View) error

	view  *View     // the last that was read; nil: none was
	asked time.Time // when reading it began
}

func (c *commit) run(ctx context.Context) (*Committed, error) {
	if c.r.opts.Signer == nil {
		return nil, ErrNoSigner
	}
	// A prune that dropped our id began after our capture did, so older ones,
	// by any clock, are of no concern.
	c.depth.since = c.created.Add(-GiveUpAfter - skewMargin)
	if c.anyAge { // any prune may have dropped it
		c.depth.since = time.Time{}
	}
	failed := 0
	for range attempts {
		view, err := c.load(ctx)
		if err != nil {
			return nil, err
		}
		if done, err := c.settled(ctx, view); done != nil || err != nil {
			return done, err
		}
		m, signed, err := c.prepare(ctx, view)
		if err != nil || m == nil {
			return nil, err
		}
		if !c.anyAge {
			if err := c.r.checkAge(c.created); err != nil {
				return nil, err
			}
		}
		putErr := c.r.create(ctx, m, signed)
		// Nor does an answer make it count: only the chain, read again, does.
		view, err = c.load(ctx)
		if err != nil {
			return nil, errors.Join(putErr, fmt.Errorf("read back, so it is not known whether the commit took effect: %w", err))
		}
		if done, err := c.settled(ctx, view); done != nil || err != nil {
			if done != nil {
				c.r.announce(done)
			}
			return done, err
		}
		if putErr != nil && !errors.Is(putErr, storage.ErrExist) {
			if failed++; failed == failedAttempts || permanent(ctx, putErr) {
				return nil, fmt.Errorf("create %s: %w", ref(c.chain, m.Sequence), putErr)
			}
		}
	}
	return nil, fmt.Errorf("other writers were faster %d times", attempts)
}

// create is the commit point. Before it takes effect the backup is garbage; after
// it, a whole backup, whether or not we live to know.
func (r *Repository) create(ctx context.Context, m *manifest.Manifest, signed []byte) error {
	return r.store.Put(ctx, r.stored(ManifestName(m.Chain, m.Sequence)), bytes.NewReader(signed), storage.PutOptions{
		IfAbsent: true, RetainUntil: retain(m),
	})
}

// checkAge refuses captures that began too long ago for a pruner to wait for.
func (r *Repository) checkAge(created time.Time) error {
	if age := r.now().Sub(created); age > GiveUpAfter {
		return fmt.Errorf("%w: its capture began %s ago, limit %s", ErrTooOld, age.Round(time.Second), GiveUpAfter)
	}
	return nil
}

func (c *commit) load(ctx context.Context) (*View, error) {
	asked := c.r.opts.Now()
	view, err := c.r.load(ctx, c.chain, c.depth)
	if err == nil {
		c.view, c.asked = view, asked
	}
	return view, err
}

// settled looks for the end of the matter in a fresh view: our manifest
// counts, or a prune dropped it.
func (c *commit) settled(ctx context.Context, view *View) (*Committed, error) {
	if by, ok := view.st.dropped[c.id]; ok {
		return nil, fmt.Errorf("%w: %s names it", ErrSuperseded, ref(c.chain, by))
	}
	for _, e := range view.st.live {
		if e.ID != c.id || view.st.bad[e.Sequence] {
			continue
		}
		s := view.st.slots[e.Sequence]
		if s == nil { // an index behind it lists it already
			var err error
			if s, err = c.r.reader(c.chain).read(ctx, e.Sequence, view.st.claim(e.Sequence)); err != nil {
				return nil, err
			}
		}
		if s.m != nil {
			return &Committed{Manifest: s.m, Sequence: e.Sequence, Hash: e.Hash, Problems: view.Problems}, nil
		}
	}
	return nil, nil
}

// prepare makes the manifest that would extend the view.
func (c *commit) prepare(ctx context.Context, view *View) (*manifest.Manifest, []byte, error) {
	draft, err := c.draft(view)
	if err != nil || draft == nil {
		return nil, nil, err
	}
	if c.fits != nil {
		if err := c.fits(ctx, view); err != nil {
			return nil, nil, err
		}
	}
	for _, p := range view.Problems {
		if p.Kind == NewerFormat {
			return nil, nil, &VerificationError{Doing: "a newer lifeboat writes this chain; upgrade", Problems: []Problem{p}}
		}
	}
	if err := c.r.checkObjects(ctx, c.chain, c.id, c.objects); err != nil {
		return nil, nil, err
	}
	if draft.Images != nil {
		if err := view.lacks(draft.Images); err != nil {
			return nil, nil, err
		}
	}
	m := *draft
	wholeTimes(&m)
	m.Format, m.Cluster = manifest.FormatVersion, c.r.cluster
	m.Sequence, m.Skipped = view.st.next()
	m.Previous = manifest.Hash{}
	if view.Head != nil {
		m.Previous = view.Head.Hash
	}
	if draft.Copied == nil { // a copy knows its epoch
		if m.Epoch, err = c.r.epoch(ctx, view, draft); err != nil {
			return nil, nil, err
		}
	}
	m.Heads = c.r.witnesses(c.chain, view.st, draft.Heads)
	if m.Prune == nil {
		m.Index = indexFor(view, m.Kind)
	}
	if m.Recent = nil; m.Kind == manifest.KindSegment && c.r.mayList(&m) {
		m.Recent = c.r.recentFor(view)
	}
	for _, s := range m.Skipped {
		c.r.warn(c.chain, c.r.stored(ManifestName(c.chain, s.Sequence)), "an object that is no valid manifest lies in the chain's way; the next manifest skips and names it")
	}
	for _, p := range view.Problems {
		if p.Kind == RolledBack {
			c.r.warn(c.chain, p.Object, "%s", p.Message)
		}
	}
	signed, _, err := c.r.sign(&m)
	return &m, signed, err
}

// sign makes a manifest's stored bytes, and the hash of its text.
func (r *Repository) sign(m *manifest.Manifest) ([]byte, manifest.Hash, error) {
	signed, err := manifest.Sign(m, r.opts.Signer)
	if err != nil {
		return nil, manifest.Hash{}, err
	}
	// What we would not believe ourselves would be junk in the chain's way.
	if _, err := manifest.Open(signed, r.opts.Trust); err != nil {
		return nil, manifest.Hash{}, fmt.Errorf("the own signature would not count: %w", err)
	}
	hash, err := manifest.TextHash(signed)
	return signed, hash, err
}

// checkObject is checkObjects for the one object of a segment, without a listing.
func (r *Repository) checkObject(ctx context.Context, objects []manifest.Object) error {
	for _, o := range objects {
		body, info, err := r.store.Open(ctx, r.stored(o.Name), storage.Range{Length: 1})
		if errors.Is(err, storage.ErrNotExist) {
			return fmt.Errorf("data object %s is not in the store", o.Name)
		}
		if err != nil {
			return fmt.Errorf("look for data object %s: %w", o.Name, err)
		}
		_ = body.Close()
		if info.Size != o.Size {
			return fmt.Errorf("data object %s has %d bytes in the store, not %d", o.Name, info.Size, o.Size)
		}
	}
	return nil
}

// checkObjects makes sure that no manifest names what is not there.
func (r *Repository) checkObjects(ctx context.Context, chain manifest.Chain, id manifest.ID, objects []manifest.Object) error {
	if len(objects) == 0 {
		return nil
	}
	sizes := map[string]int64{}
	for info, err := range r.store.List(ctx, r.stored(chain.DataFolder(id))) {
		if err != nil {
			return fmt.Errorf("list its data objects: %w", err)
		}
		sizes[info.Name] = info.Size
	}
	for _, o := range objects {
		size, ok := sizes[r.stored(o.Name)]
		if !ok {
			return fmt.Errorf("data object %s is not in the store", o.Name)
		}
		if size != o.Size {
			return fmt.Errorf("data object %s has %d bytes in the store, not %d", o.Name, size, o.Size)
		}
	}
	return nil
}

// witnesses are the heads that a manifest carries: those that the caller gives,
// of other stores, and those of this store's other chains. The chain's own is
// among them only if the chain no longer agrees with it: then this manifest is
// the lasting evidence of a rollback.
func (r *Repository) witnesses(chain manifest.Chain, st *state, given []manifest.Head) []manifest.Head {
	heads := slices.Clone(given)
	for _, head := range r.Heads() {
		if head.Chain == chain && (st == nil || len(st.witness(head, "")) == 0) {
			continue
		}
		head.Store = r.opts.Name
		if !slices.ContainsFunc(heads, func(h manifest.Head) bool { return h.Store == head.Store && h.Chain == head.Chain }) {
			heads = append(heads, head)
		}
	}
	return heads
}

// indexFor lists the live entries behind a new backup. It is left out while
// the chain has failures, which an index without the lost ones would hide, and
// thinned out where chains are long: then it comes only after a quarter as many
// manifests as it has entries, so that all indexes together stay proportional
// to the chain.
func indexFor(view *View, kind manifest.Kind) []manifest.Entry {
	switch kind {
	case manifest.KindFull, manifest.KindFiles, manifest.KindDrill, manifest.KindImages, manifest.KindBlob:
	default:
		return nil
	}
	if view.st.broken() {
		return nil
	}
	live := view.st.live
	if len(live) > maxIndexed {
		return nil
	}
	since := len(live)
	if view.st.anchor != nil {
		since = int(min(view.st.head-view.st.anchor.seq+1, manifest.Sequence(len(live))))
	}
	if len(live) > alwaysIndexed && since < len(live)/4 {
		return nil
	}
	return slices.Clone(live)
}

// alwaysIndexed is the number of live entries up to which every backup carries
// an index: some 40 KB.
const alwaysIndexed = 256

// maxIndexed is the number of live entries above which none carries one: as many
// fit into a manifest, at some 240 bytes a segment. Segments' own lists take the
// index's place until a prune makes the chain shorter.
const maxIndexed = 200_000

func retain(m *manifest.Manifest) time.Time {
	if m.RetainUntil == nil {
		return time.Time{}
	}
	return *m.RetainUntil
}

// whole brings a time into the form of a manifest.
func whole(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// wholeTimes brings a manifest's own times into that form. A span ends a little
// earlier by it, which promises less.
func wholeTimes(m *manifest.Manifest) {
	m.Created, m.NextExpectedBy, m.RetainUntil = whole(m.Created), wholeOrNil(m.NextExpectedBy), wholeOrNil(m.RetainUntil)
	if m.Span != nil {
		span := *m.Span
		span.FirstTime, span.LastTime = whole(span.FirstTime), whole(span.LastTime)
		m.Span = &span
	}
}

func wholeOrNil(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	w := whole(*t)
	return &w
}

// permanent reports errors that another attempt would only repeat.
func permanent(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, storage.ErrPermission) || errors.Is(err, storage.ErrFull) || errors.Is(err, storage.ErrInvalidName)
}

func (r *Repository) announce(done *Committed) {
	stored := int64(0)
	for _, o := range done.Manifest.Objects {
		stored += o.Size
	}
	r.opts.Events.Emit(events.Committed{
		Store: r.opts.Name, Chain: string(done.Manifest.Chain), Sequence: uint64(done.Sequence), ID: string(done.Manifest.ID),
		Created: done.Manifest.Created, Bytes: stored, Segment: done.Manifest.Kind == manifest.KindSegment,
	})
}
