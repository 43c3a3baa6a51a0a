package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// PruneOptions changes what a prune accepts.
type PruneOptions struct {
	// AcceptLosses prunes a chain that has failures. Its new index leaves out
	// what is missing, so that the chain verifies again: an operator's decision
	// after looking at the report, never a program's.
	AcceptLosses bool

	// Choose names more backups to remove. It is asked of each fresh view: of
	// the chain's backups, in the chain's order, and of how late it surely is.
	// What a policy decides must not go by a view that is stale.
	Choose func(backups []Backup, now time.Time) []manifest.ID

	// Window, asked as Choose is, is when the point-in-time window starts. What no
	// point since then needs, and not the latest, goes of the segments; and no full
	// may go that one of them is restored from (Backup.Base). nil: segments go only
	// when a roll-up has replaced them.
	Window func(now time.Time) time.Time

	// RolledUp prunes nothing but small segments that roll-ups have replaced, and
	// prunes of such that are done. It reads only what it needs of the chain, so a
	// recorder can do it every hour.
	RolledUp bool

	// DryRun reads and decides, and commits nothing. It needs no signer.
	DryRun bool
}

// ErrMayNotPrune: the trust file does not let this signing key sign prunes of
// the chain.
var ErrMayNotPrune = errors.New("this signing key may not prune")

// Pruned says what a prune manifest names.
type Pruned struct {
	Commit  *Committed    // nil: there was nothing to prune
	Removed []manifest.ID // backups
	Dropped []manifest.ID // uncommitted ids, whose writers must give up
	Objects []string      // data objects, below the cluster's folder
	Bytes   int64         // of them

	Manifests int // that go: of backups, of their proofs, of segments, and of earlier prunes that are done
	Segments  int // of these, segments
}

// Prune promises the deletion of the backups in remove, of what depends on them
// alone, and of garbage that is older than any writer may be. It deletes
// nothing: Sweep does, when the promise has stood for its time. It refuses
// (ErrRefused) to remove the latest backup of a chain, the newest proved one and
// what the store has locked, and refuses a chain with failures (ErrVerification)
// unless told otherwise. Which backups to remove is the retention policy's
// question.
func (r *Repository) Prune(ctx context.Context, chain manifest.Chain, remove []manifest.ID, opts PruneOptions) (*Pruned, error) {
	doing := fmt.Sprintf("prune %s in %s", chain, r.opts.Name)
	reads := depth{signatures: !opts.RolledUp}
	if opts.DryRun {
		v, err := r.load(ctx, chain, reads)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		plan, err := r.planPrune(ctx, v, remove, opts)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		return plan.pruned(nil), nil
	}
	if err := r.mayPrune(chain); err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	id, err := manifest.NewID(r.opts.Rand)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	var plan *prunePlan
	c := &commit{
		r: r, chain: chain, id: id, created: r.now(), depth: reads,
		// Whoever loses the race for the head reads again, and decides again.
		draft: func(v *View) (*manifest.Manifest, error) {
			if plan, err = r.planPrune(ctx, v, remove, opts); err != nil || plan == nil {
				return nil, err
			}
			return plan.manifest(id, r.now(), r.opts.Writer), nil
		},
	}
	done, err := c.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	if done == nil {
		return &Pruned{}, nil
	}
	return plan.pruned(done), nil
}

// mayPrune says early and clearly what the commit would refuse at its end.
func (r *Repository) mayPrune(chain manifest.Chain) error {
	if r.opts.Signer == nil {
		return ErrNoSigner
	}
	if why := r.maySign(chain, manifest.KindPrune); why != nil {
		return fmt.Errorf("%w: %w", ErrMayNotPrune, why)
	}
	return nil
}

// prunePlan is what a prune manifest will say.
type prunePlan struct {
	chain   manifest.Chain
	base    manifest.Sequence
	entries []manifest.Entry // manifests to delete, ascending
	index   []manifest.Entry // live afterwards
	objects []string
	bytes   int64
	drop    []manifest.ID
	removed []manifest.ID
	gone    map[manifest.Sequence]bool // places of segments that go
	blobs   map[manifest.Sequence]bool // places of blobs that go
	spared  map[manifest.ID]bool       // no part of the chain, and not to be deleted, or not yet
	lost    bool                       // manifests that witnesses saw are gone, and no garbage is surely garbage
}

