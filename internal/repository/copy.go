package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// ErrOrder: a chain takes no copy of a backup that is older than what it holds
// already, since "the latest" is a chain's last.
var ErrOrder = errors.New("the destination holds newer backups of this chain already")

// Original is a manifest that another store may take a copy of.
type Original struct {
	*manifest.Manifest // with the objects in effect
	Hash               manifest.Hash
}

// Originals are what can be copied from a chain: its fulls, segments, files, proofs,
// images and blobs, in the chain's order, each with its own signature checked, since whoever
// copies signs anew. Segments that a roll-up has replaced are left out. What is
// wrong with the chain comes with them.
func (r *Repository) Originals(ctx context.Context, chain manifest.Chain) ([]Original, []Problem, error) {
	listed, err := r.listWhole(ctx, chain)
	if err != nil {
		return nil, nil, err
	}
	v, err := r.loadListed(ctx, chain, listed.listedChain, depth{signatures: true})
	if err != nil {
		return nil, nil, err
	}
	size := sizesOf(r.cluster, listed.data)
	replaced := v.replaced(v.rollUps(func(p piece) bool { return v.sound(p, size) }))
	rekeys, _ := v.rekeys()
	var list []Original
	for i := range v.Manifests {
		m := &v.Manifests[i]
		if v.st.bad[m.Sequence] || replaced[m.Sequence] || !copiedKind(m.Kind) {
			continue
		}
		var rekey *Loaded
		if by := rekeys[m.ID]; len(by) > 0 {
			rekey = by[len(by)-1]
		}
		list = append(list, Original{Manifest: effective(m.Manifest, rekey), Hash: m.Hash})
	}
	return list, v.Problems, nil
}

// Copying takes manifests of one chain of another store into this one's.
type Copying struct {
	r     *Repository
	chain manifest.Chain
	from  string                   // the other store's name
	place map[manifest.ID]int      // of all originals, in their own chain
	all   map[manifest.ID]Original // of the whole chain, whether they are to be copied or not
}

// Copy prepares to copy from a chain of the store that is named from;
// originals is all that it holds.
func (r *Repository) Copy(chain manifest.Chain, from string, originals []Original) *Copying {
	c := &Copying{r: r, chain: chain, from: from, place: map[manifest.ID]int{}, all: map[manifest.ID]Original{}}
	for i, o := range originals {
		c.place[o.ID], c.all[o.ID] = i, o
	}
	return c
}

// Fate says what became, or is to become, of one copy.
type Fate string

// The fates of copies.
const (
	FateWanted  Fate = "wanted"  // it can be copied
	FatePresent Fate = "present" // the destination has it
	FatePruned  Fate = "pruned"  // the destination had it, and a prune said that it goes
	FateDropped Fate = "dropped" // the destination never had all of it: a prune took what a copy had left for garbage
	FateOld     Fate = "old"     // it is older than what the destination holds: ErrOrder
	FateAlone   Fate = "alone"   // a proof of a backup that is not there, or a segment of a history that the destination is not in
	FateCovered Fate = "covered" // a segment or blob, all of which the destination's own hold
	FateCopied  Fate = "copied"
	FateFailed  Fate = "failed"
)

// Plan says of each id what a copy would do, assuming that they are copied in
// the originals' order. It commits nothing.
func (c *Copying) Plan(ctx context.Context, ids []manifest.ID) (map[manifest.ID]Fate, error) {
	v, err := c.r.load(ctx, c.chain, depth{})
	if err != nil {
		return nil, err
	}
	fates := map[manifest.ID]Fate{}
	for _, id := range ids {
		if fates[id], err = c.fate(ctx, v, c.all[id].Manifest); err != nil {
			return nil, err
		}
	}
	epochs := map[uint64]bool{} // of etcd's histories, those that fulls are copied of
	for _, id := range ids {
		if m := c.all[id].Manifest; m.Etcd != nil && fates[id] == FateWanted {
			epochs[m.Epoch] = true
		}
	}
	for _, id := range ids { // what belongs to a backup that is about to be copied is not alone
		m := c.all[id].Manifest
		if fates[id] == FateAlone && (m.Proof != nil && fates[m.Proof.Of] == FateWanted || m.Span != nil && epochs[m.Epoch]) {
			fates[id] = FateWanted
		}
	}
	return fates, nil
}

