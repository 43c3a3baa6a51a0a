// Package images puts the container images of a backup back into the image store
// of this machine, so that kubelet starts pods from them without a registry.
//
// Start at Prepare, which reads and checks all that names other blobs and says what
// is to be done, and go on at Plan.Execute. What it reads of a store is checked
// against signed manifests, and each blob against its digest before containerd is
// told to keep it.
package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"lifeboat/internal/containerd"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/oci"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
)

// Target is an image store. *containerd.Client is one.
type Target interface {
	// Has reports whether a blob is there.
	Has(ctx context.Context, d oci.Digest) (bool, error)

	// Write puts a blob, or if it is there checks it, and labels it. It opens r
	// only if it needs the bytes.
	Write(ctx context.Context, run string, d oci.Descriptor, labels map[string]string, r func() (io.ReadCloser, error)) (written bool, err error)

	// ByName returns what a name stands for, or containerd.ErrNotFound.
	ByName(ctx context.Context, name string) (containerd.Image, error)

	// SetImage makes a name stand for an image, or fails with
	// containerd.ErrOtherImage.
	SetImage(ctx context.Context, i containerd.Image, replace bool) error

	// Lease keeps what is written under the context that it returns.
	Lease(ctx context.Context, id string, now time.Time) (held context.Context, release func() error, err error)
}

// Options says what to load. All but Only, Replace and Events are required.
type Options struct {
	Repository *repository.Repository
	Backup     *manifest.Manifest // of kind images, its own signature checked
	Identities []age.Identity
	Target     Target
	Platform   oci.Platform // of this machine

	Only    []string // only images of these names; empty: all
	Replace bool     // names that stand for other images are taken from those

	Now    func() time.Time
	Rand   io.Reader
	Events events.Listener
}

// Errors that callers branch on.
var (
	// ErrRefused: what is on the machine does not allow it.
	ErrRefused = errors.New("refused")

	// ErrNoImage: the backup has no image of a name that was asked for.
	ErrNoImage = errors.New("the backup has no such image")
)

// Image is one image of a plan.
type Image struct {
	Names   []string // all that it gets
	Digest  oci.Digest
	Present bool // all names stand for it, and all of its blobs are there

	Conflicts []string // of its names, those that stand for other images now
	pinned    bool
	target    oci.Descriptor
	blobs     []oci.Blob
}

// Plan is what a load would do.
type Plan struct {
	Images []Image
	Blobs  int   // that are to be written
	Bytes  int64 // of them

	o     Options
	blobs map[oci.Digest][]repository.Backup // all copies that count, the newest first
	order []oci.Blob                         // of all images, each once, what names others behind what it names
}

