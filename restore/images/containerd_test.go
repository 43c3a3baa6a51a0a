package images_test

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	saving "lifeboat/backup/images"
	"lifeboat/internal/containerd"
	"lifeboat/internal/containerd/containerdtest"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/oci"
	"lifeboat/restore/images"
)

const (
	etcdImage  = "lifeboat.test/etcd:3.6"
	multiImage = "lifeboat.test/multi:1"
)

// kubelet is what kubelet asks of a container runtime.
type kubelet struct {
	t    *testing.T
	real *containerdtest.Real
	cri.RuntimeServiceClient
	images cri.ImageServiceClient
}

func kubeletOf(t *testing.T, r *containerdtest.Real) *kubelet {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+r.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	k := &kubelet{t: t, real: r, RuntimeServiceClient: cri.NewRuntimeServiceClient(conn), images: cri.NewImageServiceClient(conn)}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err = k.Version(t.Context(), &cri.VersionRequest{}); err == nil {
			return k
		}
		if time.Now().After(deadline) {
			t.Fatalf("containerd's CRI plugin does not answer: %v", err)
		}
	}
}

// sees waits until the CRI plugin has an image: it hears of it by an event.
func (k *kubelet) sees(reference string) *cri.Image {
	k.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		answer, err := k.images.ImageStatus(k.t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: reference}})
		if err != nil {
			k.t.Fatal(err)
		}
		if answer.Image != nil {
			return answer.Image
		}
		if time.Now().After(deadline) {
			k.t.Fatalf("kubelet would pull %s: the CRI plugin does not see it", reference)
		}
	}
}

// runs runs a static pod of an image as kubelet does, without pulling.
func (k *kubelet) runs(name, reference string) {
	k.t.Helper()
	k.sees(reference)
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "kube-system", Uid: name},
		Annotations:  map[string]string{"kubernetes.io/config.source": "file"},
		Labels:       map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "kube-system"},
		LogDirectory: k.t.TempDir(),
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/" + k.real.Group, SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}
	pod, err := k.RunPodSandbox(k.t.Context(), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		k.t.Fatalf("run a pod: %v", err)
	}
	made, err := k.CreateContainer(k.t.Context(), &cri.CreateContainerRequest{
		PodSandboxId: pod.PodSandboxId, SandboxConfig: config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "main"}, Image: &cri.ImageSpec{Image: reference}, LogPath: "log",
			Labels:  map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "kube-system", "io.kubernetes.container.name": "main"},
			Command: []string{"/usr/local/bin/etcd"}, Linux: &cri.LinuxContainerConfig{},
		},
	})
	if err != nil {
		k.t.Fatalf("make a container: %v", err)
	}
	if _, err := k.StartContainer(k.t.Context(), &cri.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		k.t.Fatalf("start a container: %v", err)
	}
	status, err := k.ContainerStatus(k.t.Context(), &cri.ContainerStatusRequest{ContainerId: made.ContainerId})
	if err != nil || status.Status.State != cri.ContainerState_CONTAINER_RUNNING {
		k.t.Fatalf("the container is %v, %v", status.GetStatus().GetState(), err)
	}
}

