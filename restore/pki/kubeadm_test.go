package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/durable/tinydisk"
)

// TestWhatKubeadmMadeIsReissued lets the real kubeadm make a node's
// certificates and kubeconfigs, and openssl verify what becomes of them.
func TestWhatKubeadmMadeIsReissued(t *testing.T) {
	kubeadm, err := filepath.Abs("../../bin/tools/kube/kubeadm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(kubeadm); err != nil {
		tinydisk.Unable(t, "no kubeadm; make tools-e2e builds one: ", err)
	}
	for _, algorithm := range []string{"RSA-2048", "ECDSA-P256"} {
		t.Run(algorithm, func(t *testing.T) {
			n := &node{t: t, root: t.TempDir(), aside: filepath.Join(t.TempDir(), "aside")}
			n.kubeadm(kubeadm, algorithm)
			before := n.looks()
			o := n.moved()
			o.Now = nil
			if p := n.prepare(o); p.Count(Impossible) > 0 || p.Count(Reissue) != 4 {
				t.Errorf("%d are re-issued, %d impossible: %+v", p.Count(Reissue), p.Count(Impossible), p.Leaves)
			}
			o.RenewExpired, o.RenewWithin = true, 2*year // all others, too
			old := n.inline("etc/kubernetes/admin.conf")
			n.apply(o)
			n.checkKubeadm(old)
			if _, err := Undo(t.Context(), n.root, n.aside); err != nil {
				t.Fatal(err)
			}
			for name, look := range n.looks() {
				if before[name] != look {
					t.Errorf("%s is not what it was", name)
				}
			}
		})
	}
}

// kubeadm makes what kubeadm init makes for cp1 at 10.0.0.11.
func (n *node) kubeadm(program, algorithm string) {
	n.t.Helper()
	config := filepath.Join(n.t.TempDir(), "kubeadm.yaml")
	text := fmt.Sprintf(`apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
nodeRegistration: {name: cp1}
localAPIEndpoint: {advertiseAddress: 10.0.0.11, bindPort: 6443}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v1.36.3
encryptionAlgorithm: %s
controlPlaneEndpoint: "api.old.example:6443"
certificatesDir: %s/etc/kubernetes/pki
`, algorithm, n.root)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
	for _, args := range [][]string{
		{"init", "phase", "certs", "all", "--config", config},
		{"init", "phase", "kubeconfig", "all", "--config", config, "--kubeconfig-dir", filepath.Join(n.root, "etc/kubernetes")},
	} {
		if out, err := exec.CommandContext(n.t.Context(), program, args...).CombinedOutput(); err != nil {
			n.t.Fatalf("kubeadm %v: %v\n%s", args, err, out)
		}
	}
}

func (n *node) checkKubeadm(oldAdmin *x509.Certificate) {
	n.t.Helper()
	t, pki := n.t, "etc/kubernetes/pki/"
	n.openssl(pki+"ca.crt", pki+"apiserver.crt", "sslserver", "cp9", "10.0.0.99", "api.old.example", "api.new.example", "10.96.0.1", "192.0.2.7")
	n.openssl(pki+"ca.crt", pki+"apiserver-kubelet-client.crt", "sslclient")
	n.openssl(pki+"front-proxy-ca.crt", pki+"front-proxy-client.crt", "sslclient")
	n.openssl(pki+"etcd/ca.crt", pki+"apiserver-etcd-client.crt", "sslclient")
	n.openssl(pki+"etcd/ca.crt", pki+"etcd/healthcheck-client.crt", "sslclient")
	for _, name := range []string{"server", "peer"} {
		n.openssl(pki+"etcd/ca.crt", pki+"etcd/"+name+".crt", "sslserver", "cp9", "localhost", "10.0.0.99", "127.0.0.1", "::1")
		n.openssl(pki+"etcd/ca.crt", pki+"etcd/"+name+".crt", "sslclient")
	}
	for _, name := range []string{"apiserver", "apiserver-kubelet-client", "front-proxy-client", "apiserver-etcd-client", "etcd/healthcheck-client", "etcd/server", "etcd/peer"} {
		n.pair(pki+name+".crt", pki+name+".key")
	}
	admin := n.inline("etc/kubernetes/admin.conf")
	if samePublic(admin.PublicKey, oldAdmin.PublicKey) || admin.Subject.String() != oldAdmin.Subject.String() ||
		admin.NotAfter.Sub(admin.NotBefore) != oldAdmin.NotAfter.Sub(oldAdmin.NotBefore) {
		t.Errorf("admin.conf: %v", admin.Subject)
	}
	kubelet := n.inline("etc/kubernetes/kubelet.conf")
	if s := kubelet.Subject; s.CommonName != "system:node:cp9" || !slices.Equal(s.Organization, []string{"system:nodes"}) {
		t.Errorf("kubelet.conf is for %s", s)
	}
	config := string(n.read("etc/kubernetes/kubelet.conf"))
	for _, want := range []string{"name: system:node:cp9@kubernetes\n", "server: https://10.0.0.99:6443\n"} {
		if !strings.Contains(config, want) {
			t.Errorf("kubelet.conf lacks %q", want)
		}
	}
	o := n.moved()
	o.Now = time.Now
	if p := n.prepare(o); p.Count(Keep) != len(p.Leaves) || len(p.Kubeconfigs) > 0 {
		t.Errorf("a second plan wants more: %+v", p.Leaves)
	}
}

// openssl verifies a certificate for a purpose and, if it is a server's, hosts.
func (n *node) openssl(ca, cert, purpose string, hosts ...string) {
	n.t.Helper()
	program, err := exec.LookPath("openssl")
	if errors.Is(err, exec.ErrNotFound) {
		n.t.Log("no openssl: not verified by it: ", cert)
		return
	}
	if len(hosts) == 0 {
		hosts = []string{""}
	}
	for _, host := range hosts {
		args := []string{"verify", "-x509_strict", "-CAfile", filepath.Join(n.root, ca), "-purpose", purpose}
		if _, err := netip.ParseAddr(host); err == nil {
			args = append(args, "-verify_ip", host)
		} else if host != "" {
			args = append(args, "-verify_hostname", host)
		}
		if out, err := exec.CommandContext(n.t.Context(), program, append(args, filepath.Join(n.root, cert))...).CombinedOutput(); err != nil {
			n.t.Errorf("openssl, %s for %q: %v\n%s", cert, host, err, out)
		}
	}
}
