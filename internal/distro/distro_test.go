package distro_test

import (
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/distro"
	"lifeboat/internal/hostfacts"
)

// files are a host's, by name.
type files map[string]string

func (f files) Text(name string) string { return f[name] }

func (f files) Exists(name string) bool {
	for have := range f {
		if have == name || strings.HasPrefix(have, name+"/") {
			return true
		}
	}
	return false
}

func (f files) Names(folder string) (out []string) {
	for name := range f {
		if rest, ok := strings.CutPrefix(name, folder+"/"); ok {
			base, _, _ := strings.Cut(rest, "/")
			if !slices.Contains(out, base) {
				out = append(out, base)
			}
		}
	}
	slices.Sort(out)
	return out
}

const (
	k3sUnit  = "/etc/systemd/system/k3s.service"
	rke2Unit = "/usr/local/lib/systemd/system/rke2-server.service"
	k0sUnit  = "/etc/systemd/system/k0scontroller.service"
)

func TestFind(t *testing.T) {
	for _, c := range []struct {
		name string
		host files
		want *hostfacts.Distribution
	}{
		{name: "nothing", host: files{"/etc/kubernetes/admin.conf": "x"}},
		{name: "an agent of k3s", host: files{"/var/lib/rancher/k3s/agent/kubelet.kubeconfig": "x", "/etc/rancher/node/password": "x", "/etc/systemd/system/k3s-agent.service": "[Service]\nExecStart=/usr/local/bin/k3s agent\n"}},
		{name: "a worker of rke2, by its archive", host: files{rke2Unit: "[Service]\nExecStart=/usr/local/bin/rke2 server\n", "/usr/local/lib/systemd/system/rke2-agent.service": "[Service]\nExecStart=/usr/local/bin/rke2 agent\n",
			"/var/lib/rancher/rke2/agent/pod-manifests/kube-proxy.yaml": "x", "/etc/rancher/rke2/config.yaml": "server: https://10.0.0.11:9345\n"}},
		{name: "a worker of k0s", host: files{"/var/lib/k0s/kubelet.conf": "x", "/etc/systemd/system/k0sworker.service": "[Service]\nExecStart=/usr/local/bin/k0s worker\n"}},
		{
			name: "k3s as its installer leaves it, the first of several servers",
			host: files{
				k3sUnit:          "[Service]\nEnvironmentFile=-/etc/default/%N\nEnvironmentFile=-/etc/systemd/system/k3s.service.env\nExecStart=/usr/local/bin/k3s \\\n    server \\\n\t'--cluster-init' \\\n\t'--tls-san' \\\n\t'k8s.example.test' \\\n\t'--token' \\\n\t'swordfish' \\\n\n",
				k3sUnit + ".env": "", "/var/lib/rancher/k3s/server/token": "K10aa::server:swordfish\n", "/var/lib/rancher/k3s/server/db/etcd/name": "cp1-1a2b3c4d",
			},
			want: &hostfacts.Distribution{
				Kind: "k3s", How: "/var/lib/rancher/k3s/server", DataDir: "/var/lib/rancher/k3s", Datastore: "etcd", Program: "/usr/local/bin/k3s", Unit: "k3s",
				Arguments: []string{"--tls-san", "k8s.example.test"}, Configs: []string{}, Environment: []string{},
				Settings:  []hostfacts.Setting{{Name: "tls-san", Value: "k8s.example.test", From: k3sUnit}, {Name: "cluster-init", Value: "true", From: k3sUnit}},
				TokenFile: "/var/lib/rancher/k3s/server/token", TokenFrom: []string{k3sUnit}, BootstrapKey: "/bootstrap/b9f195c5cc7e",
			},
		},
		{
			name: "k3s in another folder, by its configuration with parts and variables",
			host: files{
				k3sUnit:                                  "[Service]\nEnvironmentFile=-" + k3sUnit + ".env\nExecStart=/usr/local/bin/k3s server\n",
				k3sUnit + ".env":                         "K3S_TOKEN='swordfish'\nK3S_URL=https://10.0.0.9:6443\nPROXY=x\n",
				"/etc/rancher/k3s/config.yaml":           "data-dir: /data/k3s/\nserver: https://10.0.0.11:6443\nnode-ip: 10.0.0.12\netcd-s3: true\netcd-s3-secret-key: hidden\ntls-san: [a]\n",
				"/etc/rancher/k3s/config.yaml.d/10.yaml": "tls-san+: [b]\nnode-ip: 10.0.0.13\n", "/etc/rancher/k3s/config.yaml.d/notes.txt": "node-ip: x",
				"/data/k3s/server/tls/etcd/server-ca.crt": "x",
			},
			want: &hostfacts.Distribution{
				Kind: "k3s", How: "/data/k3s/server", DataDir: "/data/k3s", Datastore: "etcd", Program: "/usr/local/bin/k3s", Unit: "k3s", Arguments: []string{},
				Configs: []string{"/etc/rancher/k3s/config.yaml", "/etc/rancher/k3s/config.yaml.d/10.yaml"}, Environment: []string{k3sUnit + ".env"},
				Settings: []hostfacts.Setting{
					{Name: "server", Value: "https://10.0.0.11:6443", From: "/etc/rancher/k3s/config.yaml"}, {Name: "node-ip", Value: "10.0.0.13", From: "/etc/rancher/k3s/config.yaml.d/10.yaml"},
					{Name: "tls-san", Value: "a,b", From: "/etc/rancher/k3s/config.yaml.d/10.yaml"}, {Name: "etcd-s3", Value: "true", From: "/etc/rancher/k3s/config.yaml"},
				},
				TokenFile: "/data/k3s/server/token", TokenFrom: []string{k3sUnit + ".env"}, BootstrapKey: "/bootstrap/b9f195c5cc7e", S3: true,
			},
		},
		{
			name: "rke2, of which the unit alone is left",
			host: files{rke2Unit: "[Service]\nExecStart=/usr/local/bin/rke2 server\n"},
			want: &hostfacts.Distribution{
				Kind: "rke2", How: rke2Unit, DataDir: "/var/lib/rancher/rke2", Datastore: "etcd", Program: "/usr/local/bin/rke2", Unit: "rke2-server", Arguments: []string{},
				Configs: []string{}, Environment: []string{}, Settings: []hostfacts.Setting{}, TokenFile: "/var/lib/rancher/rke2/server/token", TokenFrom: []string{},
			},
		},
		{
			name: "rke2 that has lost its server's folder",
			host: files{rke2Unit: "[Service]\nExecStart=/usr/local/bin/rke2 server\n", "/var/lib/rancher/rke2/agent/pod-manifests/etcd.yaml": "x"},
			want: &hostfacts.Distribution{
				Kind: "rke2", How: rke2Unit, DataDir: "/var/lib/rancher/rke2", Datastore: "etcd", Program: "/usr/local/bin/rke2", Unit: "rke2-server", Arguments: []string{},
				Configs: []string{}, Environment: []string{}, Settings: []hostfacts.Setting{}, TokenFile: "/var/lib/rancher/rke2/server/token", TokenFrom: []string{},
			},
		},
		{
			name: "rke2 with a token in a file of its own",
			host: files{"/etc/rancher/rke2/config.yaml": "token-file: /etc/rancher/rke2/token\ndebug: true\n", "/etc/rancher/rke2/token": "K10aa::server:swordfish\n", "/var/lib/rancher/rke2/server/tls/x": "x"},
			want: &hostfacts.Distribution{
				Kind: "rke2", How: "/var/lib/rancher/rke2/server", DataDir: "/var/lib/rancher/rke2", Datastore: "etcd", Program: "/usr/local/bin/rke2", Unit: "rke2-server", Arguments: []string{},
				Configs: []string{"/etc/rancher/rke2/config.yaml"}, Environment: []string{}, Settings: []hostfacts.Setting{{Name: "token-file", Value: "/etc/rancher/rke2/token", From: "/etc/rancher/rke2/config.yaml"}},
				TokenFile: "/var/lib/rancher/rke2/server/token", TokenFrom: []string{"/etc/rancher/rke2/token"}, BootstrapKey: "/bootstrap/b9f195c5cc7e",
			},
		},
		{
			name: "k0s, a controller that joined and works",
			host: files{
				k0sUnit:              "[Service]\nEnvironment=\"ETCD_UNSUPPORTED_ARCH=\"\nExecStart=/usr/local/bin/k0s controller --config=/etc/k0s/k0s.yaml --enable-worker=true --token-file=/etc/k0s/k0stoken --data-dir /data/k0s\n",
				"/etc/k0s/k0s.yaml":  "spec:\n  api: {address: 10.0.0.12, externalAddress: k8s.example.test}\n  storage: {type: etcd, etcd: {peerAddress: 10.0.0.12}}\n",
				"/data/k0s/etcd/xyz": "x",
			},
			want: &hostfacts.Distribution{
				Kind: "k0s", How: "/data/k0s/etcd", DataDir: "/data/k0s", Datastore: "etcd", Program: "/usr/local/bin/k0s", Unit: "k0scontroller", Arguments: []string{"--enable-worker=true"},
				Configs: []string{"/etc/k0s/k0s.yaml"}, Environment: []string{}, TokenFrom: []string{},
				Settings: []hostfacts.Setting{
					{Name: "spec.api.address", Value: "10.0.0.12", From: "/etc/k0s/k0s.yaml"}, {Name: "spec.api.externalAddress", Value: "k8s.example.test", From: "/etc/k0s/k0s.yaml"},
					{Name: "spec.storage.etcd.peerAddress", Value: "10.0.0.12", From: "/etc/k0s/k0s.yaml"}, {Name: "token-file", Value: "/etc/k0s/k0stoken", From: k0sUnit},
				},
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := distro.Find(c.host, nil)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			if got != nil && (got.BootstrapKey == "") != (len(got.TokenFrom) == 0) {
				t.Errorf("a token from %v has the key %q", got.TokenFrom, got.BootstrapKey)
			}
		})
	}
}

