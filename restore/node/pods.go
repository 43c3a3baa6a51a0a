package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is a pod sandbox of the container runtime. A pod that was started again
// after its sandbox died has several.
type Pod struct {
	ID              string
	Namespace, Name string
	UID             string
	Static          bool // kubelet has it from a file
	Ready           bool // its sandbox runs
	Created         time.Time
	Containers      []Container // by name, the newest attempt first
}

// Container is one of a pod's.
type Container struct {
	ID, Name string
	Image    string // as the pod names it
	ImageRef string // what the runtime runs, usually by digest
	Running  bool
	Attempt  uint32
	Created  time.Time
}

func (p Pod) String() string {
	var running []string
	for _, c := range p.Containers {
		if c.Running {
			running = append(running, fmt.Sprintf("%s %.12s", c.Name, c.ID))
		}
	}
	state := "no container runs"
	if len(running) > 0 {
		state = "running " + strings.Join(running, ", ")
	}
	return fmt.Sprintf("pod %s/%s (%s)", p.Namespace, p.Name, state)
}

// Image is one that the container runtime has.
type Image struct {
	ID      string
	Tags    []string // registry.k8s.io/etcd:3.6.8-0
	Digests []string // registry.k8s.io/etcd@sha256:...
	Size    int64    // bytes
	Pinned  bool     // kubelet doesn't remove it
}

// sourceAnnotation is where kubelet notes whence it has a pod, and sourceFile
// what it notes for a manifest on disk (pkg/kubelet/types/constants.go).
const (
	sourceAnnotation = "kubernetes.io/config.source"
	sourceFile       = "file"
)

// StaticPods returns those of the pods that are static pods of kube-system or
// that are named.
func StaticPods(pods []Pod, names ...string) []Pod {
	var out []Pod
	for _, p := range pods {
		if p.Static && p.Namespace == "kube-system" || slices.Contains(names, p.Name) {
			out = append(out, p)
		}
	}
	return out
}

// Pods implements Machine.
func (l *Local) Pods(ctx context.Context) ([]Pod, error) {
	r, done, err := l.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	defer done()
	return r.pods(ctx)
}

func (r *runtime) pods(ctx context.Context) ([]Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	// Containers first: one that comes in between has a pod in the second answer.
	containers, err := r.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return nil, r.failed(ctx, "list containers", err)
	}
	sandboxes, err := r.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return nil, r.failed(ctx, "list pods", err)
	}
	var pods []Pod
	for _, s := range sandboxes.Items {
		p := Pod{
			ID: s.Id, Namespace: s.Metadata.GetNamespace(), Name: s.Metadata.GetName(), UID: s.Metadata.GetUid(),
			Static: s.Annotations[sourceAnnotation] == sourceFile,
			Ready:  s.State == cri.PodSandboxState_SANDBOX_READY, Created: time.Unix(0, s.CreatedAt).UTC(),
		}
		for _, c := range containers.Containers {
			if c.PodSandboxId == s.Id {
				p.Containers = append(p.Containers, Container{
					ID: c.Id, Name: c.Metadata.GetName(), Image: named(c), ImageRef: c.ImageRef,
					Running: c.State == cri.ContainerState_CONTAINER_RUNNING, Attempt: c.Metadata.GetAttempt(), Created: time.Unix(0, c.CreatedAt).UTC(),
				})
			}
		}
		slices.SortFunc(p.Containers, func(a, b Container) int {
			return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(b.Attempt, a.Attempt))
		})
		pods = append(pods, p)
	}
	slices.SortFunc(pods, func(a, b Pod) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return pods, nil
}

// named returns a container's image as the pod names it; older runtimes tell
// only what they made of it.
func named(c *cri.Container) string {
	return cmp.Or(c.Image.GetUserSpecifiedImage(), c.Image.GetImage())
}

// StopPods implements Machine. The pods are stopped side by side.
func (l *Local) StopPods(ctx context.Context, pods []Pod, grace time.Duration) error {
	if len(pods) == 0 {
		return nil
	}
	r, done, err := l.dial(ctx)
	if err != nil {
		return fmt.Errorf("stop pods: %w", err)
	}
	defer done()
	var all errgroup.Group
	all.SetLimit(8)
	errs := make([]error, len(pods))
	for i, p := range pods {
		all.Go(func() error {
			errs[i] = r.stop(ctx, p, grace)
			return nil
		})
	}
	_ = all.Wait() // the errors are in errs: one pod must not keep the others
	if err := errors.Join(errs...); err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrAlive, err)
	} else if err != nil {
		return err
	}
	left := names(pods)
	for {
		known, err := r.pods(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return fmt.Errorf("wait until the pods are gone: %w: %s: %w", ErrAlive, strings.Join(left, ", "), err)
		case err != nil:
			return err
		}
		left = nil
		for _, p := range known {
			if slices.ContainsFunc(pods, func(stopped Pod) bool { return stopped.ID == p.ID }) {
				left = append(left, p.String())
			}
		}
		if len(left) == 0 {
			return nil
		}
		if err := l.sleep(ctx, lookAgain); err != nil {
			return fmt.Errorf("wait until the pods are gone: %w: %s: %w", ErrAlive, strings.Join(left, ", "), err)
		}
	}
}

func names(pods []Pod) (list []string) {
	for _, p := range pods {
		list = append(list, p.String())
	}
	return list
}

// stop ends one pod: its containers with a grace, then the sandbox, which would
// give them none, then what is left of it. Something that is gone already is no
// error, as kubelet may be about the same.
func (r *runtime) stop(ctx context.Context, p Pod, grace time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, grace+callLimit, fmt.Errorf("no end after %v", grace+callLimit))
	defer cancel()
	var containers errgroup.Group
	for _, c := range p.Containers {
		if !c.Running {
			continue
		}
		containers.Go(func() error {
			seconds := int64((grace + time.Second - 1) / time.Second)
			_, err := r.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID, Timeout: seconds})
			if err != nil && status.Code(err) != codes.NotFound {
				return r.failed(ctx, fmt.Sprintf("stop container %s %.12s of %s/%s", c.Name, c.ID, p.Namespace, p.Name), err)
			}
			return nil
		})
	}
	if err := containers.Wait(); err != nil {
		return err
	}
	if _, err := r.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil && status.Code(err) != codes.NotFound {
		return r.failed(ctx, fmt.Sprintf("stop pod %s/%s %.12s", p.Namespace, p.Name, p.ID), err)
	}
	if _, err := r.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil && status.Code(err) != codes.NotFound {
		return r.failed(ctx, fmt.Sprintf("remove pod %s/%s %.12s", p.Namespace, p.Name, p.ID), err)
	}
	return nil
}

// Images implements Machine.
func (l *Local) Images(ctx context.Context) ([]Image, error) {
	r, done, err := l.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	answer, err := r.images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return nil, r.failed(ctx, "list images", err)
	}
	out := make([]Image, len(answer.Images))
	for i, image := range answer.Images {
		out[i] = Image{ID: image.Id, Tags: image.RepoTags, Digests: image.RepoDigests, Size: int64(image.Size), Pinned: image.Pinned}
	}
	return out, nil
}

// HasImage implements Machine.
func (l *Local) HasImage(ctx context.Context, reference string) (bool, error) {
	r, done, err := l.dial(ctx)
	if err != nil {
		return false, fmt.Errorf("look for image %s: %w", reference, err)
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	answer, err := r.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: reference}})
	if err != nil {
		return false, r.failed(ctx, "look for image "+reference, err)
	}
	return answer.Image != nil, nil
}
