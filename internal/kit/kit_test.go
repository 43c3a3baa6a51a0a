package kit

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"lifeboat/internal/config"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/manifest"
	"lifeboat/internal/seal"
)

func options(t *testing.T) Options {
	t.Helper()
	return Options{
		Cluster: "prod", Node: "cp1", Stores: []string{"file:///backup"}, Out: filepath.Join(t.TempDir(), "keys"), HostRoot: t.TempDir(),
		Endpoints: []string{"http://127.0.0.1:2379"}, StateDir: "/state", Now: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), Rand: rand.Reader,
	}
}

// entries are the names in a folder; none if it is not there.
func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestAKitIsWholeAndItsSecretsAreTheOwners(t *testing.T) {
	for _, postQuantum := range []bool{false, true} {
		opts := options(t)
		opts.PostQuantum = postQuantum
		k, err := Create(opts)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]fs.FileMode{IdentityFile: 0o600, SignerFile: 0o600, TrustFile: 0o644, ConfigFile: 0o644, "": 0o700} {
			info, err := os.Stat(filepath.Join(opts.Out, name))
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); got != want {
				t.Errorf("%q has mode %v, want %v", name, got, want)
			}
		}
		if names := entries(t, opts.Out); len(names) != 4 {
			t.Errorf("files %q", names)
		}
		c, err := config.Load(k.ConfigPath)
		if err != nil {
			t.Fatal(err)
		}
		if c.Cluster != "prod" || c.Node != "cp1" || !slices.Equal(c.Recipients, []string{k.Recipient}) || c.Etcd[0].Endpoints[0] != opts.Endpoints[0] {
			t.Errorf("configuration %+v", c)
		}
		f, err := os.Open(k.IdentityPath)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		ids, err := seal.ParseIdentities(f, nil)
		if err != nil || len(ids) != 1 {
			t.Fatalf("identities %v, %v", ids, err)
		}
		var recipient string
		switch id := ids[0].(type) {
		case *age.X25519Identity:
			recipient = id.Recipient().String()
		case *age.HybridIdentity:
			recipient = id.Recipient().String()
		}
		if recipient != k.Recipient || strings.HasPrefix(recipient, "age1pq") != postQuantum {
			t.Errorf("the recovery key's public half is %s, the kit says %s", recipient, k.Recipient)
		}
		text, err := os.ReadFile(k.SignerPath)
		if err != nil {
			t.Fatal(err)
		}
		signer, err := manifest.ParseSigner(text)
		if err != nil {
			t.Fatal(err)
		}
		if text, err = os.ReadFile(k.TrustPath); err != nil {
			t.Fatal(err)
		}
		trust, err := manifest.ParseTrust(text)
		if err != nil {
			t.Fatal(err)
		}
		if trust.Cluster != k.Cluster || len(trust.Verifiers) != 1 || trust.Verifiers[0].Key != signer.VerifierText() {
			t.Errorf("trust %s in cluster %s, key %s", trust, k.Cluster, signer.VerifierText())
		}
	}
}

