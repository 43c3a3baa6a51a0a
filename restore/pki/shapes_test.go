package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAnExternalEtcdsFolderIsReissuedWithItsNames(t *testing.T) {
	n := newNode(t, ecdsaKey)
	authority := n.cas[etcdCA]
	n.write("etc/ssl/etcd/ca.pem", encodeCertificates(authority.cert), 0o644)
	n.write("etc/ssl/etcd/ca-key.pem", n.keyText(authority.key), 0o600)
	cert, key := n.sign(leafOf("etcd", nil, []x509.ExtKeyUsage{server}, "cp1", "10.0.0.11"), &authority)
	n.write("etc/ssl/etcd/member-cp1.pem", encodeCertificates(cert, authority.cert), 0o640)
	n.write("etc/ssl/etcd/member-cp1-key.pem", n.keyText(key), 0o640)
	combined, key := n.sign(leafOf("both", nil, []x509.ExtKeyUsage{client}, "cp1"), &authority)
	n.write("etc/ssl/etcd/both.pem", append(encodeCertificates(combined), n.keyText(key)...), 0o604)
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		uid, gid = 1234, 2345
	}
	if err := os.Chown(filepath.Join(n.root, "etc/ssl/etcd/member-cp1-key.pem"), uid, gid); err != nil {
		t.Fatal(err)
	}
	o := n.moved()
	o.Folders = []string{"/etc/ssl/etcd"}
	n.apply(o)
	for _, base := range []string{n.root, n.aside} {
		info, err := os.Stat(filepath.Join(base, "etc/ssl/etcd/member-cp1-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		if u, g := ownerOf(info); u != uid || g != gid {
			t.Errorf("in %s the key is %d:%d's", base, u, g)
		}
	}
	renewed := n.pair("etc/ssl/etcd/member-cp1.pem", "etc/ssl/etcd/member-cp1-key.pem")
	n.verify(renewed, etcdCA, server, "cp9", "10.0.0.99")
	if b, err := parsePEM(n.read("etc/ssl/etcd/member-cp1.pem")); err != nil || len(b.certs) != 2 || !b.certs[1].Equal(authority.cert) {
		t.Errorf("the chain did not stay: %v", err)
	}
	n.verify(n.pair("etc/ssl/etcd/both.pem", "etc/ssl/etcd/both.pem"), etcdCA, client)
	for name, want := range map[string]os.FileMode{"etc/ssl/etcd/member-cp1-key.pem": 0o640, "etc/ssl/etcd/both.pem": 0o600, "etc/ssl/etcd/member-cp1.pem": 0o640} {
		for _, base := range []string{n.root, n.aside} {
			info, err := os.Stat(filepath.Join(base, name))
			if err != nil || info.Mode().Perm() != want {
				t.Errorf("%s in %s: %v, %v", name, base, info.Mode(), err)
			}
		}
	}
}

func TestCertificatesOfOneKeyGetOneNewKey(t *testing.T) {
	n := newNode(t, ecdsaKey)
	authority := n.cas[etcdCA]
	cert, key := n.sign(leafOf("etcd", nil, []x509.ExtKeyUsage{server}, "cp1"), &authority)
	n.write("etc/etcd/server.pem", encodeCertificates(cert), 0o644)
	n.write("etc/etcd/common.key", n.keyText(key), 0o600)
	template := leafOf("for all", nil, []x509.ExtKeyUsage{client})
	template.NotBefore, template.NotAfter, template.SerialNumber = born, born.Add(year), serial
	der, err := x509.CreateCertificate(rand.Reader, template, authority.cert, key.Public(), authority.key)
	if err != nil {
		t.Fatal(err)
	}
	shared, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	n.write("etc/etcd/client.pem", encodeCertificates(shared), 0o644)
	o := n.moved()
	o.Folders = []string{"/etc/etcd"}
	n.apply(o)
	n.verify(n.pair("etc/etcd/server.pem", "etc/etcd/common.key"), etcdCA, server, "cp9")
	n.verify(n.pair("etc/etcd/client.pem", "etc/etcd/common.key"), etcdCA, client)
}

