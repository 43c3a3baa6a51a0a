package realplane

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ControlPlane says what InitControlPlane makes. The zero value is a control
// plane of one node, as kubeadm makes it without options.
type ControlPlane struct {
	Endpoint   string     // controlPlaneEndpoint, such as Plane.Balance returns; default: this machine's API server
	SANs       []string   // further names and addresses in the API servers' certificates
	Encryption string     // provider for Secrets at rest: secretbox or aescbc; default: none
	External   *EtcdHosts // an etcd outside of Kubernetes; default: kubeadm's own
	Events     string     // client URL of a separate etcd for events; default: the main one
}

// cluster is what machines need to join.
type cluster struct {
	endpoint, token, certificateKey, caHash string
	encryption                              string // the API servers' file, at encryptionFile; empty: none
}

// encryptionFile is where API servers find how to encrypt. kubeadm does not
// carry it to machines that join; whoever set it up does.
const encryptionFile = "/etc/kubernetes/encryption/config.yaml"

const criSocket = "unix:///run/containerd/containerd.sock"

// InitKubernetes is InitControlPlane for one node.
func (m *Machine) InitKubernetes() {
	m.plane.t.Helper()
	m.InitControlPlane(ControlPlane{})
}

// InitControlPlane makes the machine the first node of a new control plane, as
// `kubeadm init` does it, and waits until the node is Ready. Audit is off, as
// are kube-proxy and CoreDNS, whose images no plane has.
func (m *Machine) InitControlPlane(o ControlPlane) {
	t := m.plane.t
	t.Helper()
	c := &cluster{
		endpoint: o.Endpoint, token: hex.EncodeToString(random(3)) + "." + hex.EncodeToString(random(8)),
		certificateKey: hex.EncodeToString(random(32)),
	}
	if c.endpoint == "" {
		c.endpoint = m.Address + ":" + apiPort
	}
	apiServer := ""
	if len(o.SANs) > 0 {
		apiServer += "  certSANs: [" + strings.Join(o.SANs, ", ") + "]\n"
	}
	var args []string // of the API server, beside kubeadm's
	if o.Encryption != "" {
		c.encryption = fmt.Sprintf(`apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources: [secrets]
    providers:
      - %s: {keys: [{name: key1, secret: %s}]}
      - identity: {}
`, o.Encryption, base64.StdEncoding.EncodeToString(random(32)))
		m.writeEncryption(c)
		args = append(args, "{name: encryption-provider-config, value: "+encryptionFile+"}")
		apiServer += `  extraVolumes: [{name: encryption, hostPath: ` + filepath.Dir(encryptionFile) + `, mountPath: ` + filepath.Dir(encryptionFile) + `, readOnly: true, pathType: Directory}]
`
	}
	if o.Events != "" {
		args = append(args, `{name: etcd-servers-overrides, value: "/events#`+o.Events+`"}`)
	}
	if len(args) > 0 {
		apiServer += "  extraArgs: [" + strings.Join(args, ", ") + "]\n"
	}
	if apiServer != "" {
		apiServer = "apiServer:\n" + apiServer
	}
	if o.External != nil {
		o.External.GiveClient(m)
		apiServer += o.External.config()
	}
	m.kubeadm("init", fmt.Sprintf(`apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
bootstrapTokens: [{token: %[4]s, ttl: 24h0m0s}]
certificateKey: %[5]s
localAPIEndpoint: {advertiseAddress: %[1]s, bindPort: %[7]s}
%[6]s
skipPhases: [addon/kube-proxy, addon/coredns]
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: %[2]s
clusterName: realplane
controlPlaneEndpoint: %[3]s
networking: {serviceSubnet: 10.96.0.0/16, podSubnet: 10.244.0.0/16}
%[8]s---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
# The disk is not the machine's own, and how full it is no test's concern.
evictionHard: {memory.available: 50Mi, nodefs.available: 1%%, imagefs.available: 1%%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
# New Secrets reach pods within seconds, not a minute or two.
syncFrequency: 10s
`, m.Address, KubernetesVersion, c.endpoint, c.token, c.certificateKey, m.registration(), apiPort, apiServer), "--upload-certs")
	c.caHash = m.caHash()
	m.plane.cluster = c
	m.WaitNodeReady()
}

// JoinControlPlane makes the machine one more node of the control plane, as
// `kubeadm join --control-plane` does it with uploaded certificates, and waits
// until the node is Ready. The certificates can be had for two hours.
func (m *Machine) JoinControlPlane() {
	t := m.plane.t
	t.Helper()
	c := m.plane.cluster
	if c == nil {
		t.Fatalf("%s: join: no machine of the plane has had InitControlPlane", m.Name)
	}
	if c.encryption != "" {
		m.writeEncryption(c)
	}
	m.kubeadm("join", fmt.Sprintf(`apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
discovery: {bootstrapToken: {token: %[1]s, apiServerEndpoint: %[2]q, caCertHashes: [%[3]q]}}
controlPlane:
  localAPIEndpoint: {advertiseAddress: %[4]s, bindPort: %[5]s}
  certificateKey: %[6]s
%[7]s
`, c.token, c.endpoint, c.caHash, m.Address, apiPort, c.certificateKey, m.registration()))
	m.WaitNodeReady()
}

// WaitNodeReady waits until the API server says that the machine's node is
// Ready. Just after a restore that may be old news from the backup.
func (m *Machine) WaitNodeReady() {
	m.plane.t.Helper()
	m.plane.Wait(m.Name+" is Ready", 2*time.Minute, func() string {
		out, err := m.Try("kubectl", "get", "node", m.Name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		if err != nil || out != "True" {
			return "its node says " + out
		}
		return ""
	})
}

// registration is the part of kubeadm's files that init and join share.
func (m *Machine) registration() string {
	return fmt.Sprintf(`nodeRegistration:
  name: %[2]s
  criSocket: %[3]s
  imagePullPolicy: Never
  kubeletExtraArgs:
    - {name: node-ip, value: %[1]s}`, m.Address, m.Name, criSocket)
}

func (m *Machine) kubeadm(verb, config string, more ...string) {
	t := m.plane.t
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.Root, "/root/kubeadm.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	// kubeadm's own limits are 4 minutes a phase.
	args := append([]string{"timeout", "300", "kubeadm", verb, "--config", "/root/kubeadm.yaml", "--ignore-preflight-errors=all"}, more...)
	if out, err := m.Try(args...); err != nil {
		t.Fatalf("%s: kubeadm %s: %v\n%s", m.Name, verb, err, out)
	}
	m.plane.Logf("kubeadm %s on %s", verb, m.Name)
}

func (m *Machine) writeEncryption(c *cluster) {
	m.plane.t.Helper()
	file := filepath.Join(m.Root, encryptionFile)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		m.plane.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(c.encryption), 0o600); err != nil {
		m.plane.t.Fatal(err)
	}
}

// caHash pins the cluster's CA, in the form that kubeadm wants.
func (m *Machine) caHash() string {
	m.plane.t.Helper()
	text, err := os.ReadFile(filepath.Join(m.Root, "/etc/kubernetes/pki/ca.crt"))
	if err != nil {
		m.plane.t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		m.plane.t.Fatalf("%s: ca.crt is no PEM", m.Name)
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		m.plane.t.Fatalf("%s: ca.crt: %v", m.Name, err)
	}
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func random(bytes int) []byte {
	out := make([]byte, bytes)
	_, _ = rand.Read(out) // never fails
	return out
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