func TestTheEtcdOfDistributionsIsFound(t *testing.T) {
	for kind, file := range map[kubefixture.Kind]string{
		kubefixture.K3s: "var/lib/rancher/k3s/server/tls/etcd/client.key", kubefixture.RKE2: "var/lib/rancher/rke2/server/tls/etcd/client.key", kubefixture.K0s: "var/lib/k0s/pki/apiserver-etcd-client.key",
	} {
		for _, sqlite := range []bool{false, true} {
			if sqlite && kind == kubefixture.RKE2 {
				continue // it has none
			}
			opts := options(t)
			opts.Endpoints = nil
			if err := kubefixture.Build(opts.HostRoot, kubefixture.Options{Kind: kind, SQLite: sqlite}); err != nil {
				t.Fatal(err)
			}
			if sqlite && kind == kubefixture.K0s {
				if err := os.WriteFile(filepath.Join(opts.HostRoot, "etc/k0s/k0s.yaml"), []byte("spec: {storage: {type: kine}}"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			k, err := Create(opts)
			if err != nil {
				t.Fatal(err)
			}
			if sqlite {
				if len(k.Config.Etcd) > 0 || len(k.Warnings) == 0 || !strings.Contains(k.Warnings[0], kind.String()+" keeps the cluster in SQLite") {
					t.Errorf("%v: etcd %+v, warnings %q", kind, k.Config.Etcd, k.Warnings)
				}
				continue
			}
			want := []config.Etcd{{Name: "main", Endpoints: []string{"https://127.0.0.1:2379"}, KeyFile: filepath.Join(opts.HostRoot, file)}}
			if k.Kind != kind.String() || len(k.Config.Etcd) != 1 || !slices.Equal(k.Config.Etcd[0].Endpoints, want[0].Endpoints) || k.Config.Etcd[0].KeyFile != want[0].KeyFile {
				t.Errorf("%v: kind %s, etcd %+v", kind, k.Kind, k.Config.Etcd)
			}
			for _, name := range []string{k.Config.Etcd[0].CAFile, k.Config.Etcd[0].CertFile, k.Config.Etcd[0].KeyFile} {
				if _, err := os.Stat(name); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

func TestNothingIsOverwritten(t *testing.T) {
	for _, name := range []string{ConfigFile, IdentityFile, SignerFile, TrustFile} {
		opts := options(t)
		if err := os.Mkdir(opts.Out, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(opts.Out, name)
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Create(opts); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v", name, err)
		}
		if text, _ := os.ReadFile(path); string(text) != "precious" {
			t.Errorf("%s was overwritten: %q", name, text)
		}
		if names := entries(t, opts.Out); !slices.Equal(names, []string{name}) {
			t.Errorf("%s: files %q", name, names)
		}
	}
}

func TestFilesAreWrittenAllOrNone(t *testing.T) {
	dir := t.TempDir()
	late := filepath.Join(dir, "c") // appears after the look for earlier files
	if err := os.WriteFile(late, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := write(dir, []file{{filepath.Join(dir, "a"), 0o600, "a"}, {filepath.Join(dir, "b"), 0o600, "b"}, {late, 0o600, "new"}})
	if !errors.Is(err, ErrExists) {
		t.Errorf("error %v", err)
	}
	if names := entries(t, dir); !slices.Equal(names, []string{"c"}) {
		t.Errorf("files %q", names)
	}
	if text, _ := os.ReadFile(late); string(text) != "precious" {
		t.Errorf("it was overwritten: %q", text)
	}
}

func TestBadOptionsAreRefusedBeforeAnythingIsWritten(t *testing.T) {
	classic, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Options){
		"a post-quantum recovery key beside an X25519 recipient": func(o *Options) {
			o.PostQuantum, o.Recipients = true, []string{classic.Recipient().String()}
		},
		"an X25519 recovery key beside a post-quantum recipient": func(o *Options) { o.Recipients = []string{hybrid.Recipient().String()} },
		"a recipient that is none":                               func(o *Options) { o.Recipients = []string{"age1nonsense"} },
		"a private key for a recipient":                          func(o *Options) { o.Recipients = []string{classic.String()} },
		"a cluster's name with a slash":                          func(o *Options) { o.Cluster = "a/b" },
		"a node's name with a slash":                             func(o *Options) { o.Node = "a/b" },
		"a store without a scheme":                               func(o *Options) { o.Stores = []string{"/backup"} },
		"an endpoint that is no URL":                             func(o *Options) { o.Endpoints = []string{"10.0.0.1:2379"} },
	} {
		opts := options(t)
		change(&opts)
		_, err := Create(opts)
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), classic.String()) {
			t.Errorf("%s: the error holds a private key", name)
		}
		if names := entries(t, opts.Out); len(names) > 0 {
			t.Errorf("%s: files %q", name, names)
		}
	}
}