func (p *prunePlan) manifest(id manifest.ID, now time.Time, by manifest.Writer) *manifest.Manifest {
	return &manifest.Manifest{
		Chain: p.chain, Kind: manifest.KindPrune, ID: id, Created: now, Writer: by, Index: p.index,
		Prune: &manifest.Prune{Base: p.base, Manifests: p.entries, Objects: p.objects, Drop: p.drop},
	}
}

func (p *prunePlan) pruned(done *Committed) *Pruned {
	if p == nil {
		return &Pruned{}
	}
	return &Pruned{Commit: done, Removed: p.removed, Dropped: p.drop, Objects: p.objects, Bytes: p.bytes, Manifests: len(p.entries), Segments: len(p.gone)}
}

// planPrune decides for one view. It returns nil if there is nothing to do.
func (r *Repository) planPrune(ctx context.Context, v *View, remove []manifest.ID, opts PruneOptions) (*prunePlan, error) {
	if failures := v.losses(); len(failures) > 0 && !opts.AcceptLosses {
		return nil, &VerificationError{Doing: "a chain with failures is not pruned, since that would hide them", Problems: failures}
	}
	if opts.RolledUp {
		if opts.AcceptLosses {
			return nil, errors.New("a prune of what roll-ups replaced accepts no losses")
		}
		return r.planRolledUp(ctx, v)
	}
	listed, err := r.list(ctx) // all of the cluster: what is newest may have to tell the store's time
	if err != nil {
		return nil, err
	}
	now, err := r.surely(ctx, listed)
	if err != nil {
		return nil, err
	}
	backups := v.Backups()
	var keep *window
	if opts.Window != nil {
		w := v.window(opts.Window(now), now)
		keep = &w
		for i := range backups {
			backups[i].Base = keep.bases[backups[i].ID]
		}
	}
	if opts.Choose != nil {
		remove = append(slices.Clone(remove), opts.Choose(backups, now)...)
	}
	if i := slices.IndexFunc(backups, func(b Backup) bool { return b.Base && slices.Contains(remove, b.ID) }); i >= 0 {
		return nil, fmt.Errorf("%w: points in time of %s are restored from %s", ErrRefused, v.Chain, backups[i].ID)
	}
	if err := v.mayRemove(remove, now); err != nil {
		return nil, err
	}
	lost, err := r.lostWitnessed(ctx, v, listed)
	if err != nil {
		return nil, err
	}
	data := listed.chain(v.Chain).data
	p := &prunePlan{chain: v.Chain, spared: map[manifest.ID]bool{}, lost: lost}
	p.chooseSegments(v, keep, sizesOf(r.cluster, data), now)
	p.blobs = v.spareBlobs(remove, now, sizesOf(r.cluster, data))
	p.chooseManifests(v, remove, now, func(name string) bool { return present(data, r.stored(name)) })
	p.chooseObjects(v, data, now, func(name string) string { return trimCluster(r.cluster, name) })
	p.setBase(v)
	losses := opts.AcceptLosses && len(v.losses()) > 0
	if len(p.entries) == 0 && len(p.objects) == 0 && !losses {
		return nil, nil
	}
	return p, nil
}

// setBase makes the lowest that stays the base; the prune itself if nothing does.
func (p *prunePlan) setBase(v *View) {
	p.base, _ = v.st.next()
	if len(p.index) > 0 {
		p.base = p.index[0].Sequence
	}
}

// mayRemove refuses to remove what must stay.
func (v *View) mayRemove(remove []manifest.ID, now time.Time) error {
	for _, id := range remove {
		if !slices.ContainsFunc(v.st.live, func(e manifest.Entry) bool {
			return e.ID == id && e.Kind != manifest.KindPrune && e.Kind != manifest.KindRekey && e.Kind != manifest.KindBlob
		}) {
			return fmt.Errorf("remove backup %s: %w", id, ErrNothing)
		}
	}
	backups := v.Backups()
	for _, b := range backups {
		if slices.Contains(remove, b.ID) && lockedAt(b.Manifest, now) {
			return fmt.Errorf("%w: %s is locked in the store until %s", ErrRefused, b.ID, b.RetainUntil.Format(time.RFC3339))
		}
	}
	if b, _ := Latest(backups); b != nil && len(backups) > 1 && slices.Contains(remove, b.ID) {
		return fmt.Errorf("%w: %s is what a restore of the latest of %s gives back", ErrRefused, b.ID, v.Chain)
	}
	left := slices.DeleteFunc(slices.Clone(backups), func(b Backup) bool { return slices.Contains(remove, b.ID) })
	if len(backups) > 0 && len(left) == 0 {
		return fmt.Errorf("%w: no backup of %s would be left", ErrRefused, v.Chain)
	}
	for _, b := range slices.Backward(backups) {
		if !b.Proved {
			continue
		}
		if slices.Contains(remove, b.ID) {
			return fmt.Errorf("%w: %s is the newest proved backup of %s", ErrRefused, b.ID, v.Chain)
		}
		break
	}
	return nil
}

