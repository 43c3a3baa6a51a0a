package files_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/kubefixture"
)

// TestServersOfDistributionsAreRestoredAsTheyWere takes three servers of each, whose
// files have owners of their own where k0s gives them such.
func TestServersOfDistributionsAreRestoredAsTheyWere(t *testing.T) {
	for _, kind := range []kubefixture.Kind{kubefixture.K3s, kubefixture.RKE2, kubefixture.K0s} {
		for i, o := range []kubefixture.Options{{}, {Node: "cp2", Address: "10.0.0.12"}, {Node: "cp3", Address: "10.0.0.13"}} {
			o.Kind, o.Now, o.Token = kind, now, "swordfish"
			if i > 0 {
				o.Server = "https://10.0.0.11:6443"
			} else {
				o.Node = "cp1"
			}
			t.Run(kind.String()+" "+o.Node, func(t *testing.T) {
				from, to := t.TempDir(), t.TempDir()
				must(t, kubefixture.Build(from, o))
				if os.Geteuid() == 0 { // k0s's users of etcd and of the API server
					for name, id := range map[string]int{"var/lib/k0s/pki/etcd/server.key": 991, "var/lib/k0s/pki/etcd": 991, "var/lib/k0s/pki/sa.key": 992, "var/lib/rancher/k3s/server/token": 0, "var/lib/rancher/rke2/server/tls/etcd": 52034} {
						if _, err := os.Lstat(filepath.Join(from, name)); err == nil {
							must(t, os.Lchown(filepath.Join(from, name), id, id))
						}
					}
				}
				archive := capture(t, from)
				names := namesIn(t, archive)
				if len(names) < 30 {
					t.Fatalf("only %d names were captured", len(names))
				}
				restore(t, archive, options(t, to))
				if diff := cmp.Diff(tree(t, from, names), tree(t, to, nil)); diff != "" {
					t.Errorf("the restored tree differs (-host +restored):\n%s", diff)
				}
				token := filepath.Join(to, "var/lib/rancher", kind.String(), "server/token")
				if kind == kubefixture.K0s {
					token = filepath.Join(to, "var/lib/k0s/pki/ca.key")
				}
				if info, err := os.Stat(token); err != nil || info.Mode().Perm() != 0o600 || info.Size() == 0 {
					t.Errorf("%s: %v, %v", token, info, err)
				}
				for _, name := range []string{"var/lib/rancher/" + kind.String() + "/server/db", "var/lib/k0s/etcd"} {
					if _, err := os.Lstat(filepath.Join(to, name)); err == nil {
						t.Errorf("%s was restored", name)
					}
				}
			})
		}
	}
}
