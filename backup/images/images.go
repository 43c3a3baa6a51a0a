// Package images saves the container images that a control-plane node needs to
// come up without a registry: beside the backups, in a chain of their own, read
// through containerd, each blob once (docs/format.md, "Images").
//
// Start at Look, which says what would be saved, and go on at Plan.Save. Which
// images a node needs is decided in choose.go. restore/images puts them back.
package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"lifeboat/backup"
	"lifeboat/internal/containerd"
	"lifeboat/internal/events"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
	"lifeboat/internal/oci"
)

// Source is an image store. *containerd.Client is one.
type Source interface {
	Inventory
	oci.Source

	// Open reads a blob. Bytes that are not those of its digest end in an error
	// in place of io.EOF.
	Open(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error)
}

// Options says what to save, and where. All but the lists of images, Anew, Heads
// and Events are required.
type Options struct {
	Source   Source
	Node     string
	Platform oci.Platform

	Static []hostfacts.Image // of the node's static pods, as host.StaticImages finds them
	Also   []string          // more images, by reference
	All    bool              // all that the image store has

	Anew bool // put every blob, also where one is that looks whole: it may be damaged

	Stores         []backup.Store
	StoreStall     time.Duration // as in backup.Runner
	MinStores      int
	Recipients     []age.Recipient
	RecipientNames []string
	Writer         manifest.Writer
	Heads          []manifest.Head // seen in other chains and stores
	Now            func() time.Time
	Rand           io.Reader // used by all stores at once
	Events         events.Listener
}

// Errors that callers branch on.
var (
	// ErrNotWhole: not all images that were to be saved could be.
	ErrNotWhole = errors.New("not all images are saved")

	// ErrNone: there is no image to save.
	ErrNone = errors.New("no image to save")
)

// Image is one image of a plan.
type Image struct {
	manifest.Image
	For   []string // why it is saved, for people
	Bytes int64    // of all its blobs

	blobs []oci.Blob
}

// LeftOut is an image that can't be saved.
type LeftOut struct {
	Image string // as it was asked for
	For   string
	Why   string
}

// Plan is what a save would do.
type Plan struct {
	Images  []Image // by their first name
	LeftOut []LeftOut
	Blobs   int
	Bytes   int64 // of all blobs, each counted once

	o     Options
	blobs map[manifest.Hash]oci.Descriptor
}

// Look finds the images to save in the image store, and all their blobs. An image
// that is not there or not whole is left out, with the reason; if one was asked for
// by name that is an error. It changes nothing.
func Look(ctx context.Context, o Options) (*Plan, error) {
	p := &Plan{o: o, blobs: map[manifest.Hash]oci.Descriptor{}}
	wanted, err := p.wanted(ctx)
	if err != nil {
		return nil, fmt.Errorf("find the images of node %s: %w", o.Node, err)
	}
	stored, err := o.Source.Images(ctx)
	if err != nil {
		return nil, fmt.Errorf("find the images of node %s: %w", o.Node, err)
	}
	targets := map[string]oci.Descriptor{}
	for _, i := range stored {
		targets[i.Name] = i.Target
	}
	for _, w := range wanted {
		target, there := targets[w.name]
		if !there {
			if err := p.leave(w, "containerd has no such image"); err != nil {
				return nil, err
			}
			continue
		}
		if at := slices.IndexFunc(p.Images, func(i Image) bool { return oci.DigestOf(i.SHA256) == target.Digest }); at >= 0 {
			p.Images[at].For = append(p.Images[at].For, w.why)
			continue
		}
		image, err := p.image(ctx, target, stored)
		var missing *oci.MissingError
		switch {
		case errors.As(err, &missing):
			err = p.leave(w, fmt.Sprintf("it is not whole: %v (containerd with discard_unpacked_layers keeps no layers; pull it again without, or with ctr -n %s content fetch)", missing, containerd.Namespace))
		case errors.Is(err, oci.ErrMalformed), errors.Is(err, oci.ErrPlatform), errors.Is(err, oci.ErrDamaged):
			err = p.leave(w, err.Error())
		case err == nil:
			image.For = []string{w.why}
			p.Images = append(p.Images, *image)
		}
		if err != nil {
			return nil, err
		}
	}
	if len(p.Images) == 0 {
		return nil, fmt.Errorf("save the images of node %s: %w%s", o.Node, ErrNone, p.whyNone())
	}
	slices.SortFunc(p.Images, func(a, b Image) int { return strings.Compare(a.Names[0], b.Names[0]) })
	p.count()
	return p, nil
}

