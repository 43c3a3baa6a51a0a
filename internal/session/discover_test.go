package session

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"lifeboat/internal/config"
)

const apiServer = `apiVersion: v1
kind: Pod
metadata: {name: kube-apiserver}
spec:
  containers:
  - name: kube-apiserver
    image: registry.k8s.io/kube-apiserver:v1.36.0
    command:
    - kube-apiserver
    - --etcd-servers=http://127.0.0.1:2379
    - --etcd-servers-overrides=/events#http://127.0.0.1:2479
`

func TestDiscoveredClustersJoinThoseOfTheFile(t *testing.T) {
	root := t.TempDir()
	manifests := filepath.Join(root, "etc/kubernetes/manifests")
	if err := os.MkdirAll(manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	c := config.Default()
	c.Host.Root, c.Discover = root, true
	c.Etcd = []config.Etcd{{Name: "events", Endpoints: []string{"http://10.0.0.9:2379"}}}
	if got, complete, err := Discovered(c); err == nil || complete || got != c {
		t.Errorf("without an API server: %v, %v; want the configuration as it was, and an error", got, err)
	}
	if err := os.WriteFile(filepath.Join(manifests, "kube-apiserver.yaml"), []byte(apiServer), 0o600); err != nil {
		t.Fatal(err)
	}
	got, complete, err := Discovered(c)
	if err != nil || !complete {
		t.Fatal(complete, err)
	}
	want := []config.Etcd{{Name: "events", Endpoints: []string{"http://10.0.0.9:2379"}}, {Name: "main", Endpoints: []string{"http://127.0.0.1:2379"}}}
	if !reflect.DeepEqual(got.Etcd, want) {
		t.Errorf("got %+v, want %+v", got.Etcd, want)
	}
	if len(c.Etcd) != 1 {
		t.Error("the configuration that was given changed")
	}
	c.Discover = false
	if got, complete, err := Discovered(c); err != nil || !complete || got != c {
		t.Errorf("not asked for: %v, %v", got, err)
	}
}
