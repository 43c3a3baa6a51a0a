package manifest

import (
	"bytes"
	"fmt"
	"slices"
)

// ImagesChain is the chain of a cluster's container images: what all of its
// nodes save, so that a blob which several of them have is stored once.
const ImagesChain Chain = "images"

// Images are the container images that one node needs to come up without a
// registry. Their data is in blobs, each of which a manifest of kind blob, earlier
// in the chain, has stored.
type Images struct {
	Node     string  `json:"node"`
	Platform string  `json:"platform"` // whose parts of multi-platform images were saved: linux/amd64
	Images   []Image `json:"images"`
	Blobs    []Hash  `json:"blobs"` // SHA-256 of all that the images need, ascending
}

// Image is one container image, and what its index or manifest is.
type Image struct {
	Names     []string `json:"names"` // under which the node's image store had it
	SHA256    Hash     `json:"sha256"`
	MediaType string   `json:"mediaType"`
	Size      int64    `json:"size"`             // of the index or manifest alone
	Pinned    bool     `json:"pinned,omitempty"` // the image store was asked never to remove it
}

// Blob is one content-addressed part of container images: an index, a manifest, a
// configuration or a layer. The manifest's object unseals to bytes of this SHA-256.
type Blob struct {
	SHA256 Hash `json:"sha256"`
}

func (i *Images) check() error {
	if err := checkElement("images.node", i.Node); err != nil {
		return err
	}
	if i.Platform == "" || len(i.Images) == 0 {
		return fmt.Errorf("images without platform or images")
	}
	last := Hash{}
	for _, blob := range i.Blobs {
		if bytes.Compare(blob[:], last[:]) <= 0 {
			return fmt.Errorf("images.blobs: %s is not behind %s", blob, last)
		}
		last = blob
	}
	for _, image := range i.Images {
		if err := image.check(); err != nil {
			return err
		}
		if !i.Needs(image.SHA256) {
			return fmt.Errorf("images: %s is not among the blobs", image.SHA256)
		}
	}
	return nil
}

func (i *Image) check() error {
	if len(i.Names) == 0 || i.SHA256 == (Hash{}) || i.MediaType == "" || i.Size < 1 {
		return fmt.Errorf("an image without names, SHA-256, media type or size")
	}
	last := ""
	for _, name := range i.Names {
		if name <= last {
			return fmt.Errorf("an image's name %q is not behind %q", clip(name), clip(last))
		}
		last = name
	}
	return nil
}

// Needs reports whether the images need a blob.
func (i *Images) Needs(blob Hash) bool {
	_, found := slices.BinarySearchFunc(i.Blobs, blob, func(a, b Hash) int { return bytes.Compare(a[:], b[:]) })
	return found
}
