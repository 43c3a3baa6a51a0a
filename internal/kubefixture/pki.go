package kubefixture

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// pair is a certificate and its key.
type pair struct {
	cert    *x509.Certificate
	key     crypto.Signer
	certPEM []byte
	keyPEM  []byte
}

// leaf describes a certificate below an authority.
type leaf struct {
	name   string // common name
	org    string
	hosts  []string // names and addresses
	server bool
	client bool
}

// pki writes the authorities, the certificates and the kubeconfigs. Names,
// organisations and usages are those of kubeadm 1.36
// (https://kubernetes.io/docs/setup/best-practices/certificates/).
func (b *builder) pki() {
	o := b.opts
	const pki = "etc/kubernetes/pki/"
	ca := selfSigned(b, "kubernetes", o.Now)
	front := selfSigned(b, "front-proxy-ca", o.Now)
	etcd := selfSigned(b, "etcd-ca", o.Now)
	b.pair(pki+"ca", ca)
	b.pair(pki+"front-proxy-ca", front)

	b.pair(pki+"apiserver", b.issue(ca, leaf{name: "kube-apiserver", server: true, hosts: []string{
		o.Node, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		o.Endpoint, "10.96.0.1", o.Address, "127.0.0.1"}}))
	b.pair(pki+"apiserver-kubelet-client", b.issue(ca, leaf{name: "kube-apiserver-kubelet-client", org: "kubeadm:cluster-admins", client: true}))
	b.pair(pki+"front-proxy-client", b.issue(front, leaf{name: "front-proxy-client", client: true}))

	etcdHosts := append([]string{o.Node, "localhost", o.Address, "127.0.0.1", "::1"}, b.etcdHosts()...)
	server := b.issue(etcd, leaf{name: o.Node, hosts: etcdHosts, server: true, client: true})
	peer := b.issue(etcd, leaf{name: o.Node, hosts: etcdHosts, server: true, client: true})
	client := b.issue(etcd, leaf{name: "kube-apiserver-etcd-client", client: true})
	if o.Kind == ExternalEtcd {
		const dir = "etc/etcd/pki/"
		b.file(dir+"ca.crt", 0o644, etcd.certPEM) // its key is kept elsewhere, as it should be
		b.pair(dir+"server", server)
		b.pair(dir+"peer", peer)
		b.pair(dir+"client", client)
	} else {
		b.pair(pki+"etcd/ca", etcd)
		b.pair(pki+"etcd/server", server)
		b.pair(pki+"etcd/peer", peer)
		b.pair(pki+"etcd/healthcheck-client", b.issue(etcd, leaf{name: "kube-etcd-healthcheck-client", client: true}))
		b.pair(pki+"apiserver-etcd-client", client)
	}

	sa := b.newKey()
	b.file(pki+"sa.key", 0o600, sa.keyPEM)
	b.file(pki+"sa.pub", 0o600, publicPEM(b, sa.key))

	b.kubeconfigs(ca)
	b.kubelet(ca)
}

// kubeconfigs writes those with the certificates inside.
func (b *builder) kubeconfigs(ca *pair) {
	o := b.opts
	local := "https://" + net.JoinHostPort(o.Address, "6443")
	endpoint := "https://" + net.JoinHostPort(o.Endpoint, "6443")
	for _, c := range []struct{ file, server, user, name, org string }{
		{"admin", endpoint, "kubernetes-admin", "kubernetes-admin", "kubeadm:cluster-admins"},
		{"super-admin", endpoint, "kubernetes-super-admin", "kubernetes-super-admin", "system:masters"},
		{"controller-manager", local, "system:kube-controller-manager", "system:kube-controller-manager", ""},
		{"scheduler", local, "system:kube-scheduler", "system:kube-scheduler", ""},
	} {
		p := b.issue(ca, leaf{name: c.name, org: c.org, client: true})
		user := "    client-certificate-data: " + base64.StdEncoding.EncodeToString(p.certPEM) + "\n" +
			"    client-key-data: " + base64.StdEncoding.EncodeToString(p.keyPEM) + "\n"
		b.file("etc/kubernetes/"+c.file+".conf", 0o600, kubeconfig(ca, c.server, c.user, user))
	}
	const current = "/var/lib/kubelet/pki/kubelet-client-current.pem"
	user := "    client-certificate: " + current + "\n    client-key: " + current + "\n"
	b.file("etc/kubernetes/kubelet.conf", 0o600, kubeconfig(ca, endpoint, "default-auth", user))
}

