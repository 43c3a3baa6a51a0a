package host

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/kubefixture"
	"lifeboat/internal/manifest"
	"lifeboat/internal/seal"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func node(t *testing.T, kind kubefixture.Kind) string {
	t.Helper()
	return nodeWith(t, kubefixture.Options{Kind: kind})
}

func nodeWith(t *testing.T, o kubefixture.Options) string {
	t.Helper()
	root := t.TempDir()
	o.Now = now
	if err := kubefixture.Build(root, o); err != nil {
		t.Fatal(err)
	}
	return root
}

type noDNS struct{}

func (noDNS) LookupHost(_ context.Context, name string) ([]string, error) {
	if name == "k8s.example.test" {
		return []string{"10.0.0.100"}, nil
	}
	return nil, errors.New("no such host")
}

func options(root string) Options {
	return Options{
		Root: root, Node: "cp1", Now: func() time.Time { return now.Add(time.Hour) }, Resolver: noDNS{}, Wait: time.Millisecond,
		Addresses: func() ([]Address, error) { return []Address{{Interface: "eth0", Address: "10.0.0.11/24"}}, nil },
	}
}

// captured runs a capture and returns its archive by name.
func captured(t *testing.T, o Options) (*Result, map[string]*tar.Header, map[string][]byte) {
	t.Helper()
	var out bytes.Buffer
	w := seal.NewArchiveWriter(&out)
	r, err := Capture(t.Context(), o, w)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	headers, bodies := map[string]*tar.Header{}, map[string][]byte{}
	tr := tar.NewReader(&out)
	for i := 0; ; i++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		if (i == 0) != (name == FactsName) {
			t.Fatalf("entry %d is %s", i, name)
		}
		headers[name] = h
		if bodies[name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
	return r, headers, bodies
}

func TestTheWholeNodeIsCaptured(t *testing.T) {
	for _, c := range []struct {
		kind kubefixture.Kind
		want []string // beside what every kind has
		not  []string
	}{
		{kind: kubefixture.Stacked, want: []string{"etc/kubernetes/pki/etcd/ca.key", "etc/kubernetes/manifests/etcd.yaml"}},
		{
			kind: kubefixture.ExternalEtcd,
			want: []string{"etc/etcd/etcd.env", "etc/etcd/pki/client.key", "etc/etcd/pki/peer.crt", "etc/systemd/system/etcd.service"},
			not:  []string{"data", "data/etcd"},
		},
		{
			kind: kubefixture.ExtraFiles,
			want: []string{
				"srv/kube/encryption/config.yaml", "srv/kube/admission/config.yaml", "srv/kube/admission/eventratelimit.yaml",
				"srv/kube/admission/imagepolicy.conf", "opt/kube/audit/policy.yaml", "etc/company/oidc-ca.pem", "opt/company/pki/oidc-ca-2026.pem",
			},
			not: []string{"var/log", "var/log/kubernetes", "run/kmsplugin", "var/run"},
		},
	} {
		t.Run(c.kind.String(), func(t *testing.T) {
			root := node(t, c.kind)
			r, headers, bodies := captured(t, options(root))
			if len(r.Degraded) > 0 || len(r.Warnings) > 0 {
				t.Errorf("degraded %q, warnings %q", r.Degraded, r.Warnings)
			}
			want := append(c.want, "etc/kubernetes/pki/ca.key", "etc/kubernetes/pki/sa.key", "etc/kubernetes/admin.conf",
				"etc/kubernetes/manifests/kube-apiserver.yaml", "var/lib/kubelet/pki/kubelet-client-current.pem",
				"var/lib/kubelet/pki/kubelet-client-2026-11-20-12-00-00.pem", "var/lib/kubelet/config.yaml", "var/lib/kubelet/kubeadm-flags.env",
				"usr/lib/systemd/system/kubelet.service", "usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf", "etc/default/kubelet",
				"etc/containerd/config.toml", "etc/cni/net.d/10-flannel.conflist", "etc/systemd/system/containerd.service.d/limits.conf",
				"usr/local/share/ca-certificates")
			for _, name := range want {
				if headers[name] == nil {
					t.Errorf("%s is missing", name)
				}
			}
			for _, name := range append(c.not, "var/lib/etcd", "etc/ssl/certs", "usr/share/ca-certificates", "run", "var/lib/kubelet/pods") {
				if headers[name] != nil {
					t.Errorf("%s was stored", name)
				}
			}
			files := 0
			for name, h := range headers {
				info, err := os.Lstat(filepath.Join(root, name))
				if name == FactsName {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if !info.ModTime().Equal(h.ModTime) || int64(info.Mode().Perm()) != h.Mode&0o777 {
					t.Errorf("%s: %v %o, want %v %o", name, h.ModTime, h.Mode, info.ModTime(), info.Mode().Perm())
				}
				if h.Typeflag == tar.TypeReg {
					files++
					if data, err := os.ReadFile(filepath.Join(root, name)); err != nil || !bytes.Equal(data, bodies[name]) {
						t.Errorf("%s differs from the disk (%v)", name, err)
					}
				}
			}
			if files != r.Files {
				t.Errorf("%d files, the result says %d", files, r.Files)
			}
			if link := headers["var/lib/kubelet/pki/kubelet-client-current.pem"].Linkname; !strings.HasPrefix(link, "/var/lib/kubelet/pki/") {
				t.Errorf("the absolute link became %q", link)
			}
			var facts Facts
			if err := json.Unmarshal(bodies[FactsName], &facts); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(r.Facts, facts); diff != "" {
				t.Errorf("the result's facts are not the archive's:\n%s", diff)
			}
			if bytes.Contains(bodies[FactsName], []byte("null")) {
				t.Error("the facts hold a null list")
			}
		})
	}
}

func TestFactsTellWhatANewMachineNeeds(t *testing.T) {
	root := node(t, kubefixture.ExtraFiles)
	write(t, root, "proc/1/net/route", "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"+
		"eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\neth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n")
	write(t, root, "proc/sys/kernel/osrelease", "6.12.0-amd64\n")
	r, _, _ := captured(t, options(root))
	f := r.Facts
	if f.Node != "cp1" || f.Hostname != "cp1" || f.Kernel != "6.12.0-amd64" || f.OS != "Debian GNU/Linux 13 (trixie)" || !strings.Contains(f.ResolvConf, "nameserver 10.0.0.2") {
		t.Errorf("facts: %+v", f)
	}
	if diff := cmp.Diff([]Route{{Interface: "eth0", Destination: "0.0.0.0/0", Gateway: "10.0.0.1", Metric: 100}, {Interface: "eth0", Destination: "10.0.0.0/24"}}, f.Routes); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Answer{{Name: "k8s.example.test", Addresses: []string{"10.0.0.100"}}}, f.DNS); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Address{{Interface: "eth0", Address: "10.0.0.11/24"}}, f.Addresses); diff != "" {
		t.Error(diff)
	}
	if len(f.Images) != 4 || f.Images[0].Image != "registry.k8s.io/etcd:3.6.8-0" {
		t.Errorf("images %v", f.Images)
	}
	var noted []string
	for _, n := range f.Noted {
		noted = append(noted, fmt.Sprintf("%s %d", n.Path, n.Files))
	}
	if diff := cmp.Diff([]string{"etc/ca-certificates 0", "etc/ssl/certs 2", "usr/share/ca-certificates 1"}, noted); diff != "" {
		t.Error(diff)
	}
	if !slices.Contains(f.Folders, "etc/kubernetes") || !slices.Contains(f.DataDirs, "var/lib/etcd") {
		t.Errorf("folders %v, data %v", f.Folders, f.DataDirs)
	}
	want := []providerKeys{{File: "srv/kube/encryption/config.yaml", Providers: []Provider{
		{Provider: "aescbc", Keys: []string{kubefixture.EncryptionKey}},
		{Provider: "kms", Keys: []string{kubefixture.EncryptionKMS}, Endpoint: "unix:///var/run/kmsplugin/socket.sock"},
	}}}
	if diff := cmp.Diff(want, f.Encryption); diff != "" {
		t.Error(diff)
	}
	if f.Etcd == nil || f.Etcd.Kind != "stacked" || f.Etcd.DataDir != "/var/lib/etcd" {
		t.Errorf("etcd %+v", f.Etcd)
	}
}