func TestNoNewKeyForSomeWhereAnotherCannotHaveIt(t *testing.T) {
	n := newNode(t, ecdsaKey)
	authority := n.cas[etcdCA]
	cert, key := n.sign(leafOf("etcd", nil, []x509.ExtKeyUsage{server}, "cp1"), &authority)
	n.write("etc/etcd/server.pem", encodeCertificates(cert), 0o644)
	n.write("etc/etcd/common.key", n.keyText(key), 0o600)
	foreign := leafOf("of another CA", nil, []x509.ExtKeyUsage{client})
	foreign.NotBefore, foreign.NotAfter, foreign.SerialNumber = born, born.Add(year), serial
	der, err := x509.CreateCertificate(rand.Reader, foreign, foreign, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if foreign, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	n.write("etc/etcd/client.pem", encodeCertificates(foreign), 0o644)
	o := n.moved()
	o.Folders = []string{"/etc/etcd"}
	want := map[string]Action{"/etc/etcd/server.pem": Impossible, "/etc/etcd/client.pem": Keep}
	for _, l := range n.prepare(o).Leaves {
		if want[l.File] != "" && l.Action != want[l.File] {
			t.Errorf("%s: %s, %s", l.File, l.Action, l.Reason)
		}
	}
}

func TestAKeyInTwoFilesIsNotReplacedInOne(t *testing.T) {
	n := newNode(t, ecdsaKey)
	authority := n.cas[etcdCA]
	cert, key := n.sign(leafOf("etcd", nil, []x509.ExtKeyUsage{server}, "cp1"), &authority)
	n.write("etc/etcd/server.pem", encodeCertificates(cert), 0o644)
	n.write("etc/etcd/a.key", n.keyText(key), 0o600)
	n.write("etc/etcd/b.key", n.keyText(key), 0o600)
	o := n.moved()
	o.Folders = []string{"/etc/etcd"}
	for _, l := range n.prepare(o).Leaves {
		if l.File == "/etc/etcd/server.pem" && (l.Action != Impossible || !strings.Contains(l.Reason, "a.key and ")) {
			t.Errorf("%s: %s", l.Action, l.Reason)
		}
	}
}

func TestAPairThatDoesNotMatchIsMadeAnew(t *testing.T) {
	n := newNode(t, ecdsaKey)
	n.write("etc/kubernetes/pki/apiserver.key", n.keyText(ecdsaKey(t)), 0o600)
	n.apply(n.options())
	n.verify(n.pair("etc/kubernetes/pki/apiserver.crt", "etc/kubernetes/pki/apiserver.key"), clusterCA, server, "cp1")
}

func TestAKeyThatOthersDependOnIsNeverReplaced(t *testing.T) {
	n := newNode(t, ecdsaKey)
	authority := n.cas[clusterCA]
	template := leafOf("cp1", nil, []x509.ExtKeyUsage{server}, "cp1")
	template.NotBefore, template.NotAfter, template.SerialNumber = born, born.Add(year), serial
	der, err := x509.CreateCertificate(rand.Reader, template, authority.cert, authority.key.Public(), authority.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	n.write("etc/kubernetes/pki/sa.crt", encodeCertificates(cert), 0o644)
	n.write("etc/kubernetes/pki/other.crt", encodeCertificates(cert), 0o644)
	p := n.prepare(n.moved())
	for _, l := range p.Leaves {
		if base := filepath.Base(l.File); (base == "sa.crt" || base == "other.crt") && l.Action != Impossible {
			t.Errorf("%s: %s", base, l.Action)
		}
	}
}

func TestTheKubeletsServingCertificateOfTheClustersCAIsRotatedToo(t *testing.T) {
	n := newNode(t, ecdsaKey)
	authority := n.cas[clusterCA]
	cert, key := n.sign(leafOf("system:node:cp1", []string{"system:nodes"}, []x509.ExtKeyUsage{server}, "cp1", "10.0.0.11"), &authority)
	n.write("data/kubelet-server-2026-01-10-12-00-00.pem", append(encodeCertificates(cert), n.keyText(key)...), 0o600)
	link := filepath.Join(n.root, "var/lib/kubelet/pki/kubelet-server-current.pem")
	if err := os.Symlink("/data/kubelet-server-2026-01-10-12-00-00.pem", link); err != nil {
		t.Fatal(err)
	}
	n.write("data/kubelet-server-2026-11-21-18-30-00.pem", []byte("taken"), 0o600)
	n.apply(n.moved())
	if target, err := os.Readlink(link); err != nil || target != "/data/kubelet-server-2026-11-21-18-30-01.pem" {
		t.Fatal(target, err)
	}
	name := "var/lib/kubelet/pki/kubelet-server-current.pem"
	n.verify(n.pair(name, name), clusterCA, server, "cp9", "10.0.0.99")
}

func TestOneOldOfARotatedCAStopsNothing(t *testing.T) {
	n := newNode(t, ecdsaKey)
	old, _ := n.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "kubernetes"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: born.Add(-9 * year), NotAfter: born.Add(time.Hour)}, nil)
	n.write(clusterCA+".crt", append(encodeCertificates(old), n.read(clusterCA+".crt")...), 0o644)
	n.apply(n.moved())
	authority := n.cas[clusterCA]
	cert := n.pair("etc/kubernetes/pki/apiserver.crt", "etc/kubernetes/pki/apiserver.key")
	if err := cert.CheckSignatureFrom(authority.cert); err != nil {
		t.Error(err)
	}
}

