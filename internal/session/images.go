package session

import (
	"context"
	"fmt"
	"os"
	"strings"

	"lifeboat/backup"
	"lifeboat/backup/host"
	"lifeboat/backup/images"
	"lifeboat/internal/config"
	"lifeboat/internal/containerd"
	"lifeboat/internal/seal"
	"lifeboat/restore/node"
)

// Saving are the options of a save of container images to the stores of a session.
// Source, Platform and which images are the caller's to set.
func (s *Session) Saving() (images.Options, error) {
	c := s.Config
	recipients, err := seal.ParseRecipients(c.Recipients)
	if err != nil {
		return images.Options{}, fmt.Errorf("%w: recipients: %w", config.ErrInvalid, err)
	}
	o := images.Options{
		Node: c.Node, MinStores: c.MinStores, Recipients: recipients, RecipientNames: c.Recipients, Writer: s.Writer(), StoreStall: storeStall,
		Now: s.options.Now, Rand: s.options.Rand, Events: s.options.Events,
	}
	if s.Memory != nil {
		o.Heads = s.Memory.Heads()
	}
	for _, opened := range s.Stores {
		o.Stores = append(o.Stores, backup.Store{
			URL: opened.URL, Repository: opened.Repository, Err: opened.Err, RetainDays: opened.Settings.S3.ObjectLock.Days,
		})
	}
	return o, nil
}

// Containerd finds the socket of the containerd that kubelet below root uses; a
// socket that is given is taken as it is. It returns containerd.ErrUnavailable if
// another container runtime is what kubelet uses, or none.
func Containerd(ctx context.Context, root, socket string) (string, error) {
	path, by, err := node.New(node.Options{Root: root, Socket: socket}).RuntimeSocket(ctx)
	if err != nil {
		return "", fmt.Errorf("%w: %w", containerd.ErrUnavailable, err)
	}
	if strings.Contains(path, "crio") || strings.Contains(path, "cri-dockerd") {
		return "", fmt.Errorf("%w: by %s kubelet uses %s, and images are read and put back through containerd only", containerd.ErrUnavailable, by, path)
	}
	return path, nil
}

// HostImages asks the containerd of the node below root for the images that the
// node needs, for the facts of a backup of its files. Where there is none, or this
// process does not see its socket, nothing is known of digests: that is no error.
func HostImages(root string) func(context.Context, []host.Image) ([]host.Image, error) {
	return func(ctx context.Context, static []host.Image) ([]host.Image, error) {
		socket, err := Containerd(ctx, root, "")
		if err != nil {
			return static, nil
		}
		if _, err := os.Stat(socket); err != nil {
			return static, nil
		}
		client, err := containerd.Dial(socket)
		if err != nil {
			return nil, err
		}
		defer client.Close()
		return images.Choose(ctx, client, static)
	}
}
