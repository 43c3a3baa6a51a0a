package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/kubefixture"
)

// pod is a static pod with one container and its hostPath volumes.
func pod(name string, args []string, mounts map[string]string) string {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Pod\nmetadata:\n  name: " + name + "\nspec:\n  containers:\n  - name: " + name + "\n    image: example/" + name + "\n    command:\n")
	for _, a := range args {
		b.WriteString("    - " + a + "\n")
	}
	b.WriteString("    volumeMounts:\n")
	for inside := range mounts {
		b.WriteString("    - {mountPath: " + inside + ", name: v" + strings.ReplaceAll(inside, "/", "-") + "}\n")
	}
	b.WriteString("  volumes:\n")
	for inside, host := range mounts {
		b.WriteString("  - {name: v" + strings.ReplaceAll(inside, "/", "-") + ", hostPath: {path: " + host + "}}\n")
	}
	return b.String()
}

func TestTheClosureFollowsWhatNamesFiles(t *testing.T) {
	type link struct{ name, to string }
	for _, c := range []struct {
		name  string
		files map[string]string
		links []link
		extra []string
		want  []string
		not   []string
	}{
		{name: "a hostPath under another name in the container",
			files: map[string]string{"etc/kubernetes/manifests/vip.yaml": pod("vip", []string{"vip", "--config=/in/vip.conf"}, map[string]string{"/in": "/opt/vip"}), "opt/vip/vip.conf": "x"},
			want:  []string{"opt/vip/vip.conf"}},
		{name: "one file of a folder that is too broad to take whole",
			files: map[string]string{"etc/kubernetes/manifests/p.yaml": pod("p", []string{"p", "--policy-file", "/host/srv/policy"}, map[string]string{"/host": "/"}), "srv/policy": "x", "srv/other": "x"},
			want:  []string{"srv/policy"}, not: []string{"srv/other"}},
		{name: "a shell's command line",
			files: map[string]string{"etc/kubernetes/manifests/p.yaml": pod("p", []string{"sh", "-c", `"exec p --token-file=/usr/share/t >/var/log/p"`}, map[string]string{"/usr/share": "/usr/share"}), "usr/share/t": "x", "usr/share/other": "x"},
			want:  []string{"usr/share/t"}, not: []string{"usr/share/other"}},
		{name: "etcd's data directory under another name, with its log apart",
			files: map[string]string{"etc/kubernetes/manifests/e.yaml": pod("etcd", []string{"etcd", "--data-dir=/d", "--wal-dir", "/w"}, map[string]string{"/d": "/srv/etcd", "/w": "/fast/wal"}),
				"srv/etcd/member/snap/db": "x", "srv/etcd/x": "x", "fast/wal/0.wal": "x"},
			not: []string{"srv", "srv/etcd", "srv/etcd/x", "fast/wal", "fast/wal/0.wal"}},
		{name: "a data directory that is known by its looks alone",
			files: map[string]string{"etc/kubernetes/manifests/p.yaml": pod("p", []string{"p"}, map[string]string{"/x": "/srv/x"}), "srv/x/old/member/snap/db": "x", "srv/x/file": "x"},
			want:  []string{"srv/x/file"}, not: []string{"srv/x/old"}},
		{name: "the kubelet's own folder of static pods",
			files: map[string]string{"var/lib/kubelet/config.yaml": "kind: KubeletConfiguration\nstaticPodPath: /srv/pods\n",
				"srv/pods/p.yaml": pod("p", []string{"p", "--x-file=/in/f"}, map[string]string{"/in/f": "/opt/f"}), "opt/f": "x"},
			want: []string{"srv/pods/p.yaml", "opt/f"}},
		{name: "external etcd by unit, environment and links",
			files: map[string]string{"etc/systemd/system/etcd.service": "[Service]\nEnvironmentFile=/srv/etcd.env\nExecStart=/usr/local/bin/etcd --config-file /srv/etcd.yaml\n",
				"srv/etcd.env": "ETCD_DATA_DIR=/srv/data\nETCD_CERT_FILE=/srv/pki/server.pem\nETCD_INITIAL_CLUSTER=a=https://10.0.0.1:2380\n", "srv/data/file": "x",
				"srv/real.pem": "x", "srv/etcd.yaml": "data-dir: /srv/data2\nlisten-client-urls: x\nclient-transport-security:\n  cert-file: /srv/pki/two.pem\n", "srv/pki/two.pem": "x", "srv/data2/x": "x", "usr/local/bin/etcd": "program"},
			links: []link{{"srv/pki/server.pem", "../real.pem"}},
			want:  []string{"srv/etcd.env", "srv/etcd.yaml", "srv/real.pem", "srv/pki/server.pem", "srv/pki/two.pem"},
			not:   []string{"usr/local/bin/etcd", "srv/data", "srv/data2"}},
		{name: "k3s",
			files: map[string]string{"var/lib/rancher/k3s/server/token": "x", "var/lib/rancher/k3s/server/tls/a.key": "x", "var/lib/rancher/k3s/server/db/etcd/member/snap/db": "x",
				"etc/rancher/k3s/config.yaml": "kubelet-arg:\n- config=/srv/kubelet.yaml\ndatastore-cafile: /srv/ca.pem\n", "srv/ca.pem": "x", "etc/systemd/system/k3s.service.env": "A=1"},
			want: []string{"var/lib/rancher/k3s/server/token", "var/lib/rancher/k3s/server/tls/a.key", "etc/rancher/k3s/config.yaml", "srv/ca.pem", "etc/systemd/system/k3s.service.env"},
			not:  []string{"var/lib/rancher/k3s/server/db"}},
		{name: "containerd's certificates elsewhere",
			files: map[string]string{"etc/containerd/config.toml": "imports = ['/srv/containerd.d/*.toml']\nconfig_path = \"/srv/certs.d\"\nbin_dir = '/opt/cni/bin'\n",
				"srv/containerd.d/a.toml": "ca = '/srv/ca.pem'", "srv/ca.pem": "x", "srv/certs.d/reg/hosts.toml": "x", "opt/cni/bin/bridge": "x"},
			want: []string{"srv/containerd.d/a.toml", "srv/ca.pem", "srv/certs.d/reg/hosts.toml"}, not: []string{"opt/cni/bin"}},
		{name: "a file of the trust folder that a flag names",
			files: map[string]string{"etc/kubernetes/manifests/a.yaml": pod("a", []string{"a", "--oidc-ca-file=/etc/ssl/certs/own.pem"}, map[string]string{"/etc/ssl/certs": "/etc/ssl/certs"}), "etc/ssl/certs/own.pem": "x", "etc/ssl/certs/other.pem": "x"},
			want:  []string{"etc/ssl/certs/own.pem"}, not: []string{"etc/ssl/certs/other.pem"}},
		{name: "never the kernel's, whatever names it",
			files: map[string]string{"etc/kubernetes/manifests/a.yaml": pod("a", []string{"a", "--x-file=/proc/1/environ", "--y-file=/run/s"}, map[string]string{"/proc": "/proc", "/run": "/run"}), "proc/1/environ": "x", "run/s": "x"},
			links: []link{{"etc/kubernetes/trick", "/proc/1/environ"}},
			extra: []string{"/proc/1", "/sys"},
			want:  []string{"etc/kubernetes/trick"}, not: []string{"proc", "proc/1/environ", "run/s"}},
		{name: "the file system's own links are not stored",
			files: map[string]string{"usr/lib/systemd/system/kubelet.service": "x=/y"},
			links: []link{{"lib", "usr/lib"}},
			want:  []string{"usr/lib/systemd/system/kubelet.service"}, not: []string{"lib"}},
		{name: "extra paths, patterns too",
			files: map[string]string{"opt/a/1.txt": "x", "opt/a/2.txt": "x", "opt/a/3.md": "x", "home/me/deep/f": "x"},
			extra: []string{"/opt/a/*.txt", "/home"},
			want:  []string{"opt/a/1.txt", "opt/a/2.txt", "home/me/deep/f"}, not: []string{"opt/a/3.md"}},
		{name: "links through links to a folder",
			files: map[string]string{"data/real/f": "x"},
			links: []link{{"etc/kubernetes/a", "b"}, {"etc/kubernetes/b", "/opt/c"}, {"opt/c", "/data/real"}},
			want:  []string{"etc/kubernetes/a", "etc/kubernetes/b", "opt/c", "data/real/f"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range c.files {
				write(t, root, name, text)
			}
			for _, l := range c.links {
				must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, l.name)), 0o755))
				must(t, os.Symlink(l.to, filepath.Join(root, l.name)))
			}
			o := options(root)
			o.ExtraPaths = c.extra
			_, headers, _ := captured(t, o)
			for _, name := range c.want {
				if headers[name] == nil {
					t.Errorf("%s is missing", name)
				}
			}
			for _, name := range c.not {
				if headers[name] != nil {
					t.Errorf("%s was stored", name)
				}
			}
		})
	}
}

