package realplane

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// EtcdHosts is an etcd outside of Kubernetes: one member on each of some
// machines, as the unit etcd.service with an environment file, as installers set
// it up. It has certificates of an authority of its own, whose key no host has.
type EtcdHosts struct {
	Machines  []*Machine
	Endpoints []string

	plane *Plane
	ca    *x509.Certificate
	key   crypto.Signer
}

// Where a machine with an etcd unit has its files.
const (
	etcdUnitFile = "/etc/systemd/system/etcd.service"
	etcdEnvFile  = "/etc/etcd.env"
	etcdPKI      = "/etc/etcd/pki/"
	// EtcdDataDir is where that etcd has its data.
	EtcdDataDir = "/srv/etcd"
)

// StartEtcd sets a member up on each of the machines, starts them by systemctl and
// waits until they serve.
func (p *Plane) StartEtcd(machines ...*Machine) *EtcdHosts {
	p.t.Helper()
	e := &EtcdHosts{Machines: machines, plane: p}
	e.makeCA()
	var initial []string
	for _, m := range machines {
		initial = append(initial, m.Name+"=https://"+m.Address+":2380")
		e.Endpoints = append(e.Endpoints, "https://"+m.Address+":2379")
	}
	for i, m := range machines {
		m.writeFile(etcdUnitFile, 0o644, `[Unit]
Description=etcd
After=network.target

[Service]
Type=notify
EnvironmentFile=-`+etcdEnvFile+`
ExecStart=/opt/etcd/etcd
Restart=always

[Install]
WantedBy=multi-user.target
`)
		m.writeFile(etcdEnvFile, 0o600, fmt.Sprintf(`ETCD_NAME=%[1]s
ETCD_DATA_DIR=%[3]s
ETCD_LISTEN_CLIENT_URLS=https://%[2]s:2379,https://127.0.0.1:2379
ETCD_ADVERTISE_CLIENT_URLS=https://%[2]s:2379
ETCD_LISTEN_PEER_URLS=https://%[2]s:2380
ETCD_INITIAL_ADVERTISE_PEER_URLS=https://%[2]s:2380
ETCD_INITIAL_CLUSTER=%[4]s
ETCD_INITIAL_CLUSTER_STATE=new
ETCD_CLIENT_CERT_AUTH=true
ETCD_TRUSTED_CA_FILE=%[5]sca.pem
ETCD_CERT_FILE=%[5]smember.pem
ETCD_KEY_FILE=%[5]smember-key.pem
ETCD_PEER_CLIENT_CERT_AUTH=true
ETCD_PEER_TRUSTED_CA_FILE=%[5]sca.pem
ETCD_PEER_CERT_FILE=%[5]smember.pem
ETCD_PEER_KEY_FILE=%[5]smember-key.pem
`, m.Name, m.Address, EtcdDataDir, strings.Join(initial, ","), etcdPKI))
		e.issue(m, "member", x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
		m.Run("systemctl", "enable", "--now", "etcd")
		if i == 0 {
			e.GiveClient(m)
		}
	}
	p.Wait("the external etcd serves", time.Minute, func() string {
		if out, err := machines[0].Try(e.ctl("endpoint", "health")...); err != nil {
			return out
		}
		return ""
	})
	return e
}

// GiveClient gives a machine the certificates with which an API server comes, at
// the paths that ControlPlane.External names.
func (e *EtcdHosts) GiveClient(m *Machine) {
	e.plane.t.Helper()
	e.issue(m, "client", x509.ExtKeyUsageClientAuth)
}

// ctl are the words of an etcdctl command for a machine with a client's
// certificates.
func (e *EtcdHosts) ctl(words ...string) []string {
	return append([]string{"etcdctl", "--endpoints=" + strings.Join(e.Endpoints, ","), "--cacert=" + etcdPKI + "ca.pem", "--cert=" + etcdPKI + "client.pem", "--key=" + etcdPKI + "client-key.pem"}, words...)
}

// config is the part of kubeadm's ClusterConfiguration.
func (e *EtcdHosts) config() string {
	return fmt.Sprintf("etcd: {external: {endpoints: [%s], caFile: %[2]sca.pem, certFile: %[2]sclient.pem, keyFile: %[2]sclient-key.pem}}\n", strings.Join(e.Endpoints, ", "), etcdPKI)
}

// Separate etcds are static pods.
const (
	eventsManifest = "/etc/kubernetes/manifests/etcd-events.yaml"
	// EventsDataDir is where such an etcd has its data.
	EventsDataDir = "/var/lib/etcd-events"
)

// RunEvents gives a machine a static pod with an etcd for events, with certificates
// of the same authority, and returns its client URL for ControlPlane.Events. It
// starts with kubelet.
func (e *EtcdHosts) RunEvents(m *Machine) string {
	e.plane.t.Helper()
	e.issue(m, "events", x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	m.writeFile(eventsManifest, 0o600, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: etcd-events, namespace: kube-system, labels: {component: etcd-events, tier: control-plane}}
spec:
  hostNetwork: true
  priorityClassName: system-node-critical
  containers:
  - name: etcd
    image: %[3]s
    imagePullPolicy: Never
    command:
    - etcd
    - --name=%[1]s-events
    - --data-dir=%[4]s
    - --listen-client-urls=https://127.0.0.1:2381,https://%[2]s:2381
    - --advertise-client-urls=https://%[2]s:2381
    - --listen-peer-urls=https://%[2]s:2382
    - --initial-advertise-peer-urls=https://%[2]s:2382
    - --initial-cluster=%[1]s-events=https://%[2]s:2382
    - --client-cert-auth=true
    - --trusted-ca-file=%[5]sca.pem
    - --cert-file=%[5]sevents.pem
    - --key-file=%[5]sevents-key.pem
    - --peer-client-cert-auth=true
    - --peer-trusted-ca-file=%[5]sca.pem
    - --peer-cert-file=%[5]sevents.pem
    - --peer-key-file=%[5]sevents-key.pem
    volumeMounts:
    - {name: data, mountPath: %[4]s}
    - {name: pki, mountPath: %[6]s, readOnly: true}
  volumes:
  - {name: data, hostPath: {path: %[4]s, type: DirectoryOrCreate}}
  - {name: pki, hostPath: {path: %[6]s, type: Directory}}
`, m.Name, m.Address, m.etcdImage(), EventsDataDir, etcdPKI, strings.TrimSuffix(etcdPKI, "/")))
	return "https://127.0.0.1:2381"
}

// etcdImage is the etcd that the machine's container runtime has.
func (m *Machine) etcdImage() string {
	m.plane.t.Helper()
	for _, image := range strings.Fields(m.Run("ctr", "-n", "k8s.io", "images", "ls", "-q")) {
		if strings.Contains(image, "/etcd:") {
			return image
		}
	}
	m.plane.t.Fatalf("%s has no image of etcd", m.Name)
	return ""
}

func (e *EtcdHosts) makeCA() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		e.plane.t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd-authority"}, NotBefore: now.Add(-time.Minute), NotAfter: now.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	e.key = key
	e.ca = e.sign(template, template, key.Public())
}

func (e *EtcdHosts) sign(template, parent *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	e.plane.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, e.key)
	if err != nil {
		e.plane.t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		e.plane.t.Fatal(err)
	}
	return made
}

// issue writes a certificate, its key and the authority's certificate.
func (e *EtcdHosts) issue(m *Machine, name string, usages ...x509.ExtKeyUsage) {
	t := e.plane.t
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := e.sign(&x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(random(12)), Subject: pkix.Name{CommonName: name + "-" + m.Name}, NotBefore: e.ca.NotBefore, NotAfter: e.ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usages, DNSNames: []string{m.Name, "localhost"}, IPAddresses: []net.IP{net.ParseIP(m.Address), net.IPv4(127, 0, 0, 1)},
	}, e.ca, key.Public())
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	m.writeFile(etcdPKI+"ca.pem", 0o644, pemText("CERTIFICATE", e.ca.Raw))
	m.writeFile(etcdPKI+name+".pem", 0o644, pemText("CERTIFICATE", cert.Raw))
	m.writeFile(etcdPKI+name+"-key.pem", 0o600, pemText("PRIVATE KEY", der))
}

func pemText(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// writeFile writes a file of the machine's.
func (m *Machine) writeFile(name string, mode os.FileMode, text string) {
	m.plane.t.Helper()
	file := filepath.Join(m.Root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		m.plane.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		m.plane.t.Fatal(err)
	}
}

// etcdService is what the supervisor makes of a unit for etcd, which is there only
// while its file is.
func etcdService() *service {
	return &service{
		name: "etcd", disabled: "/var/lib/machine/etcd-off", log: "/var/log/etcd.log", unit: etcdUnitFile,
		able: func() bool {
			_, err := os.Stat(etcdEnvFile)
			return err == nil
		},
		command: func() []string {
			return []string{"/bin/sh", "-c", `set -a; . ` + etcdEnvFile + `; exec /opt/etcd/etcd`}
		},
	}
}
