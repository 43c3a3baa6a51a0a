package node_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"lifeboat/internal/containerd/containerdtest"
	"lifeboat/restore/node"
)

const etcdImage = "lifeboat.test/etcd:3.6"

// runtime connects to a containerd's CRI, which answers a little after the rest.
func runtime(t *testing.T, socket string) cri.RuntimeServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := cri.NewRuntimeServiceClient(conn)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err = c.Version(t.Context(), &cri.VersionRequest{}); err == nil {
			return c
		}
		if time.Now().After(deadline) {
			t.Fatalf("containerd's CRI does not answer: %v", err)
		}
	}
}

// staticEtcd runs a pod as kubelet does for a manifest, in a control group.
func staticEtcd(t *testing.T, c cri.RuntimeServiceClient, group string) {
	t.Helper()
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "etcd-cp1", Namespace: "kube-system", Uid: "1"},
		Annotations:  map[string]string{"kubernetes.io/config.source": "file"},
		LogDirectory: t.TempDir(),
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/" + group, SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}
	pod, err := c.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("run a pod: %v", err)
	}
	made, err := c.CreateContainer(t.Context(), &cri.CreateContainerRequest{
		PodSandboxId: pod.PodSandboxId, SandboxConfig: config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "etcd"}, Image: &cri.ImageSpec{Image: etcdImage}, LogPath: "log",
			Command: []string{"etcd", "--name=cp1"}, Linux: &cri.LinuxContainerConfig{},
		},
	})
	if err != nil {
		t.Fatalf("make a container: %v", err)
	}
	if _, err := c.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		t.Fatalf("start a container: %v", err)
	}
}

func TestFenceStopsARealStaticPod(t *testing.T) {
	r := containerdtest.Start(t)
	r.Import(map[string]string{etcdImage: "/usr/local/bin/etcd"})
	staticEtcd(t, runtime(t, r.Socket), r.Group)
	m := node.New(node.Options{Socket: r.Socket})
	for reference, want := range map[string]bool{etcdImage: true, "lifeboat.test/etcd:3.5": false} {
		if got, err := m.HasImage(t.Context(), reference); err != nil || got != want {
			t.Errorf("image %s: %v, %v", reference, got, err)
		}
	}
	images, err := m.Images(t.Context())
	if err != nil || !slices.ContainsFunc(images, func(i node.Image) bool { return slices.Contains(i.Tags, etcdImage) }) {
		t.Errorf("images %+v, %v", images, err)
	}
	pods, err := m.Pods(t.Context())
	if err != nil || len(pods) != 1 || !pods[0].Static || !pods[0].Ready || len(pods[0].Containers) != 1 || !pods[0].Containers[0].Running {
		t.Fatalf("pods %+v, %v", pods, err)
	}
	ours := func() (found []node.Process) {
		t.Helper()
		processes, err := m.Processes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range processes {
			if p.Container == pods[0].ID || p.Container == pods[0].Containers[0].ID {
				found = append(found, p)
			}
		}
		return found
	}
	running := ours()
	if !slices.ContainsFunc(running, func(p node.Process) bool {
		return p.Program == "etcd" && slices.Equal(p.Args, []string{"etcd", "--name=cp1"})
	}) ||
		!slices.ContainsFunc(running, func(p node.Process) bool { return p.Program == "pause" }) {
		t.Fatalf("processes %+v", running)
	}

	folder := t.TempDir()
	manifests, aside := filepath.Join(folder, "manifests"), filepath.Join(folder, "aside")
	if err := os.Mkdir(manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, manifests, "etcd.yaml", "kind: Pod\nmetadata: {name: etcd}\n")
	fake := alone{m, pods[0].Containers[0].ID} // this machine may run a kubelet and planes of its own
	got, err := node.Fence(t.Context(), fake, node.FenceOptions{Manifests: manifests, Aside: aside, Node: "cp1", Grace: 5 * time.Second, Limit: time.Minute})
	if err != nil || len(got.Moved) != 1 || len(got.Stopped) != 1 || got.Runtime != nil {
		t.Fatalf("got %+v, %v", got, err)
	}
	if left := ours(); len(left) != 0 {
		t.Errorf("still there: %+v", left)
	}
	if err := m.WaitGone(t.Context(), running); err != nil {
		t.Error(err)
	}
	if left, err := m.Pods(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if strings.Contains(files(t, manifests), "etcd") {
		t.Error("the manifest is still there")
	}
}

// alone is a machine on which no service runs, and no program but a container's.
type alone struct {
	*node.Local
	container string
}

func (alone) Service(_ context.Context, name string) (node.Service, error) {
	return node.Service{Name: name}, nil
}

func (a alone) Processes(ctx context.Context, programs ...string) ([]node.Process, error) {
	all, err := a.Local.Processes(ctx, programs...)
	return slices.DeleteFunc(all, func(p node.Process) bool { return p.Container != a.container }), err
}
