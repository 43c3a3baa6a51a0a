package host

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/distro"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/manifest"
)

// wanted are files of a distribution's server that must be stored, and such that
// must not, beside what every server has.
var wanted = map[kubefixture.Kind]struct{ want, not []string }{
	kubefixture.K3s: {
		want: []string{
			"etc/rancher/k3s/config.yaml", "etc/rancher/k3s/config.yaml.d/10-snapshots.yaml", "etc/rancher/k3s/k3s.yaml", "etc/rancher/node/password",
			"etc/systemd/system/k3s.service", "etc/systemd/system/k3s.service.env", "var/lib/rancher/k3s/server/token", "var/lib/rancher/k3s/server/node-token",
			"var/lib/rancher/k3s/server/tls/server-ca.key", "var/lib/rancher/k3s/server/tls/etcd/peer-ca.key", "var/lib/rancher/k3s/server/tls/service.key",
			"var/lib/rancher/k3s/server/cred/passwd", "var/lib/rancher/k3s/server/cred/encryption-config.json", "var/lib/rancher/k3s/server/manifests/coredns.yaml",
			"var/lib/rancher/k3s/agent/etc/containerd/config.toml.tmpl",
		},
		not: []string{"var/lib/rancher/k3s/server/db", "var/lib/rancher/k3s/server/db/snapshots", "var/lib/rancher/k3s/agent/etc/containerd/config.toml"},
	},
	kubefixture.RKE2: {
		want: []string{
			"etc/rancher/rke2/config.yaml", "etc/rancher/rke2/audit-policy.yaml", "usr/local/lib/systemd/system/rke2-server.service", "usr/local/lib/systemd/system/rke2-server.env",
			"var/lib/rancher/rke2/server/token", "var/lib/rancher/rke2/server/tls/client-ca.key", "var/lib/rancher/rke2/server/cred/encryption-config.json",
			"var/lib/rancher/rke2/agent/pod-manifests/etcd.yaml", "etc/rancher/node/password",
		},
		not: []string{"var/lib/rancher/rke2/server/db", "var/lib/rancher/rke2/server/logs", "var/lib/rancher/rke2/server/logs/audit.log"},
	},
	kubefixture.K0s: {
		want: []string{"etc/k0s/k0s.yaml", "etc/systemd/system/k0scontroller.service", "var/lib/k0s/pki/ca.key", "var/lib/k0s/pki/sa.key", "var/lib/k0s/pki/etcd/ca.key", "var/lib/k0s/manifests/coredns/coredns.yaml"},
		not:  []string{"var/lib/k0s/etcd", "var/lib/k0s/images"},
	},
}

func TestServersOfDistributionsAreCapturedWhole(t *testing.T) {
	for kind, files := range wanted {
		for _, joined := range []bool{false, true} {
			name := kind.String()
			o := kubefixture.Options{Kind: kind}
			if joined {
				name += ", one of three"
				o.Node, o.Address, o.Server = "cp2", "10.0.0.12", "https://10.0.0.11:6443"
			}
			t.Run(name, func(t *testing.T) {
				root := nodeWith(t, o)
				r, headers, bodies := captured(t, options(root))
				if len(r.Degraded)+len(r.Warnings) > 0 {
					t.Errorf("degraded %q, warnings %q", r.Degraded, r.Warnings)
				}
				want := files.want
				switch {
				case joined && kind == kubefixture.K0s:
					want = append(slices.Clone(want), "etc/k0s/k0stoken")
				case joined:
					want = append(slices.Clone(want), "etc/rancher/"+kind.String()+"/cluster-token")
				}
				for _, name := range want {
					if headers[name] == nil {
						t.Errorf("%s is missing", name)
					}
				}
				for name := range headers {
					if slices.ContainsFunc(files.not, func(not string) bool { return name == not || strings.HasPrefix(name, not+"/") }) || strings.Contains(string(bodies[name]), "stands for a database") {
						t.Errorf("%s was stored", name)
					}
				}
				d := r.Facts.Distribution
				if d == nil || d.Kind != kind.String() || d.Datastore != distro.Etcd || r.Facts.Etcd == nil || r.Facts.Etcd.Kind != kind.String() || len(r.Facts.EtcdServers) > 0 {
					t.Fatalf("distribution %+v, etcd %+v, others %+v", d, r.Facts.Etcd, r.Facts.EtcdServers)
				}
				if !slices.Contains(r.Facts.DataDirs, strings.TrimPrefix(r.Facts.Etcd.DataDir, "/")) || r.Facts.Etcd.Name == "" {
					t.Errorf("data %v, member %q in %s", r.Facts.DataDirs, r.Facts.Etcd.Name, r.Facts.Etcd.DataDir)
				}
				if server, _ := d.Setting("server"); kind != kubefixture.K0s && (server != "") != joined {
					t.Errorf("joined by %q", server)
				}
				if kind == kubefixture.K0s {
					return
				}
				if got := r.Covers([]manifest.KeyUse{{Provider: "aescbc", Key: kubefixture.DistributionKey}}); len(got) > 0 {
					t.Errorf("keys of etcd that are missing: %q", got)
				}
				if token := string(bodies["var/lib/rancher/"+kind.String()+"/server/token"]); d.BootstrapKey != distro.BootstrapKey(token) || len(token) < 40 {
					t.Errorf("the key %s is not of the token", d.BootstrapKey)
				}
			})
		}
	}
}

