package oci

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Source holds blobs: an image store, or a backup of one.
type Source interface {
	// Has reports whether a blob is there. Its size is none of its business.
	Has(ctx context.Context, d Digest) (bool, error)

	// Document returns the bytes of an index or manifest that is there, of a size
	// up to MaxDocument. They have been Verified.
	Document(ctx context.Context, d Descriptor) ([]byte, error)
}

// Blob is one part of an image.
type Blob struct {
	Descriptor
	Children []Descriptor // what it names and the image needs

	// Labels are what containerd needs on the blob so as to keep its children as
	// long as it keeps the blob (its docs/garbage-collection.md).
	Labels map[string]string
}

// MissingError: an image is not whole in its source.
type MissingError struct {
	Digest Digest
	What   string // "a layer"
}

func (e *MissingError) Error() string { return fmt.Sprintf("%s is not there: %s", e.What, e.Digest) }

// ErrPlatform: an image has nothing for a platform.
var ErrPlatform = errors.New("the image has nothing for this platform")

// Bounds of one image.
const (
	maxDepth = 4 // of indexes in indexes
	maxBlobs = 20_000
)

// Needed lists the blobs that an image needs on a platform, each once, a blob
// before those that it names. Of an index it takes what fits the platform and is
// whole in the source; the rest of it need not be there. It returns a
// *MissingError if something is not there, ErrPlatform, or ErrMalformed.
func Needed(ctx context.Context, root Descriptor, p Platform, source Source) ([]Blob, error) {
	if err := root.Check(); err != nil {
		return nil, err
	}
	w := &walk{ctx: ctx, platform: p, source: source}
	blobs, err := w.need(root, "the image's index or manifest", 0)
	if err != nil {
		return nil, err
	}
	var list []Blob
	seen := map[Digest]bool{}
	for _, b := range slices.Backward(blobs) { // of a blob that several name, the last mention is behind all of them
		if !seen[b.Digest] {
			seen[b.Digest] = true
			list = append(list, b)
		}
	}
	slices.Reverse(list)
	return list, nil
}

type walk struct {
	ctx      context.Context
	platform Platform
	source   Source
	met      int
}

// need lists a blob and what is below it.
func (w *walk) need(d Descriptor, what string, depth int) ([]Blob, error) {
	if w.met++; w.met > maxBlobs || depth > maxDepth {
		return nil, fmt.Errorf("%w: it has more than %d blobs, or indexes in indexes", ErrMalformed, maxBlobs)
	}
	there, err := w.source.Has(w.ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	if !there {
		return nil, &MissingError{Digest: d.Digest, What: what}
	}
	if !d.IsIndex() && !d.IsManifest() {
		if depth == 0 {
			return nil, fmt.Errorf("%w: %s is %q, neither an index nor a manifest", ErrMalformed, d.Digest, clip(d.MediaType))
		}
		return []Blob{{Descriptor: d}}, nil
	}
	if d.Size > MaxDocument {
		return nil, fmt.Errorf("%w: %s claims %d bytes, limit %d", ErrMalformed, d.Digest, d.Size, MaxDocument)
	}
	data, err := w.source.Document(w.ctx, d)
	if err != nil {
		return nil, err
	}
	doc, err := Parse(d, data)
	if err != nil {
		return nil, err
	}
	if d.IsIndex() {
		return w.index(d, doc, depth)
	}
	return w.manifest(d, doc, depth)
}

func (w *walk) manifest(d Descriptor, doc *Document, depth int) ([]Blob, error) {
	self := Blob{Descriptor: d, Children: []Descriptor{doc.Config}, Labels: map[string]string{"containerd.io/gc.ref.content.config": string(doc.Config.Digest)}}
	list, err := w.leaf(doc.Config, "the image's configuration", depth)
	if err != nil {
		return nil, err
	}
	for i, layer := range doc.Layers {
		more, err := w.leaf(layer, "a layer", depth)
		var missing *MissingError
		if errors.As(err, &missing) && layer.elsewhere() {
			continue
		}
		if err != nil {
			return nil, err
		}
		self.Children = append(self.Children, layer)
		self.Labels[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = string(layer.Digest)
		list = append(list, more...)
	}
	return append([]Blob{self}, list...), nil
}

// leaf is need for what names nothing, whatever its media type says.
func (w *walk) leaf(d Descriptor, what string, depth int) ([]Blob, error) {
	if d.IsIndex() || d.IsManifest() {
		return nil, fmt.Errorf("%w: %s is %s, and a %s", ErrMalformed, d.Digest, what, d.MediaType)
	}
	return w.need(d, what, depth+1)
}

// index takes what is whole of what fits the platform: which of several variants
// the image store chose, it alone knows.
func (w *walk) index(d Descriptor, doc *Document, depth int) ([]Blob, error) {
	self := Blob{Descriptor: d, Labels: map[string]string{}}
	var list []Blob
	var missing error
	for i, child := range doc.Manifests {
		if !child.IsIndex() && !child.IsManifest() || !w.fits(child) {
			continue
		}
		more, err := w.need(child, "the manifest for "+w.platform.String(), depth+1)
		var lacks *MissingError
		if errors.As(err, &lacks) || errors.Is(err, ErrPlatform) {
			if missing == nil {
				missing = err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		self.Children = append(self.Children, child)
		self.Labels[fmt.Sprintf("containerd.io/gc.ref.content.m.%d", i)] = string(child.Digest)
		list = append(list, more...)
	}
	switch {
	case len(self.Children) > 0:
		return slices.Concat([]Blob{self}, list), nil
	case missing != nil:
		return nil, missing
	}
	return nil, fmt.Errorf("%w: %s names no image for %s", ErrPlatform, d.Digest, w.platform)
}

func (w *walk) fits(d Descriptor) bool {
	return d.Platform == nil || *d.Platform == w.platform
}
