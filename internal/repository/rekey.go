package repository

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lifeboat/internal/manifest"
)

// A rekey stands in the chain behind the backup that it is of, and holds that
// backup's data sealed anew. Whoever reads gets the newest one's object in
// place of the backup's own; the chain's order, the backup's id, its facts and
// its place stay what they were.

// CommitRekey makes a rekey count, as Commit does a backup. It fails with
// ErrNothing if the backup that it is of is no part of the chain any more.
func (r *Repository) CommitRekey(ctx context.Context, draft *manifest.Manifest) (*Committed, error) {
	c := &commit{
		r: r, chain: draft.Chain, id: draft.ID, created: draft.Created, objects: draft.Objects, depth: depth{tail: true},
		draft: func(v *View) (*manifest.Manifest, error) {
			for _, e := range v.st.live {
				if e.ID == draft.Rekey.Of && sealedKind(e.Kind) {
					return draft, nil
				}
			}
			return nil, fmt.Errorf("backup %s: %w", draft.Rekey.Of, ErrNothing)
		},
	}
	done, err := c.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("commit a rekey of %s to %s in %s: %w", draft.Rekey.Of, draft.Chain, r.opts.Name, err)
	}
	return done, nil
}

// MayRekey says early what would make a rekey worthless: it counts only by a
// key that may sign rekeys and also the kind of backup that it is of.
func (r *Repository) MayRekey(b Backup) error {
	if r.opts.Signer == nil {
		return ErrNoSigner
	}
	for _, v := range r.opts.Trust.Verifiers {
		if v.Key != r.opts.Signer.VerifierText() {
			continue
		}
		if err := v.Allows(&manifest.Manifest{Chain: b.Chain, Kind: manifest.KindRekey, Created: r.now()}); err != nil {
			return fmt.Errorf("%w: %w", ErrMayNotRekey, err)
		}
		if err := v.Allows(&manifest.Manifest{Chain: b.Chain, Kind: b.Kind, Created: r.now()}); err != nil {
			return fmt.Errorf("%w: %w", ErrMayNotRekey, err)
		}
		return nil
	}
	return fmt.Errorf("%w: the trust file does not know key %s", ErrMayNotRekey, r.opts.Signer.Name())
}

// sealedKind: what a rekey can be of.
func sealedKind(k manifest.Kind) bool {
	return k == manifest.KindFull || k == manifest.KindFiles || k == manifest.KindBlob
}

// rekeys are the chain's rekeys as far as they were read: by backup, ascending,
// those that stand for its data, the last one being in effect.
func (v *View) rekeys() (by map[manifest.ID][]*Loaded, misfits []Problem) {
	backups := map[manifest.ID]*Loaded{}
	for i := range v.Manifests {
		m := &v.Manifests[i]
		switch {
		case sealedKind(m.Kind):
			backups[m.ID] = m
		case m.Rekey != nil && backups[m.Rekey.Of] != nil: // else it is an orphan, and stands for nothing
			of := backups[m.Rekey.Of]
			if why := v.misfit(m, of); why != "" {
				misfits = append(misfits, Problem{
					Object: v.st.name(m.Sequence), Chain: v.Chain, Sequence: m.Sequence, Kind: Misfit,
					Message: fmt.Sprintf("it is a rekey of backup %s, and %s; it is not used", of.ID, why),
				})
				continue
			}
			if by == nil {
				by = map[manifest.ID][]*Loaded{}
			}
			by[of.ID] = append(by[of.ID], m)
		}
	}
	return by, misfits
}

// misfit says why a rekey can't stand for a backup's data. A key gets no power
// from the kind rekey that it does not have anyway: one that signs what stands
// for a full may also sign fulls.
func (v *View) misfit(m, of *Loaded) string {
	if v.st.bad[m.Sequence] {
		return "the chain names another manifest in its place"
	}
	if len(of.Objects) != 1 || of.Objects[0].Role != m.Objects[0].Role || of.Objects[0].PlainSize != m.Objects[0].PlainSize {
		return "its data is not of that backup's role and size"
	}
	why := "no key that signed it may"
	for _, signer := range v.st.slots[m.Sequence].signers {
		err := signer.Allows(&manifest.Manifest{Chain: m.Chain, Kind: of.Kind, Created: m.Created})
		if err == nil {
			return ""
		}
		why = err.Error()
	}
	return why
}

// effective is a backup's manifest with the data that stands for its own.
func effective(m *manifest.Manifest, rekey *Loaded) *manifest.Manifest {
	if rekey == nil {
		return m
	}
	e := *m
	e.Objects, e.Recipients = rekey.Objects, rekey.Recipients
	if e.RetainUntil == nil || rekey.RetainUntil != nil && rekey.RetainUntil.After(*e.RetainUntil) {
		e.RetainUntil = rekey.RetainUntil
	}
	return &e
}

// replacements says which manifests of a view have had their data replaced by
// a rekey.
type replacements struct {
	by map[manifest.Sequence]*Loaded // the rekey in effect, by the place of what it replaces
}

func (v *View) replacements() replacements {
	r := replacements{by: map[manifest.Sequence]*Loaded{}}
	rekeys, _ := v.rekeys()
	for i := range v.Manifests {
		m := &v.Manifests[i]
		list := rekeys[m.ID]
		if len(list) == 0 {
			continue
		}
		newest := list[len(list)-1]
		r.by[m.Sequence] = newest
		for _, older := range list[:len(list)-1] {
			r.by[older.Sequence] = newest
		}
	}
	return r
}

// objects are those that readers use of a manifest's.
func (r replacements) objects(m *Loaded) []manifest.Object {
	if r.by[m.Sequence] != nil {
		return nil
	}
	return m.Objects
}

// goes reports whether a prune may name what a rekey has replaced: it is not
// locked, and the store holds what stands for it.
func (r replacements) goes(m *Loaded, now time.Time, holds func(manifest.Object) bool) bool {
	by := r.by[m.Sequence]
	return by != nil && !lockedAt(m.Manifest, now) && holds(by.Objects[0])
}

// Confirmed are those of the backups whose own signature counts now. Others are
// listed by the word of an index and must not be signed for anew: each is an
// error that wraps ErrVerification, beside the list of those that are.
func (r *Repository) Confirmed(ctx context.Context, backups []Backup) ([]Backup, error) {
	var good []Backup
	var errs []error
	for _, b := range backups {
		if err := r.confirm(ctx, &b); err != nil {
			errs = append(errs, err)
			continue
		}
		good = append(good, b)
	}
	return good, errors.Join(errs...)
}