// fate decides for one view.
func (c *Copying) fate(ctx context.Context, v *View, m *manifest.Manifest) (Fate, error) {
	live := map[manifest.ID]bool{}
	for _, e := range v.st.live {
		live[e.ID] = true
	}
	by, gone := v.st.dropped[m.ID]
	switch {
	case gone && slices.Contains(v.st.slots[by].m.Prune.Drop, m.ID):
		return FateDropped, nil
	case gone:
		return FatePruned, nil
	case live[m.ID]:
		return FatePresent, nil
	case m.Proof != nil && !live[m.Proof.Of]:
		return FateAlone, nil
	case m.Proof != nil:
		return FateWanted, nil
	case m.Span != nil:
		return c.segmentFate(ctx, v, m)
	case m.Blob != nil && v.holds()[m.Blob.SHA256]:
		return FateCovered, nil
	case m.Blob != nil:
		return FateWanted, nil
	}
	for _, e := range v.st.live {
		if place, known := c.place[e.ID]; known && place > c.place[m.ID] && oneHistory(c.all[e.ID].Manifest, m) {
			return FateOld, nil
		}
	}
	last, err := c.last(ctx, v, func(other *manifest.Manifest) bool { return oneHistory(other, m) })
	if err != nil {
		return "", err
	}
	if last != nil && last.Created.After(m.Created) {
		if _, known := c.place[last.ID]; !known { // what the source has, its own order judges
			return FateOld, nil
		}
	}
	return FateWanted, nil
}

// oneHistory reports whether a backup may be newer or older than another of its
// chain: all but the images of several nodes, which share one.
func oneHistory(a, b *manifest.Manifest) bool {
	return backupKind(a.Kind) && (a.Images == nil || b.Images == nil || a.Images.Node == b.Images.Node)
}

// segmentFate: a segment is of use behind a full of its own history, while that
// is the newest there. Where it lies among the segments matters to nobody.
func (c *Copying) segmentFate(ctx context.Context, v *View, m *manifest.Manifest) (Fate, error) {
	for _, e := range slices.Backward(v.st.live) {
		o, known := c.all[e.ID]
		if e.Kind != manifest.KindFull || !known {
			continue
		}
		s, err := c.r.slotOf(ctx, v, e)
		if err != nil {
			return "", err
		}
		if s.m == nil {
			continue
		}
		if o.Epoch != m.Epoch || s.m.Epoch != v.Head.Epoch {
			return FateAlone, nil
		}
		reach := *m.Reach()
		reach.Epoch = s.m.Epoch
		if holdsAll(v.pieces(), reach) {
			return FateCovered, nil
		}
		return FateWanted, nil
	}
	return FateAlone, nil
}

// backupKind: what people call a backup, and retention judges.
func backupKind(k manifest.Kind) bool {
	return k == manifest.KindFull || k == manifest.KindFiles || k == manifest.KindImages
}

func copiedKind(k manifest.Kind) bool {
	return backupKind(k) || k == manifest.KindSegment || k == manifest.KindProof || k == manifest.KindBlob
}

// last is the destination's last backup that is meant; nil if there is none that can
// be read.
func (c *Copying) last(ctx context.Context, v *View, meant func(*manifest.Manifest) bool) (*manifest.Manifest, error) {
	for _, e := range slices.Backward(v.st.live) {
		if !backupKind(e.Kind) {
			continue
		}
		s := v.st.slots[e.Sequence]
		if s == nil {
			var err error
			if s, err = c.r.reader(c.chain).read(ctx, e.Sequence, v.st.claim(e.Sequence)); err != nil {
				return nil, err
			}
		}
		if s.m != nil && meant(s.m) {
			return s.m, nil
		}
	}
	return nil, nil
}

// epoch keeps the source's count of etcd's histories: it goes up by as much as
// it did there since the destination's last backup.
func (c *Copying) epoch(ctx context.Context, v *View, m *manifest.Manifest) (uint64, error) {
	if v.Head == nil {
		return m.Epoch, nil
	}
	last, err := c.last(ctx, v, func(*manifest.Manifest) bool { return true })
	if err != nil || m.Proof != nil || m.Span != nil || last == nil {
		return v.Head.Epoch, err
	}
	if o, known := c.all[last.ID]; known && m.Epoch >= o.Epoch {
		return v.Head.Epoch + (m.Epoch - o.Epoch), nil
	}
	return c.r.epoch(ctx, v, m)
}

