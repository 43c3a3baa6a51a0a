package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestInspectFindsEveryCertificateAndWhoSignedIt(t *testing.T) {
	n := newNode(t, ecdsaKey)
	if err := os.Remove(filepath.Join(n.root, proxyCA+".key")); err != nil {
		t.Fatal(err)
	}
	got, err := Inspect(t.Context(), n.root, now)
	if err != nil {
		t.Fatal(err)
	}
	type line struct {
		Issuer string
		Key    bool
		State  State
	}
	lines := map[string]line{}
	for _, c := range got.Certificates {
		if strings.HasSuffix(c.File, ".conf") && c.CA {
			continue
		}
		lines[strings.TrimSuffix(c.File+" "+c.User, " ")] = line{c.Issuer, c.IssuerKey, c.State}
	}
	cluster := line{"/" + clusterCA + ".crt", true, Fine}
	etcd := line{"/" + etcdCA + ".crt", true, Fine}
	proxy := line{"/" + proxyCA + ".crt", false, Fine}
	pki := "/etc/kubernetes/pki/"
	want := map[string]line{
		pki + "ca.crt": cluster, pki + "apiserver.crt": cluster, pki + "apiserver-kubelet-client.crt": cluster,
		pki + "etcd/ca.crt": etcd, pki + "etcd/server.crt": etcd, pki + "etcd/peer.crt": etcd,
		pki + "front-proxy-ca.crt": proxy, pki + "front-proxy-client.crt": proxy,
		"/" + clientNow: cluster, "/etc/kubernetes/admin.conf kubernetes-admin": cluster,
		"/etc/kubernetes/scheduler.conf system:kube-scheduler": cluster,
		kubeletServer: {"", false, UnknownCA},
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Error(diff)
	}
	for at, state := range map[time.Time]State{born.Add(year + time.Hour): Expired, born.Add(year - 24*time.Hour): ExpiresSoon, born.Add(time.Hour): Fine} {
		got, err := Inspect(t.Context(), n.root, at)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(got.Certificates, func(c Certificate) bool { return c.File == pki+"apiserver.crt" })
		if got.Certificates[i].State != state {
			t.Errorf("at %v the API server's certificate is %q, not %q", at, got.Certificates[i].State, state)
		}
	}
}

func TestANodeComesBackUnderAnotherNameAndAddress(t *testing.T) {
	for name, newKey := range map[string]func(*testing.T) crypto.Signer{"RSA 2048": rsaKey, "ECDSA P-256": ecdsaKey} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, newKey)
			before := n.looks()
			r := n.apply(n.moved())
			n.checkMoved()
			after := n.looks()
			for name, look := range before {
				changed := after[name] != look
				untouched := []string{"sa.key", "ca.crt", "ca.key", "front-proxy-client.crt", "front-proxy-client.key", filepath.Base(clientPEM)}
				if slices.Contains(untouched, filepath.Base(name)) && changed {
					t.Errorf("%s changed", name)
				}
				if !changed {
					continue
				}
				if info, err := os.Lstat(filepath.Join(n.aside, name)); err != nil {
					t.Errorf("%s is not kept: %v", name, err)
				} else if strings.HasSuffix(name, ".key") && info.Mode().Perm() != 0o600 {
					t.Errorf("%s is kept with mode %v", name, info.Mode())
				}
			}
			if len(r.Issued) == 0 || len(r.MovedAside) != 2 {
				t.Errorf("result %+v", r)
			}
			again := n.prepare(n.moved())
			if again.Count(Keep) != len(again.Leaves) || len(again.Kubeconfigs) > 0 {
				t.Errorf("the second plan still wants something: %+v", again.Leaves)
			}
			if _, err := Undo(t.Context(), n.root, n.aside); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, n.looks()); diff != "" {
				t.Error("after undo:", diff)
			}
			if _, err := Undo(t.Context(), n.root, n.aside); !errors.Is(err, ErrNothingToUndo) {
				t.Errorf("a second undo: %v", err)
			}
		})
	}
}

