package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/distro"
	"lifeboat/internal/etcdtest"
	"lifeboat/internal/kubefixture"
	"lifeboat/storage/memory"
)

func TestServersOfDistributionsAreLookedAt(t *testing.T) {
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, root string) {
			if err := os.Remove(filepath.Join(root, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, test := range map[string]struct {
		kind   kubefixture.Kind
		sqlite bool
		key    string // in etcd; empty: there is none
		change func(*testing.T, string)
		check  string
		level  Level
		says   string
	}{
		"k3s":                             {kind: kubefixture.K3s, check: "k3s", level: OK, says: "a server below /var/lib/rancher/k3s, with etcd"},
		"rke2":                            {kind: kubefixture.RKE2, check: "rke2", level: OK, says: "/var/lib/rancher/rke2"},
		"k0s":                             {kind: kubefixture.K0s, check: "k0s", level: OK, says: "/var/lib/k0s"},
		"their files need no kubeadm":     {kind: kubefixture.K3s, check: "host files", level: OK},
		"the token is gone":               {kind: kubefixture.K3s, change: remove("var/lib/rancher/k3s/server/token"), check: "k3s", level: Problem, says: "the server token, /var/lib/rancher/k3s/server/token, is not captured"},
		"k0s's authority is gone":         {kind: kubefixture.K0s, change: remove("var/lib/k0s/pki/ca.key"), check: "k0s", level: Problem, says: "/var/lib/k0s/pki/ca.key is not captured"},
		"the cluster is kept in SQLite":   {kind: kubefixture.K3s, sqlite: true, check: "k3s", level: Problem, says: "SQLite"},
		"etcd has the token's key":        {kind: kubefixture.K3s, key: distro.BootstrapKey("swordfish"), check: "etcd main", level: OK, says: "1 of 1 member"},
		"etcd has another token's key":    {kind: kubefixture.K3s, key: distro.BootstrapKey("another"), check: "etcd main", level: Problem, says: "is not the one with which k3s has encrypted its authorities"},
		"etcd has no such key, as it may": {kind: kubefixture.RKE2, check: "etcd main", level: OK, says: "1 of 1 member"},
		"two tokens are set": {kind: kubefixture.RKE2, change: func(t *testing.T, root string) {
			path := filepath.Join(root, "etc/rancher/rke2/config.yaml")
			if err := os.WriteFile(path, []byte("token: another\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, check: "rke2", level: Warning, says: "/etc/rancher/rke2/config.yaml sets another token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts := healthy(t, memory.New())
			root := t.TempDir()
			if err := kubefixture.Build(root, kubefixture.Options{Kind: test.kind, SQLite: test.sqlite, Token: "swordfish", Now: time.Now()}); err != nil {
				t.Fatal(err)
			}
			if test.change != nil {
				test.change(t, root)
			}
			opts.Config.Host.Root = root
			if strings.HasPrefix(test.check, "etcd") {
				member, err := etcdtest.StartEmbedded(filepath.Join(t.TempDir(), "etcd"), etcdtest.EmbeddedOptions{NoSync: true})
				if err != nil {
					t.Fatal(err)
				}
				defer member.Close()
				client, err := etcdtest.NewClient(member.Endpoint)
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				for _, key := range []string{test.key, "/registry/a"} {
					if key == "" {
						continue
					}
					if _, err := client.Put(t.Context(), key, "value"); err != nil {
						t.Fatal(err)
					}
				}
				opts.Config.Etcd = []config.Etcd{{Name: "main", Endpoints: []string{member.Endpoint}}}
			}
			f := find(Run(t.Context(), opts), test.check)
			if f.Level != test.level || !strings.Contains(f.Message, test.says) || f.Level != OK && f.Remedy == "" {
				t.Errorf("%+v", f)
			}
			if strings.Contains(f.Message+f.Remedy, "swordfish") {
				t.Errorf("the token is told: %+v", f)
			}
		})
	}
}
