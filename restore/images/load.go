package images

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"lifeboat/internal/containerd"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/oci"
	"lifeboat/internal/repository"
)

// Loaded says what Execute did.
type Loaded struct {
	Blobs  int   // written
	Bytes  int64 // of them
	Images int   // that were named
}

// Execute writes the blobs, under a lease, and then names the images: so no name
// ever stands for what is not whole. Blobs that are there are read and checked.
// Interrupted, it leaves blobs that containerd collects after a day; run again, it
// goes on. It refuses with ErrRefused where a name stands for another image.
func (p *Plan) Execute(ctx context.Context) (done Loaded, err error) {
	if err := p.Conflict(); err != nil {
		return done, err
	}
	chance := make([]byte, 8)
	if _, err := io.ReadFull(p.o.Rand, chance); err != nil {
		return done, fmt.Errorf("load images: %w", err)
	}
	run := "lifeboat-" + hex.EncodeToString(chance)
	held, release, err := p.o.Target.Lease(ctx, run, p.o.Now())
	if err != nil {
		return done, fmt.Errorf("load images: %w", err)
	}
	defer func() { err = errors.Join(err, release()) }()
	began, read := p.o.Now(), int64(0)
	p.o.Events.Emit(events.StageStarted{Stage: "load", Chain: string(manifest.ImagesChain), Total: p.Bytes})
	defer func() {
		p.o.Events.Emit(events.StageDone{Stage: "load", Chain: string(manifest.ImagesChain), Duration: p.o.Now().Sub(began), Bytes: done.Bytes, Err: err})
	}()
	for _, b := range p.order {
		written, err := p.o.Target.Write(held, run, b.Descriptor, b.Labels, func() (io.ReadCloser, error) {
			r, err := p.open(ctx, b.Descriptor)
			if err != nil {
				return nil, err
			}
			return &counted{ReadCloser: r, count: func(n int) {
				read += int64(n)
				p.o.Events.Emit(events.StageProgress{Stage: "load", Chain: string(manifest.ImagesChain), Done: read})
			}}, nil
		})
		if err != nil {
			return done, fmt.Errorf("load images: %w", p.blame(b.Descriptor, err))
		}
		if written {
			done.Blobs++
			done.Bytes += b.Size
		}
	}
	for _, i := range p.Images {
		for _, name := range i.Names {
			if err := p.o.Target.SetImage(held, containerd.Image{Name: name, Target: i.target, Pinned: i.pinned}, p.o.Replace); err != nil {
				return done, fmt.Errorf("load images: %w", err)
			}
		}
		done.Images++
	}
	return done, nil
}

// Check unseals all that the images of a backup need, on whatever platform, and
// checks each blob against its digest. It leaves out those that checked has with their
// size, of the same repository, and adds the good ones; nil remembers none. It needs no Target.
// What names other blobs is read in any case.
func Check(ctx context.Context, o Options, checked map[oci.Digest]int64) (blobs int, bytes int64, err error) {
	doing := fmt.Sprintf("check images %s", o.Backup.ID)
	if o.Platform, err = oci.ParsePlatform(o.Backup.Images.Platform); err != nil {
		return 0, 0, fmt.Errorf("%s: %w: %w", doing, repository.ErrVerification, err)
	}
	p, err := walked(ctx, o)
	if err != nil {
		return 0, 0, fmt.Errorf("%s: %w", doing, err)
	}
	for _, b := range p.order {
		if size, done := checked[b.Digest]; done && size == b.Size {
			continue
		}
		if err := p.check(ctx, b.Descriptor); err != nil {
			return blobs, bytes, fmt.Errorf("%s: %w", doing, err)
		}
		if checked != nil {
			checked[b.Digest] = b.Size
		}
		blobs++
		bytes += b.Size
	}
	return blobs, bytes, nil
}

func (p *Plan) check(ctx context.Context, d oci.Descriptor) error {
	r, err := p.open(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, oci.Verified(r, d))
	return verification(err)
}

// blame says whose bytes are not those of their digest: the backup's, or the
// machine's.
func (p *Plan) blame(d oci.Descriptor, err error) error {
	switch {
	case !errors.Is(err, oci.ErrDamaged) || errors.Is(err, repository.ErrVerification):
		return verification(err)
	case p.there(d):
		return fmt.Errorf("%w: this machine's content store has it damaged: delete it with `ctr -n %s content rm %s` and load again", err, containerd.Namespace, d.Digest)
	}
	return fmt.Errorf("%w: %w", repository.ErrVerification, err)
}

// there reports whether the machine has had a blob before.
func (p *Plan) there(d oci.Descriptor) bool {
	has, err := p.o.Target.Has(context.Background(), d.Digest)
	return err == nil && has
}

type counted struct {
	io.ReadCloser
	count func(int)
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.count(n)
	return n, err
}
