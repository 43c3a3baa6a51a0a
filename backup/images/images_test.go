package images

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"lifeboat/backup"
	"lifeboat/internal/containerd"
	"lifeboat/internal/containerd/containerdtest"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
	"lifeboat/internal/oci"
	"lifeboat/internal/repository"
	"lifeboat/storage/memory"
)

var amd64 = oci.Platform{OS: "linux", Architecture: "amd64"}

// world is a node's image store and two stores.
type world struct {
	t      *testing.T
	node   *containerdtest.Store
	repos  []*repository.Repository
	o      Options
	images map[string]containerd.Image
	trust  *manifest.Trust
	signer *manifest.Signer
}

func newWorld(t *testing.T, chains ...string) *world {
	t.Helper()
	if len(chains) == 0 {
		chains = []string{"*"}
	}
	signer, err := manifest.GenerateSigner(rand.Reader, "cp1")
	if err != nil {
		t.Fatal(err)
	}
	trust := &manifest.Trust{Cluster: "prod-eu1-k3x9m2q7", Verifiers: []manifest.Verifier{{Key: signer.VerifierText(), Chains: chains, Kinds: []string{"*"}}}}
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, node: containerdtest.NewStore(), images: map[string]containerd.Image{}, trust: trust, signer: signer}
	for _, i := range []struct {
		name   string
		layers []string
	}{
		{"registry.k8s.io/etcd:3.6.4-0", []string{"distroless base", "etcd's program"}},
		{"registry.k8s.io/kube-apiserver:v1.36.3", []string{"distroless base", "the API server"}},
		{"registry.k8s.io/pause:3.10", []string{"pause"}},
		{"registry.k8s.io/coredns/coredns:v1.12", []string{"distroless base", "coredns"}},
		{"docker.io/flannel/flannel:v0.27", []string{"flannel"}},
		{"docker.io/library/app:latest", []string{"an application"}},
	} {
		w.images[i.name] = w.node.Image(t, i.name, amd64, i.layers...)
	}
	id := "sha256:" + strings.Repeat("ab", 32) // as the CRI plugin names it too
	w.node.Names[id] = containerd.Image{Name: id, Target: w.images["registry.k8s.io/coredns/coredns:v1.12"].Target}
	w.node.Names["registry.k8s.io/pause:3.10"] = containerd.Image{Name: "registry.k8s.io/pause:3.10", Target: w.images["registry.k8s.io/pause:3.10"].Target, Pinned: true}
	w.node.Containers = []containerd.Used{
		{Image: "registry.k8s.io/pause:3.10", Namespace: "kube-system", Pod: "etcd-cp1", Sandbox: true},
		{Image: "registry.k8s.io/etcd:3.6.4-0", Namespace: "kube-system", Pod: "etcd-cp1", Name: "etcd"},
		{Image: id, Namespace: "kube-system", Pod: "coredns-1", Name: "coredns"},
		{Image: "docker.io/flannel/flannel:v0.27", Namespace: "kube-flannel", Pod: "flannel-1", Name: "install-cni", Network: true},
		{Image: "docker.io/library/app:latest", Namespace: "default", Pod: "app-1", Name: "app"},
	}
	w.o = Options{
		Source: w.node, Node: "cp1", Platform: amd64,
		Static: []hostfacts.Image{
			{Pod: "etcd", Container: "etcd", Image: "registry.k8s.io/etcd:3.6.4-0"},
			{Pod: "kube-apiserver", Container: "kube-apiserver", Image: "registry.k8s.io/kube-apiserver:v1.36.3"},
		},
		Recipients: []age.Recipient{identity.Recipient()}, RecipientNames: []string{identity.Recipient().String()},
		Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"}, StoreStall: 20 * time.Second, Now: time.Now, Rand: rand.Reader,
	}
	for _, name := range []string{"memory:one", "memory:two"} {
		r, err := repository.Open(memory.New(), repository.Options{Trust: trust, Signer: signer, Name: name, Writer: w.o.Writer})
		if err != nil {
			t.Fatal(err)
		}
		w.repos = append(w.repos, r)
		w.o.Stores = append(w.o.Stores, backup.Store{URL: name, Repository: r})
	}
	return w
}

// only leaves the first stores.
func (w *world) only(n int) { w.repos, w.o.Stores = w.repos[:n], w.o.Stores[:n] }

func (w *world) look() *Plan {
	w.t.Helper()
	plan, err := Look(w.t.Context(), w.o)
	if err != nil {
		w.t.Fatal(err)
	}
	return plan
}

