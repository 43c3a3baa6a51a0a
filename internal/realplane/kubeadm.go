package realplane

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// InitKubernetes makes the machine the first node of a new control plane, as
// `kubeadm init` does it, and waits until the node is Ready.
func (m *Machine) InitKubernetes() {
	t := m.plane.t
	t.Helper()
	config := fmt.Sprintf(`apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: %[1]s, bindPort: 6443}
nodeRegistration:
  name: %[2]s
  criSocket: unix:///run/containerd/containerd.sock
  imagePullPolicy: Never
  kubeletExtraArgs:
    - {name: node-ip, value: %[1]s}
skipPhases: [addon/kube-proxy, addon/coredns]
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: %[3]s
clusterName: realplane
controlPlaneEndpoint: %[1]s:6443
networking: {serviceSubnet: 10.96.0.0/16, podSubnet: 10.244.0.0/16}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: /%[4]s/%[2]s
failCgroupV1: false
failSwapOn: false
# New Secrets reach pods within seconds, not a minute or two.
syncFrequency: 10s
`, m.Address, m.Name, KubernetesVersion, m.plane.cgroup)
	if err := os.WriteFile(filepath.Join(m.Root, "/root/kubeadm.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := m.Try("kubeadm", "init", "--config", "/root/kubeadm.yaml", "--ignore-preflight-errors=all"); err != nil {
		t.Fatalf("%s: kubeadm init: %v\n%s", m.Name, err, out)
	}
	m.plane.Logf("kubeadm init on %s", m.Name)
	m.plane.Wait(m.Name+" is Ready", 2*time.Minute, func() string {
		out, err := m.Try("kubectl", "get", "node", m.Name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		if err != nil || out != "True" {
			return out
		}
		return ""
	})
}

// Kubectl runs kubectl as the cluster's administrator; it must succeed.
func (m *Machine) Kubectl(args ...string) string {
	m.plane.t.Helper()
	return m.Run(append([]string{"kubectl"}, args...)...)
}

// Apply sends objects to the API server.
func (m *Machine) Apply(objects string) {
	m.plane.t.Helper()
	m.RunInput(objects, "kubectl", "apply", "-f", "-")
}

// EtcdHash asks the machine's etcd for HashKV at a revision, and as of which
// compaction that is; 0: never compacted.
func (m *Machine) EtcdHash(revision int64) (hash uint32, compacted int64) {
	m.plane.t.Helper()
	const pki = "/etc/kubernetes/pki/etcd/"
	out := m.Run("etcdctl", "--endpoints=https://127.0.0.1:2379", "--cacert="+pki+"ca.crt",
		"--cert="+pki+"healthcheck-client.crt", "--key="+pki+"healthcheck-client.key",
		"endpoint", "hashkv", "--rev", fmt.Sprint(revision), "-w", "json")
	var answers []struct {
		HashKV struct {
			Hash            uint32 `json:"hash"`
			CompactRevision int64  `json:"compact_revision"`
		}
	}
	if err := json.Unmarshal([]byte(out), &answers); err != nil || len(answers) != 1 {
		m.plane.t.Fatalf("%s: etcdctl endpoint hashkv: %v: %s", m.Name, err, out)
	}
	return answers[0].HashKV.Hash, max(0, answers[0].HashKV.CompactRevision) // etcd says -1 for never
}