// Draft is the manifest of a copy as this store would commit it: the original's
// id, time and facts, with the objects in its own folder and where it came from.
// What the original said of other chains, and of when the next one is due, is
// not repeated.
func (c *Copying) Draft(id manifest.ID, retainUntil time.Time) *manifest.Manifest {
	o := c.all[id]
	m := *o.Manifest
	m.Copied = &manifest.Head{Store: manifest.Line(c.from), Chain: c.chain, Sequence: o.Sequence, Hash: o.Hash}
	m.Writer, m.Heads, m.Index, m.Recent, m.Skipped, m.NextExpectedBy, m.RetainUntil = c.r.opts.Writer, nil, nil, nil, nil, nil, nil
	if !retainUntil.IsZero() && len(o.Objects) > 0 {
		m.RetainUntil = &retainUntil
	}
	m.Objects = slices.Clone(o.Objects)
	for i := range m.Objects {
		m.Objects[i].Name = ObjectName(c.chain, m.ID, fileOf(m.Objects[i].Name, m.ID))
	}
	return &m
}

// fileOf names the file of a copy in its backup's folder. What a rekey sealed
// anew has another name than the original bytes: those may be there from a copy
// that was interrupted before the rekey, and nothing is replaced.
func fileOf(name string, id manifest.ID) string {
	file, folder := path.Base(name), path.Base(path.Dir(name))
	if by, rest, ok := strings.Cut(file, "-"); ok && manifest.ID(by).Check() == nil && folder != string(id) {
		file = rest // an earlier rekey's, before it was copied to where it came from
	}
	if folder != string(id) {
		file = folder + "-" + file
	}
	return file
}

// Commit makes a copy count; its objects have been put. A copy may be of any
// age, so nothing hurries it but a prune that takes its objects for garbage:
// that one wins if it comes first. It fails with ErrOrder, ErrSuperseded, or, of
// a proof whose backup went away, ErrNothing.
func (c *Copying) Commit(ctx context.Context, draft *manifest.Manifest) (*Committed, error) {
	commit := &commit{
		r: c.r, chain: c.chain, id: draft.ID, created: draft.Created, objects: draft.Objects, anyAge: true, depth: depth{tail: true},
		draft: func(v *View) (*manifest.Manifest, error) {
			switch fate, err := c.fate(ctx, v, draft); {
			case err != nil:
				return nil, err
			case fate == FateOld:
				return nil, ErrOrder
			case fate == FateAlone && draft.Span != nil:
				return nil, fmt.Errorf("no full of its history: %w", ErrNothing)
			case fate == FateAlone:
				return nil, fmt.Errorf("backup %s: %w", draft.Proof.Of, ErrNothing)
			case fate == FateCovered:
				return nil, ErrCovered
			}
			m := *draft
			var err error
			m.Epoch, err = c.epoch(ctx, v, c.all[draft.ID].Manifest)
			return &m, err
		},
	}
	commit.depth.tail = draft.Images == nil // else all blobs are looked for
	done, err := commit.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("commit a copy of %s to %s in %s: %w", draft.ID, c.chain, c.r.opts.Name, err)
	}
	return done, nil
}

// Holds reports whether the store has an object with exactly these bytes. It
// reads all of them.
func (r *Repository) Holds(ctx context.Context, o manifest.Object) (bool, error) {
	there, err := r.exists(ctx, r.stored(o.Name))
	if err != nil || !there {
		return false, err
	}
	err = r.readCurrent(ctx, o)
	if errors.Is(err, ErrVerification) {
		return false, nil
	}
	return err == nil, err
}

// CopyObject puts an object that another store holds, under another name, and
// checks its size and SHA-256 on the way: what does not fit is an error that
// wraps ErrVerification, and nothing is stored. progress is told the bytes of
// each read.
func (r *Repository) CopyObject(ctx context.Context, from *Repository, o manifest.Object, name string, retainUntil time.Time, progress func(int)) error {
	body, err := from.OpenObject(ctx, o)
	if err != nil {
		return err
	}
	defer body.Close()
	source := &watched{r: body, progress: progress}
	err = r.PutObject(ctx, name, source, retainUntil)
	if source.err != nil && source.err != io.EOF && !errors.Is(err, source.err) {
		err = errors.Join(source.err, err) // a store need not say why its reader failed
	}
	if errors.Is(err, storage.ErrExist) {
		err = fmt.Errorf("other bytes have its name: %w", err)
	}
	return err
}

// watched tells of the bytes that are read through it.
type watched struct {
	r        io.Reader
	progress func(int)
	err      error
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.progress(n)
	if err != nil {
		w.err = err
	}
	return n, err
}
