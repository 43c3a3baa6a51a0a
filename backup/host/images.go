package host

import (
	"context"
	"slices"
	"strings"
	"time"
)

// imagesLimit is how long the container runtime may take to tell of its images.
const imagesLimit = 20 * time.Second

// StaticImages lists the images that the static pods below root name.
func StaticImages(root string) ([]Image, error) {
	t, err := openTree(root)
	if err != nil {
		return nil, err
	}
	defer t.close()
	_, pods, _ := setUp(t)
	return imagesOf(pods), nil
}

func imagesOf(pods []staticPod) []Image {
	list := []Image{}
	for _, pod := range pods {
		for _, c := range pod.containers {
			_, digest, _ := strings.Cut(c.image, "@")
			list = append(list, Image{Pod: pod.name, Container: c.name, Image: c.image, Digest: digest})
		}
	}
	return list
}

// images are those of the static pods with the digests that the container runtime
// has, and what else it knows that the node needs. A machine without a runtime
// has no digests, which a restore can do without.
func (c *closure) images(ctx context.Context, opts Options) []Image {
	static := imagesOf(c.pods)
	if opts.Images == nil || len(static) == 0 {
		return static
	}
	ctx, cancel := context.WithTimeout(ctx, imagesLimit)
	defer cancel()
	list, err := opts.Images(ctx, static)
	if err != nil {
		c.warnings.addf("the digests of the container images are not known: %v", err)
		return static
	}
	known := slices.ContainsFunc(list, func(i Image) bool { return i.Digest != "" && !strings.HasSuffix(i.Image, i.Digest) })
	for _, i := range list {
		if known && i.Digest == "" {
			c.warnings.addf("the container runtime has no image %s, which pod %s needs", show(i.Image), show(i.Pod))
		}
	}
	return list
}