func TestDatastores(t *testing.T) {
	const config = "/etc/rancher/k3s/config.yaml"
	for _, c := range []struct {
		name      string
		host      files
		want      string
		endpoints []string
		cert      string
	}{
		{name: "k3s's own etcd", host: files{"/var/lib/rancher/k3s/server/db/etcd/name": "x", "/var/lib/rancher/k3s/server/db/state.db": "from before"}, want: distro.Etcd,
			endpoints: []string{"https://127.0.0.1:2379"}, cert: "/var/lib/rancher/k3s/server/tls/etcd/client.crt"},
		{name: "k3s's usual SQLite", host: files{"/var/lib/rancher/k3s/server/db/state.db": "x"}, want: distro.SQLite},
		{name: "SQLite by its name", host: files{config: "datastore-endpoint: sqlite:///x", "/var/lib/rancher/k3s/server/token": "x"}, want: distro.SQLite},
		{name: "a database elsewhere", host: files{config: "datastore-endpoint: mysql://user:pass@tcp(db:3306)/k3s", "/var/lib/rancher/k3s/server/token": "x"}, want: distro.External},
		{name: "an etcd elsewhere", host: files{config: "datastore-endpoint: https://e1:2379,https://e2:2379\ndatastore-cafile: /ca\ndatastore-certfile: /crt\n", "/var/lib/rancher/k3s/server/token": "x"}, want: distro.ExternalEtcd,
			endpoints: []string{"https://e1:2379", "https://e2:2379"}, cert: "/crt"},
		{name: "k3s whose database is gone", host: files{"/var/lib/rancher/k3s/server/token": "x"}, want: distro.Etcd,
			endpoints: []string{"https://127.0.0.1:2379"}, cert: "/var/lib/rancher/k3s/server/tls/etcd/client.crt"},
		{name: "rke2 has nothing but etcd", host: files{"/var/lib/rancher/rke2/server/token": "x"}, want: distro.Etcd,
			endpoints: []string{"https://127.0.0.1:2379"}, cert: "/var/lib/rancher/rke2/server/tls/etcd/client.crt"},
		{name: "k0s", host: files{"/etc/k0s/k0s.yaml": "x"}, want: distro.Etcd, endpoints: []string{"https://127.0.0.1:2379"}, cert: "/var/lib/k0s/pki/apiserver-etcd-client.crt"},
		{name: "k0s with kine", host: files{"/etc/k0s/k0s.yaml": "spec: {storage: {type: kine}}"}, want: distro.SQLite},
		{name: "k0s with kine elsewhere", host: files{"/etc/k0s/k0s.yaml": "spec: {storage: {type: kine, kine: {dataSource: 'postgres://x'}}}"}, want: distro.External},
		{name: "k0s alone", host: files{k0sUnit: "[Service]\nExecStart=/usr/local/bin/k0s controller --single\n"}, want: distro.SQLite},
		{name: "k0s without a configuration, by what is there", host: files{"/var/lib/k0s/pki/ca.key": "x", "/var/lib/k0s/db/state.db": "x"}, want: distro.SQLite},
		{name: "k0s with an etcd elsewhere", host: files{"/etc/k0s/k0s.yaml": "spec: {storage: {type: etcd, etcd: {externalCluster: {endpoints: ['https://e1:2379'], clientCertFile: /crt}}}}"}, want: distro.ExternalEtcd,
			endpoints: []string{"https://e1:2379"}, cert: "/crt"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := distro.Find(c.host, nil)
			if d == nil || d.Datastore != c.want {
				t.Fatalf("%+v", d)
			}
			endpoints, _, cert, _ := distro.EtcdClient(c.host, d)
			if !slices.Equal(endpoints, c.endpoints) || cert != c.cert {
				t.Errorf("%q with %s", endpoints, cert)
			}
		})
	}
}