// checkMoved verifies everything of a node that was moved to cp9.
func (n *node) checkMoved() {
	n.t.Helper()
	t, pki := n.t, "etc/kubernetes/pki/"
	api := n.pair(pki+"apiserver.crt", pki+"apiserver.key")
	n.verify(api, clusterCA, server, "cp9", "10.0.0.99", "kubernetes", "10.96.0.1", "api.old.example", "api.new.example", "192.0.2.7")
	if api.VerifyHostname("cp1") == nil || api.VerifyHostname("10.0.0.11") == nil {
		t.Error("the API server's certificate still names the old node")
	}
	for _, name := range []string{"server", "peer"} {
		cert := n.pair(pki+"etcd/"+name+".crt", pki+"etcd/"+name+".key")
		n.verify(cert, etcdCA, server, "cp9", "10.0.0.99", "localhost", "127.0.0.1", "::1")
		n.verify(cert, etcdCA, client)
		if cert.Subject.CommonName != "cp9" {
			t.Errorf("etcd/%s is for %s", name, cert.Subject)
		}
		if api.NotAfter.Sub(api.NotBefore) != year || !cert.NotBefore.Equal(now.Add(-5*time.Minute)) {
			t.Errorf("etcd/%s is valid from %v to %v", name, cert.NotBefore, cert.NotAfter)
		}
	}
	n.verify(n.pair(pki+"apiserver-kubelet-client.crt", pki+"apiserver-kubelet-client.key"), clusterCA, client)
	kubelet := n.pair(clientNow, clientNow)
	n.verify(kubelet, clusterCA, client)
	if s := kubelet.Subject; s.CommonName != "system:node:cp9" || !slices.Equal(s.Organization, []string{"system:nodes"}) {
		t.Errorf("the kubelet is %s", s)
	}
	if target, err := os.Readlink(filepath.Join(n.root, clientNow)); target != "/var/lib/kubelet/pki/kubelet-client-2026-11-21-18-30-00.pem" {
		t.Errorf("the kubelet's link leads to %q, %v", target, err)
	}
	for _, name := range []string{"kubelet.crt", "kubelet.key"} {
		if _, err := os.Lstat(filepath.Join(n.root, "var/lib/kubelet/pki", name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
	config := string(n.read("etc/kubernetes/kubelet.conf"))
	for _, want := range []string{"server: https://10.0.0.99:6443", "user: system:node:cp9\n", "name: system:node:cp9@kubernetes",
		"current-context: system:node:cp9@kubernetes", "- name: system:node:cp9\n", "x-of-ours: kept # and this", "client-key: /" + clientNow} {
		if !strings.Contains(config, want) {
			t.Errorf("kubelet.conf lacks %q:\n%s", want, config)
		}
	}
	n.verify(n.inline("etc/kubernetes/admin.conf"), clusterCA, client)
}

func TestExpiredCertificatesAreRenewedWithAllThatTheySaid(t *testing.T) {
	n := newNode(t, ecdsaKey)
	later := born.Add(year + 24*time.Hour)
	o := n.options()
	o.Now = func() time.Time { return later }
	if p := n.prepare(o); p.Count(Keep) != len(p.Leaves) || len(p.Warnings) < 5 {
		t.Errorf("without being asked it renews: %+v, warnings %q", p.Leaves, p.Warnings)
	}
	o.RenewExpired = true
	old := n.pair("etc/kubernetes/pki/etcd/server.crt", "etc/kubernetes/pki/etcd/server.key")
	admin := string(n.read("etc/kubernetes/admin.conf"))
	p := n.prepare(o)
	if p.Count(Renew) != len(p.Leaves)-1 || p.Count(MoveAside) != 1 {
		t.Errorf("actions %+v", p.Leaves)
	}
	if _, err := p.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	renewed := n.pair("etc/kubernetes/pki/etcd/server.crt", "etc/kubernetes/pki/etcd/server.key")
	if renewed.SerialNumber.Cmp(old.SerialNumber) == 0 || samePublic(renewed.PublicKey, old.PublicKey) {
		t.Error("the serial number or the key is the old one")
	}
	for _, e := range old.Extensions {
		if now := extension(renewed, e.Id); now == nil || now.Critical != e.Critical || !bytes.Equal(now.Value, e.Value) {
			t.Errorf("extension %v changed", e.Id)
		}
	}
	if len(renewed.Extensions) != len(old.Extensions) || !bytes.Equal(renewed.RawSubject, old.RawSubject) {
		t.Errorf("extensions or subject are not the old ones")
	}
	if renewed.NotAfter.Sub(renewed.NotBefore) != year {
		t.Errorf("it is valid for %v", renewed.NotAfter.Sub(renewed.NotBefore))
	}
	was, is := strings.Split(admin, "\n"), strings.Split(string(n.read("etc/kubernetes/admin.conf")), "\n")
	for i := range was {
		if was[i] != is[i] && !strings.Contains(was[i], "client-") {
			t.Errorf("admin.conf, line %d: %q became %q", i+1, was[i], is[i])
		}
	}
}

func TestWhatExpiresWithinATimeIsRenewedWithTheExpired(t *testing.T) {
	n := newNode(t, ecdsaKey)
	o := n.options()
	o.RenewExpired = true
	if p := n.prepare(o); p.Count(Renew) != 0 {
		t.Errorf("renews %d", p.Count(Renew))
	}
	o.RenewWithin = 60 * 24 * time.Hour
	if p := n.prepare(o); p.Count(Renew) == 0 || p.Count(Keep) != 0 {
		t.Errorf("renews %d, keeps %d", p.Count(Renew), p.Count(Keep))
	}
}

func TestNothingOutlivesItsCA(t *testing.T) {
	n := newNode(t, ecdsaKey)
	end := now.Add(100 * 24 * time.Hour)
	n.makeCA(clusterCA, "kubernetes", born, end)
	n.makeLeaf("etc/kubernetes/pki/apiserver", clusterCA, leafOf("kube-apiserver", nil, []x509.ExtKeyUsage{server}, "cp1"))
	n.apply(n.moved())
	cert := n.pair("etc/kubernetes/pki/apiserver.crt", "etc/kubernetes/pki/apiserver.key")
	n.verify(cert, clusterCA, server, "cp9")
	if !cert.NotAfter.Equal(end) {
		t.Errorf("it ends on %v, its CA on %v", cert.NotAfter, end)
	}
}

func TestACAThatIsNotValidStopsEverythingByName(t *testing.T) {
	n := newNode(t, ecdsaKey)
	for name, at := range map[string]time.Time{"expired": born.Add(11 * year), "not valid before": born.Add(-time.Hour)} {
		o := n.options()
		o.Now = func() time.Time { return at }
		_, err := Prepare(t.Context(), o)
		var bad *AuthorityError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "/etc/kubernetes/pki/") || !strings.Contains(err.Error(), bad.Name) {
			t.Errorf("%s: %v", name, err)
		}
		inventory, err := Inspect(t.Context(), n.root, at)
		if !errors.As(err, &bad) || inventory == nil {
			t.Errorf("inspect, %s: %v, %v", name, inventory, err)
		}
	}
}

func TestWithoutItsCAsKeyACertificateIsToldAndTheRestGoesOn(t *testing.T) {
	n := newNode(t, ecdsaKey)
	if err := os.Remove(filepath.Join(n.root, etcdCA+".key")); err != nil {
		t.Fatal(err)
	}
	p := n.prepare(n.moved())
	if p.Count(Impossible) != 2 {
		t.Fatalf("%d are impossible", p.Count(Impossible))
	}
	i := slices.IndexFunc(p.Leaves, func(l Leaf) bool { return l.Action == Impossible })
	if l := p.Leaves[i]; !strings.Contains(l.Reason, "/etc/kubernetes/pki/etcd/ca.crt is not there") || !strings.Contains(l.Remedy, "10.0.0.99") || !strings.Contains(l.Remedy, "CN=cp9") {
		t.Errorf("reason %q, remedy %q", l.Reason, l.Remedy)
	}
	if _, err := p.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.verify(n.pair("etc/kubernetes/pki/apiserver.crt", "etc/kubernetes/pki/apiserver.key"), clusterCA, server, "cp9")
	n.verify(n.pair("etc/kubernetes/pki/etcd/peer.crt", "etc/kubernetes/pki/etcd/peer.key"), etcdCA, server, "cp1")
}

func TestAPlanSaysWhatItWillDoAndChangesNothing(t *testing.T) {
	n := newNode(t, ecdsaKey)
	before := n.looks()
	p := n.prepare(n.moved())
	var text bytes.Buffer
	if err := p.Print(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"re-issue    /etc/kubernetes/pki/apiserver.crt", "-> CN=system:node:cp9,O=system:nodes", "api.new.example", "move aside  /var/lib/kubelet/pki/kubelet.crt",
		"server: https://10.0.0.11:6443 -> https://10.0.0.99:6443", "keep        /etc/kubernetes/pki/front-proxy-client.crt", "static manifests"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the plan lacks %q:\n%s", want, &text)
		}
	}
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"PRIVATE KEY", "client-key-data", "LS0t"} {
		if strings.Contains(text.String(), secret) || bytes.Contains(data, []byte(secret)) {
			t.Errorf("the plan holds %q", secret)
		}
	}
	if diff := cmp.Diff(before, n.looks()); diff != "" {
		t.Error("planning changed:", diff)
	}
	if _, err := os.Lstat(n.aside); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the aside folder: %v", err)
	}
}

