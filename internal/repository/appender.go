package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// ErrCovered: segments in the chain hold all that this one would add, because
// another recorder was faster. There is nothing to commit.
var ErrCovered = errors.New("the chain holds this segment's revisions already")

// errElsewhere: a folder does not hold the head that was in it a moment ago. For
// as long as the head is young it is waited for, since a file system that was
// unmounted is mounted again; then the chain that is there counts.
var errElsewhere = errors.New("it is not what it was: is the store's file system mounted?")

// headAge is how long a head may be gone on from that was not looked at since.
// A manifest that is committed behind it meanwhile can't have been deleted again
// by then, since a sweep waits hours for any, so an empty place behind it was
// never taken. See docs/decisions/0009-fast-commits-of-segments.md.
const headAge = 10 * time.Minute

// hiddenEvery is how often the place behind the head is looked for among older
// versions too, in case that somebody hid what was committed there.
const hiddenEvery = time.Minute

// Appender commits segments to one chain, one after the other. It remembers the
// chain's head, so that a commit costs the store one conditional create. It is
// safe for concurrent use, and works on one commit at a time.
type Appender struct {
	r     *Repository
	chain manifest.Chain

	mu    sync.Mutex
	known *known // nil: nothing
}

// Appender returns a new appender to a chain. It reads nothing yet.
func (r *Repository) Appender(chain manifest.Chain) *Appender {
	return &Appender{r: r, chain: chain}
}

// known is what an appender remembers of its chain. The head counts, and was
// the chain's head at the time at.
type known struct {
	at       time.Time // both as a clock gives them, with its monotonic reading
	read     time.Time // when the head was last there, by a reading or by its own create
	stale    bool      // somebody may have committed since
	unhidden time.Time // when the place behind it was last looked for among older versions

	head     manifest.Sequence
	hash     manifest.Hash
	epoch    uint64
	coverage *coverage
	dropped  map[manifest.ID]manifest.Sequence // by prunes at or before the head
	halted   bool                              // what comes next needs the whole protocol
	problems []Problem
	evidence []manifest.Head // of this chain, that it no longer agrees with

	lister manifest.Sequence                 // the newest place with an index or a list of recent segments
	recent []manifest.Entry                  // the segments from there on
	ids    map[manifest.ID]manifest.Sequence // of what was committed lately
}

// Commit is Repository.Commit for a segment whose object the caller has put with
// PutObject. The draft's Epoch is the one that it continues: if the chain has
// come to another since, Commit fails with ErrReplaced. If segments in the chain
// hold all of it already, it fails with ErrCovered; roll-ups are never covered.
// After any other error the same draft may be committed again. Problems of the
// chain are those of when it was last read whole.
func (a *Appender) Commit(ctx context.Context, draft *manifest.Manifest) (*Committed, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	done, err := a.commit(ctx, draft)
	if err != nil {
		return nil, fmt.Errorf("commit %s to %s in %s: %w", draft.ID, a.chain, a.r.opts.Name, err)
	}
	return done, nil
}

func (a *Appender) commit(ctx context.Context, draft *manifest.Manifest) (*Committed, error) {
	if draft.Kind != manifest.KindSegment || draft.Chain != a.chain {
		return nil, fmt.Errorf("an appender to %s takes segments of that chain, not a %s of %s", a.chain, draft.Kind, draft.Chain)
	}
	if a.r.opts.Signer == nil {
		return nil, ErrNoSigner
	}
	failed := 0
	for range attempts {
		// Whatever is not plain is for the protocol's whole length.
		if ok, err := a.plain(ctx, draft); err != nil || !ok {
			if err == nil {
				return a.whole(ctx, draft)
			}
			return nil, err
		}
		if seq, ok := a.known.ids[draft.ID]; ok {
			return a.committed(ctx, seq)
		}
		if err := a.known.coverage.fits(draft, a.known.epoch); err != nil {
			return nil, err
		}
		if err := a.r.checkAge(draft.Created); err != nil {
			return nil, err
		}
		if err := a.r.checkObject(ctx, draft.Objects); err != nil {
			return nil, err
		}
		done, signed, err := a.next(draft)
		if err != nil {
			return nil, err
		}
		before := a.r.opts.Now()
		putErr := a.r.create(ctx, done.Manifest, signed)
		switch {
		case putErr == nil && a.fresh():
			a.known.extend(entryOf(&slot{seq: done.Sequence, hash: done.Hash, m: done.Manifest}), done.Manifest, len(done.Manifest.Recent) > 0)
			a.known.at, a.known.read = before, before
			a.r.noteHead(a.chain, done.Sequence, done.Hash)
			a.r.announce(done)
			return done, nil
		case putErr == nil: // it took so long that the place may have been pruned
			a.known = nil
		case !errors.Is(putErr, storage.ErrExist):
			if failed++; failed == failedAttempts || permanent(ctx, putErr) {
				return a.settle(ctx, draft, putErr)
			}
			a.known.stale = true // whether it took effect is for the chain to say
		default:
			a.known.stale = true // somebody was faster
		}
	}
	return nil, fmt.Errorf("other writers were faster %d times", attempts)
}