func (p *Plan) whyNone() string {
	if len(p.LeftOut) == 0 {
		return ": neither static pods nor containers of kubelet are on this machine"
	}
	return fmt.Sprintf(": of %d that the node needs none is whole in containerd, such as %s: %s", len(p.LeftOut), p.LeftOut[0].Image, p.LeftOut[0].Why)
}

// want is an image that is to be saved.
type want struct {
	name  string // in the image store
	image string // as it was asked for
	why   string
	must  bool
}

func (p *Plan) leave(w want, why string) error {
	if w.must {
		return fmt.Errorf("save image %s: %s", w.image, why)
	}
	if !slices.ContainsFunc(p.LeftOut, func(l LeftOut) bool { return l.Image == w.image }) {
		p.LeftOut = append(p.LeftOut, LeftOut{Image: w.image, For: w.why, Why: why})
	}
	return nil
}

func (p *Plan) wanted(ctx context.Context) ([]want, error) {
	chosen, err := Choose(ctx, p.o.Source, p.o.Static)
	if err != nil {
		return nil, err
	}
	var list []want
	for _, i := range chosen {
		why := "static pod " + i.Pod
		switch i.Why {
		case hostfacts.WhySandbox:
			why = "sandboxes of pods"
		case hostfacts.WhySystem:
			why = "kube-system pod " + i.Pod
		case hostfacts.WhyNetwork:
			why = "network pod " + i.Pod
		}
		list = append(list, want{name: containerd.Normalize(i.Image), image: i.Image, why: why})
	}
	for _, reference := range p.o.Also {
		list = append(list, want{name: containerd.Normalize(reference), image: reference, why: "asked for", must: true})
	}
	if p.o.All {
		stored, err := p.o.Source.Images(ctx)
		if err != nil {
			return nil, err
		}
		for _, i := range stored {
			list = append(list, want{name: i.Name, image: i.Name, why: "in the image store"})
		}
	}
	return list, nil
}

// image is the image of a descriptor, with all names that it has.
func (p *Plan) image(ctx context.Context, target oci.Descriptor, stored []containerd.Image) (*Image, error) {
	sum, err := target.Digest.Sum()
	if err != nil {
		return nil, err
	}
	blobs, err := oci.Needed(ctx, target, p.o.Platform, p.o.Source)
	if err != nil {
		return nil, err
	}
	image := &Image{Image: manifest.Image{SHA256: sum, MediaType: target.MediaType, Size: target.Size}, blobs: blobs}
	for _, i := range stored {
		if i.Target.Digest == target.Digest {
			image.Names = append(image.Names, i.Name)
			image.Pinned = image.Pinned || i.Pinned
		}
	}
	slices.Sort(image.Names)
	for _, b := range blobs {
		image.Bytes += b.Size
	}
	return image, nil
}

// count sums up the blobs of all images.
func (p *Plan) count() {
	clear(p.blobs)
	p.Blobs, p.Bytes = 0, 0
	for _, i := range p.Images {
		for _, b := range i.blobs {
			sum, _ := b.Digest.Sum() // oci.Needed has checked it
			if _, known := p.blobs[sum]; !known {
				p.blobs[sum] = b.Descriptor
				p.Blobs++
				p.Bytes += b.Size
			}
		}
	}
}

// body is what the plan's images commit.
func (p *Plan) body() *manifest.Images {
	body := &manifest.Images{Node: p.o.Node, Platform: p.o.Platform.String()}
	for _, i := range p.Images {
		body.Images = append(body.Images, i.Image)
	}
	for sum := range p.blobs {
		body.Blobs = append(body.Blobs, sum)
	}
	slices.SortFunc(body.Blobs, func(a, b manifest.Hash) int { return bytes.Compare(a[:], b[:]) })
	return body
}

// degraded says in the manifest what it lacks.
func (p *Plan) degraded() []string {
	var lines []string
	for _, l := range p.LeftOut {
		lines = append(lines, manifest.Line(fmt.Sprintf("image %s (%s) is left out: %s", l.Image, l.For, l.Why)))
	}
	return lines
}

// drop leaves out the images that need a blob which can't be read.
func (p *Plan) drop(bad manifest.Hash, why error) {
	p.Images = slices.DeleteFunc(p.Images, func(i Image) bool {
		needs := slices.ContainsFunc(i.blobs, func(b oci.Blob) bool { return b.Digest == oci.DigestOf(bad) })
		if needs {
			p.LeftOut = append(p.LeftOut, LeftOut{Image: i.Names[0], For: i.For[0], Why: why.Error()})
		}
		return needs
	})
	p.count()
}
