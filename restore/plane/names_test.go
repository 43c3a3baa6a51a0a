package plane

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/kubefixture"
	"lifeboat/internal/repository"
	"lifeboat/restore"
	"lifeboat/restore/pki"
	"lifeboat/restore/topology"
)

// prepared is the world's plan.
func (w *world) prepared(change ...func(*Options)) *Plan {
	w.t.Helper()
	o := w.options()
	for _, c := range change {
		c(&o)
	}
	p, err := Prepare(w.t.Context(), o)
	check(w.t, err)
	w.t.Cleanup(func() { p.Close() })
	return p
}

// ofFiles is what the plan says of the files.
func ofFiles(p *Plan) string {
	for _, s := range p.Steps {
		if s.Stage == stepFiles {
			return s.Detail
		}
	}
	return ""
}

func TestThePlanNamesWhatGetsOtherNames(t *testing.T) {
	w := newWorld(t)
	plain := w.prepared()
	if text := ofFiles(plain); strings.Contains(text, "\n") || strings.Contains(text, "ertificates") {
		t.Errorf("nothing changes, and the plan says %q", text)
	}
	plain.Close()

	w.order.Rename = []string{"cp1=cp4"}
	p := w.prepared()
	text := ofFiles(p)
	for _, want := range []string{
		"With other names or addresses (", "/etc/kubernetes/manifests/etcd.yaml", "Certificates issued anew, for other names (", "/etc/kubernetes/pki/etcd/peer.crt", "/etc/kubernetes/pki/apiserver.crt",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the plan lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "renewed") {
		t.Errorf("nothing has expired:\n%s", text)
	}
}

func TestThePlanNamesCertificatesThatAreRenewed(t *testing.T) {
	w := newWorld(t)
	p := w.prepared(func(o *Options) { o.Now = func() time.Time { return now.AddDate(2, 0, 0) } })
	if text := ofFiles(p); !strings.Contains(text, "Certificates renewed, since they have expired (") || !strings.Contains(text, "/etc/kubernetes/pki/apiserver.crt") {
		t.Errorf("%s", text)
	}
	text, err := p.Files.Read("/etc/kubernetes/pki/apiserver.crt")
	check(t, err)
	if last := certificate(t, text).NotAfter; !last.After(now.AddDate(2, 0, 1)) {
		t.Errorf("the API server's certificate is valid until %s", last)
	}
	if !slices.ContainsFunc(p.Files.Issued, func(l pki.Leaf) bool { return l.Action == pki.Renew }) {
		t.Errorf("%+v", p.Files.Issued)
	}
}

func TestTheNewEndpointIsNamedByTheAPIServersCertificate(t *testing.T) {
	w := newWorld(t)
	old := endpoint(t, w)
	w.order.Endpoint = []string{old + "=k8s.example.net:6443"}
	p := w.prepared()
	text, err := p.Files.Read("/etc/kubernetes/pki/apiserver.crt")
	check(t, err)
	if err := certificate(t, text).VerifyHostname("k8s.example.net"); err != nil {
		t.Error(err)
	}
	config, err := p.Files.Read("/etc/kubernetes/admin.conf")
	check(t, err)
	if !strings.Contains(string(config), "server: https://k8s.example.net:6443") {
		t.Errorf("admin.conf:\n%s", config)
	}
	if got := p.Endpoints(); len(got) != 1 || len(p.unmatched()) > 0 {
		t.Errorf("endpoints %q, unmatched %v", got, p.unmatched())
	}
	p.Close()

	w.order.Endpoint = nil // kept
	p = w.prepared()
	config, err = p.Files.Read("/etc/kubernetes/admin.conf")
	check(t, err)
	if !strings.Contains(string(config), "server: https://"+old) {
		t.Errorf("admin.conf:\n%s", config)
	}
}

func TestAPairThatMatchesNothingIsWarnedOf(t *testing.T) {
	w := newWorld(t)
	w.order.Rename, w.order.Address, w.order.Endpoint = []string{"cp1=cp4", "cp7=cp8"}, []string{"10.0.0.99=10.0.0.98"}, []string{"nowhere:1=else:2"}
	p := w.prepared()
	for _, want := range []string{"--rename cp7=cp8 changes nothing", "--address 10.0.0.99=10.0.0.98 changes nothing", "--endpoint nowhere:1=else:2 changes nothing"} {
		if !slices.ContainsFunc(p.Warnings, func(warning string) bool { return strings.Contains(warning, want) }) {
			t.Errorf("no warning says %q: %q", want, p.Warnings)
		}
	}
	if strings.Contains(strings.Join(p.Warnings, "\n"), "cp1=cp4 changes nothing") {
		t.Errorf("%q", p.Warnings)
	}
	if got := p.Endpoints(); len(got) > 0 {
		t.Errorf("workers are to follow %q", got)
	}
}

// endpoint is where the saved admin.conf leads.
func endpoint(t *testing.T, w *world) string {
	t.Helper()
	p := w.prepared()
	defer p.Close()
	config, err := p.Files.Read("/etc/kubernetes/admin.conf")
	check(t, err)
	_, rest, _ := strings.Cut(string(config), "server: https://")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}

func certificate(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("no certificate: %s", text)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	check(t, err)
	return cert
}

func TestARefusedAddressIsNamedByWhatTheBackupCallsIt(t *testing.T) {
	w := newWorld(t)
	w.order.Address = []string{"10.0.0.11=10.0.0.44"} // this machine has 10.0.0.11
	_, err := Prepare(t.Context(), w.options())
	if !errors.Is(err, restore.ErrRefused) || !strings.Contains(err.Error(), "--address 10.0.0.11=NEW, and --rename cp1=NEW") {
		t.Errorf("without a suggestion: %v", err)
	}
	o := w.options()
	o.Inspect = func(context.Context, topology.Inputs) (*topology.Host, error) {
		return &topology.Host{Identity: topology.Identity{Address: []string{"10.0.0.11=10.0.0.55"}, Rename: []string{"cp1=cp5"}}}, nil
	}
	_, err = Prepare(t.Context(), o)
	if !errors.Is(err, restore.ErrRefused) || !strings.HasSuffix(err.Error(), "--address 10.0.0.11=10.0.0.55 --rename cp1=cp5") {
		t.Errorf("with one: %v", err)
	}
}

func TestAnOlderEtcdIsRefusedWithWhatItIsOfAndWhatHelps(t *testing.T) {
	w := emptyWorld(t)
	root := folder(t)
	check(t, kubefixture.Build(root, kubefixture.Options{Kind: kubefixture.Stacked, EtcdVersion: "3.5.24", Now: now}))
	w.backUp(root)
	_, err := Prepare(t.Context(), w.options())
	if !errors.Is(err, restore.ErrRefused) {
		t.Fatal(err)
	}
	newest, ferr := w.repo.Resolve(t.Context(), "hosts/cp1", repository.Point{})
	check(t, ferr)
	for _, want := range []string{"the image registry.k8s.io/etcd:3.5.24-0", "files backup " + string(newest.ID), "--files-backup", "--at"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the refusal lacks %q: %v", want, err)
		}
	}
}
