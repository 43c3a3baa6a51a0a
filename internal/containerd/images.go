package containerd

import (
	"context"
	"fmt"
	"maps"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"lifeboat/internal/oci"
)

// Labels of images that containerd's CRI plugin goes by (its internal/cri/labels).
const (
	managedLabel, managed = "io.cri-containerd.image", "managed"
	pinnedLabel, pinned   = "io.cri-containerd.pinned", "pinned"
)

// Image is a name in containerd's image store, and what it stands for.
type Image struct {
	Name   string // a reference with a tag or digest, or "sha256:..." of a configuration
	Target oci.Descriptor
	Pinned bool // kubelet does not remove it
}

// Images lists the names in the image store.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	answer, err := c.images.List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, c.failed(ctx, "list images", err)
	}
	var list []Image
	for _, i := range answer.GetImages() {
		list = append(list, imageOf(i))
	}
	return list, nil
}

func imageOf(i *imagesapi.Image) Image {
	t := i.GetTarget()
	return Image{
		Name: i.GetName(), Pinned: i.GetLabels()[pinnedLabel] == pinned,
		Target: oci.Descriptor{MediaType: t.GetMediaType(), Digest: oci.Digest(t.GetDigest()), Size: t.GetSize()},
	}
}

// ByName returns what a name stands for. It returns ErrNotFound if there is none.
func (c *Client) ByName(ctx context.Context, name string) (Image, error) {
	answer, err := c.images.Get(ctx, &imagesapi.GetImageRequest{Name: name})
	if err != nil {
		return Image{}, c.failed(ctx, fmt.Sprintf("look for image %q", name), err)
	}
	return imageOf(answer.GetImage()), nil
}

// SetImage makes a name stand for an image whose blobs are there, so that the CRI
// plugin and kubelet see it. A name that stands for another image is ErrOtherImage,
// unless replace is set.
func (c *Client) SetImage(ctx context.Context, i Image, replace bool) error {
	doing := fmt.Sprintf("name image %q", i.Name)
	labels := map[string]string{managedLabel: managed}
	if i.Pinned {
		labels[pinnedLabel] = pinned
	}
	made := &imagesapi.Image{
		Name: i.Name, Labels: labels, Target: &types.Descriptor{MediaType: i.Target.MediaType, Digest: string(i.Target.Digest), Size: i.Target.Size},
	}
	_, err := c.images.Create(ctx, &imagesapi.CreateImageRequest{Image: made})
	if err == nil {
		return nil
	}
	if status.Code(err) != codes.AlreadyExists {
		return c.failed(ctx, doing, err)
	}
	there, err := c.images.Get(ctx, &imagesapi.GetImageRequest{Name: i.Name})
	if err != nil {
		return c.failed(ctx, doing, err)
	}
	if got := imageOf(there.GetImage()).Target; got.Digest != i.Target.Digest && !replace {
		return fmt.Errorf("%s: %w: it is %s, not %s", doing, ErrOtherImage, got.Digest, i.Target.Digest)
	}
	all := maps.Clone(there.GetImage().GetLabels())
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, labels)
	made.Labels = all
	_, err = c.images.Update(ctx, &imagesapi.UpdateImageRequest{Image: made, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels", "target"}}})
	if err != nil {
		return c.failed(ctx, doing, err)
	}
	return nil
}

// leaseFor is how long containerd keeps what a lease holds whose owner was killed.
const leaseFor = 24 * time.Hour

// Lease keeps what is written with the context that it returns from being
// collected, until it is released or a day has passed.
func (c *Client) Lease(ctx context.Context, id string, now time.Time) (held context.Context, release func() error, err error) {
	_, err = c.leases.Create(ctx, &leasesapi.CreateRequest{
		ID: id, Labels: map[string]string{"containerd.io/gc.expire": now.Add(leaseFor).UTC().Format(time.RFC3339)},
	})
	if err != nil {
		return nil, nil, c.failed(ctx, "take a lease", err)
	}
	release = func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if _, err := c.leases.Delete(ctx, &leasesapi.DeleteRequest{ID: id}); err != nil {
			return c.failed(ctx, "give back a lease", err)
		}
		return nil
	}
	return metadata.AppendToOutgoingContext(ctx, "containerd-lease", id), release, nil
}