func kubeconfig(ca *pair, server, user, credentials string) []byte {
	return fmt.Appendf(nil, `apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: %s
    server: %s
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: %s
  name: %[3]s@kubernetes
current-context: %[3]s@kubernetes
kind: Config
users:
- name: %[3]s
  user:
%[4]s`, base64.StdEncoding.EncodeToString(ca.certPEM), server, user, credentials)
}

// kubelet writes the kubelet's own certificates; the client's name is a link
// with an absolute target, as the kubelet makes it when it rotates.
func (b *builder) kubelet(ca *pair) {
	const dir = "var/lib/kubelet/pki/"
	node := b.opts.Node
	client := b.issue(ca, leaf{name: "system:node:" + node, org: "system:nodes", client: true})
	file := "kubelet-client-" + b.opts.Now.Format("2006-01-02-15-04-05") + ".pem"
	b.file(dir+file, 0o600, append(append([]byte(nil), client.certPEM...), client.keyPEM...))
	b.link(dir+"kubelet-client-current.pem", "/"+dir+file)

	own := selfSigned(b, node+"-ca@1", b.opts.Now)
	serving := b.issue(own, leaf{name: node + "@1", hosts: []string{node}, server: true})
	b.file(dir+"kubelet.crt", 0o644, append(append([]byte(nil), serving.certPEM...), own.certPEM...))
	b.file(dir+"kubelet.key", 0o600, serving.keyPEM)
}

func (b *builder) pair(name string, p *pair) {
	b.file(name+".crt", 0o644, p.certPEM)
	b.file(name+".key", 0o600, p.keyPEM)
}

// newKey makes an ECDSA key, which kubeadm offers as ECDSA-P256 and which is
// made faster than RSA's.
func (b *builder) newKey() *pair {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.fail(err)
		return &pair{}
	}
	der, err := x509.MarshalECPrivateKey(key)
	b.fail(err)
	return &pair{key: key, keyPEM: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})}
}

func publicPEM(b *builder, key crypto.Signer) []byte {
	if key == nil {
		return nil
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	b.fail(err)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// selfSigned makes an authority that holds for ten years from an hour before now.
func selfSigned(b *builder, name string, now time.Time) *pair {
	p := b.newKey()
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		DNSNames:              []string{name},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(10 * 365 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	b.sign(p, t, t, p.key)
	return p
}

// issue makes a leaf below ca.
func (b *builder) issue(ca *pair, l leaf) *pair {
	p := b.newKey()
	t := &x509.Certificate{
		Subject:   pkix.Name{CommonName: l.name},
		NotBefore: b.opts.Now.Add(-time.Hour),
		NotAfter:  b.opts.Now.Add(b.opts.LeafValidity),
		KeyUsage:  x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	if t.NotAfter.Before(t.NotBefore) {
		t.NotBefore = t.NotAfter.Add(-time.Hour)
	}
	if l.org != "" {
		t.Subject.Organization = []string{l.org}
	}
	if l.server {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if l.client {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	for _, h := range l.hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	b.sign(p, t, ca.cert, ca.key)
	return p
}

// sign fills p's certificate.
func (b *builder) sign(p *pair, template, parent *x509.Certificate, key crypto.Signer) {
	if b.err != nil {
		return
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		b.fail(err)
		return
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, p.key.Public(), key)
	if err != nil {
		b.fail(err)
		return
	}
	p.cert, err = x509.ParseCertificate(der)
	b.fail(err)
	p.certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// encryptionConfig is an EncryptionConfiguration with one fresh key and a KMS.
func encryptionConfig() []byte {
	secret := make([]byte, 32)
	rand.Read(secret) // never fails (crypto/rand)
	return fmt.Appendf(nil, `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources:
  - secrets
  providers:
  - aescbc:
      keys:
      - name: %s
        secret: %s
  - kms:
      apiVersion: v2
      endpoint: unix:///var/run/kmsplugin/socket.sock
      name: %s
  - identity: {}
`, EncryptionKey, base64.StdEncoding.EncodeToString(secret), EncryptionKMS)
}