// multi gives a containerd an image of two platforms, of which it has one.
func multi(t *testing.T, c *containerd.Client) {
	t.Helper()
	of, err := c.ByName(t.Context(), etcdImage)
	if err != nil {
		t.Fatal(err)
	}
	here := of.Target
	here.Platform = &platform
	fake := containerdtest.NewStore()
	index := fake.AddJSON(t, oci.TypeIndex, map[string]any{"schemaVersion": 2, "mediaType": oci.TypeIndex, "manifests": []oci.Descriptor{
		{MediaType: oci.TypeManifest, Digest: oci.DigestOf([32]byte{1}), Size: 500, Platform: &oci.Platform{OS: "linux", Architecture: "other"}}, here,
	}})
	held, release, err := c.Lease(t.Context(), "test-multi", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{"containerd.io/gc.ref.content.m.1": string(here.Digest)}
	if written, err := c.Write(held, "test", index, labels, reading(fake, index)); err != nil || !written {
		t.Fatal(written, err)
	}
	if err := c.SetImage(held, containerd.Image{Name: multiImage, Target: index}, false); err != nil {
		t.Fatal(err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
}

// names are an image store's, with digests.
func names(t *testing.T, c *containerd.Client) map[string]oci.Digest {
	t.Helper()
	list, err := c.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]oci.Digest{}
	for _, i := range list {
		out[i.Name] = i.Target.Digest
	}
	return out
}

func TestAMachineWithoutImagesStartsPodsFromThoseThatWereSaved(t *testing.T) {
	old := containerdtest.Start(t)
	old.Import(map[string]string{etcdImage: "/usr/local/bin/etcd"})
	from := old.Client()
	multi(t, from)
	k := kubeletOf(t, old)
	k.runs("etcd-cp1", etcdImage)

	chosen, err := saving.Choose(t.Context(), from, []hostfacts.Image{{Pod: "etcd", Container: "etcd", Image: etcdImage}})
	if err != nil || len(chosen) != 2 || chosen[0].Digest != string(names(t, from)[etcdImage]) || chosen[1].Why != "sandbox" || chosen[1].Image != containerdtest.PauseImage || chosen[1].Digest == "" {
		t.Fatalf("the node needs %+v, %v", chosen, err)
	}
	w := newWorld(t)
	o := w.saving(from)
	o.Static, o.Also = chosen[:1], []string{multiImage}
	backup := w.save(o)
	if len(backup.Images.Images) != 3 {
		t.Fatalf("saved %+v", backup.Images)
	}
	if again := w.saved(o); again.Stores[0].Put != 0 || !again.Stores[0].Unchanged {
		t.Errorf("saved again: %+v", again.Stores[0])
	}

	empty := containerdtest.Start(t)
	to := empty.Client()
	if have := names(t, to); len(have) > 0 {
		t.Fatalf("it has %v", have)
	}
	plan, err := images.Prepare(t.Context(), w.loading(backup, to))
	if err != nil || len(plan.Images) != 3 || plan.Blobs != len(backup.Images.Blobs) {
		t.Fatalf("%+v, %v", plan, err)
	}
	done, err := plan.Execute(t.Context())
	if err != nil || done.Blobs != plan.Blobs || done.Bytes != plan.Bytes {
		t.Fatalf("%+v, %v", done, err)
	}

	// Nothing holds them now but their names: the collector must find all.
	empty.Ctr("leases", "create", "--id", "x")
	empty.Ctr("leases", "delete", "--sync", "x")
	before, after := names(t, from), names(t, to)
	for _, name := range []string{etcdImage, multiImage, containerdtest.PauseImage} {
		if after[name] == "" || after[name] != before[name] {
			t.Errorf("%s: %s, was %s", name, after[name], before[name])
		}
	}
	for _, sum := range backup.Images.Blobs {
		if has, err := to.Has(t.Context(), oci.DigestOf(sum)); err != nil || !has {
			t.Errorf("blob %s was collected: %v", sum, err)
		}
	}
	if leases := empty.Ctr("leases", "ls", "-q"); leases != "" {
		t.Errorf("leases are left: %s", leases)
	}
	kubeletOf(t, empty).runs("etcd-cp1", etcdImage) // makes the pause image's sandbox, too
	kubeletOf(t, empty).runs("multi", multiImage)

	again, err := images.Prepare(t.Context(), w.loading(backup, to))
	if err != nil || again.Blobs != 0 || slices.ContainsFunc(again.Images, func(i images.Image) bool { return !i.Present }) {
		t.Errorf("%+v, %v", again, err)
	}
	if done, err := again.Execute(t.Context()); err != nil || done.Blobs != 0 {
		t.Errorf("loaded again: %+v, %v", done, err)
	}
}

// TestDamageInARealContentStoreIsFound flips a byte on the disk of a machine, which
// containerd itself does not notice.
func TestDamageInARealContentStoreIsFound(t *testing.T) {
	r := containerdtest.Start(t)
	r.Import(map[string]string{etcdImage: "/usr/local/bin/etcd"})
	c := r.Client()
	w := newWorld(t)
	o := w.saving(c)
	o.All = true
	backup := w.save(o)

	of, err := c.ByName(t.Context(), etcdImage)
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := oci.Needed(t.Context(), of.Target, platform, c)
	if err != nil {
		t.Fatal(err)
	}
	layer := blobs[len(blobs)-1]
	data, err := os.ReadFile(r.Blob(layer.Digest))
	if err != nil || int64(len(data)) != layer.Size {
		t.Fatal(len(data), layer.Size, err)
	}
	data[len(data)/2] ^= 1
	if err := errors.Join(os.Chmod(r.Blob(layer.Digest), 0o600), os.WriteFile(r.Blob(layer.Digest), data, 0o600)); err != nil {
		t.Fatal(err)
	}

	fresh := newWorld(t)
	o = fresh.saving(c)
	o.All = true
	plan, err := saving.Look(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	saved, err := plan.Save(t.Context())
	if !errors.Is(err, saving.ErrNotWhole) || !strings.Contains(err.Error(), etcdImage) || len(saved.Stores[0].Manifest.Images.Images) != 1 {
		t.Errorf("saved a damaged layer: %+v, %v", saved.Stores, err)
	}
	loading, err := images.Prepare(t.Context(), w.loading(backup, c))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := loading.Execute(t.Context()); !errors.Is(err, oci.ErrDamaged) || !strings.Contains(err.Error(), "content rm "+string(layer.Digest)) {
		t.Fatalf("a machine with a damaged layer: %v", err)
	}
	r.Ctr("content", "rm", string(layer.Digest)) // as it says
	if _, done, err := load(t, w.loading(backup, c)); err != nil || done.Blobs != 1 {
		t.Errorf("%+v, %v", done, err)
	}
	if err := c.Verify(t.Context(), layer.Descriptor); err != nil {
		t.Error(err)
	}
}

func TestContainerdKeepsNothingThatIsNotItsDigest(t *testing.T) {
	r := containerdtest.Start(t)
	c := r.Client()
	fake := containerdtest.NewStore()
	good := fake.Add("application/x-test", []byte(strings.Repeat("some bytes ", 300_000)))
	for name, c2 := range map[string]func(*containerdtest.Store){
		"other bytes": func(s *containerdtest.Store) { s.Blobs[good.Digest] = []byte(strings.Repeat("x", int(good.Size))) },
		"too few":     func(s *containerdtest.Store) { s.Blobs[good.Digest] = []byte("x") },
		"too many":    func(s *containerdtest.Store) { s.Blobs[good.Digest] = []byte(strings.Repeat("x", int(good.Size)+1)) },
	} {
		bad := containerdtest.NewStore()
		c2(bad)
		if _, err := c.Write(t.Context(), "test", good, nil, raw(bad, good)); !errors.Is(err, oci.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cut := func() (io.ReadCloser, error) { // some stores' clients end so when a connection breaks
		return io.NopCloser(io.MultiReader(strings.NewReader("some bytes "), iotest.ErrReader(io.ErrUnexpectedEOF))), nil
	}
	if _, err := c.Write(t.Context(), "test", good, nil, cut); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut short: %v", err)
	}
	if has, err := c.Has(t.Context(), good.Digest); err != nil || has {
		t.Errorf("it was kept: %v, %v", has, err)
	}
	if left := r.Ctr("content", "active"); strings.Contains(left, "test") {
		t.Errorf("half-written blobs are left: %s", left)
	}
	if written, err := c.Write(t.Context(), "test", good, map[string]string{"a": "b"}, reading(fake, good)); err != nil || !written {
		t.Fatal(written, err)
	}
	if written, err := c.Write(t.Context(), "test", good, map[string]string{"c": "d"}, nil); err != nil || written {
		t.Errorf("written again: %v, %v", written, err)
	}
	if listed := r.Ctr("content", "ls"); !strings.Contains(listed, "a=b") || !strings.Contains(listed, "c=d") {
		t.Errorf("labels: %s", listed)
	}
	if err := c.Verify(t.Context(), oci.Descriptor{MediaType: "x", Digest: good.Digest, Size: good.Size - 1}); !errors.Is(err, oci.ErrDamaged) {
		t.Errorf("a size that lies: %v", err)
	}
	if err := c.Verify(t.Context(), oci.Descriptor{Digest: oci.DigestOf([32]byte{9}), Size: 1}); !errors.Is(err, containerd.ErrNotFound) {
		t.Errorf("a blob that is not there: %v", err)
	}
	index := containerd.Image{Name: "lifeboat.test/x:1", Target: good}
	if err := c.SetImage(t.Context(), index, false); err != nil {
		t.Fatal(err)
	}
	other := index
	other.Target = fake.Add("application/x-test", []byte("other"))
	if _, err := c.Write(t.Context(), "test", other.Target, nil, reading(fake, other.Target)); err != nil {
		t.Fatal(err)
	}
	if err := c.SetImage(t.Context(), other, false); !errors.Is(err, containerd.ErrOtherImage) {
		t.Errorf("a name of another image: %v", err)
	}
	if err := c.SetImage(t.Context(), other, true); err != nil {
		t.Error(err)
	}
	if got, err := c.ByName(t.Context(), other.Name); err != nil || got.Target.Digest != other.Target.Digest {
		t.Errorf("%+v, %v", got, err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Images(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that ended: %v", err)
	}
}

// TestABlobThatIsThereIsHeldByWhoeverWritesItAgain: what an interrupted load has left
// is held by no lease, or by one that ends while the next load still runs.
func TestABlobThatIsThereIsHeldByWhoeverWritesItAgain(t *testing.T) {
	r := containerdtest.Start(t)
	c := r.Client()
	fake := containerdtest.NewStore()
	blob := fake.Add("application/x-test", []byte("some bytes"))
	write := func(id string) (written bool, release func() error) {
		held, release, err := c.Lease(t.Context(), id, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if written, err = c.Write(held, id, blob, map[string]string{"by": id}, reading(fake, blob)); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		return written, release
	}
	// endsAndCollects waits until containerd has collected what no lease holds.
	endsAndCollects := func(release func() error) (stays bool) {
		if err := release(); err != nil {
			t.Fatal(err)
		}
		r.Ctr("leases", "create", "--id", "collect")
		r.Ctr("leases", "delete", "--sync", "collect")
		stays, err := c.Has(t.Context(), blob.Digest)
		if err != nil {
			t.Fatal(err)
		}
		return stays
	}
	written, killed := write("killed")
	again, next := write("next")
	if !written || again {
		t.Errorf("written %v, then %v", written, again)
	}
	if !endsAndCollects(killed) {
		t.Error("it was collected while the second load held a lease")
	}
	if endsAndCollects(next) {
		t.Error("it stays though nothing holds it: this test can't tell")
	}
}