func (w *world) save() *Saved {
	w.t.Helper()
	saved, err := w.look().Save(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return saved
}

func (w *world) clean() {
	w.t.Helper()
	for _, r := range w.repos {
		report, err := r.Verify(w.t.Context(), repository.VerifyOptions{})
		if err != nil || len(repository.Failures(report.Problems)) > 0 {
			w.t.Errorf("%s: %v, %v", r.Name(), report.Problems, err)
		}
	}
}

func TestTheNodesImagesAreChosen(t *testing.T) {
	w := newWorld(t)
	list, err := Choose(t.Context(), w.node, w.o.Static)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, i := range list {
		got[i.Image] = i.Why
		if i.Digest != string(w.images[i.Image].Target.Digest) {
			t.Errorf("%s has digest %q", i.Image, i.Digest)
		}
	}
	want := map[string]string{
		"registry.k8s.io/etcd:3.6.4-0": "", "registry.k8s.io/kube-apiserver:v1.36.3": "", "registry.k8s.io/pause:3.10": "sandbox",
		"registry.k8s.io/coredns/coredns:v1.12": "kube-system", "docker.io/flannel/flannel:v0.27": "network",
	}
	if len(got) != len(want) {
		t.Errorf("chose %v", got)
	}
	for image, why := range want {
		if reason, ok := got[image]; !ok || reason != why {
			t.Errorf("%s: %q, %v", image, reason, ok)
		}
	}
	missing, err := Choose(t.Context(), w.node, []hostfacts.Image{{Pod: "vip", Image: "example.org/vip:1", Digest: "sha256:of the reference"}})
	if err != nil || missing[0].Digest != "sha256:of the reference" {
		t.Errorf("%+v, %v", missing[0], err)
	}
}

func TestASaveStoresEachBlobOnce(t *testing.T) {
	w := newWorld(t)
	first := w.save()
	plan := w.look()
	for _, in := range first.Stores {
		if in.Err != nil || in.Unchanged || in.Put != plan.Blobs || in.Manifest.ID != first.ID {
			t.Errorf("%+v, want %d blobs", in, plan.Blobs)
		}
	}
	m := first.Stores[0].Manifest
	if other := first.Stores[1].Manifest; !other.Created.Equal(m.Created) {
		t.Errorf("the stores disagree about when: %s, %s", m.Created, other.Created)
	}
	if len(m.Images.Images) != 5 || len(m.Images.Blobs) != plan.Blobs || m.Images.Node != "cp1" || m.Images.Platform != "linux/amd64" || len(m.Degraded) > 0 {
		t.Errorf("%+v", m.Images)
	}
	pause := slices.IndexFunc(m.Images.Images, func(i manifest.Image) bool { return i.Names[0] == "registry.k8s.io/pause:3.10" })
	coredns := slices.IndexFunc(m.Images.Images, func(i manifest.Image) bool { return len(i.Names) == 2 })
	if pause < 0 || !m.Images.Images[pause].Pinned || coredns < 0 {
		t.Errorf("%+v", m.Images.Images)
	}
	w.clean()
	for _, in := range w.save().Stores {
		if !in.Unchanged || in.Put != 0 || in.Manifest.ID != first.ID {
			t.Errorf("nothing changed: %+v", in)
		}
	}

	// An upgrade of one, and another node that has the same.
	w.images["x"] = w.node.Image(t, "registry.k8s.io/etcd:3.6.5-0", amd64, "distroless base", "etcd's next program")
	w.o.Static[0].Image = "registry.k8s.io/etcd:3.6.5-0"
	w.node.Containers = slices.DeleteFunc(w.node.Containers, func(u containerd.Used) bool { return u.Name == "etcd" })
	if second := w.save(); second.Stores[0].Put != 4 { // index, manifest, configuration, one layer
		t.Errorf("%+v", second.Stores[0])
	}
	w.o.Node = "cp2"
	if other := w.save(); other.Stores[0].Put != 0 || other.Stores[0].Unchanged {
		t.Errorf("another node: %+v", other.Stores[0])
	}
	w.clean()
}

func TestWhatIsNotWholeIsLeftOutAndTold(t *testing.T) {
	for _, c := range []struct {
		name string
		lose func(w *world)
		why  string
	}{
		{"a layer is gone", func(w *world) { delete(w.node.Blobs, w.layer("etcd's program")) }, "discard_unpacked_layers"},
		{"a layer is damaged", func(w *world) { w.node.Blobs[w.layer("etcd's program")] = []byte("etcd's prOgram") }, "not those of the digest"},
		{"a manifest is damaged", func(w *world) {
			for _, b := range w.blobs("registry.k8s.io/etcd:3.6.4-0") {
				if b.IsManifest() {
					data := bytes.Clone(w.node.Blobs[b.Digest])
					data[10] ^= 1
					w.node.Blobs[b.Digest] = data
				}
			}
		}, "not those of the digest"},
		{"the image is not there", func(w *world) { delete(w.node.Names, "registry.k8s.io/etcd:3.6.4-0") }, "no such image"},
		{"its digest is none", func(w *world) {
			w.node.Names["registry.k8s.io/etcd:3.6.4-0"] = containerd.Image{Name: "registry.k8s.io/etcd:3.6.4-0", Target: oci.Descriptor{MediaType: oci.TypeIndex, Digest: "sha512:x", Size: 3}}
		}, "no SHA-256"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.lose(w)
			saved, err := w.look().Save(t.Context())
			if !errors.Is(err, ErrNotWhole) || !strings.Contains(err.Error(), "etcd") || !strings.Contains(err.Error(), c.why) {
				t.Errorf("%v", err)
			}
			for _, in := range saved.Stores {
				if in.Err != nil || len(in.Manifest.Images.Images) != 4 || len(in.Manifest.Degraded) == 0 {
					t.Errorf("%+v", in)
				}
			}
			w.clean()
			w.o.Also = []string{"registry.k8s.io/etcd:3.6.4-0"}
			if plan, err := Look(t.Context(), w.o); err == nil {
				if _, err = plan.Save(t.Context()); err == nil {
					t.Error("it was asked for by name, and is not there")
				}
			}
		})
	}
}