func TestCoversNamesTheKeysThatAreMissing(t *testing.T) {
	r, _, _ := captured(t, options(node(t, kubefixture.ExtraFiles)))
	got := r.Covers([]manifest.KeyUse{
		{Provider: "aescbc", Key: kubefixture.EncryptionKey, Objects: 3},
		{Provider: "kms", Key: kubefixture.EncryptionKMS, Objects: 1},
		{Provider: "aescbc", Key: "key-2024", Objects: 12, Example: "/registry/secrets/default/old"},
		{Provider: "secretbox", Key: kubefixture.EncryptionKey, Objects: 1, Example: "/registry/secrets/default/x"},
	})
	if len(got) != 2 || !strings.Contains(got[0], `aescbc key "key-2024"`) || !strings.Contains(got[0], "12 objects") || !strings.Contains(got[1], "secretbox") {
		t.Errorf("missing: %q", got)
	}
	if got := r.Covers(nil); len(got) != 0 {
		t.Errorf("nothing is encrypted, missing: %q", got)
	}
}

func TestOnlyTheConfigurationThatTheAPIServerReadsCounts(t *testing.T) {
	const old = "kind: EncryptionConfiguration\nresources: [{resources: [secrets], providers: [{aescbc: {keys: [{name: old, secret: x}]}}]}]\n"
	for kind, c := range map[kubefixture.Kind]struct{ key, configure, text string }{
		kubefixture.ExtraFiles: {key: kubefixture.EncryptionKey},
		kubefixture.Stacked:    {}, // encrypts nothing
		kubefixture.K3s:        {key: kubefixture.DistributionKey},
		kubefixture.RKE2:       {key: kubefixture.DistributionKey, configure: "etc/rancher/rke2/config.yaml.d/20-args.yaml", text: "kube-apiserver-arg: [v=1]\n"},
	} {
		t.Run(kind.String(), func(t *testing.T) {
			root := node(t, kind)
			write(t, root, "etc/kubernetes/enc.yaml.bak", old)
			if c.configure != "" {
				write(t, root, c.configure, c.text)
			}
			r, headers, _ := captured(t, options(root))
			if headers["etc/kubernetes/enc.yaml.bak"] == nil {
				t.Error("the copy is not stored")
			}
			missing := r.Covers([]manifest.KeyUse{{Provider: "aescbc", Key: "old", Objects: 1, Example: "/registry/secrets/default/x"}})
			if len(missing) != 1 || !strings.Contains(missing[0], "/etc/kubernetes/enc.yaml.bak") {
				t.Errorf("missing: %q", missing)
			}
			if c.key != "" && len(r.Covers([]manifest.KeyUse{{Provider: "aescbc", Key: c.key}})) > 0 {
				t.Errorf("its own key does not count: %+v", r.Facts.Encryption)
			}
		})
	}
	for kind, text := range map[kubefixture.Kind]string{
		kubefixture.K3s: "kube-apiserver-arg: [v=1, encryption-provider-config=/srv/own.yaml]\n", kubefixture.K0s: "spec: {api: {extraArgs: {v: 1, encryption-provider-config: /srv/own.yaml}}}\n",
	} {
		t.Run(kind.String()+" with a file of its own", func(t *testing.T) {
			root := node(t, kind)
			if kind == kubefixture.K0s {
				must(t, os.WriteFile(filepath.Join(root, "etc/k0s/k0s.yaml"), []byte(text), 0o600))
			} else {
				write(t, root, "etc/rancher/k3s/config.yaml.d/20-args.yaml", text)
			}
			write(t, root, "srv/own.yaml", old)
			write(t, root, "etc/kubernetes/enc.yaml.bak", strings.ReplaceAll(old, "name: old", "name: older"))
			r, _, _ := captured(t, options(root))
			if missing := r.Covers([]manifest.KeyUse{{Provider: "aescbc", Key: "old"}, {Provider: "aescbc", Key: "older"}}); len(missing) != 1 || !strings.Contains(missing[0], "older") {
				t.Errorf("missing: %q", missing)
			}
		})
	}
}

func write(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
