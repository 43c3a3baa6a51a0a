package topology

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"lifeboat/internal/hostfacts"
	"lifeboat/restore/node"
)

// Space is a file system that a restore writes to.
type Space struct {
	MountPoint string   `json:"mountPoint"`
	Type       string   `json:"type"`
	Free       int64    `json:"free"` // bytes
	Total      int64    `json:"total"`
	ReadOnly   bool     `json:"readOnly,omitempty"`
	For        []string `json:"for"` // paths of the host's
	Failed     string   `json:"failed,omitempty"`
	How        string   `json:"how"`
}

// Service is a program that systemd or somebody runs.
type Service struct {
	Name    string `json:"name"`
	State   string `json:"state"`
	Stopped bool   `json:"stopped"`
	Failed  string `json:"failed,omitempty"`
	How     string `json:"how"`
}

// Runtime is the container runtime.
type Runtime struct {
	Answers bool     `json:"answers"`
	Running []string `json:"running"` // static pods of kube-system with a running container
	Failed  string   `json:"failed,omitempty"`
	How     string   `json:"how"`
}

// Image is one that a static pod needs.
type Image struct {
	Reference string   `json:"reference"`
	Pods      []string `json:"pods"`
	State     string   `json:"state"` // present, missing, unknown
	Advice    string   `json:"advice,omitempty"`
	How       string   `json:"how"`
}

// Ports are those of a control plane, and who listens there.
type Ports struct {
	Listeners []Listener `json:"listeners"`
	Failed    string     `json:"failed,omitempty"`
	How       string     `json:"how"`
}

// Listener is one of them.
type Listener struct {
	Port    uint16 `json:"port"`
	Address string `json:"address"`
	Process string `json:"process"`
}

// ports are etcd's for clients and peers, the API server's, the controller
// manager's and the scheduler's.
var ports = []uint16{2379, 2380, 6443, 10257, 10259}

// machine asks the machine for all that is no file.
func (h *Host) machine(ctx context.Context, in Inputs, pods []pod) {
	h.spaces(in)
	h.services(ctx, in)
	h.runtime(ctx, in)
	h.images(ctx, in, pods)
	h.listeners(ctx, in)
}

func (h *Host) spaces(in Inputs) {
	const how = "the mounts and statfs"
	h.Spaces = []Space{}
	for _, name := range []string{h.Data.Path, "/etc/kubernetes", "/var/lib/kubelet", "/var/lib/containerd", "/var/lib/lifeboat"} {
		s, err := in.Machine.Space(filepath.Join(in.Root, name))
		if err != nil {
			h.Spaces = append(h.Spaces, Space{For: []string{name}, Failed: err.Error(), How: how})
			continue
		}
		i := slices.IndexFunc(h.Spaces, func(have Space) bool { return have.Failed == "" && have.MountPoint == s.MountPoint })
		if i >= 0 {
			h.Spaces[i].For = append(h.Spaces[i].For, name)
			continue
		}
		h.Spaces = append(h.Spaces, Space{MountPoint: s.MountPoint, Type: s.Type, Free: s.Free, Total: s.Total, ReadOnly: s.ReadOnly, For: []string{name}, How: how})
		if s.ReadOnly {
			h.warn(how, "%s is mounted read-only, and %s lies on it", s.MountPoint, name)
		}
		if name == h.Data.Path && in.Etcd != nil && s.Free < in.Etcd.DBBytes {
			h.warn(how, "%s has %d bytes free, the database of the backup has %d", s.MountPoint, s.Free, in.Etcd.DBBytes)
		}
	}
}

func (h *Host) services(ctx context.Context, in Inputs) {
	names := []string{node.Kubelet}
	switch h.Kind {
	case KubeadmExternal, Etcd, Bare:
		names = append(names, cmp.Or(h.unit, node.Etcd))
	case K3s:
		names = []string{"k3s"}
	case RKE2:
		names = []string{"rke2-server"}
	case K0s:
		names = []string{"k0scontroller"}
	}
	h.Services = []Service{}
	for _, name := range names {
		made := Service{Name: name, How: "systemd and the processes"}
		s, err := within(ctx, in.Limits.Call, func(ctx context.Context) (node.Service, error) { return in.Machine.Service(ctx, name) })
		switch {
		case err != nil:
			made.Failed = err.Error()
		case s.Unit == "" && s.PID == 0:
			made.State, made.Stopped = "is not there", true
		case s.Unit == "":
			made.State = fmt.Sprintf("runs as process %d, which is not systemd's", s.PID)
		default:
			made.State, made.Stopped = strings.TrimSuffix(fmt.Sprintf("unit %s is %s and %s", s.Unit, s.Active, s.Enabled), " and "), s.Stopped()
		}
		h.Services = append(h.Services, made)
	}
}

func (h *Host) runtime(ctx context.Context, in Inputs) {
	r := &h.Runtime
	r.Running, r.How = []string{}, "the container runtime's socket"
	pods, err := within(ctx, in.Limits.Call, in.Machine.Pods)
	if err != nil {
		r.Failed = err.Error()
		return
	}
	r.Answers = true
	for _, p := range node.StaticPods(pods) {
		if slices.ContainsFunc(p.Containers, func(c node.Container) bool { return c.Running }) {
			r.Running = append(r.Running, p.Name)
		}
	}
}

