package node_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// criServer is a container runtime as far as its protocol goes.
type criServer struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer
	socket string

	mu         sync.Mutex
	sandboxes  []*cri.PodSandbox
	containers []*cri.Container
	images     []*cri.Image
	orders     []string // what was asked for, in order
	graces     []int64
	stubborn   bool            // sandboxes are never removed
	refuse     map[string]bool // ids that can't be stopped
	onStop     func(id string) // what becomes of a container's processes
	onRemove   func(id string) // what becomes of a sandbox's
}

// serve starts a runtime on a socket.
func serve(t *testing.T) *criServer {
	t.Helper()
	s := &criServer{socket: filepath.Join(t.TempDir(), "cri.sock"), refuse: map[string]bool{}, onStop: func(string) {}, onRemove: func(string) {}}
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(server, s)
	cri.RegisterImageServiceServer(server, s)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // a short test stops it before it begins
			t.Error(err)
		}
	})
	return s
}

// pod adds a pod with one running container of the same name.
func (s *criServer) pod(name, sandbox, container, source string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sandboxes = append(s.sandboxes, &cri.PodSandbox{
		Id: id(sandbox), State: cri.PodSandboxState_SANDBOX_READY, CreatedAt: 1e9,
		Metadata:    &cri.PodSandboxMetadata{Name: name, Namespace: "kube-system", Uid: "uid-" + name},
		Annotations: map[string]string{"kubernetes.io/config.source": source},
	})
	s.containers = append(s.containers, &cri.Container{
		Id: id(container), PodSandboxId: id(sandbox), State: cri.ContainerState_CONTAINER_RUNNING, CreatedAt: 2e9,
		Metadata: &cri.ContainerMetadata{Name: name, Attempt: 1},
		Image:    &cri.ImageSpec{Image: "sha256:1", UserSpecifiedImage: "example/" + name + ":1"}, ImageRef: "example/" + name + "@sha256:1",
	})
}

func (s *criServer) ordered() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.orders)
}

func (s *criServer) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &cri.ListPodSandboxResponse{Items: slices.Clone(s.sandboxes)}, nil
}

func (s *criServer) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &cri.ListContainersResponse{Containers: slices.Clone(s.containers)}, nil
}

func (s *criServer) StopContainer(_ context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders = append(s.orders, "stop container "+r.ContainerId[:1])
	s.graces = append(s.graces, r.Timeout)
	if s.refuse[r.ContainerId] {
		return nil, status.Error(codes.Internal, "it does not die")
	}
	found := false
	s.containers = slices.DeleteFunc(s.containers, func(c *cri.Container) bool {
		found = found || c.Id == r.ContainerId
		return c.Id == r.ContainerId
	})
	if !found {
		return nil, status.Error(codes.NotFound, "no such container")
	}
	s.onStop(r.ContainerId)
	return &cri.StopContainerResponse{}, nil
}

func (s *criServer) StopPodSandbox(_ context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders = append(s.orders, "stop pod "+r.PodSandboxId[:1])
	return &cri.StopPodSandboxResponse{}, nil
}

func (s *criServer) RemovePodSandbox(_ context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders = append(s.orders, "remove pod "+r.PodSandboxId[:1])
	if !s.stubborn {
		s.sandboxes = slices.DeleteFunc(s.sandboxes, func(p *cri.PodSandbox) bool { return p.Id == r.PodSandboxId })
		s.onRemove(r.PodSandboxId)
	}
	return &cri.RemovePodSandboxResponse{}, nil
}

func (s *criServer) ListImages(context.Context, *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	return &cri.ListImagesResponse{Images: s.images}, nil
}

func (s *criServer) ImageStatus(_ context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	for _, i := range s.images {
		if slices.Contains(i.RepoTags, r.Image.Image) || slices.Contains(i.RepoDigests, r.Image.Image) {
			return &cri.ImageStatusResponse{Image: i}, nil
		}
	}
	return &cri.ImageStatusResponse{}, nil
}