func TestAnEmptyRootIsDegradedAndAMissingOneAnError(t *testing.T) {
	r, _, _ := captured(t, options(t.TempDir()))
	if !has(r.Degraded, "no file of a control-plane node was found") {
		t.Errorf("degraded %q", r.Degraded)
	}
	o := options(filepath.Join(t.TempDir(), "none"))
	if _, err := Capture(t.Context(), o, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestDiscover(t *testing.T) {
	for _, c := range []struct {
		name string
		root func(t *testing.T) string
		want Discovery
	}{
		{name: "a stacked node", root: func(t *testing.T) string { return node(t, kubefixture.Stacked) }, want: Discovery{
			Kind: "stacked", EtcdEndpoints: []string{"https://127.0.0.1:2379"}, EtcdServersOverrides: []string{},
			CAFile: "/etc/kubernetes/pki/etcd/ca.crt", CertFile: "/etc/kubernetes/pki/etcd/healthcheck-client.crt", KeyFile: "/etc/kubernetes/pki/etcd/healthcheck-client.key",
			Name: "cp1", DataDir: "/var/lib/etcd", PeerURLs: "https://10.0.0.11:2380", InitialCluster: "cp1=https://10.0.0.11:2380", Image: "registry.k8s.io/etcd:3.6.8-0"}},
		{name: "external etcd", root: func(t *testing.T) string { return node(t, kubefixture.ExternalEtcd) }, want: Discovery{
			Kind: "external", EtcdEndpoints: []string{"https://127.0.0.1:2379", "https://10.0.0.11:2379"},
			EtcdServersOverrides: []string{"/events#https://10.0.0.31:2379;https://10.0.0.32:2379"},
			CAFile:               "/etc/etcd/pki/ca.crt", CertFile: "/etc/etcd/pki/client.crt", KeyFile: "/etc/etcd/pki/client.key"}},
		{name: "the manifests checked by hand, without a PKI", root: func(*testing.T) string { return "../../testdata/hosts/stacked" }, want: Discovery{
			Kind: "stacked", EtcdEndpoints: []string{"https://127.0.0.1:2379"}, EtcdServersOverrides: []string{},
			CAFile: "/etc/kubernetes/pki/etcd/ca.crt", CertFile: "/etc/kubernetes/pki/apiserver-etcd-client.crt", KeyFile: "/etc/kubernetes/pki/apiserver-etcd-client.key",
			Name: "cp1", DataDir: "/var/lib/etcd", PeerURLs: "https://10.0.0.11:2380", InitialCluster: "cp1=https://10.0.0.11:2380", Image: "registry.k8s.io/etcd:3.6.8-0"}},
		{name: "rke2", root: func(t *testing.T) string {
			root := t.TempDir()
			write(t, root, "var/lib/rancher/rke2/server/tls/etcd/server-ca.crt", "x")
			return root
		}, want: Discovery{
			Kind: "rke2", EtcdEndpoints: []string{"https://127.0.0.1:2379"}, EtcdServersOverrides: []string{},
			CAFile: "/var/lib/rancher/rke2/server/tls/etcd/server-ca.crt", CertFile: "/var/lib/rancher/rke2/server/tls/etcd/client.crt", KeyFile: "/var/lib/rancher/rke2/server/tls/etcd/client.key",
			DataDir: "/var/lib/rancher/rke2/server/db/etcd"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := c.root(t)
			got, err := Discover(root)
			must(t, err)
			for _, p := range []*string{&c.want.CAFile, &c.want.CertFile, &c.want.KeyFile, &c.want.DataDir} {
				if *p != "" {
					*p = filepath.Join(root, *p)
				}
			}
			if diff := cmp.Diff(&c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := Discover(t.TempDir()); !errors.Is(err, ErrNoEtcd) {
		t.Errorf("an empty root: %v", err)
	}
}

// FuzzParsedFiles feeds what a node's files may hold to everything that parses
// them: nothing may panic, and nothing outside the root may be reached.
func FuzzParsedFiles(f *testing.F) {
	f.Add([]byte(pod("etcd", []string{"etcd", "--data-dir=/d", "--cert-file=/x,/y"}, map[string]string{"/d": "/srv/etcd"})))
	f.Add([]byte("kind: Config\nclusters: [{cluster: {certificate-authority: ../x, server: 'https://a:1'}}]\nusers: [{user: {client-key-data: AA==, client-certificate-data: AA==}}]\n"))
	f.Add([]byte("kind: EncryptionConfiguration\nresources: [{providers: [{aescbc: {keys: [{name: a, secret: b}]}}, {kms: {name: k}}, {identity: {}}]}]\n"))
	f.Add([]byte("kind: AdmissionConfiguration\nplugins: [{path: ../../../../x}]\n"))
	f.Add([]byte("kind: KubeletConfiguration\nstaticPodPath: /\n"))
	f.Add([]byte("[Service]\nEnvironment=\"A=--config-dir=/etc --pod-manifest-path /\"\nEnvironmentFile=-/x\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		root := t.TempDir()
		for _, name := range []string{
			"etc/kubernetes/manifests/p.yaml", "etc/kubernetes/a.conf", "etc/kubernetes/c.crt", "var/lib/kubelet/config.yaml",
			"etc/containerd/config.toml", "usr/lib/systemd/system/kubelet.service",
		} {
			write(t, root, name, string(data))
		}
		tr, err := openTree(root)
		must(t, err)
		defer tr.close()
		c, err := collect(t.Context(), tr, nil, Limits{Files: 200, TotalBytes: 8 << 20})
		must(t, err)
		c.check(now)
		for name, e := range c.entries {
			if _, err := os.Lstat(filepath.Join(root, name)); err != nil || e.header.Name != name {
				t.Errorf("entry %q: %v", name, err)
			}
		}
		own, pods, _ := setUp(tr)
		discover(tr, pods, etcdServers(tr), own)
	})
}

func FuzzStaticPod(f *testing.F) {
	f.Add([]byte(pod("etcd", []string{"etcd", "--data-dir=/d", "--cert-file", "/x,/y"}, map[string]string{"/d": "/srv/etcd", "/": "/"})))
	f.Add([]byte(`{"kind":"Pod","spec":{"containers":[{"args":["-","--","--a=","sh -c --b /c"],"volumeMounts":[{"mountPath":"../x","name":"v","subPath":"../.."}]}],"volumes":[{"name":"v","hostPath":{"path":"/h"}}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, ok := parsePod("p.yaml", data)
		if !ok {
			return
		}
		for i := range p.containers {
			c := &p.containers[i]
			for _, fl := range flags(c.words) {
				if strings.HasPrefix(fl.name, "-") {
					t.Errorf("flag %q", fl.name)
				}
				for _, file := range filesOf(fl.value) {
					if host, ok := c.view.host(file); ok && !strings.HasPrefix(host, "/") {
						t.Errorf("%q is %q on the host", file, host)
					}
				}
			}
			c.runs("etcd")
		}
	})
}

func ExampleDiscover() {
	d, err := Discover("../../testdata/hosts/external-etcd")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(d.Kind, d.EtcdEndpoints)
	// Output: external [https://127.0.0.1:2379 https://10.0.0.11:2379]
}
