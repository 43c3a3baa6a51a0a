package realplane

import (
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"lifeboat/internal/realplane/image"
)

// KubernetesVersion is that of the programs in bin/tools/kube.
const KubernetesVersion = "v1.36.3"

const (
	pauseImage  = "registry.k8s.io/pause:3.10.2"
	etcdVersion = "3.6" // of bin/tools/etcd-*; the image's tag is what kubeadm asks for
)

// LifeboatImage is the reference of the image with bin/lifeboat in every
// machine's containerd.
const LifeboatImage = "lifeboat:e2e"

// imageStore is containerd's folder in a machine.
const imageStore = "/var/lib/containerd"

// Images says what becomes of a machine's image store.
type Images bool

const (
	KeepImages Images = true  // those of LoadImages; any other image is gone
	NoImages   Images = false // containerd's store is empty
)

// store is what all planes of a run share: archives of the images, and an image
// store that holds them, of which each machine gets a copy.
var store struct {
	archives []string
	folder   string
}

// fillStore makes the store, by a machine that is off again afterwards. It takes
// seconds, once a run.
func (p *Plane) fillStore() {
	p.t.Helper()
	if store.folder != "" {
		return
	}
	archives := p.writeImages()
	p.Logf("image archives written")
	m := p.machine(99)
	p.t.Cleanup(m.PowerCut) // if it fails here
	m.Format(NoImages)
	m.PowerOn()
	m.ImportImages(archives...)
	m.PowerOff()
	store.archives, store.folder = archives, filepath.Join(m.Root, imageStore)
	p.Logf("images imported")
}

// linkStore gives the machine, which is off, an image store of its own. Blobs
// and layers are never written to, so links do; the databases are copied.
func (m *Machine) linkStore() {
	m.plane.t.Helper()
	to := filepath.Join(m.Root, imageStore)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		m.plane.t.Fatal(err)
	}
	if out, err := exec.Command("cp", "--archive", "--link", store.folder, to).CombinedOutput(); err != nil {
		m.plane.t.Fatalf("%s: link the image store: %v: %s", m.Name, err, out)
	}
	err := filepath.WalkDir(to, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(file) != ".db" {
			return err
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.Remove(file); err != nil {
			return err
		}
		return os.WriteFile(file, text, 0o600)
	})
	if err != nil {
		m.plane.t.Fatalf("%s: copy the image store's databases: %v", m.Name, err)
	}
}

// LoadImages gives a machine that is on all images that the control plane and
// lifeboat need, as somebody with the archives at hand would.
func (m *Machine) LoadImages() {
	m.plane.t.Helper()
	m.ImportImages(store.archives...)
}

// WipeImages removes every image from a machine that is on. What runs goes on.
func (m *Machine) WipeImages() {
	m.plane.t.Helper()
	if names := strings.Fields(m.Run("ctr", "-n", "k8s.io", "images", "ls", "-q")); len(names) > 0 {
		m.Run(append([]string{"ctr", "-n", "k8s.io", "images", "rm", "--sync"}, names...)...)
	}
}

// writeImages writes an archive for each image that kubeadm asks for, and
// lifeboat's, from programs that are on this machine.
func (p *Plane) writeImages() (archives []string) {
	p.t.Helper()
	bin := filepath.Join(repository(), "bin")
	tool := func(name string) string { return filepath.Join(bin, "tools", name) }
	out, err := exec.Command(tool("kube/kubeadm"), "config", "images", "list", "--kubernetes-version", KubernetesVersion).Output()
	if err != nil {
		p.t.Fatalf("ask kubeadm for its images: %v (make e2e builds it)", err)
	}
	images := []image.Image{
		{Reference: pauseImage, Entrypoint: []string{"/pause"}, Files: map[string]string{"/pause": tool("pause")}},
		{
			// As the Dockerfile makes it.
			Reference: LifeboatImage, Entrypoint: []string{"/lifeboat"}, User: "65532:65532",
			Files:   map[string]string{"/lifeboat": filepath.Join(bin, "lifeboat")},
			Folders: []image.Folder{{Path: "/var/lib/lifeboat", Mode: 0o700, UID: 65532, GID: 65532}},
		},
	}
	for _, reference := range strings.Fields(string(out)) {
		name, _, _ := strings.Cut(path.Base(reference), ":")
		switch name {
		case "kube-apiserver", "kube-controller-manager", "kube-scheduler":
			images = append(images, image.Image{Reference: reference, Files: map[string]string{"/usr/local/bin/" + name: tool("kube/" + name)}})
		case "etcd":
			files := map[string]string{}
			for _, program := range []string{"etcd", "etcdctl", "etcdutl"} {
				files["/usr/local/bin/"+program] = tool("etcd-" + etcdVersion + "/" + program)
			}
			images = append(images, image.Image{Reference: reference, Files: files})
		}
	}
	folder := filepath.Join(p.work, "images")
	if err := os.Mkdir(folder, 0o755); err != nil {
		p.t.Fatal(err)
	}
	for _, i := range images {
		file := filepath.Join(folder, strings.NewReplacer("/", "_", ":", "_").Replace(i.Reference)+".tar")
		if err := image.Write(file, i); err != nil {
			p.t.Fatal(err)
		}
		archives = append(archives, file)
	}
	return archives
}
