package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// born is when the node of the tests was made, and now when it is restored.
var (
	born = time.Date(2026, 1, 10, 12, 0, 0, 0, time.UTC)
	now  = time.Date(2026, 11, 21, 18, 30, 0, 0, time.UTC)
)

const year = 365 * 24 * time.Hour

func ecdsaKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func blockOf(key crypto.Signer) string {
	if _, ok := key.(*rsa.PrivateKey); ok {
		return pkcs1Block
	}
	return sec1Block
}

// ca is a CA of the tests.
type ca struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// node is a control-plane node's folder tree.
type node struct {
	t      *testing.T
	root   string
	aside  string
	newKey func(*testing.T) crypto.Signer
	cas    map[string]ca
}

var serial = new(big.Int).SetInt64(1)

func (n *node) write(name string, data []byte, mode fs.FileMode) {
	n.t.Helper()
	file := filepath.Join(n.root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(file, data, mode); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) read(name string) []byte {
	n.t.Helper()
	if target, err := os.Readlink(filepath.Join(n.root, name)); err == nil {
		name = target // absolute, and meant below the root
	}
	data, err := os.ReadFile(filepath.Join(n.root, name))
	if err != nil {
		n.t.Fatal(err)
	}
	return data
}

func (n *node) keyText(key crypto.Signer) []byte {
	n.t.Helper()
	text, err := privateKey{signer: key, block: blockOf(key)}.encode()
	if err != nil {
		n.t.Fatal(err)
	}
	return text
}

// sign makes a certificate; with no parent it is signed by itself.
func (n *node) sign(template *x509.Certificate, parent *ca) (*x509.Certificate, crypto.Signer) {
	n.t.Helper()
	key := n.newKey(n.t)
	template.SerialNumber = new(big.Int).Add(serial, big.NewInt(1))
	serial = template.SerialNumber
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = born, born.Add(year)
	}
	if parent == nil {
		parent = &ca{cert: template, key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
	if err != nil {
		n.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		n.t.Fatal(err)
	}
	return cert, key
}

func (n *node) makeCA(file, name string, notBefore, notAfter time.Time) {
	n.t.Helper()
	cert, key := n.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, NotBefore: notBefore, NotAfter: notAfter,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, DNSNames: []string{name}}, nil)
	n.cas[file] = ca{cert, key}
	n.write(file+".crt", encodeCertificates(cert), 0o644)
	n.write(file+".key", n.keyText(key), 0o600)
}

const (
	server = x509.ExtKeyUsageServerAuth
	client = x509.ExtKeyUsageClientAuth
)

// leafOf is a template as kubeadm fills it in; sans are names and addresses.
func leafOf(name string, organization []string, usages []x509.ExtKeyUsage, sans ...string) *x509.Certificate {
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name, Organization: organization}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: usages}
	for _, s := range sans {
		if ip := net.ParseIP(s); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, s)
		}
	}
	return template
}

func (n *node) makeLeaf(file, ca string, template *x509.Certificate) {
	n.t.Helper()
	authority := n.cas[ca]
	cert, key := n.sign(template, &authority)
	n.write(file+".crt", encodeCertificates(cert), 0o644)
	n.write(file+".key", n.keyText(key), 0o600)
}

const (
	clusterCA = "etc/kubernetes/pki/ca"
	etcdCA    = "etc/kubernetes/pki/etcd/ca"
	proxyCA   = "etc/kubernetes/pki/front-proxy-ca"
	clientPEM = "var/lib/kubelet/pki/kubelet-client-2026-01-10-12-00-00.pem"
	clientNow = "var/lib/kubelet/pki/kubelet-client-current.pem"
)

// newNode makes what kubeadm makes for a node cp1 at 10.0.0.11.
func newNode(t *testing.T, newKey func(*testing.T) crypto.Signer) *node {
	t.Helper()
	n := &node{t: t, root: t.TempDir(), aside: filepath.Join(t.TempDir(), "aside"), newKey: newKey, cas: map[string]ca{}}
	for file, name := range map[string]string{clusterCA: "kubernetes", etcdCA: "etcd-ca", proxyCA: "front-proxy-ca"} {
		n.makeCA(file, name, born, born.Add(10*year))
	}
	pki := "etc/kubernetes/pki/"
	n.makeLeaf(pki+"apiserver", clusterCA, leafOf("kube-apiserver", nil, []x509.ExtKeyUsage{server},
		"cp1", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "10.96.0.1", "10.0.0.11", "api.old.example"))
	n.makeLeaf(pki+"apiserver-kubelet-client", clusterCA, leafOf("kube-apiserver-kubelet-client", []string{"kubeadm:cluster-admins"}, []x509.ExtKeyUsage{client}))
	n.makeLeaf(pki+"front-proxy-client", proxyCA, leafOf("front-proxy-client", nil, []x509.ExtKeyUsage{client}))
	for _, name := range []string{"server", "peer"} {
		n.makeLeaf(pki+"etcd/"+name, etcdCA, leafOf("cp1", nil, []x509.ExtKeyUsage{server, client}, "cp1", "localhost", "10.0.0.11", "127.0.0.1", "::1"))
	}
	n.write(pki+"sa.key", n.keyText(newKey(t)), 0o600)
	n.makeKubelet()
	n.makeConfig("admin", "kubernetes-admin", "kubernetes-admin@kubernetes", n.inlineUser("kubernetes-admin", "kubeadm:cluster-admins"))
	n.makeConfig("scheduler", "system:kube-scheduler", "system:kube-scheduler@kubernetes", n.inlineUser("system:kube-scheduler", ""))
	n.makeConfig("kubelet", "system:node:cp1", "system:node:cp1@kubernetes",
		"    client-certificate: /var/lib/kubelet/pki/kubelet-client-current.pem\n    client-key: /var/lib/kubelet/pki/kubelet-client-current.pem\n")
	return n
}