// plain brings what is known of the chain up to date, without listing it. It
// reports whether a segment may be committed by that knowledge alone.
func (a *Appender) plain(ctx context.Context, draft *manifest.Manifest) (bool, error) {
	k := a.known
	if k == nil || k.halted {
		return false, nil
	}
	if _, gone := k.dropped[draft.ID]; gone {
		return false, nil
	}
	if !a.r.opts.Folder && !k.stale && a.fresh() && elapsed(k.read, a.r.opts.Now()) < headAge {
		return true, nil
	}
	ok, err := a.catchUp(ctx)
	if !ok && !errors.Is(err, errElsewhere) {
		a.known = nil
	}
	return ok, err
}

// fresh reports whether the known head was the chain's so lately that its next
// place, if it is empty, was never taken.
func (a *Appender) fresh() bool {
	return elapsed(a.known.at, a.r.opts.Now()) < headAge
}

// elapsed is the time between two readings of a clock: by the clock on the wall
// or by the machine's monotonic one, whichever says more. A suspended machine
// stops one of them, and somebody may set the other.
func elapsed(from, to time.Time) time.Duration {
	wall := to.Round(0).Sub(from.Round(0))
	if wall < 0 { // set back: nothing is known
		return headAge
	}
	return max(wall, to.Sub(from))
}

// next makes the manifest that would follow the known head.
func (a *Appender) next(draft *manifest.Manifest) (*Committed, []byte, error) {
	k := a.known
	m := *draft
	wholeTimes(&m)
	m.Format, m.Cluster, m.Epoch = manifest.FormatVersion, a.r.cluster, k.epoch
	m.Sequence, m.Previous, m.Skipped, m.Index, m.Recent = k.head+1, k.hash, nil, nil, nil
	m.Heads = append(slices.Clone(draft.Heads), k.evidence...)
	if m.Sequence-k.lister >= a.r.listEvery && a.r.mayList(&m) {
		m.Recent = slices.Clone(k.recent)
		m.Heads = a.r.witnesses(a.chain, nil, m.Heads) // and not in each of thousands
	}
	signed, hash, err := a.r.sign(&m)
	if err != nil {
		return nil, nil, err
	}
	return &Committed{Manifest: &m, Sequence: m.Sequence, Hash: hash, Problems: k.problems}, signed, nil
}

// extend takes in the manifest behind the known head.
func (k *known) extend(e manifest.Entry, m *manifest.Manifest, lists bool) {
	k.head, k.hash = e.Sequence, e.Hash
	k.ids[e.ID] = e.Sequence
	if lists {
		for id, seq := range k.ids { // those of the list before stay for one more
			if seq < k.lister {
				delete(k.ids, id)
			}
		}
		k.lister, k.recent = e.Sequence, nil
	}
	if e.Reach != nil {
		k.coverage.add(e, m)
		k.recent = append(k.recent, e)
	}
}

// catchUp reads the places behind the known head, one by one, until one is
// empty. It reports false where it meets what only the whole chain explains:
// junk, a prune, a full, another epoch, a link that does not fit, or that the
// head itself is gone.
func (a *Appender) catchUp(ctx context.Context) (bool, error) {
	k, rd := a.known, a.r.reader(a.chain)
	if k.head == 0 || !a.fresh() { // what came behind it may have been pruned meanwhile
		return false, nil
	}
	if now := a.r.opts.Now(); a.r.opts.Folder || elapsed(k.read, now) >= headAge/2 {
		s, err := rd.read(ctx, k.head, claim{})
		if err == nil && a.r.opts.Folder && s.hash != k.hash {
			err = fmt.Errorf("the newest manifest, %s: %w", ref(a.chain, k.head), errElsewhere)
		}
		if err != nil || s.m == nil || s.hash != k.hash {
			return false, err
		}
		k.read = now
	}
	for {
		asked := a.r.opts.Now()
		s, err := rd.read(ctx, k.head+1, claim{})
		if err != nil {
			return false, err
		}
		if s.absent && elapsed(k.unhidden, asked) >= hiddenEvery {
			if s, err = rd.fallBack(ctx, s, claim{}); err != nil || !s.absent {
				return false, err
			}
			k.unhidden = asked
		}
		if s.absent {
			k.at, k.stale = asked, false
			return true, nil
		}
		m := s.m
		if m == nil || m.Previous != k.hash || len(m.Skipped) > 0 || m.Epoch != k.epoch || s.kind == Overwritten ||
			m.Kind != manifest.KindSegment && m.Kind != manifest.KindProof {
			return false, nil
		}
		if _, gone := k.dropped[m.ID]; gone {
			return false, nil
		}
		k.extend(entryOf(s), m, s.lists)
		k.read = asked
		a.r.noteHead(a.chain, s.seq, s.hash)
	}
}