// images looks for the images of the static pods on disk, or else of those that
// the backup will bring.
func (h *Host) images(ctx context.Context, in Inputs, pods []pod) {
	h.Images = []Image{}
	aside := map[string]bool{} // of pods that come when the control plane serves
	add := func(reference, of, how string) {
		if reference == "" {
			return
		}
		i := slices.IndexFunc(h.Images, func(have Image) bool { return have.Reference == reference })
		if i < 0 {
			i = len(h.Images)
			h.Images = append(h.Images, Image{Reference: reference, How: how})
		}
		if !slices.Contains(h.Images[i].Pods, of) {
			h.Images[i].Pods = append(h.Images[i].Pods, of)
		}
	}
	if in.Facts != nil {
		for _, image := range in.Facts.Images {
			switch image.Why {
			case "":
				add(image.Image, image.Pod, "the backup's static pods")
			case hostfacts.WhySandbox:
				add(image.Image, "every pod", "the backup's facts")
			default:
				aside[image.Image] = true
				add(image.Image, image.Pod, "the backup's facts")
			}
		}
	}
	if len(h.Images) == 0 {
		for _, p := range pods {
			for _, image := range p.Images {
				add(image, p.Name, "the static pods on disk")
			}
		}
	}
	slices.SortFunc(h.Images, func(a, b Image) int { return cmp.Compare(a.Reference, b.Reference) })
	for i := range h.Images {
		image := &h.Images[i]
		has, err := within(ctx, in.Limits.Call, func(ctx context.Context) (bool, error) { return in.Machine.HasImage(ctx, image.Reference) })
		switch {
		case errors.Is(err, node.ErrNoRuntime):
			image.State, image.Advice = "unknown", "no container runtime answers: start it, then look again"
		case err != nil:
			image.State, image.Advice = "unknown", err.Error()
		case has:
			image.State = "present"
		default:
			image.State = "missing"
			image.Advice = "crictl pull " + image.Reference + ", or put it back with lifeboat images load"
		}
		image.How += "; the container runtime was asked for it"
	}
	h.warnOfImages(aside)
}

// warnOfImages says what kubelet would have to pull before the control plane serves.
func (h *Host) warnOfImages(aside map[string]bool) {
	var missing []string
	for _, image := range h.Images {
		if image.State == "missing" && !aside[image.Reference] {
			missing = append(missing, image.Reference)
		}
	}
	if len(missing) > 0 {
		h.warn("the container runtime was asked for the images of the control plane",
			"this machine lacks container images that the control plane needs: %s. Without a registry that it reaches, put them back first: lifeboat images load --identity FILE",
			strings.Join(missing, ", "))
	}
}

func (h *Host) listeners(ctx context.Context, in Inputs) {
	h.Ports = Ports{Listeners: []Listener{}, How: "the kernel's table of listening sockets"}
	found, err := within(ctx, in.Limits.Call, func(ctx context.Context) ([]node.Listener, error) { return in.Machine.Listeners(ctx, ports...) })
	if err != nil {
		h.Ports.Failed = err.Error()
		return
	}
	for _, l := range found {
		process := "a process that can't be seen"
		if l.Process.PID != 0 {
			process = l.Process.String()
		}
		h.Ports.Listeners = append(h.Ports.Listeners, Listener{Port: l.Address.Port(), Address: l.Address.Addr().String(), Process: process})
	}
	slices.SortStableFunc(h.Ports.Listeners, func(a, b Listener) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), strings.Compare(a.Address, b.Address))
	})
}

// Version is that of a program on disk and in the backup, by its image's tag.
type Version struct {
	Program  string `json:"program"` // kubernetes, etcd
	OnDisk   string `json:"onDisk,omitempty"`
	InBackup string `json:"inBackup,omitempty"`
	How      string `json:"how"`
}

func (h *Host) versions(pods []pod, s setup, in Inputs) {
	kubernetes := Version{Program: "kubernetes", How: "the tags of the images of kube-apiserver"}
	if api := find(pods, "kube-apiserver"); api != nil {
		kubernetes.OnDisk = tagOf(api.image)
	}
	etcd := Version{Program: "etcd", How: "the tags of the images of etcd"}
	if s.here {
		etcd.OnDisk = tagOf(s.image)
	}
	if in.Facts != nil {
		for _, image := range in.Facts.Images {
			if strings.HasSuffix(repositoryOf(image.Image), "/kube-apiserver") {
				kubernetes.InBackup = tagOf(image.Image)
			}
		}
		if in.Facts.Etcd != nil {
			etcd.InBackup = tagOf(in.Facts.Etcd.Image)
		}
	}
	if in.Etcd != nil && in.Etcd.Version != "" {
		etcd.InBackup, etcd.How = in.Etcd.Version, etcd.How+"; in the backup what the member said"
	}
	h.Versions = []Version{kubernetes, etcd}
}

// tagOf is an image's version: its tag, without what etcd's images add to it
// (3.6.8-0).
func tagOf(image string) string {
	image, _, _ = strings.Cut(image, "@")
	tag := strings.TrimPrefix(image[len(repositoryOf(image)):], ":")
	if base, build, ok := strings.Cut(tag, "-"); ok && strings.Trim(build, "0123456789") == "" {
		tag = base
	}
	return tag
}

func repositoryOf(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		return image[:i]
	}
	return image
}