func (n *node) makeKubelet() {
	n.t.Helper()
	authority := n.cas[clusterCA]
	cert, key := n.sign(leafOf("system:node:cp1", []string{"system:nodes"}, []x509.ExtKeyUsage{client}), &authority)
	n.write(clientPEM, append(encodeCertificates(cert), n.keyText(key)...), 0o600)
	if err := os.Symlink("/"+clientPEM, filepath.Join(n.root, clientNow)); err != nil {
		n.t.Fatal(err)
	}
	cert, key = n.sign(leafOf("cp1@1736500000", nil, []x509.ExtKeyUsage{server}, "cp1"), nil)
	n.write("var/lib/kubelet/pki/kubelet.crt", encodeCertificates(cert), 0o644)
	n.write("var/lib/kubelet/pki/kubelet.key", n.keyText(key), 0o600)
}

func (n *node) inlineUser(name, organization string) string {
	n.t.Helper()
	authority := n.cas[clusterCA]
	cert, key := n.sign(leafOf(name, []string{organization}, []x509.ExtKeyUsage{client}), &authority)
	return fmt.Sprintf("    client-certificate-data: %s\n    client-key-data: %s\n",
		base64.StdEncoding.EncodeToString(encodeCertificates(cert)), base64.StdEncoding.EncodeToString(n.keyText(key)))
}

func (n *node) makeConfig(file, user, context, credentials string) {
	n.t.Helper()
	authority := n.cas[clusterCA]
	n.write("etc/kubernetes/"+file+".conf", fmt.Appendf(nil, `apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: %s
    server: https://10.0.0.11:6443
    x-of-ours: kept # and this
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: %s
  name: %s
current-context: %s
kind: Config
users:
- name: %s
  user:
%s`, base64.StdEncoding.EncodeToString(encodeCertificates(authority.cert)), user, context, context, user, credentials), 0o600)
}

func (n *node) options() Options {
	return Options{Root: n.root, Aside: n.aside, Now: func() time.Time { return now }}
}

// moved are the options for the node's coming back as cp9 at 10.0.0.99.
func (n *node) moved() Options {
	o := n.options()
	o.Rename = map[string]string{"cp1": "cp9"}
	o.Address = map[netip.Addr]netip.Addr{netip.MustParseAddr("10.0.0.11"): netip.MustParseAddr("10.0.0.99")}
	o.AddSANs = []string{"api.new.example", "192.0.2.7"}
	return o
}

func (n *node) prepare(o Options) *Plan {
	n.t.Helper()
	p, err := Prepare(n.t.Context(), o)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { p.Close() })
	return p
}

func (n *node) apply(o Options) *Result {
	n.t.Helper()
	r, err := n.prepare(o).Apply(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

// pair loads a certificate with its key, which must match.
func (n *node) pair(cert, key string) *x509.Certificate {
	n.t.Helper()
	pair, err := tls.X509KeyPair(n.read(cert), n.read(key))
	if err != nil {
		n.t.Fatalf("%s and %s: %v", cert, key, err)
	}
	return pair.Leaf
}

func (n *node) verify(cert *x509.Certificate, ca string, usage x509.ExtKeyUsage, hosts ...string) {
	n.t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(n.read(ca + ".crt"))
	for _, host := range append([]string{""}, hosts...) {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}, DNSName: host}); err != nil {
			n.t.Errorf("%s for %q: %v", cert.Subject, host, err)
		}
	}
}

// inline returns a kubeconfig's client certificate, which must match its key.
func (n *node) inline(file string) *x509.Certificate {
	n.t.Helper()
	k, err := parseKubeconfig(n.read(file))
	if err != nil {
		n.t.Fatalf("%s: %v", file, err)
	}
	cert, err1 := base64.StdEncoding.DecodeString(value(k.users[0].certData))
	key, err2 := base64.StdEncoding.DecodeString(value(k.users[0].keyData))
	if err1 != nil || err2 != nil {
		n.t.Fatal(err1, err2)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		n.t.Fatalf("%s: %v", file, err)
	}
	return pair.Leaf
}

// looks is all of the tree but the state folder: names, modes, bytes.
func (n *node) looks() map[string]string {
	n.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(n.root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(file, n.root+"/")
		if d.IsDir() {
			if name == "var/lib/lifeboat" {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if target, err := os.Readlink(file); err == nil {
			out[name] = "-> " + target
			return nil
		}
		uid, gid := ownerOf(info)
		out[name] = fmt.Sprintf("%v %d:%d %s", info.Mode(), uid, gid, n.read(name))
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}
