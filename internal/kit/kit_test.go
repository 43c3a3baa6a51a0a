package kit

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/backup/host"
	"lifeboat/internal/config"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/manifest"
	"lifeboat/internal/seal"
)

func options(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	return Options{
		Cluster: "prod", Node: "cp1", Stores: []string{"file:///backups"}, Out: filepath.Join(dir, "keys"),
		HostRoot: filepath.Join(dir, "root"), Now: time.Now(), Rand: rand.Reader,
	}
}

func TestWhatIsMadeFitsTogether(t *testing.T) {
	for name, postQuantum := range map[string]bool{"classic": false, "post-quantum": true} {
		t.Run(name, func(t *testing.T) {
			opts := options(t)
			opts.PostQuantum = postQuantum
			k, err := Create(opts)
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(k.TrustPath)
			if err != nil {
				t.Fatal(err)
			}
			trust, err := manifest.ParseTrust(text)
			if err != nil || trust.Cluster != k.Cluster {
				t.Fatalf("%v %v", trust, err)
			}
			if text, err = os.ReadFile(k.SignerPath); err != nil {
				t.Fatal(err)
			}
			signer, err := manifest.ParseSigner(text)
			if err != nil || signer.VerifierText() != trust.Verifiers[0].Key {
				t.Errorf("the trust is not in the signer: %v", err)
			}
			f, err := os.Open(k.IdentityPath)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if ids, err := seal.ParseIdentities(f, nil); err != nil || len(ids) != 1 {
				t.Errorf("%d identities, %v", len(ids), err)
			}
			if k.Config.Recipients[0] != k.Recipient || k.Config.Signing.KeyFile != k.SignerPath {
				t.Errorf("the configuration names other keys: %+v", k.Config)
			}
		})
	}
}

func TestNothingIsMadeWhenSomethingIsWrong(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"a bad cluster name":   func(o *Options) { o.Cluster = "Prod EU" },
		"a bad node name":      func(o *Options) { o.Node = "a/b" },
		"a bad store":          func(o *Options) { o.Stores = []string{"ftp://x"} },
		"the same store twice": func(o *Options) { o.Stores = append(o.Stores, o.Stores[0]) },
		"a bad recipient":      func(o *Options) { o.Recipients = []string{"age1x"} },
		"half a certificate":   func(o *Options) { o.Endpoints, o.CertFile = []string{"https://127.0.0.1:1"}, "x" },
	} {
		t.Run(name, func(t *testing.T) {
			opts := options(t)
			change(&opts)
			if _, err := Create(opts); !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
			if entries, _ := os.ReadDir(opts.Out); len(entries) > 0 {
				t.Errorf("left %v", entries)
			}
		})
	}
}

func TestAFailureHalfWayLeavesNoFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "second"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := write(dir, []file{{filepath.Join(dir, "first"), 0o600, "x"}, {filepath.Join(dir, "second"), 0o600, "y"}})
	if !errors.Is(err, ErrExists) {
		t.Errorf("got %v, want ErrExists", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "first")); err == nil {
		t.Error("the first file is still there")
	}
	if text, _ := os.ReadFile(filepath.Join(dir, "second")); string(text) != "mine" {
		t.Errorf("the file in the way was changed: %q", text)
	}
}

func TestSeparateEtcdClustersAreFound(t *testing.T) {
	opts := options(t)
	if err := kubefixture.Build(opts.HostRoot, kubefixture.Options{Kind: kubefixture.ExternalEtcd, EtcdEndpoints: []string{"https://10.0.0.21:2379"}}); err != nil {
		t.Fatal(err)
	}
	k, err := Create(opts)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, e := range k.Config.Etcd {
		got[e.Name] = e.Endpoints
		if e.CAFile == "" || e.KeyFile == "" {
			t.Errorf("etcd %s without certificates: %+v", e.Name, e)
		}
	}
	want := map[string][]string{"main": {"https://10.0.0.21:2379"}, "events": {"https://10.0.0.31:2379", "https://10.0.0.32:2379"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOddOverridesAreLeftOut(t *testing.T) {
	got := overrides(&host.Discovery{EtcdServersOverrides: []string{"nonsense", "/main#https://a:1", "/apps/leases#https://b:1;https://c:1", "#x"}},
		config.Etcd{Name: "main", Endpoints: []string{"https://m:1"}})
	if len(got) != 1 || got[0].Name != "apps-leases" || len(got[0].Endpoints) != 2 {
		t.Errorf("got %+v", got)
	}
}
