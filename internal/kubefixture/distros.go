package kubefixture

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"path"
)

// osTexts are the operating system's files that every kind of node has.
var osTexts = []string{"etc/hostname", "etc/hosts", "etc/resolv.conf", "usr/lib/os-release"}

// distribution writes the server of a k3s, rke2 or k0s: what its installer and its
// first start leave.
func (b *builder) distribution() {
	b.link("etc/os-release", "../usr/lib/os-release")
	b.folder("run", 0o755)
	b.link("var/run", "/run")
	if b.opts.Kind == K0s {
		b.k0s()
		return
	}
	b.rancher(b.opts.Kind.String())
}

// token is the cluster's, as k3s writes it: with a hash of its authority.
func (b *builder) token() string {
	if b.opts.Token != "" {
		return b.opts.Token
	}
	secret := make([]byte, 16)
	rand.Read(secret) // never fails (crypto/rand)
	return hex.EncodeToString(secret)
}

// rancher writes what k3s and rke2 have alike. Names of certificates are those of
// k3s's pkg/daemons/control/deps.
func (b *builder) rancher(kind string) {
	dir := "var/lib/rancher/" + kind + "/server/"
	tls := dir + "tls/"
	server, client, front := b.authority(tls+"server-ca", kind+"-server-ca"), b.authority(tls+"client-ca", kind+"-client-ca"), b.authority(tls+"request-header-ca", kind+"-request-header-ca")
	etcd, peer := b.authority(tls+"etcd/server-ca", "etcd-server-ca"), b.authority(tls+"etcd/peer-ca", "etcd-peer-ca")
	hosts := []string{b.opts.Node, b.opts.Endpoint, b.opts.Address, "127.0.0.1", "localhost", "10.43.0.1", "kubernetes.default.svc"}
	b.pair(tls+"serving-kube-apiserver", b.issue(server, leaf{name: "kube-apiserver", server: true, hosts: hosts}))
	b.pair(tls+"client-kube-apiserver", b.issue(client, leaf{name: "system:apiserver", org: "system:masters", client: true}))
	b.pair(tls+"client-auth-proxy", b.issue(front, leaf{name: "system:auth-proxy", client: true}))
	b.pair(tls+"etcd/client", b.issue(etcd, leaf{name: "etcd-client", client: true}))
	b.pair(tls+"etcd/server-client", b.issue(etcd, leaf{name: "etcd-server", server: true, client: true, hosts: hosts}))
	b.pair(tls+"etcd/peer-server-client", b.issue(peer, leaf{name: "etcd-peer", server: true, client: true, hosts: hosts}))
	b.file(tls+"service.key", 0o600, b.newKey().keyPEM)
	b.file(tls+"dynamic-cert.json", 0o600, []byte("stands for a listener's certificate\n"))
	for _, c := range []struct{ file, name, org string }{{"admin", "system:admin", "system:masters"}, {"controller", "system:kube-controller-manager", ""}, {"scheduler", "system:kube-scheduler", ""}} {
		b.pair(tls+"client-"+c.file, b.issue(client, leaf{name: c.name, org: c.org, client: true}))
		user := "    client-certificate: /" + tls + "client-" + c.file + ".crt\n    client-key: /" + tls + "client-" + c.file + ".key\n"
		b.file(dir+"cred/"+c.file+".kubeconfig", 0o600, kubeconfig(server, "https://127.0.0.1:6444", c.name, user))
	}
	b.file("etc/rancher/"+kind+"/"+kind+".yaml", 0o600, b.adminConfig(server, client, "https://127.0.0.1:6443"))
	b.file("etc/rancher/node/password", 0o600, []byte("stands for a node's password\n"))
	b.file(dir+"cred/passwd", 0o600, []byte("stands for a password,server,server,"+kind+":server\n"))
	b.file(dir+"cred/ipsec.psk", 0o600, []byte("stands for a key\n"))
	b.file(dir+"cred/encryption-config.json", 0o600, distroEncryption())

	token := b.token()
	sum := sha256.Sum256(server.certPEM)
	b.file(dir+"token", 0o600, fmt.Appendf(nil, "K10%x::server:%s\n", sum, token))
	b.link(dir+"node-token", "/"+dir+"token")
	b.link(dir+"agent-token", "/"+dir+"token")
	if b.opts.Server != "" {
		b.file("etc/rancher/"+kind+"/cluster-token", 0o600, fmt.Appendf(nil, "K10%x::server:%s\n", sum, token))
	}
	b.folder(dir+"db", 0o700)
	if b.opts.SQLite {
		b.file(dir+"db/state.db", 0o600, []byte("stands for a database"))
		return
	}
	b.file(dir+"db/etcd/name", 0o600, []byte(b.member()))
	b.file(dir+"db/etcd/config", 0o600, []byte("stands for a database's configuration\n"))
	b.file(dir+"db/etcd/member/snap/db", 0o600, []byte("stands for a database"))
	b.file(dir+"db/snapshots/etcd-snapshot-"+b.opts.Node+"-1763640000", 0o600, []byte("stands for a database"))
}