func (w *world) layer(text string) oci.Digest {
	for d, data := range w.node.Blobs {
		if string(data) == text {
			return d
		}
	}
	w.t.Fatalf("no layer %q", text)
	return ""
}

func (w *world) blobs(name string) []oci.Blob {
	w.t.Helper()
	blobs, err := oci.Needed(w.t.Context(), w.images[name].Target, amd64, w.node)
	if err != nil {
		w.t.Fatal(err)
	}
	return blobs
}

func TestASaveThatEndsEarlyIsGoneOnWith(t *testing.T) {
	w := newWorld(t)
	w.only(1)
	plan := w.look()
	died := errors.New("died")
	opened := 0
	w.node.Fail = func(doing string, _ oci.Digest) error {
		if doing == "open" {
			if opened++; opened > 20 { // some of the manifests' reads, and a few blobs
				return died
			}
		}
		return nil
	}
	opened = 10
	saved, err := plan.Save(t.Context())
	if !errors.Is(err, backup.ErrTooFewStores) || !errors.Is(err, died) || saved.Stores[0].Put == 0 {
		t.Fatalf("%+v, %v", saved.Stores[0], err)
	}
	w.node.Fail = nil
	again := w.save()
	if got := again.Stores[0]; got.Put+saved.Stores[0].Put != plan.Blobs {
		t.Errorf("put %d, then %d of %d", saved.Stores[0].Put, got.Put, plan.Blobs)
	}
	w.clean()
}

func TestAStoreThatFailsIsTold(t *testing.T) {
	w := newWorld(t)
	w.o.Stores[0] = backup.Store{URL: "memory:dead", Err: errors.New("no such bucket")}
	w.repos = w.repos[1:]
	saved, err := w.look().Save(t.Context())
	if err != nil || saved.Stores[0].Err == nil || saved.Stores[1].Err != nil {
		t.Errorf("%+v, %v", saved.Stores, err)
	}
	w.o.MinStores = 2
	if _, err := w.look().Save(t.Context()); !errors.Is(err, backup.ErrTooFewStores) {
		t.Errorf("with minStores 2: %v", err)
	}
	w.clean()
}

func TestNothingIsStoredForAKeyThatMayNotSign(t *testing.T) {
	w := newWorld(t, "etcd/*", "hosts/*", "drills")
	if _, err := w.look().Save(t.Context()); !errors.Is(err, repository.ErrMayNotSign) {
		t.Errorf("%v", err)
	}
	for _, r := range w.repos {
		if chains, err := r.Chains(t.Context()); err != nil || len(chains) > 0 {
			t.Errorf("%v, %v", chains, err)
		}
	}
}

