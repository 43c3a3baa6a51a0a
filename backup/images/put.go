package images

import (
	"context"
	"errors"
	"io"

	"lifeboat/backup"
	"lifeboat/internal/manifest"
	"lifeboat/internal/oci"
	"lifeboat/internal/patience"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
)

// blobFile is a blob's data object.
const blobFile = "blob.zst.age"

// blob stores one blob and commits it. The object is complete only once the image
// store's bytes were read to their end and found to be those of the digest.
func (s *saver) blob(ctx context.Context, sum manifest.Hash, d oci.Descriptor) (manifest.ID, error) {
	o := s.p.o
	id, err := manifest.NewID(o.Rand)
	if err != nil {
		return "", err
	}
	created := s.p.now()
	name := repository.ObjectName(manifest.ImagesChain, id, blobFile)
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	plain, err := o.Source.Open(reading, d)
	if err != nil {
		return "", err
	}
	defer plain.Close()
	var refused error
	sums, err := seal.Into(o.Recipients, &counted{plain, s.meter.add}, func(body io.Reader) error {
		refused = patience.Feed(ctx, body, o.StoreStall, backup.FinishStalls*o.StoreStall, backup.Farewell(o.StoreStall), func(ctx context.Context, body io.Reader) error {
			return s.store.Repository.PutObject(ctx, name, body, s.store.RetainUntil(created))
		})
		if refused != nil {
			cancel() // nobody needs the rest
		}
		return refused
	})
	if refused != nil && ctx.Err() == nil && errors.Is(err, context.Canceled) {
		err = refused // and the reading ended because of it
	}
	if err != nil {
		return "", err
	}
	_, err = s.store.Commit(ctx, &manifest.Manifest{
		Chain: manifest.ImagesChain, Kind: manifest.KindBlob, ID: id, Created: created, Writer: o.Writer,
		Recipients: o.RecipientNames, Blob: &manifest.Blob{SHA256: sum},
		Objects: []manifest.Object{{
			Name: name, Role: manifest.RoleBlob, Size: sums.StoredSize, SHA256: manifest.Hash(sums.StoredSHA256), PlainSize: sums.PlainSize,
		}},
	}, o.StoreStall)
	return id, err
}

type counted struct {
	io.Reader
	count func(int)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.count(n)
	return n, err
}