func TestAServerElsewhereIsCapturedThere(t *testing.T) {
	root := node(t, kubefixture.K3s)
	must(t, os.MkdirAll(filepath.Join(root, "data"), 0o755))
	must(t, os.Rename(filepath.Join(root, "var/lib/rancher/k3s"), filepath.Join(root, "data/k3s")))
	write(t, root, "etc/rancher/k3s/config.yaml.d/20-place.yaml", "data-dir: /data/k3s\n")
	write(t, root, "data/k3s/server/logs/audit.log", "{}")
	r, headers, _ := captured(t, options(root))
	for _, name := range []string{"data/k3s/server/token", "data/k3s/server/tls/server-ca.key", "data/k3s/server/cred/passwd", "data/k3s/agent/etc/containerd/config.toml.tmpl"} {
		if headers[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
	for name := range headers {
		if strings.HasPrefix(name, "data/k3s/server/db") || strings.HasPrefix(name, "data/k3s/server/logs") {
			t.Errorf("%s was stored", name)
		}
	}
	if d := r.Facts.Distribution; d == nil || d.DataDir != "/data/k3s" || r.Facts.Etcd == nil || r.Facts.Etcd.CertFile != "/data/k3s/server/tls/etcd/client.crt" || r.Facts.Etcd.DataDir != "/data/k3s/server/db/etcd" {
		t.Errorf("%+v, %+v", d, r.Facts.Etcd)
	}
	certificates, err := Certificates(t.Context(), root)
	must(t, err)
	if !slices.ContainsFunc(certificates, func(c Certificate) bool { return c.File == "/data/k3s/server/tls/serving-kube-apiserver.crt" }) {
		t.Errorf("%d certificates, and not the API server's", len(certificates))
	}
	got, err := Discover(root)
	must(t, err)
	if want := filepath.Join(root, "data/k3s/server/tls/etcd/client.key"); got.KeyFile != want {
		t.Errorf("key %s, want %s", got.KeyFile, want)
	}
}

// TestWhatADistributionDoesNotComeBackWithoutIsTold takes away one thing each.
func TestWhatADistributionDoesNotComeBackWithoutIsTold(t *testing.T) {
	remove := func(names ...string) func(*testing.T, string) {
		return func(t *testing.T, root string) {
			for _, name := range names {
				must(t, os.Remove(filepath.Join(root, name)))
			}
		}
	}
	const k3s = "var/lib/rancher/k3s/server/"
	for _, c := range []struct {
		name              string
		kind              kubefixture.Kind
		sqlite            bool
		change            func(*testing.T, string)
		degraded, warning string
		not               string
	}{
		{name: "the token is gone", kind: kubefixture.K3s, change: remove(k3s+"token", k3s+"node-token", k3s+"agent-token"), degraded: "the server token, /var/lib/rancher/k3s/server/token, is not captured"},
		{name: "the token is empty", kind: kubefixture.RKE2, change: func(t *testing.T, root string) {
			must(t, os.Truncate(filepath.Join(root, "var/lib/rancher/rke2/server/token"), 0))
		}, degraded: "the server token, /var/lib/rancher/rke2/server/token, is not captured"},
		{name: "a token in the configuration is enough", kind: kubefixture.K3s, change: func(t *testing.T, root string) {
			remove(k3s+"token", k3s+"node-token", k3s+"agent-token")(t, root)
			write(t, root, "etc/rancher/k3s/config.yaml.d/20-token.yaml", "token: swordfish\n")
		}, not: "the server token"},
		{name: "the configuration has another token", kind: kubefixture.K3s, change: func(t *testing.T, root string) {
			write(t, root, "etc/rancher/k3s/config.yaml.d/20-token.yaml", "token: swordfish\n")
		}, warning: "/etc/rancher/k3s/config.yaml.d/20-token.yaml sets another token than /var/lib/rancher/k3s/server/token holds"},
		{name: "k3s has SQLite", kind: kubefixture.K3s, sqlite: true, degraded: "k3s keeps the cluster in SQLite, in /var/lib/rancher/k3s/server/db/state.db, and not in etcd"},
		{name: "k0s has SQLite", kind: kubefixture.K0s, sqlite: true, change: func(t *testing.T, root string) {
			must(t, os.WriteFile(filepath.Join(root, "etc/k0s/k0s.yaml"), []byte("spec: {storage: {type: kine}}\n"), 0o600))
		}, degraded: "k0s keeps the cluster in SQLite, in /var/lib/k0s/db/state.db"},
		{name: "k3s has MySQL", kind: kubefixture.K3s, change: func(t *testing.T, root string) {
			write(t, root, "etc/rancher/k3s/config.yaml.d/20-db.yaml", "datastore-endpoint: mysql://root:swordfish@tcp(db:3306)/k3s\n")
		}, degraded: "k3s keeps the cluster in a database of another kind than etcd"},
		{name: "k0s's authority is gone", kind: kubefixture.K0s, change: remove("var/lib/k0s/pki/ca.key"), degraded: "/var/lib/k0s/pki/ca.key is not captured"},
		{name: "k0s's authority of etcd is gone", kind: kubefixture.K0s, change: remove("var/lib/k0s/pki/etcd/ca.key"), degraded: "/var/lib/k0s/pki/etcd/ca.key is not captured"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := nodeWith(t, kubefixture.Options{Kind: c.kind, SQLite: c.sqlite})
			if c.change != nil {
				c.change(t, root)
			}
			r, _, _ := captured(t, options(root))
			if c.degraded != "" && !has(r.Degraded, c.degraded) || c.warning != "" && !has(r.Warnings, c.warning) || c.not != "" && (has(r.Degraded, c.not) || has(r.Warnings, c.not)) {
				t.Errorf("degraded %q, warnings %q", r.Degraded, r.Warnings)
			}
			server, err := FindServer(root) // says the same without capturing
			must(t, err)
			if server == nil || c.degraded != "" && !has(server.Degraded, c.degraded) || c.warning != "" && !has(server.Warnings, c.warning) || c.degraded == "" && len(server.Degraded) > 0 {
				t.Errorf("%+v", server)
			}
			if c.degraded == "" && len(r.Degraded) > 0 {
				t.Errorf("degraded %q", r.Degraded)
			}
			for _, text := range slices.Concat(r.Degraded, r.Warnings) {
				if strings.Contains(text, "swordfish") {
					t.Errorf("a secret is told: %s", text)
				}
			}
			if c.sqlite {
				if _, err := Discover(root); !errors.Is(err, ErrNoEtcd) || !strings.Contains(err.Error(), "SQLite") {
					t.Errorf("an etcd was found: %v", err)
				}
			}
		})
	}
}

func TestTheEtcdOfADistribution(t *testing.T) {
	for kind, want := range map[kubefixture.Kind]Discovery{
		kubefixture.K3s: {Kind: "k3s", CAFile: "/var/lib/rancher/k3s/server/tls/etcd/server-ca.crt", CertFile: "/var/lib/rancher/k3s/server/tls/etcd/client.crt",
			KeyFile: "/var/lib/rancher/k3s/server/tls/etcd/client.key", DataDir: "/var/lib/rancher/k3s/server/db/etcd", Name: "cp1-306b6a7b"},
		kubefixture.RKE2: {Kind: "rke2", CAFile: "/var/lib/rancher/rke2/server/tls/etcd/server-ca.crt", CertFile: "/var/lib/rancher/rke2/server/tls/etcd/client.crt",
			KeyFile: "/var/lib/rancher/rke2/server/tls/etcd/client.key", DataDir: "/var/lib/rancher/rke2/server/db/etcd", Name: "cp1-306b6a7b",
			Image: "index.docker.io/rancher/hardened-etcd:v3.6.4-k3s3-build20250908"},
		kubefixture.K0s: {Kind: "k0s", CAFile: "/var/lib/k0s/pki/etcd/ca.crt", CertFile: "/var/lib/k0s/pki/apiserver-etcd-client.crt",
			KeyFile: "/var/lib/k0s/pki/apiserver-etcd-client.key", DataDir: "/var/lib/k0s/etcd", Name: "cp1"},
	} {
		t.Run(kind.String(), func(t *testing.T) {
			root := node(t, kind)
			want.EtcdEndpoints, want.EtcdServersOverrides = []string{"https://127.0.0.1:2379"}, []string{}
			for _, p := range []*string{&want.CAFile, &want.CertFile, &want.KeyFile, &want.DataDir} {
				*p = filepath.Join(root, *p)
			}
			got, err := Discover(root)
			must(t, err)
			if diff := cmp.Diff(&want, got); diff != "" {
				t.Error(diff)
			}
			clusters, complete, err := Clusters(root)
			must(t, err)
			if len(clusters) != 1 || !complete || clusters[0].CertFile != want.CertFile {
				t.Errorf("%+v, complete %v", clusters, complete)
			}
			certificates, err := Certificates(t.Context(), root)
			must(t, err)
			if !slices.ContainsFunc(certificates, func(c Certificate) bool { return filepath.Join(root, c.File) == want.CertFile }) {
				t.Errorf("the client's certificate is not among %d", len(certificates))
			}
		})
	}
}

func TestWhatADistributionHasLeftBesideKubeadmCountsForNothing(t *testing.T) {
	for _, kind := range []kubefixture.Kind{kubefixture.K3s, kubefixture.RKE2, kubefixture.K0s} {
		t.Run(kind.String(), func(t *testing.T) {
			root := node(t, kubefixture.Stacked)
			whole, _, _ := captured(t, options(root))
			dir := distro.Default(kind.String())
			must(t, os.MkdirAll(filepath.Join(root, filepath.Dir(dir)), 0o755))
			must(t, os.Rename(filepath.Join(node(t, kind), dir), filepath.Join(root, dir)))
			if kind == kubefixture.RKE2 { // whose etcd and API server are static pods too
				write(t, root, "var/lib/rancher/rke2/agent/pod-manifests/kube-apiserver.yaml", "kind: Pod\nmetadata: {name: kube-apiserver}\nspec: {containers: [{command: [kube-apiserver, --etcd-servers=https://127.0.0.1:2379, --audit-policy-file=/gone]}]}\n")
			}
			for _, name := range []string{"server/token", "server/agent-token", "server/node-token", "pki/ca.key"} { // without them no server is whole
				must(t, os.RemoveAll(filepath.Join(root, dir, name)))
			}
			r, headers, _ := captured(t, options(root))
			if f := r.Facts; f.Distribution != nil || f.Etcd == nil || f.Etcd.Kind != "stacked" || f.Etcd.Image != whole.Facts.Etcd.Image || headers["etc/kubernetes/pki/ca.key"] == nil {
				t.Errorf("distribution %+v, etcd %+v", r.Facts.Distribution, r.Facts.Etcd)
			}
			if len(r.Degraded) > 0 {
				t.Errorf("degraded %q", r.Degraded)
			}
			if d, err := Discover(root); err != nil || d.Kind != "stacked" {
				t.Errorf("%+v, %v", d, err)
			}
			if s, err := FindServer(root); s != nil || err != nil {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
}
