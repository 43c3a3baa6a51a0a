package images

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"lifeboat/internal/containerd"
	"lifeboat/internal/hostfacts"
)

// Inventory is what an image store has and kubelet uses of it. *containerd.Client
// is one.
type Inventory interface {
	Images(ctx context.Context) ([]containerd.Image, error)
	Used(ctx context.Context) ([]containerd.Used, error)
}

// Choose lists the images that a node needs to come up, with the digests that its
// image store has: those of the static pods, which are given, then those of the
// sandbox, of kube-system's pods on the node and of its network's, whose containers
// kubelet has made. A digest stays empty where the store has no such image.
func Choose(ctx context.Context, store Inventory, static []hostfacts.Image) ([]hostfacts.Image, error) {
	names, err := store.Images(ctx)
	if err != nil {
		return nil, err
	}
	used, err := store.Used(ctx)
	if err != nil {
		return nil, err
	}
	digests, tags := map[string]string{}, map[string]string{} // by name; and people's name by digest
	slices.SortFunc(names, func(a, b containerd.Image) int { return strings.Compare(a.Name, b.Name) })
	for _, i := range names {
		digest := string(i.Target.Digest)
		digests[i.Name] = digest
		if tags[digest] == "" && !strings.HasPrefix(i.Name, "sha256:") && !strings.Contains(i.Name, "@") {
			tags[digest] = i.Name
		}
	}
	list := slices.Clone(static)
	for i := range list {
		if digest, ok := digests[containerd.Normalize(list[i].Image)]; ok {
			list[i].Digest = digest
		}
	}
	network := map[string]bool{} // pods
	for _, u := range used {
		if u.Network {
			network[u.Namespace+"/"+u.Pod] = true
		}
	}
	add := func(why string, fits func(containerd.Used) bool) {
		for _, u := range used {
			if !fits(u) {
				continue
			}
			digest := digests[containerd.Normalize(u.Image)]
			image := cmp.Or(tags[digest], u.Image) // a container may name it by its configuration
			if !slices.ContainsFunc(list, func(i hostfacts.Image) bool {
				return containerd.Normalize(i.Image) == containerd.Normalize(image) || digest != "" && i.Digest == digest
			}) {
				list = append(list, hostfacts.Image{Pod: u.Pod, Container: u.Name, Image: image, Digest: digest, Why: why})
			}
		}
	}
	slices.SortFunc(used, func(a, b containerd.Used) int { return slices.Compare(key(a), key(b)) })
	add(hostfacts.WhySandbox, func(u containerd.Used) bool { return u.Sandbox })
	add(hostfacts.WhySystem, func(u containerd.Used) bool { return u.Namespace == "kube-system" && !u.Sandbox })
	add(hostfacts.WhyNetwork, func(u containerd.Used) bool { return network[u.Namespace+"/"+u.Pod] && !u.Sandbox })
	return list, nil
}

func key(u containerd.Used) []string { return []string{u.Image, u.Namespace, u.Pod, u.Name} }