func TestAlternativeNamesOfOtherKindsStayInTheirOrder(t *testing.T) {
	other := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: []byte{0x30, 0x00}}
	mail := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 1, Bytes: []byte("ops@example.org")}
	raw, err := asn1.Marshal([]asn1.RawValue{generalName("cp1"), other, generalName("10.0.0.11"), mail, generalName("cp9")})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t}
	o := n.moved()
	got, err := o.alternatives(raw, []string{"10.0.0.99", "192.0.2.7"})
	if err != nil {
		t.Fatal(err)
	}
	want, err := asn1.Marshal([]asn1.RawValue{generalName("cp9"), other, generalName("10.0.0.99"), mail, generalName("192.0.2.7")})
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x, %v", got, want, err)
	}
	if again, err := o.alternatives(got, nil); err != nil || !bytes.Equal(again, got) {
		t.Errorf("a second time: %x, %v", again, err)
	}
}

func TestServersAndUsersAreMapped(t *testing.T) {
	n := &node{t: t}
	o := n.moved()
	for in, want := range map[string]string{
		"https://10.0.0.11:6443": "https://10.0.0.99:6443", "https://10.0.0.11": "https://10.0.0.99", "https://cp1:6443/x": "https://cp9:6443/x",
		"https://10.0.0.111:6443": "https://10.0.0.111:6443", "https://[::1]:6443": "https://[::1]:6443", "cp1": "cp1", "https://cp1.example:1": "https://cp1.example:1",
	} {
		if got := o.server(in); got != want {
			t.Errorf("%s became %s", in, got)
		}
	}
	for in, want := range map[string]string{
		"system:node:cp1": "system:node:cp9", "system:node:cp1@c": "system:node:cp9@c", "system:node:cp11": "system:node:cp11", "cp1@cp1": "cp1@cp1", "admin": "admin",
	} {
		if got := o.user(in); got != want {
			t.Errorf("%s became %s", in, got)
		}
	}
}

func TestWarningsTellWhatThePlanLeavesBehind(t *testing.T) {
	n := newNode(t, ecdsaKey)
	n.makeLeaf("etc/kubernetes/pki/apiserver", clusterCA, leafOf("kube-apiserver", nil, []x509.ExtKeyUsage{server}, "cp1", "cp1.example.org"))
	if err := os.Remove(filepath.Join(n.root, clientPEM)); err != nil {
		t.Fatal(err)
	}
	o := n.moved()
	o.AddSANs = nil
	long := leafOf("kube-etcd-healthcheck-client", nil, []x509.ExtKeyUsage{client})
	long.NotBefore, long.NotAfter = born, now.Add(-time.Hour).Add(5*year)
	n.makeLeaf("etc/kubernetes/pki/etcd/healthcheck-client", etcdCA, long)
	n.write("etc/kubernetes/pki/etcd/healthcheck-client.key", n.keyText(ecdsaKey(t)), 0o600) // of another one
	p := n.prepare(o)
	for _, want := range []string{"healthcheck-client.crt: it begins with its CA", "goes on naming cp1.example.org", "kubelet.conf names /" + clientNow + ", which is not there", "admin.conf leads to 10.0.0.99"} {
		if !slices.ContainsFunc(p.Warnings, func(w string) bool { return strings.Contains(w, want) }) {
			t.Errorf("no warning %q in %q", want, p.Warnings)
		}
	}
}

func TestNamesCannotSteerATerminal(t *testing.T) {
	n := newNode(t, ecdsaKey)
	n.makeLeaf("etc/kubernetes/pki/apiserver", clusterCA, leafOf("x\x1b[2J\x07\u202e", nil, []x509.ExtKeyUsage{server}, "cp1"))
	var text bytes.Buffer
	if err := n.prepare(n.moved()).Print(&text); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(text.String(), "\x1b\x07\u202e") {
		t.Errorf("%q", &text)
	}
}
