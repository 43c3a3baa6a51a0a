package realplane

import (
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
