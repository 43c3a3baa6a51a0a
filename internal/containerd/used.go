package containerd

import (
	"context"
	"encoding/json"
	"path"
	"slices"
	"strings"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
)

// Used is a container of kubelet, running or ended, with the image that it is of.
type Used struct {
	Image                string // as the container names it: a name in the image store
	Namespace, Pod, Name string
	Sandbox              bool // it holds the pod's namespaces: the pause image
	Network              bool // it mounts the folders of the node's network plugins
}

// Used lists kubelet's containers.
func (c *Client) Used(ctx context.Context) ([]Used, error) {
	answer, err := c.containers.List(ctx, &containersapi.ListContainersRequest{})
	if err != nil {
		return nil, c.failed(ctx, "list containers", err)
	}
	var list []Used
	for _, made := range answer.GetContainers() {
		labels := made.GetLabels()
		u := Used{
			Image: made.GetImage(), Namespace: labels["io.kubernetes.pod.namespace"], Pod: labels["io.kubernetes.pod.name"],
			Name: labels["io.kubernetes.container.name"], Sandbox: labels["io.cri-containerd.kind"] == "sandbox",
			Network: ofNetwork(made.GetSpec().GetValue()),
		}
		if u.Image != "" && u.Pod != "" {
			list = append(list, u)
		}
	}
	return list, nil
}

// networkFolders are where network plugins put themselves on a node (the CNI's
// convention, and containerd's and CRI-O's defaults).
var networkFolders = []string{"/etc/cni", "/opt/cni"}

// ofNetwork reports whether a container, by its OCI specification, mounts one of
// the folders of network plugins: whoever does brings the node its network.
func ofNetwork(spec []byte) bool {
	var read struct {
		Mounts []struct {
			Source string `json:"source"`
		} `json:"mounts"`
	}
	if json.Unmarshal(spec, &read) != nil {
		return false
	}
	for _, m := range read.Mounts {
		source := path.Clean(m.Source) + "/"
		if slices.ContainsFunc(networkFolders, func(folder string) bool { return strings.HasPrefix(source, folder+"/") }) {
			return true
		}
	}
	return false
}

// Normalize writes an image's reference as containerd names it: with a registry,
// and with a tag or digest ("etcd" is "docker.io/library/etcd:latest").
func Normalize(reference string) string {
	first, rest, found := strings.Cut(reference, "/")
	switch {
	case strings.HasPrefix(reference, "sha256:"): // of a configuration: containerd's own name
		return reference
	case !found:
		reference = "docker.io/library/" + reference
	case !strings.ContainsAny(first, ".:") && first != "localhost":
		reference = "docker.io/" + reference
	case first == "docker.io" && !strings.Contains(rest, "/"):
		reference = "docker.io/library/" + rest
	}
	if strings.Contains(reference, "@") || strings.Contains(path.Base(reference), ":") {
		return reference
	}
	return reference + ":latest"
}
