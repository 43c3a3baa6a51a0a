package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lifeboat/internal/manifest"
)

// The chain of images has manifests of two kinds. A blob has one object, the data
// of one content-addressed part of an image; images name by SHA-256 the blobs that
// they need, which lie before them in the chain. So a blob is stored once whoever
// needs it, and goes when the last images that need it have gone.

// ErrIncomplete: images name a blob that the chain does not hold.
var ErrIncomplete = errors.New("the chain does not hold all blobs that the images need")

// Blobs are the container images that a store holds, and their parts.
type Blobs struct {
	Images []Backup // in the chain's order

	chain []Backup                   // all, in the chain's order
	held  map[manifest.Hash][]Backup // whole, by the SHA-256 of what they unseal to, the newest first
}

// ErrMayNotSign: the trust file does not let this signing key sign such manifests.
var ErrMayNotSign = errors.New("this signing key may not sign that")

// MayCommit says early, before data is stored for nothing, what a commit would
// refuse at its end: ErrMayNotSign or ErrNoSigner.
func (r *Repository) MayCommit(chain manifest.Chain, kind manifest.Kind) error {
	if r.opts.Signer == nil {
		return ErrNoSigner
	}
	if why := r.maySign(chain, kind); why != nil {
		return fmt.Errorf("%w: %w", ErrMayNotSign, why)
	}
	return nil
}

func (r *Repository) maySign(chain manifest.Chain, kind manifest.Kind) error {
	m := &manifest.Manifest{Chain: chain, Kind: kind, Created: r.now()}
	why := fmt.Errorf("the trust file does not know key %s", r.opts.Signer.Name())
	for _, v := range r.opts.Trust.Verifiers {
		if v.Key == r.opts.Signer.VerifierText() {
			if why = v.Allows(m); why == nil {
				return nil
			}
		}
	}
	return why
}

// All are the blobs of the chain in its order, each with the object in effect,
// also those of which the store has lost the object.
func (b *Blobs) All() []Backup { return b.chain }

// Of returns the blob of a SHA-256 whose object is in the store with its size; of
// several the newest.
func (b *Blobs) Of(sum manifest.Hash) (Backup, bool) {
	copies := b.held[sum]
	if len(copies) == 0 {
		return Backup{}, false
	}
	return copies[0], true
}

// Copies are all blobs of a SHA-256 whose objects are in the store with their sizes,
// the newest first. They may be sealed for different recipients, and signed by
// different keys. The caller does not change the list.
func (b *Blobs) Copies(sum manifest.Hash) []Backup { return b.held[sum] }

// Blobs lists what the chain of images holds. Like Backups it goes by the word
// of an index: what is used needs Confirmed.
func (r *Repository) Blobs(ctx context.Context) (*Blobs, error) {
	listed, err := r.listWhole(ctx, manifest.ImagesChain)
	if err != nil {
		return nil, err
	}
	v, err := r.loadListed(ctx, manifest.ImagesChain, listed.listedChain, depth{})
	if err != nil {
		return nil, err
	}
	size := sizesOf(r.cluster, listed.data)
	b := &Blobs{Images: v.Backups(), chain: v.blobs(), held: map[manifest.Hash][]Backup{}}
	for _, blob := range slices.Backward(b.chain) {
		if size(blob.Objects[0].Name) == blob.Objects[0].Size {
			b.held[blob.Blob.SHA256] = append(b.held[blob.Blob.SHA256], blob)
		}
	}
	return b, nil
}

// blobs are the view's, in the chain's order, each with the object in effect.
func (v *View) blobs() []Backup {
	rekeys, _ := v.rekeys()
	var list []Backup
	for _, m := range v.Manifests {
		if m.Blob == nil {
			continue
		}
		b := Backup{Manifest: m.Manifest, Hash: m.Hash, signed: v.st.slots[m.Sequence].signers != nil}
		if by := rekeys[m.ID]; len(by) > 0 {
			b.rekey = by[len(by)-1]
			b.Manifest, b.Rekeyed = effective(m.Manifest, b.rekey), b.rekey.ID
		}
		list = append(list, b)
	}
	return list
}

// holds are the SHA-256 of the view's blobs.
func (v *View) holds() map[manifest.Hash]bool {
	held := map[manifest.Hash]bool{}
	for _, m := range v.Manifests {
		if m.Blob != nil && !v.st.bad[m.Sequence] {
			held[m.Blob.SHA256] = true
		}
	}
	return held
}

// complete says whether all of the chain's images and blobs were read.
func (v *View) complete() bool {
	return !slices.ContainsFunc(v.st.live, func(e manifest.Entry) bool {
		return (e.Kind == manifest.KindBlob || e.Kind == manifest.KindImages) && v.at(e.Sequence) == nil
	})
}

// lacks names a blob that images need and the view does not hold.
func (v *View) lacks(images *manifest.Images) error {
	held := v.holds()
	for _, sum := range images.Blobs {
		if !held[sum] {
			return fmt.Errorf("%w: it lacks sha256:%s", ErrIncomplete, sum)
		}
	}
	return nil
}

// incomplete reports images whose blobs are not all in the chain, if all of it was
// read.
func (v *View) incomplete() []Problem {
	if v.Chain != manifest.ImagesChain || !v.complete() {
		return nil
	}
	var problems []Problem
	held := v.holds()
	for _, m := range v.Manifests {
		if m.Images == nil || v.st.bad[m.Sequence] {
			continue
		}
		var lacks []manifest.Hash
		for _, sum := range m.Images.Blobs {
			if !held[sum] {
				lacks = append(lacks, sum)
			}
		}
		if len(lacks) > 0 {
			problems = append(problems, Problem{
				Object: v.st.name(m.Sequence), Chain: v.Chain, Sequence: m.Sequence, Kind: NoBlob,
				Message: fmt.Sprintf("images %s need %d blobs that no manifest of the chain holds, such as sha256:%s", m.ID, len(lacks), lacks[0]),
			})
		}
	}
	return problems
}

// spareBlobs are the places of blobs that nobody needs once the given images are
// gone, and of those of which a later place has all that they are good for: the same,
// whole, for the same recipients or more. A blob that a save has put and not yet named
// is younger than GiveUpAfter.
func (v *View) spareBlobs(remove []manifest.ID, now time.Time, size func(string) int64) map[manifest.Sequence]bool {
	spare := map[manifest.Sequence]bool{}
	if v.Chain != manifest.ImagesChain || !v.complete() {
		return spare
	}
	needed := map[manifest.Hash]bool{}
	for _, m := range v.Manifests {
		if m.Images == nil || slices.Contains(remove, m.ID) {
			continue
		}
		for _, sum := range m.Images.Blobs {
			needed[sum] = true
		}
	}
	later := map[manifest.Hash][]Backup{} // whole ones
	for _, b := range slices.Backward(v.blobs()) {
		sum := b.Blob.SHA256
		instead := slices.ContainsFunc(later[sum], func(l Backup) bool { return l.SealedFor(b.Recipients) })
		switch {
		case v.at(b.Sequence).age(now) <= GiveUpAfter+skewMargin || lockedAt(b.Manifest, now):
		case !needed[sum] || instead:
			spare[b.Sequence] = true
			continue
		}
		if size(b.Objects[0].Name) == b.Objects[0].Size {
			later[sum] = append(later[sum], b)
		}
	}
	return spare
}

// SealedFor reports whether all of these recipients open the data in effect.
func (b Backup) SealedFor(recipients []string) bool {
	return !slices.ContainsFunc(recipients, func(name string) bool { return !slices.Contains(b.Recipients, name) })
}
