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
func (r *Repository) Commit(ctx context.Context, draft *manifest.Manifest) (*Committed, error) {
	c := &commit{
		r: r, chain: draft.Chain, id: draft.ID, created: draft.Created, objects: draft.Objects, depth: depth{tail: true},
		draft: func(*View) (*manifest.Manifest, error) { return draft, nil },
	}
	done, err := c.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("commit %s to %s in %s: %w", draft.ID, draft.Chain, r.opts.Name, err)
	}
	return done, nil
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
		view, err := c.r.load(ctx, c.chain, c.depth)
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
		if age := c.r.now().Sub(c.created); age > GiveUpAfter && !c.anyAge {
			return nil, fmt.Errorf("%w: its capture began %s ago, limit %s", ErrTooOld, age.Round(time.Second), GiveUpAfter)
		}
		// The commit point. Before the create takes effect the backup is
		// garbage; after it, a whole backup, whether or not we live to know.
		putErr := c.r.store.Put(ctx, c.r.stored(ManifestName(c.chain, m.Sequence)), bytes.NewReader(signed), storage.PutOptions{
			IfAbsent: true, RetainUntil: retain(m),
		})
		// Nor does an answer make it count: only the chain, read again, does.
		view, err = c.r.load(ctx, c.chain, c.depth)
		if err != nil {
			return nil, errors.Join(putErr, fmt.Errorf("read back, so it is not known whether the commit took effect: %w", err))
		}
		if done, err := c.settled(ctx, view); done != nil || err != nil {
			if done != nil {
				c.announce(done)
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
	for _, p := range view.Problems {
		if p.Kind == NewerFormat {
			return nil, nil, &VerificationError{Doing: "a newer lifeboat writes this chain; upgrade", Problems: []Problem{p}}
		}
	}
	if err := c.r.checkObjects(ctx, c.chain, c.id, c.objects); err != nil {
		return nil, nil, err
	}
	m := *draft
	m.Created, m.NextExpectedBy, m.RetainUntil = whole(m.Created), wholeOrNil(m.NextExpectedBy), wholeOrNil(m.RetainUntil)
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
	m.Heads = c.r.witnesses(view, draft.Heads)
	if m.Prune == nil {
		m.Index = indexFor(view, m.Kind)
	}
	for _, s := range m.Skipped {
		c.r.warn(c.chain, c.r.stored(ManifestName(c.chain, s.Sequence)), "an object that is no valid manifest lies in the chain's way; the next manifest skips and names it")
	}
	for _, p := range view.Problems {
		if p.Kind == RolledBack {
			c.r.warn(c.chain, p.Object, "%s", p.Message)
		}
	}
	signed, err := manifest.Sign(&m, c.r.opts.Signer)
	if err != nil {
		return nil, nil, err
	}
	// What we would not believe ourselves would be junk in the chain's way.
	if _, err := manifest.Open(signed, c.r.opts.Trust); err != nil {
		return nil, nil, fmt.Errorf("the own signature would not count: %w", err)
	}
	return &m, signed, nil
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
func (r *Repository) witnesses(view *View, given []manifest.Head) []manifest.Head {
	heads := slices.Clone(given)
	for _, head := range r.Heads() {
		if head.Chain == view.Chain && len(view.st.witness(head, "")) == 0 {
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
	if kind != manifest.KindFull && kind != manifest.KindFiles && kind != manifest.KindDrill || view.st.broken() {
		return nil
	}
	live := view.st.live
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

// ErrReplaced: the etcd that a full is of was replaced while it was on its way.
var ErrReplaced = errors.New("a full of another etcd cluster is there, whose capture began later: take a new backup")

// epoch is the view's, or the next when a full shows that etcd's history is
// another one: its cluster id changed, or its revision went back. Two captures
// may overlap and commit in the opposite order, whatever began first, and a
// degraded one may be of a member that lags: only a whole capture that began so
// long after another that the other's snapshot was surely taken can say that the
// revision went back. A full of the history before, by a writer that
// slept while etcd was replaced, must not become the newest history.
func (r *Repository) epoch(ctx context.Context, view *View, draft *manifest.Manifest) (uint64, error) {
	if view.Head == nil {
		return 1, nil
	}
	epoch := view.Head.Epoch
	if draft.Kind != manifest.KindFull || draft.Etcd == nil {
		return epoch, nil
	}
	recent, err := r.recentFulls(ctx, view)
	if err != nil {
		return 0, err
	}
	newest := newestOf(recent)
	if newest != nil && newest.Etcd.ClusterID != draft.Etcd.ClusterID {
		// A time from the future says nothing, and a cluster that the chain does
		// not know is the new one, however wrong its node's clock is.
		if draft.Created.Before(newest.Created) && !newest.Created.After(r.now().Add(skewMargin)) {
			known, err := r.knowsCluster(ctx, view, draft.Etcd.ClusterID)
			if err != nil {
				return 0, err
			}
			if known {
				return 0, fmt.Errorf("%w: backup %s of %s", ErrReplaced, newest.ID, newest.Created.Format(time.RFC3339))
			}
		}
		return epoch + 1, nil
	}
	if newest == nil || len(draft.Degraded) > 0 {
		return epoch, nil
	}
	for _, m := range recent {
		if draft.Etcd.Revision < reached(m) && draft.Created.Sub(m.Created) > snapshotWithin {
			return epoch + 1, nil
		}
	}
	return epoch, nil
}

// snapshotWithin is how long after its capture began a full's revision may still
// be taken: dead members are waited for, bad ones are passed over. It is a guess
// on the long side. Within it a revision that went back is not seen; the next full
// sees it, unless etcd has come further by then.
const snapshotWithin = 5 * time.Minute

func retain(m *manifest.Manifest) time.Time {
	if m.RetainUntil == nil {
		return time.Time{}
	}
	return *m.RetainUntil
}

// whole brings a time into the form of a manifest.
func whole(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

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

func (c *commit) announce(done *Committed) {
	stored := int64(0)
	for _, o := range done.Manifest.Objects {
		stored += o.Size
	}
	c.r.opts.Events.Emit(events.Committed{
		Store: c.r.opts.Name, Chain: string(c.chain), Sequence: uint64(done.Sequence), ID: string(done.Manifest.ID),
		Created: done.Manifest.Created, Bytes: stored,
	})
}