// member is how k3s and rke2 call a server's etcd: by its name and eight digits of its own.
func (b *builder) member() string {
	sum := sha256.Sum256([]byte(b.opts.Node))
	return b.opts.Node + "-" + hex.EncodeToString(sum[:4])
}

func (b *builder) k0s() {
	const dir, pki = "var/lib/k0s/", "var/lib/k0s/pki/"
	ca, front, etcd := b.authority(pki+"ca", "kubernetes-ca"), b.authority(pki+"front-proxy-ca", "kubernetes-front-proxy-ca"), b.authority(pki+"etcd/ca", "etcd-ca")
	hosts := []string{b.opts.Node, b.opts.Endpoint, b.opts.Address, "127.0.0.1", "localhost", "10.96.0.1", "kubernetes.default.svc"}
	b.pair(pki+"server", b.issue(ca, leaf{name: "kubernetes", org: "kubernetes", server: true, hosts: hosts}))
	b.pair(pki+"k0s-api", b.issue(ca, leaf{name: "k0s-api", server: true, hosts: hosts}))
	b.pair(pki+"apiserver-kubelet-client", b.issue(ca, leaf{name: "apiserver-kubelet-client", org: "system:masters", client: true}))
	b.pair(pki+"front-proxy-client", b.issue(front, leaf{name: "front-proxy-client", client: true}))
	b.pair(pki+"apiserver-etcd-client", b.issue(etcd, leaf{name: "apiserver-etcd-client", client: true, hosts: []string{"127.0.0.1", "localhost"}}))
	b.pair(pki+"etcd/server", b.issue(etcd, leaf{name: "etcd-server", server: true, client: true, hosts: []string{"127.0.0.1", "localhost"}}))
	b.pair(pki+"etcd/peer", b.issue(etcd, leaf{name: b.opts.Address, server: true, client: true, hosts: []string{b.opts.Address}}))
	sa := b.newKey()
	b.file(pki+"sa.key", 0o640, sa.keyPEM)
	b.file(pki+"sa.pub", 0o640, publicPEM(b, sa.key))
	b.file(pki+"admin.conf", 0o600, b.adminConfig(ca, ca, "https://localhost:6443"))
	if b.opts.Server != "" {
		b.file("etc/k0s/k0stoken", 0o600, []byte("stands for a token that is good for an hour\n"))
	}
	if b.opts.SQLite {
		b.file(dir+"db/state.db", 0o600, []byte("stands for a database"))
		return
	}
	b.folder(dir+"etcd", 0o700)
	b.file(dir+"etcd/member/snap/db", 0o600, []byte("stands for a database"))
}

// authority makes one and writes it.
func (b *builder) authority(name, subject string) *pair {
	ca := selfSigned(b, subject, b.opts.Now)
	b.pair(name, ca)
	return ca
}

func (b *builder) adminConfig(server, client *pair, url string) []byte {
	p := b.issue(client, leaf{name: "system:admin", org: "system:masters", client: true})
	user := "    client-certificate-data: " + base64.StdEncoding.EncodeToString(p.certPEM) + "\n" +
		"    client-key-data: " + base64.StdEncoding.EncodeToString(p.keyPEM) + "\n"
	return kubeconfig(server, url, "default", user)
}

// DistributionKey is the name of the aescbc key in the encryption configuration of
// k3s and rke2.
const DistributionKey = "aescbckey"

// distroEncryption is the encryption configuration that k3s and rke2 make.
func distroEncryption() []byte {
	secret := make([]byte, 32)
	rand.Read(secret) // never fails (crypto/rand)
	return fmt.Appendf(nil, `{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[{"resources":["secrets"],"providers":[{"aescbc":{"keys":[{"name":"%s","secret":"%s"}]}},{"identity":{}}]}]}`,
		DistributionKey, base64.StdEncoding.EncodeToString(secret))
}

// private says whether a distribution keeps a text for its owner alone.
func private(name string) bool {
	folder, base := path.Base(path.Dir(name)), path.Base(name)
	return folder == "pod-manifests" || folder == "cred" || path.Ext(name) == ".log" || base == "config.yaml" || base == "k0s.yaml"
}