func TestTokens(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "swordfish\n": "swordfish", "K10aa::server:swordfish": "swordfish", "K10aa::swordfish": "swordfish", "K10aa::server:sword:fish": "sword:fish", "user:pass": "user:pass",
	} {
		if got := distro.Passphrase(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	host := files{"/var/lib/rancher/k3s/server/token": "K10aa::server:new\n", "/etc/rancher/k3s/config.yaml": "token: old\ntoken-file: /srv/token\n", "/srv/token": "K10bb::server:new"}
	if differ := distro.Tokens(host, distro.Find(host, nil)); !slices.Equal(differ, []string{"/etc/rancher/k3s/config.yaml"}) {
		t.Errorf("%q", differ)
	}
	// What the server wrote is what it runs with.
	if d := distro.Find(host, nil); d.BootstrapKey != distro.BootstrapKey("new") || d.BootstrapKey == distro.BootstrapKey("old") {
		t.Errorf("%+v", d)
	}
}

func TestNoSecretIsTold(t *testing.T) {
	secret := "tH1s-Is-s3crEt"
	host := files{
		k3sUnit:                           "[Service]\nEnvironment=K3S_TOKEN=" + secret + " K3S_DATASTORE_ENDPOINT=mysql://" + secret + "\nExecStart=/usr/local/bin/k3s server -t " + secret + " --agent-token=" + secret + " --vpn-auth " + secret + " --etcd-s3-secret-key " + secret + " --etcd-s3-folder=x --debug\n",
		"/etc/rancher/k3s/config.yaml":    "token: " + secret + "\nagent-token: " + secret + "\netcd-s3-access-key: " + secret + "\n",
		"/var/lib/rancher/k3s/server/any": "x",
	}
	d := distro.Find(host, nil)
	if text := strings.Join([]string{cmp.Diff(nil, d)}, ""); strings.Contains(text, secret) {
		t.Error(text)
	}
	if !slices.Equal(d.Arguments, []string{"--debug"}) || d.Datastore != distro.External {
		t.Errorf("%+v", d)
	}
}

func TestPlacesAreBelowTheDataDirectory(t *testing.T) {
	for _, kind := range []string{distro.K3s, distro.RKE2, distro.K0s} {
		dir := distro.Default(kind)
		d := &hostfacts.Distribution{Kind: kind, DataDir: dir}
		names := slices.Concat(distro.Files(kind, dir), distro.Never(kind, dir), []string{distro.EtcdDir(d)})
		for _, name := range names {
			if !strings.HasPrefix(name, dir+"/") || path.Clean(name) != name {
				t.Errorf("%s: %s is not below %s", kind, name, dir)
			}
		}
		for _, never := range distro.Never(kind, dir) {
			if slices.ContainsFunc(distro.Files(kind, dir), func(f string) bool { return strings.HasPrefix(never+"/", f+"/") }) {
				t.Errorf("%s: %s is within what is taken", kind, never)
			}
		}
	}
	for kind, file := range map[string]string{distro.K3s: "/var/lib/rancher/k3s/server/token", distro.RKE2: "/var/lib/rancher/rke2/server/token", distro.K0s: "/etc/k0s/k0s.yaml"} {
		want := distro.Find(files{file: ""}, nil) // as an empty host of it is found
		want.How, want.Configs = "its usual places", []string{}
		if diff := cmp.Diff(want, distro.Usual(kind)); diff != "" {
			t.Errorf("%s: %s", kind, diff)
		}
	}
	if distro.Usual("kubeadm") != nil || distro.Default("kubeadm") != "" {
		t.Error("kubeadm is no distribution")
	}
}

// FuzzFind feeds what a host's files may hold to everything that reads them.
func FuzzFind(f *testing.F) {
	f.Add("token: x\nserver: https://a:6443\ndata-dir: /x\ntls-san+: [a, 1, {}]\nnode-ip: 1.5\n", "[Service]\nExecStart=/bin/k3s server -d --token= -- - --x\n", "K3S_URL=x\nK3S_CONFIG_FILE=/e\n")
	f.Add("spec: {storage: {type: etcd, etcd: {externalCluster: {endpoints: [a]}}}}", "[Service]\nExecStart=/bin/k0s controller --single --config /etc/k0s/k0s.yaml\n", "K10::")
	f.Add("&a [*a]", "[Service]\nExecStart=\n", "K10aa::server:")
	f.Fuzz(func(t *testing.T, config, unit, env string) {
		host := files{
			"/etc/rancher/k3s/config.yaml": config, "/etc/rancher/rke2/config.yaml": config, "/etc/k0s/k0s.yaml": config, k3sUnit: unit, k0sUnit: unit, rke2Unit: unit, k3sUnit + ".env": env, "/var/lib/rancher/k3s/server/token": env,
		}
		d := distro.Find(host, nil)
		if d == nil {
			t.Fatal("k0s.yaml is there")
		}
		if d.Arguments == nil || d.Configs == nil || d.Settings == nil || d.TokenFrom == nil || d.Environment == nil || !path.IsAbs(d.DataDir) || d.How == "" || d.Unit == "" {
			t.Errorf("%+v", d)
		}
		distro.EtcdClient(host, d)
		distro.Tokens(host, d)
		if key := distro.BootstrapKey(env); key != "" && len(key) != len(distro.BootstrapPrefix)+12 {
			t.Errorf("key %q", key)
		}
	})
}