// settle looks whether a create that failed took effect all the same.
func (a *Appender) settle(ctx context.Context, draft *manifest.Manifest, putErr error) (*Committed, error) {
	seq := a.known.head + 1
	putErr = fmt.Errorf("create %s: %w", ref(a.chain, seq), putErr)
	a.known.stale = true
	ok, err := a.catchUp(ctx)
	if err != nil || !ok {
		a.known = nil
		return nil, errors.Join(putErr, err)
	}
	if seq, ok := a.known.ids[draft.ID]; ok {
		return a.committed(ctx, seq)
	}
	return nil, putErr
}

// committed is a manifest of ours that the chain holds.
func (a *Appender) committed(ctx context.Context, seq manifest.Sequence) (*Committed, error) {
	s, err := a.r.reader(a.chain).read(ctx, seq, claim{})
	if err != nil {
		return nil, err
	}
	if s.m == nil {
		a.known = nil
		return nil, fmt.Errorf("%s was committed and can't be read back", ref(a.chain, seq))
	}
	done := &Committed{Manifest: s.m, Sequence: seq, Hash: s.hash, Problems: a.known.problems}
	a.r.announce(done)
	return done, nil
}

// whole commits by the protocol's whole length, and learns the chain from it.
func (a *Appender) whole(ctx context.Context, draft *manifest.Manifest) (*Committed, error) {
	c := a.r.commitOf(draft)
	done, err := c.run(ctx)
	a.known = nil
	if c.view != nil {
		_ = a.learn(ctx, c.view, c.asked) // what is not learnt is read again
	}
	return done, err
}

// learn remembers what a view shows, which was read from a time on. The
// knowledge only saves work, so an error leaves none.
func (a *Appender) learn(ctx context.Context, v *View, asked time.Time) error {
	k := &known{
		at: asked, read: asked, unhidden: asked, epoch: v.epoch(), dropped: v.st.dropped,
		problems: v.Problems, lister: v.st.lister(), ids: map[manifest.ID]manifest.Sequence{},
	}
	if v.Head != nil {
		k.head, k.hash = v.Head.Sequence, v.Head.Hash
	}
	next, _ := v.st.next() // junk behind the head has to be named
	k.halted = next != k.head+1 || slices.ContainsFunc(v.Problems, func(p Problem) bool { return p.Kind == NewerFormat })
	if seen, ok := a.r.seenHead(a.chain); ok && len(v.st.witness(seen, "")) > 0 {
		k.evidence = []manifest.Head{seen}
	}
	var err error
	if k.coverage, err = a.r.coverageOf(ctx, v); err != nil {
		return err
	}
	for _, e := range v.st.live {
		if e.Sequence < k.lister {
			continue
		}
		k.ids[e.ID] = e.Sequence
		if listable(v.st, e) {
			k.recent = append(k.recent, e)
		}
	}
	a.known = k
	return nil
}

// Head looks how far the chain reaches now: by asking for the place behind the
// head that it remembers, or by opening the chain. A chain that does not exist
// is an empty tip.
func (a *Appender) Head(ctx context.Context) (*Tip, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	doing := fmt.Sprintf("look how far %s in %s reaches", a.chain, a.r.opts.Name)
	if a.known != nil {
		ok, err := a.catchUp(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		if ok {
			return a.known.tip(), nil
		}
	}
	a.known = nil
	asked := a.r.opts.Now()
	v, err := a.r.load(ctx, a.chain, depth{tail: true, since: a.r.now().Add(-GiveUpAfter - skewMargin)})
	if err == nil {
		err = a.learn(ctx, v, asked)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return a.known.tip(), nil
}

func (k *known) tip() *Tip { return k.coverage.tip(k.head, k.hash, k.epoch) }
