package distro

import (
	"path"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"lifeboat/internal/etcdhost"
	"lifeboat/internal/hostfacts"
)

// k0s's usual places (its pkg/constant).
const (
	k0sUnit    = "k0scontroller"
	k0sDataDir = "/var/lib/k0s"
	k0sConfig  = "/etc/k0s/k0s.yaml"
)

// k0sFiles are those of a controller; kubelet's are there where it is a worker too.
var k0sFiles = []string{"pki", "manifests", "helmhome/repositories.yaml", "kubelet.conf", "kubelet/pki"}

// k0sDocument is what is read of a k0s.yaml (k0s.k0sproject.io/v1beta1, ClusterConfig).
type k0sDocument struct {
	Spec struct {
		API struct {
			Address         string         `json:"address"`
			ExternalAddress string         `json:"externalAddress"`
			SANs            []string       `json:"sans"`
			ExtraArgs       map[string]any `json:"extraArgs"` // of kube-apiserver
		} `json:"api"`
		Storage struct {
			Type string `json:"type"` // etcd, kine
			Etcd struct {
				PeerAddress string `json:"peerAddress"`
				External    struct {
					Endpoints []string `json:"endpoints"`
					CAFile    string   `json:"caFile"`
					CertFile  string   `json:"clientCertFile"`
					KeyFile   string   `json:"clientKeyFile"`
				} `json:"externalCluster"`
			} `json:"etcd"`
			Kine struct {
				DataSource string `json:"dataSource"`
			} `json:"kine"`
		} `json:"storage"`
	} `json:"spec"`
}

// readK0s reads the last of the configurations.
func readK0s(h Host, configs []string) (out k0sDocument) {
	if len(configs) > 0 {
		if yaml.Unmarshal([]byte(h.Text(configs[len(configs)-1])), &out) != nil {
			return k0sDocument{}
		}
	}
	return out
}

func findK0s(h Host) *hostfacts.Distribution {
	service := etcdhost.ReadService(h, k0sUnit)
	d := &hostfacts.Distribution{
		Kind: K0s, DataDir: k0sDataDir, Program: "/usr/local/bin/k0s", Unit: k0sUnit, Arguments: []string{},
		Configs: []string{}, Environment: []string{}, Settings: []hostfacts.Setting{}, TokenFrom: []string{},
	}
	var line []string
	if i := slices.Index(service.Line, "controller"); i >= 0 {
		d.Program, line = service.Line[0], service.Line[i+1:]
		d.Arguments = arguments(line)
	}
	given := parseFlags(line)
	if dir := given["data-dir"]; path.IsAbs(dir) {
		d.DataDir = path.Clean(dir)
	}
	config := k0sConfig
	if file := given["config"]; path.IsAbs(file) {
		config = path.Clean(file)
	}
	marks := []string{path.Join(d.DataDir, "pki/ca.key"), path.Join(d.DataDir, "pki/etcd/ca.crt"), path.Join(d.DataDir, "etcd"), path.Join(d.DataDir, "db/state.db"), config}
	i := slices.IndexFunc(marks, h.Exists)
	switch {
	case i >= 0:
		d.How = marks[i]
	case line != nil:
		d.How = service.Files[0]
	default:
		return nil
	}
	if h.Exists(config) {
		d.Configs = append(d.Configs, config)
	}
	for _, file := range service.EnvironmentFiles {
		if strings.Contains(h.Text(file), "K0S_") {
			d.Environment = append(d.Environment, file)
		}
	}
	document := readK0s(h, d.Configs)
	tell := func(name, value, from string) {
		if value != "" {
			d.Settings = append(d.Settings, hostfacts.Setting{Name: name, Value: value, From: from})
		}
	}
	tell("spec.api.address", document.Spec.API.Address, config)
	tell("spec.api.externalAddress", document.Spec.API.ExternalAddress, config)
	tell("spec.storage.etcd.peerAddress", document.Spec.Storage.Etcd.PeerAddress, config)
	if len(service.Files) > 0 {
		tell("token-file", given["token-file"], service.Files[0])
	}
	d.Datastore = k0sDatastore(h, d.DataDir, document, given)
	return d
}

// k0sDatastore says what holds the cluster's objects. A single node has kine unless
// its configuration says otherwise.
func k0sDatastore(h Host, dataDir string, document k0sDocument, given map[string]string) string {
	storage := &document.Spec.Storage
	_, single := given["single"]
	switch {
	case storage.Type == "kine" || storage.Type == "" && single:
		if source := storage.Kine.DataSource; source != "" && !strings.HasPrefix(source, "sqlite:") {
			return External
		}
		return SQLite
	case len(storage.Etcd.External.Endpoints) > 0:
		return ExternalEtcd
	case storage.Type == "" && !h.Exists(path.Join(dataDir, "etcd")) && h.Exists(path.Join(dataDir, "db/state.db")):
		return SQLite
	}
	return Etcd
}