// lockedAt reports whether the store was asked to protect a backup for longer.
func lockedAt(m *manifest.Manifest, now time.Time) bool {
	return m.RetainUntil != nil && m.RetainUntil.After(now)
}

// chooseManifests sorts the chain's manifests into those that go and those
// that stay: removed backups go with their proofs and rekeys, rekeys go that a
// newer one has replaced, prunes go when all they promised is done, and so does
// what is stored and does not count.
func (p *prunePlan) chooseManifests(v *View, remove []manifest.ID, now time.Time, there func(string) bool) {
	about := map[manifest.ID]manifest.ID{} // of proofs and rekeys: the backup that they go with
	replaced := v.replacements()
	pending := map[textAt]bool{} // named by a prune that stays
	for _, m := range v.Manifests {
		if m.Proof != nil {
			about[m.ID] = m.Proof.Of
		}
		if m.Rekey != nil {
			about[m.ID] = m.Rekey.Of
		}
	}
	live := map[manifest.ID]bool{}
	for _, e := range v.st.live {
		live[e.ID] = !slices.Contains(remove, e.ID) && !p.blobs[e.Sequence]
	}
	for _, e := range v.st.live {
		of, isAbout := about[e.ID]
		switch m := v.at(e.Sequence); {
		case p.blobs[e.Sequence]:
		case !live[e.ID]:
			p.removed = append(p.removed, e.ID)
		case isAbout && !live[of]:
		case p.gone[e.Sequence]:
		case m != nil && m.Rekey != nil && replaced.goes(m, now, func(o manifest.Object) bool { return there(o.Name) }):
		case m != nil && m.Prune != nil && v.done(m, now, there, v.holdsText):
		default:
			p.index = append(p.index, e)
			if m != nil && m.Prune != nil {
				for _, named := range m.Prune.Manifests {
					pending[textAt{named.Sequence, named.Hash}] = true
				}
			}
			continue
		}
		p.entries = append(p.entries, e)
	}
	for _, seq := range v.st.order { // stored, valid, and no part of the chain
		s := v.st.slots[seq]
		if s.m == nil || v.st.counts[seq] || pending[textAt{seq, s.hash}] {
			continue
		}
		if lockedAt(s.m, now) || v.st.forked(seq) {
			p.spared[s.m.ID] = true
		} else {
			p.entries = append(p.entries, entryOf(s))
		}
	}
	slices.SortFunc(p.entries, func(a, b manifest.Entry) int { return cmp.Compare(a.Sequence, b.Sequence) })
}

// passed is when the chain last went on behind an object that is no manifest to
// us, by the store's clock; zero if it never did. It may be one that was damaged,
// or that is signed by a key which our trust file lacks: a backup that somebody
// was told of, whose data was stored before the chain went on. Only a person can
// tell, who is asked by Verify to look at it and to delete it.
func (v *View) passed() (at time.Time) {
	for _, seq := range v.st.order {
		s := v.st.slots[seq]
		_, named := v.st.pruned[seq]
		if s.m != nil || s.absent || named || seq < v.st.base {
			continue
		}
		i, _ := slices.BinarySearchFunc(v.Manifests, seq, func(m Loaded, seq manifest.Sequence) int { return cmp.Compare(m.Sequence, seq) })
		if i == len(v.Manifests) {
			continue // nothing is behind it: junk that lies ahead, or a failure
		}
		behind := &v.Manifests[i]
		for _, t := range []time.Time{behind.Created, behind.Modified} {
			if t = t.Add(skewMargin); t.After(at) {
				at = t
			}
		}
	}
	return at
}

