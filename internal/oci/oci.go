// Package oci is what lifeboat has to know of container images' format: which
// blobs an index and a manifest name, which of them one platform needs, and by
// which labels containerd keeps them together.
//
// What it reads comes from registries, and is hostile until its digest was
// checked by whoever reads it; it may be nonsense even then. Only SHA-256 is known.
// The formats are OCI's image specification (1.1) and Docker's schema 2. Start at
// Needed.
package oci

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Media types of what names other blobs.
const (
	TypeIndex          = "application/vnd.oci.image.index.v1+json"
	TypeManifest       = "application/vnd.oci.image.manifest.v1+json"
	TypeDockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	TypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
)

// MaxDocument bounds an index and a manifest, in bytes. containerd and registries
// take no more than 4 MiB.
const MaxDocument = 4 << 20

// MaxBlob bounds the size that a descriptor may claim, in bytes.
const MaxBlob = 1 << 40

// ErrMalformed: an index or a manifest is none.
var ErrMalformed = errors.New("malformed image")

// Digest names a blob by its SHA-256: "sha256:" and 64 lower-case hexadecimal digits.
type Digest string

// DigestOf is the digest of a SHA-256.
func DigestOf(sum [32]byte) Digest { return Digest("sha256:" + hex.EncodeToString(sum[:])) }

// Sum returns the digest's SHA-256. It returns ErrMalformed for any other kind of
// digest, and for what is none.
func (d Digest) Sum() (sum [32]byte, err error) {
	text, ok := strings.CutPrefix(string(d), "sha256:")
	if !ok || len(text) != 2*len(sum) || strings.ToLower(text) != text {
		return sum, fmt.Errorf("%w: %q is no SHA-256 digest", ErrMalformed, clip(string(d)))
	}
	if _, err := hex.Decode(sum[:], []byte(text)); err != nil {
		return sum, fmt.Errorf("%w: %q is no SHA-256 digest", ErrMalformed, clip(string(d)))
	}
	return sum, nil
}

// Descriptor names a blob.
type Descriptor struct {
	MediaType string    `json:"mediaType"`
	Digest    Digest    `json:"digest"`
	Size      int64     `json:"size"` // bytes
	Platform  *Platform `json:"platform,omitempty"`
}

// Check reports what no descriptor can have.
func (d Descriptor) Check() error {
	if _, err := d.Digest.Sum(); err != nil {
		return err
	}
	if d.Size < 0 || d.Size > MaxBlob {
		return fmt.Errorf("%w: %s claims a size of %d bytes", ErrMalformed, d.Digest, d.Size)
	}
	if d.MediaType == "" || len(d.MediaType) > 255 || strings.ContainsFunc(d.MediaType, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("%w: %s has the media type %q", ErrMalformed, d.Digest, clip(d.MediaType))
	}
	return nil
}

// IsIndex reports whether the blob lists images of several platforms.
func (d Descriptor) IsIndex() bool { return d.MediaType == TypeIndex || d.MediaType == TypeDockerIndex }

// IsManifest reports whether the blob is an image's manifest.
func (d Descriptor) IsManifest() bool {
	return d.MediaType == TypeManifest || d.MediaType == TypeDockerManifest
}

// elsewhere: layers of operating systems that no registry may hand out.
func (d Descriptor) elsewhere() bool {
	return strings.Contains(d.MediaType, ".foreign.") || strings.Contains(d.MediaType, ".nondistributable.")
}

// Platform is what an image runs on.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
}

func (p Platform) String() string { return p.OS + "/" + p.Architecture }

// ParsePlatform reads what String wrote.
func ParsePlatform(s string) (Platform, error) {
	os, architecture, ok := strings.Cut(s, "/")
	if !ok || os == "" || architecture == "" || strings.Contains(architecture, "/") {
		return Platform{}, fmt.Errorf("%w: %q is no platform such as linux/amd64", ErrMalformed, clip(s))
	}
	return Platform{OS: os, Architecture: architecture}, nil
}

// Document is an index or a manifest.
type Document struct {
	Manifests []Descriptor // of an index
	Config    Descriptor   // of a manifest
	Layers    []Descriptor // of it, the lowest first

	isManifest bool
}

// maxChildren bounds what one document may name.
const maxChildren = 4096

// Parse reads the index or manifest that d describes. It returns ErrMalformed for
// what is none, is of another media type, or could be read as both.
func Parse(d Descriptor, data []byte) (*Document, error) {
	fail := func(format string, args ...any) (*Document, error) {
		return nil, fmt.Errorf("%w: %s: %s", ErrMalformed, d.Digest, fmt.Sprintf(format, args...))
	}
	if len(data) > MaxDocument {
		return fail("%d bytes, limit %d", len(data), MaxDocument)
	}
	var doc struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Manifests     []Descriptor      `json:"manifests"`
		Config        *Descriptor       `json:"config"`
		Layers        []Descriptor      `json:"layers"`
		FSLayers      []json.RawMessage `json:"fsLayers"` // of Docker's schema 1
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return fail("%s", clip(err.Error()))
	}
	switch {
	case doc.MediaType != "" && doc.MediaType != d.MediaType:
		return fail("it says that it is %q, and is named as %q", clip(doc.MediaType), d.MediaType)
	case doc.SchemaVersion != 2 || len(doc.FSLayers) > 0:
		return fail("it is of schema %d, want 2", doc.SchemaVersion)
	case len(doc.Manifests) > maxChildren || len(doc.Layers) > maxChildren:
		return fail("it names more than %d blobs", maxChildren)
	case d.IsIndex() && (doc.Config != nil || len(doc.Layers) > 0):
		return fail("an index with the parts of a manifest")
	case d.IsManifest() && (len(doc.Manifests) > 0 || doc.Config == nil):
		return fail("a manifest without a configuration, or with the parts of an index")
	case !d.IsIndex() && !d.IsManifest():
		return fail("%q is neither an index nor a manifest", clip(d.MediaType))
	}
	out := &Document{Manifests: doc.Manifests, Layers: doc.Layers, isManifest: d.IsManifest()}
	if doc.Config != nil {
		out.Config = *doc.Config
	}
	for _, child := range out.children() {
		if err := child.Check(); err != nil {
			return nil, fmt.Errorf("%s: %w", d.Digest, err)
		}
	}
	return out, nil
}

func (doc *Document) children() []Descriptor {
	all := append([]Descriptor{}, doc.Manifests...)
	if doc.isManifest {
		all = append(all, doc.Config)
	}
	return append(all, doc.Layers...)
}

// clip keeps hostile text in an error message short and plain.
func clip(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}
