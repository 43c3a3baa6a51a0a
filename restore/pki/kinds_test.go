package pki

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func ed25519Key(t *testing.T) crypto.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestEd25519KeysStayPKCS8(t *testing.T) {
	n := &node{t: t, root: t.TempDir(), aside: filepath.Join(t.TempDir(), "aside"), newKey: ed25519Key, cas: map[string]ca{}}
	n.makeCA(clusterCA, "kubernetes", born, born.Add(10*year))
	n.makeLeaf("etc/kubernetes/pki/apiserver", clusterCA, leafOf("kube-apiserver", nil, []x509.ExtKeyUsage{server}))
	n.apply(n.moved())
	cert := n.pair("etc/kubernetes/pki/apiserver.crt", "etc/kubernetes/pki/apiserver.key")
	n.verify(cert, clusterCA, server, "api.new.example") // it had no names at all
	if _, ok := cert.PublicKey.(ed25519.PublicKey); !ok || !strings.HasPrefix(string(n.read("etc/kubernetes/pki/apiserver.key")), "-----BEGIN PRIVATE KEY-----") {
		t.Errorf("the key is %T", cert.PublicKey)
	}
}

func TestTheNameOfAKeyIsThatOfTheNewOne(t *testing.T) {
	n := newNode(t, ecdsaKey)
	template := leafOf("etcd", nil, []x509.ExtKeyUsage{server}, "cp1")
	template.SubjectKeyId = []byte("the old key's name")
	n.makeLeaf("etc/kubernetes/pki/etcd/other", etcdCA, template)
	n.apply(n.moved())
	cert := n.pair("etc/kubernetes/pki/etcd/other.crt", "etc/kubernetes/pki/etcd/other.key")
	n.verify(cert, etcdCA, server, "cp9")
	if len(cert.SubjectKeyId) != 20 {
		t.Errorf("the key's name is %x", cert.SubjectKeyId)
	}
}

// TestARenewedCAIsTakenForWhatTheOldOneSigned: both have one key.
func TestARenewedCAIsTakenForWhatTheOldOneSigned(t *testing.T) {
	n := newNode(t, ecdsaKey)
	old := n.cas[clusterCA]
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "kubernetes"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: now, NotAfter: now.Add(30 * year)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, old.key.Public(), old.key)
	if err != nil {
		t.Fatal(err)
	}
	renewed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	n.write(clusterCA+".crt", encodeCertificates(old.cert, renewed), 0o644)
	o := n.moved()
	o.RenewExpired = true
	o.Now = func() time.Time { return born.Add(9*year + 300*24*time.Hour) }
	n.apply(o)
	cert := n.pair("etc/kubernetes/pki/apiserver.crt", "etc/kubernetes/pki/apiserver.key")
	if !cert.NotAfter.After(old.cert.NotAfter) {
		t.Errorf("it ends on %v, with the old CA", cert.NotAfter)
	}
}

func TestAKeyBehindAPassphraseIsTold(t *testing.T) {
	n := newNode(t, ecdsaKey)
	n.write("etc/kubernetes/pki/apiserver.key", pem.EncodeToMemory(&pem.Block{Type: encryptedBlock, Bytes: []byte("sealed")}), 0o600)
	for _, l := range n.prepare(n.moved()).Leaves {
		if filepath.Base(l.File) == "apiserver.crt" && (l.Action != Impossible || !strings.Contains(l.Reason, "passphrase") || !strings.Contains(l.Remedy, "/etc/kubernetes/pki/apiserver.key")) {
			t.Errorf("%s, %s, %s", l.Action, l.Reason, l.Remedy)
		}
	}
}

func TestFilesThatAKubeconfigNamesAreReissuedWhereverTheyLie(t *testing.T) {
	n := newNode(t, ecdsaKey)
	authority := n.cas[clusterCA]
	cert, key := n.sign(leafOf("system:node:cp1", []string{"system:nodes"}, []x509.ExtKeyUsage{client}), &authority)
	n.write("etc/kubernetes/node/client.crt", encodeCertificates(cert), 0o644)
	n.write("etc/kubernetes/node/private", n.keyText(key), 0o600)
	n.makeConfig("kubelet", "system:node:cp1", "system:node:cp1@kubernetes", "    client-certificate: node/client.crt\n    client-key: node/private\n")
	n.apply(n.moved())
	pair, err := tls.X509KeyPair(n.read("etc/kubernetes/node/client.crt"), n.read("etc/kubernetes/node/private"))
	if err != nil {
		t.Fatal(err)
	}
	n.verify(pair.Leaf, clusterCA, client)
	if pair.Leaf.Subject.CommonName != "system:node:cp9" {
		t.Error(pair.Leaf.Subject)
	}
}

func TestAUserWithoutAKeyInsideIsTold(t *testing.T) {
	n := newNode(t, ecdsaKey)
	authority := n.cas[clusterCA]
	cert, _ := n.sign(leafOf("system:node:cp1", nil, []x509.ExtKeyUsage{client}), &authority)
	n.makeConfig("kubelet", "system:node:cp1", "system:node:cp1@kubernetes", "    client-certificate-data: "+base64.StdEncoding.EncodeToString(encodeCertificates(cert))+"\n    client-key: /nowhere.key\n")
	p := n.prepare(n.moved())
	if p.Count(Impossible) != 1 {
		t.Errorf("%+v", p.Leaves)
	}
	if _, err := Undo(t.Context(), n.root, n.aside); !errors.Is(err, ErrNothingToUndo) {
		t.Error(err)
	}
}