func (v *View) at(seq manifest.Sequence) *Loaded {
	i, ok := slices.BinarySearchFunc(v.Manifests, seq, func(m Loaded, seq manifest.Sequence) int { return cmp.Compare(m.Sequence, seq) })
	if !ok {
		return nil
	}
	return &v.Manifests[i]
}

// textAt is a manifest's text in its place.
type textAt struct {
	manifest.Sequence
	manifest.Hash
}

// done reports whether a prune manifest has served its purpose: its time is
// over, and nothing that it names is left.
func (v *View) done(m *Loaded, now time.Time, there func(string) bool, stored func(manifest.Entry) bool) bool {
	grace := ManifestGrace
	if light(m.Prune) {
		grace = RolledUpGrace
	}
	return m.age(now) >= grace+skewMargin && !slices.ContainsFunc(m.Prune.Objects, there) && !slices.ContainsFunc(m.Prune.Manifests, stored)
}

// holdsText reports whether a place still holds a manifest.
func (v *View) holdsText(e manifest.Entry) bool {
	s := v.st.slots[e.Sequence]
	return s != nil && s.m != nil
}

// chooseObjects names the data objects that go: those of manifests that go or
// have gone, and those that no manifest named in all the time that a writer
// has. The latter's ids are dropped: should a writer after all be alive, it
// finds its id here, because only one of the two can create the next manifest.
// What a manifest may have named that we can't read is no garbage.
func (p *prunePlan) chooseObjects(v *View, data map[manifest.ID][]storage.Info, now time.Time, below func(string) string) {
	keep, gone := map[string]bool{}, map[manifest.ID]bool{}
	for _, e := range p.entries {
		gone[e.ID] = true
	}
	for _, m := range v.Manifests {
		if m.Prune != nil { // it, or its successor in this plan, waits for the sweep
			for _, name := range m.Prune.Objects {
				keep[name] = true
			}
			for _, e := range m.Prune.Manifests {
				gone[e.ID] = true
			}
		}
	}
	replaced := v.replacements()
	holds := func(o manifest.Object) bool {
		return slices.ContainsFunc(data[manifest.ID(path.Base(path.Dir(o.Name)))], func(info storage.Info) bool {
			return below(info.Name) == o.Name && info.Size == o.Size
		})
	}
	live, passed := map[manifest.ID]bool{}, v.passed()
	for _, e := range p.index {
		live[e.ID] = true
		if m := v.at(e.Sequence); m != nil {
			if replaced.goes(m, now, holds) {
				continue // its object goes; the manifest stays and says what the data is
			}
			for _, o := range m.Objects {
				keep[o.Name] = true
			}
		} else { // damaged: what it names is not known, so all of it stays
			for _, info := range data[e.ID] {
				keep[below(info.Name)] = true
			}
		}
	}
	for id, infos := range data {
		newest := slices.MaxFunc(infos, func(a, b storage.Info) int { return a.Modified.Compare(b.Modified) }).Modified
		if !gone[id] && now.Sub(newest) <= GiveUpAfter+skewMargin || p.spared[id] {
			continue
		}
		if !gone[id] && !live[id] && (p.lost || !newest.After(passed)) {
			continue
		}
		named := false
		for _, info := range infos {
			if name := below(info.Name); !keep[name] && nameable(name) {
				p.objects, named = append(p.objects, name), true
				p.bytes += info.Size
			}
		}
		if named && !gone[id] && !live[id] {
			p.drop = append(p.drop, id)
		}
	}
	slices.Sort(p.objects)
	slices.Sort(p.drop)
}

// nameable reports whether a prune manifest can name an object, by the
// format's rule for a file in a backup's folder. What it can't is left alone.
func nameable(name string) bool {
	const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	file := name[strings.LastIndexByte(name, '/')+1:]
	return file != "" && len(file) <= 200 && file != "manifests" && file != "data" &&
		strings.Trim(file, alphanumeric+"._-") == "" && !strings.ContainsAny(file[:1], "._-")
}

func present(data map[manifest.ID][]storage.Info, name string) bool {
	for _, infos := range data {
		if slices.ContainsFunc(infos, func(info storage.Info) bool { return info.Name == name }) {
			return true
		}
	}
	return false
}