// Prepare reads the indexes and manifests of a backup's images and compares them
// with the machine. It changes nothing. A backup that does not hold all that its
// images need is repository.ErrVerification.
func Prepare(ctx context.Context, o Options) (*Plan, error) {
	doing := fmt.Sprintf("prepare to load images %s", o.Backup.ID)
	if o.Backup.Images == nil {
		return nil, fmt.Errorf("%s: it is a backup of kind %s, and holds none", doing, o.Backup.Kind)
	}
	platform, err := oci.ParsePlatform(o.Backup.Images.Platform)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", doing, repository.ErrVerification, err)
	}
	if platform != o.Platform {
		return nil, fmt.Errorf("%s: %w: they are for %s, and this machine is %s", doing, ErrRefused, platform, o.Platform)
	}
	p, err := walked(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	if err := p.compare(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return p, nil
}

// walked knows all blobs that the images need.
func walked(ctx context.Context, o Options) (*Plan, error) {
	p := &Plan{o: o, blobs: map[oci.Digest][]repository.Backup{}}
	if err := p.find(ctx); err != nil {
		return nil, err
	}
	return p, p.choose(ctx)
}

// find finds the manifests of the blobs that the images need, by their own
// signatures. Of a blob that is there more than once, one that counts is enough.
func (p *Plan) find(ctx context.Context) error {
	stored, err := p.o.Repository.Blobs(ctx)
	if err != nil {
		return err
	}
	var lacking []error
	for _, sum := range p.o.Backup.Images.Blobs {
		d, copies := oci.DigestOf(sum), stored.Copies(sum)
		if len(copies) == 0 {
			return fmt.Errorf("%w: blob %s is not in %s", repository.ErrVerification, d, p.o.Repository.Name())
		}
		var refused []error
		for _, b := range copies {
			good, err := p.o.Repository.Confirmed(ctx, []repository.Backup{b})
			if err != nil && !errors.Is(err, repository.ErrVerification) {
				return err
			}
			refused = append(refused, err)
			p.blobs[d] = append(p.blobs[d], good...)
		}
		if len(p.blobs[d]) == 0 {
			lacking = append(lacking, refused...)
		}
	}
	return errors.Join(lacking...)
}

// choose walks the images that are wanted.
func (p *Plan) choose(ctx context.Context) error {
	known, taken := map[oci.Digest]bool{}, map[string]bool{}
	for _, saved := range p.o.Backup.Images.Images {
		if !wanted(saved.Names, p.o.Only) {
			continue
		}
		i := Image{
			Names: slices.Clone(saved.Names), Digest: oci.DigestOf(saved.SHA256), pinned: saved.Pinned,
			target: oci.Descriptor{MediaType: saved.MediaType, Digest: oci.DigestOf(saved.SHA256), Size: saved.Size},
		}
		var err error
		if i.blobs, err = oci.Needed(ctx, i.target, p.o.Platform, p); err != nil {
			return fmt.Errorf("image %s: %w", saved.Names[0], verification(err))
		}
		for _, b := range slices.Backward(i.blobs) {
			if !known[b.Digest] {
				known[b.Digest] = true
				p.order = append(p.order, b)
			}
		}
		if config := configOf(i.blobs); config != "" && !slices.Contains(i.Names, config) {
			i.Names = append(i.Names, config) // as the CRI plugin does, so that kubelet finds it by its id
		}
		i.Names = slices.DeleteFunc(i.Names, func(name string) bool { return taken[name] }) // two images may share a configuration
		for _, name := range i.Names {
			taken[name] = true
		}
		p.Images = append(p.Images, i)
	}
	for _, name := range p.o.Only {
		if !slices.ContainsFunc(p.Images, func(i Image) bool { return wanted(i.Names, []string{name}) }) {
			return fmt.Errorf("%w: %s", ErrNoImage, name)
		}
	}
	return nil
}

func wanted(names, only []string) bool {
	return len(only) == 0 || slices.ContainsFunc(only, func(o string) bool { return slices.Contains(names, containerd.Normalize(o)) })
}

// configOf is the name that containerd's CRI plugin gives an image: the digest of
// its configuration.
func configOf(blobs []oci.Blob) string {
	for _, b := range blobs {
		if config, ok := b.Labels["containerd.io/gc.ref.content.config"]; ok {
			return config
		}
	}
	return ""
}

// compare finds out what the machine has.
func (p *Plan) compare(ctx context.Context) error {
	there := map[oci.Digest]bool{}
	for _, b := range p.order {
		var err error
		if there[b.Digest], err = p.o.Target.Has(ctx, b.Digest); err != nil {
			return err
		}
		if !there[b.Digest] {
			p.Blobs++
			p.Bytes += b.Size
		}
	}
	for n := range p.Images {
		i := &p.Images[n]
		i.Present = !slices.ContainsFunc(i.blobs, func(b oci.Blob) bool { return !there[b.Digest] })
		for _, name := range i.Names {
			got, err := p.o.Target.ByName(ctx, name)
			switch {
			case errors.Is(err, containerd.ErrNotFound):
				i.Present = false
			case err != nil:
				return err
			case got.Target.Digest != i.Digest && strings.HasPrefix(name, "sha256:"):
				// Two images may share a configuration; either will do.
				i.Names = slices.DeleteFunc(slices.Clone(i.Names), func(n string) bool { return n == name })
			case got.Target.Digest != i.Digest:
				i.Present = false
				i.Conflicts = append(i.Conflicts, name)
			}
		}
	}
	return nil
}

// Conflict reports the names that stand for other images on this machine.
func (p *Plan) Conflict() error {
	if p.o.Replace {
		return nil
	}
	for _, i := range p.Images {
		if len(i.Conflicts) > 0 {
			return fmt.Errorf("load images: %w: %s stands for another image on this machine: --replace takes the name from it", ErrRefused, i.Conflicts[0])
		}
	}
	return nil
}

// Has implements oci.Source: a blob is there if the backup names it.
func (p *Plan) Has(_ context.Context, d oci.Digest) (bool, error) {
	_, ok := p.blobs[d]
	return ok, nil
}

// Document implements oci.Source.
func (p *Plan) Document(ctx context.Context, d oci.Descriptor) ([]byte, error) {
	r, err := p.open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(oci.Verified(r, d))
	if err != nil {
		return nil, verification(err)
	}
	return data, nil
}

// open unseals the newest copy of a blob that the keys open. Nothing that it yields
// counts before io.EOF; its digest is the caller's to check.
func (p *Plan) open(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	copies := p.blobs[d.Digest]
	if len(copies) == 0 {
		return nil, &oci.MissingError{Digest: d.Digest, What: "a blob"}
	}
	var none error
	for _, b := range copies {
		r, err := p.unseal(ctx, d, b.Objects[0])
		if !errors.Is(err, seal.ErrNoIdentity) {
			return r, err
		}
		none = err
	}
	for _, b := range copies { // a damaged header looks like another's
		o := b.Objects[0]
		if same, err := p.o.Repository.Holds(ctx, o); err == nil && !same {
			return nil, fmt.Errorf("%s: %w: the stored bytes are not those of its manifest", o.Name, repository.ErrVerification)
		}
	}
	return nil, none
}

// unseal opens one copy of a blob. seal.ErrNoIdentity says that the keys are those of
// another copy, of none, or that its header is damaged.
func (p *Plan) unseal(ctx context.Context, d oci.Descriptor, o manifest.Object) (io.ReadCloser, error) {
	if o.PlainSize != d.Size {
		return nil, fmt.Errorf("%w: blob %s unseals to %d bytes, its image says %d", repository.ErrVerification, d.Digest, o.PlainSize, d.Size)
	}
	stored, err := p.o.Repository.OpenStored(ctx, o)
	if err != nil {
		return nil, err
	}
	r, err := seal.NewReader(stored, seal.Sums{PlainSize: o.PlainSize, StoredSize: o.Size, StoredSHA256: o.SHA256}, p.o.Identities...)
	if err != nil {
		stored.Close()
		return nil, fmt.Errorf("%s: %w", o.Name, verification(err))
	}
	return &unsealed{r: r, stored: stored, name: o.Name}, nil
}

// unsealed is the plain bytes of a stored object.
type unsealed struct {
	r      io.ReadCloser
	stored io.Closer
	name   string
}

func (u *unsealed) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%s: %w", u.name, verification(err))
	}
	return n, err
}

func (u *unsealed) Close() error { return errors.Join(u.r.Close(), u.stored.Close()) }

// verification marks errors that mean that bytes are not what was saved.
func verification(err error) error {
	var missing *oci.MissingError
	if errors.Is(err, repository.ErrVerification) {
		return err
	}
	if errors.Is(err, seal.ErrDamaged) || errors.Is(err, oci.ErrDamaged) || errors.Is(err, oci.ErrMalformed) || errors.Is(err, oci.ErrPlatform) || errors.As(err, &missing) {
		return fmt.Errorf("%w: %w", repository.ErrVerification, err)
	}
	return err
}
