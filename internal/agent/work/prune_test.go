package work

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/agent"
	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/status"
	"lifeboat/storage"
)

// sparing keeps one backup.
func sparing(t *testing.T) *world {
	w := newWorld(t)
	w.config.Retention = config.Retention{Minimum: 1}
	return w
}

// wait lets time pass by both clocks, this machine's and the store's.
func (w *world) wait(d time.Duration) {
	w.forward(d)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ahead += d
}

// stored lists the files of the node's chain in the store: the manifests and
// the data objects.
func (w *world) stored() (manifests, data []string) {
	w.t.Helper()
	root := filepath.Join(w.dir, "store")
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, file)
		switch {
		case strings.Contains(name, "/hosts/cp1/manifests/"):
			manifests = append(manifests, name)
		case strings.Contains(name, "/hosts/cp1/data/"):
			data = append(data, name)
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return manifests, data
}

func (w *world) prune(want string) {
	w.t.Helper()
	o, err := w.Prune(w.t.Context())
	if err != nil || !strings.HasPrefix(o.Message, want) {
		w.t.Fatalf("%+v, %v, want %s", o, err, want)
	}
}

func TestPruningLetsGoAndDeletesWhenTheGracesAreOver(t *testing.T) {
	w := sparing(t)
	w.files()
	w.files()
	last := w.files()
	manifests, data := w.stored()
	if len(manifests) != 3 || len(data) != 3 {
		t.Fatalf("%q, %q", manifests, data)
	}

	w.prune("2 backups")
	promised, still := w.stored()
	if len(promised) != 4 || !slices.Equal(still, data) {
		t.Errorf("a promise and nothing deleted, got %q, %q", promised, still)
	}
	if in := w.look().Chains["hosts/cp1"]; in.Backups != 1 || !in.Valid || !in.Newest.Equal(last.Created) || in.Head != 4 {
		t.Errorf("after the promise: %+v", in)
	}

	w.wait(repository.ObjectGrace - time.Minute)
	w.prune("0 backups")
	if _, still = w.stored(); !slices.Equal(still, data) {
		t.Errorf("too early: %q", still)
	}

	w.wait(time.Hour)
	w.prune("0 backups")
	manifests, still = w.stored()
	if len(still) != 1 || !strings.Contains(still[0], "/"+string(last.ID)+"/") || len(manifests) != 4 {
		t.Errorf("when the data may go: %q, %q", manifests, still)
	}

	w.wait(repository.ManifestGrace)
	w.prune("0 backups")
	if manifests, still = w.stored(); len(still) != 1 || len(manifests) != 2 || !slices.Equal(manifests, promised[2:]) {
		t.Errorf("when the manifests may go, too: %q, %q", manifests, still)
	}
	if in := w.look().Chains["hosts/cp1"]; in.Backups != 1 || !in.Valid || !in.Newest.Equal(last.Created) {
		t.Errorf("in the end: %+v", in)
	}
	if _, err := w.Verify(t.Context(), []manifest.Chain{"hosts/cp1"}); err != nil {
		t.Error(err)
	}
}

// An agent whose credentials can't delete backs up as ever, promises, and says
// what is wrong once something is due; whoever may delete goes on from there.
func TestAnAgentThatMayNotDeleteSaysSoAndGoesOn(t *testing.T) {
	w := sparing(t)
	w.keeps.Store(true)
	w.files()
	w.files()
	w.prune("1 backups")
	w.wait(repository.ManifestGrace + time.Hour)
	manifests, data := w.stored()
	if _, err := w.Prune(t.Context()); agent.ReasonOf(err) != status.Config || !errors.Is(err, storage.ErrPermission) {
		t.Errorf("%q, %v", agent.ReasonOf(err), err)
	}
	if still, left := w.stored(); !slices.Equal(still, manifests) || !slices.Equal(left, data) {
		t.Errorf("%q, %q", still, left)
	}
	w.files()
	if in := w.look().Chains["hosts/cp1"]; in.Backups != 2 || !in.Valid {
		t.Errorf("%+v", in)
	}
	w.keeps.Store(false)
	w.prune("1 backups")
	if _, left := w.stored(); len(left) != 2 {
		t.Errorf("left %q", left)
	}
}

func TestClocksThatDifferStopPruningAndAreTheReason(t *testing.T) {
	w := sparing(t)
	w.files()
	w.files()
	off := func(by time.Duration) {
		t.Helper()
		manifests, data := w.stored()
		w.mu.Lock()
		w.ahead += by
		w.mu.Unlock()
		_, err := w.Prune(t.Context())
		if agent.ReasonOf(err) != status.Clock {
			t.Errorf("%s off: %q, %v", by, agent.ReasonOf(err), err)
		}
		w.mu.Lock()
		w.ahead -= by
		w.mu.Unlock()
		after, left := w.stored()
		if !slices.Equal(after, manifests) || !slices.Equal(left, data) {
			t.Errorf("%s off: %q, %q", by, after, left)
		}
	}
	off(8 * time.Minute) // files() has set our clock forward by two
	off(-4 * time.Minute)
	w.prune("1 backups")
	w.wait(repository.ManifestGrace + time.Hour)
	off(8 * time.Minute)
	off(-4 * time.Minute)
	w.prune("0 backups")
	if _, left := w.stored(); len(left) != 1 {
		t.Errorf("with both right: %q", left)
	}
}

func TestTheNodesCertificatesAreListed(t *testing.T) {
	w := newWorld(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(24 * time.Hour).UTC().Truncate(time.Second)
	for name, template := range map[string]*x509.Certificate{
		"ca.crt": {
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"}, NotAfter: until.Add(time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		},
		"apiserver.crt": {SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"}, NotAfter: until},
	} {
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		if err := os.WriteFile(filepath.Join(w.dir, "root/etc/kubernetes/pki", name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := w.Certificates(t.Context())
	want := []status.Certificate{
		{Name: "/etc/kubernetes/pki/apiserver.crt", Subject: "CN=kube-apiserver", NotAfter: until},
		{Name: "/etc/kubernetes/pki/ca.crt", Subject: "CN=kubernetes", NotAfter: until.Add(time.Hour), CA: true},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.RemoveAll(filepath.Join(w.dir, "root")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Certificates(t.Context()); err == nil {
		t.Error("a root that is gone is no error")
	}
}