func TestAFileThatChangedSinceThePlanStopsIt(t *testing.T) {
	n := newNode(t, ecdsaKey)
	p := n.prepare(n.moved())
	n.makeLeaf("etc/kubernetes/pki/apiserver", clusterCA, leafOf("kube-apiserver", nil, []x509.ExtKeyUsage{server}, "cp1"))
	before := n.looks()
	if _, err := p.Apply(t.Context()); !errors.Is(err, ErrChanged) {
		t.Errorf("apply: %v", err)
	}
	if diff := cmp.Diff(before, n.looks()); diff != "" {
		t.Error(diff)
	}
}

func TestOptionsThatCannotBeMeantAreRefused(t *testing.T) {
	n := newNode(t, ecdsaKey)
	address := netip.MustParseAddr
	for name, change := range map[string]func(*Options){
		"relative aside":        func(o *Options) { o.Aside = "aside" },
		"aside among the files": func(o *Options) { o.Aside = filepath.Join(n.root, "etc/kubernetes/pki/aside") },
		"no name":               func(o *Options) { o.Rename = map[string]string{"cp1": ""} },
		"a shared name":         func(o *Options) { o.Rename = map[string]string{"kubernetes": "cp9"} },
		"a name with a slash":   func(o *Options) { o.Rename = map[string]string{"cp1": "../cp9"} },
		"loopback":              func(o *Options) { o.Address = map[netip.Addr]netip.Addr{address("127.0.0.1"): address("10.0.0.1")} },
		"no such folder":        func(o *Options) { o.Folders = []string{"/etc/ssl/etcd"} },
		"no SAN":                func(o *Options) { o.AddSANs = []string{"https://api:6443"} },
		"within without renew":  func(o *Options) { o.RenewWithin = time.Hour },
	} {
		o := n.options()
		change(&o)
		if _, err := Prepare(t.Context(), o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
