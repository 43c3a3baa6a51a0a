package topology

import (
	"path"
	"slices"
	"strings"

	"lifeboat/internal/distro"
	"lifeboat/internal/hostfacts"
)

// Exists makes a tree what distro reads, with Text and Names.
func (t *tree) Exists(name string) bool { return t.exists(name) }

// Distribution tells how k3s, rke2 or k0s is set up below a root; nil: none is.
func Distribution(root string) (*hostfacts.Distribution, error) {
	t, err := openTree(root)
	if err != nil {
		return nil, err
	}
	defer t.close()
	own, _ := distribution(t, new(Host).staticPods(t))
	return own, nil
}

// distribution is the server of k3s, rke2 or k0s that is set up here, nil if there is
// none, and the static pods that the host's kubelet runs.
func distribution(t *tree, pods []pod) (own *hostfacts.Distribution, run []pod) {
	var apis []string
	for i := range pods {
		if find(pods[i:i+1], "kube-apiserver") != nil {
			apis = append(apis, pods[i].File)
		}
	}
	own = distro.Find(t, apis)
	left := distro.Left(own, apis)
	return own, slices.DeleteFunc(pods, func(p pod) bool { return left(p.File) })
}

// etcdOfDistribution is the etcd of one, with the name and image that its pod has
// where it has one.
func etcdOfDistribution(t *tree, pods []pod, d *hostfacts.Distribution) setup {
	s := setup{here: true, dataDir: distro.EtcdDir(d), dataHow: "where " + d.Kind + " keeps it", file: d.How, unit: d.Unit}
	s.endpoints, _, _, _ = distro.EtcdClient(t, d)
	if d.Kind != distro.K0s {
		s.name = strings.TrimSpace(t.read(path.Join(s.dataDir, "name")))
	}
	if c := find(pods, "etcd"); c != nil {
		s.image = c.image
	}
	return s
}

// place returns where the host's distribution keeps its state, and which file
// configures it: what was found, or else what is usual.
func (h *Host) place() (dataDir, config string) {
	dataDir, config = distro.Default(string(h.Kind)), "/etc/rancher/"+string(h.Kind)+"/config.yaml"
	if d := h.Distribution; d != nil {
		dataDir = d.DataDir
		if len(d.Configs) > 0 {
			config = d.Configs[0]
		}
	}
	return dataDir, config
}