func TestANodeWithoutImages(t *testing.T) {
	w := newWorld(t)
	w.o.Source = containerdtest.NewStore()
	if _, err := Look(t.Context(), w.o); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "registry.k8s.io/etcd:3.6.4-0") {
		t.Errorf("%v", err)
	}
	w.o.Static = nil
	if _, err := Look(t.Context(), w.o); !errors.Is(err, ErrNone) {
		t.Errorf("%v", err)
	}
}

func TestAllAndMore(t *testing.T) {
	w := newWorld(t)
	w.o.Also = []string{"app"}
	if plan := w.look(); len(plan.Images) != 6 {
		t.Errorf("%d images", len(plan.Images))
	}
	w.o.Also = []string{"nowhere"}
	if _, err := Look(t.Context(), w.o); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Error(err)
	}
	w.o.Also, w.o.All = nil, true
	if plan := w.look(); len(plan.Images) != 6 {
		t.Errorf("%d images", len(plan.Images))
	}
	lack := w.look().Missing(t.Context())
	if lack["memory:one"].Blobs != w.look().Blobs || lack["memory:one"].Bytes != w.look().Bytes {
		t.Errorf("%+v", lack)
	}
}

func TestASaveEndsWithItsContext(t *testing.T) {
	w := newWorld(t)
	plan := w.look()
	ctx, cancel := context.WithCancel(t.Context())
	w.node.Fail = func(doing string, _ oci.Digest) error {
		if doing == "open" {
			cancel()
			return ctx.Err()
		}
		return nil
	}
	if _, err := plan.Save(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestTwoNodesSaveAtOnce(t *testing.T) {
	w := newWorld(t)
	var all sync.WaitGroup
	for _, node := range []string{"cp1", "cp2", "cp3"} {
		o := w.o
		o.Node = node
		all.Go(func() {
			plan, err := Look(t.Context(), o)
			if err == nil {
				_, err = plan.Save(t.Context())
			}
			if err != nil {
				t.Errorf("%s: %v", node, err)
			}
		})
	}
	all.Wait()
	w.clean()
	for _, r := range w.repos {
		stored, err := r.Blobs(t.Context())
		if err != nil || len(stored.Images) != 3 {
			t.Errorf("%d images, %v", len(stored.Images), err)
		}
	}
}

// TestAPruneTakesWhatASaveCountsOn: what an older save has left, and nobody needs,
// goes while another save has it for there already. That one puts it again.
func TestAPruneTakesWhatASaveCountsOn(t *testing.T) {
	w := newWorld(t)
	w.only(1)
	offset := time.Duration(0)
	w.o.Now = func() time.Time { return time.Now().Add(offset) }
	for i := range w.repos {
		r, err := repository.Open(memory.New(memory.WithClock(w.o.Now)), repository.Options{
			Trust: w.trust, Signer: w.signer, Name: w.repos[i].Name(), Writer: w.o.Writer, Now: w.o.Now,
		})
		if err != nil {
			t.Fatal(err)
		}
		w.repos[i], w.o.Stores[i].Repository = r, r
	}
	died, opened := errors.New("died"), 0
	plan := w.look()
	w.node.Fail = func(doing string, _ oci.Digest) error {
		if doing == "open" {
			if opened++; opened > 10 {
				return died
			}
		}
		return nil
	}
	early, err := plan.Save(t.Context())
	if !errors.Is(err, died) || early.Stores[0].Put == 0 {
		t.Fatalf("%+v, %v", early, err)
	}
	offset = 2 * time.Hour
	plan, pruned := nil, 0
	w.node.Fail = nil
	plan = w.look()
	var once sync.Once
	w.node.Fail = func(doing string, _ oci.Digest) error {
		if doing == "open" {
			once.Do(func() {
				p, err := w.repos[0].Prune(t.Context(), manifest.ImagesChain, nil, repository.PruneOptions{})
				if err != nil {
					t.Error(err)
				}
				pruned = len(p.Objects)
			})
		}
		return nil
	}
	saved, err := plan.Save(t.Context())
	if err != nil || pruned != early.Stores[0].Put {
		t.Fatalf("%v; the prune took %d", err, pruned)
	}
	if got := saved.Stores[0]; got.Put != plan.Blobs || got.Unchanged {
		t.Errorf("%+v, want all %d put anew", got, plan.Blobs)
	}
	w.clean()
}
