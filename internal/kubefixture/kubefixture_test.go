package kubefixture

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/hosts anew")

var kinds = []Kind{Stacked, ExternalEtcd, ExtraFiles}

var distributions = []Kind{K3s, RKE2, K0s}

func build(t *testing.T, o Options) string {
	t.Helper()
	root := t.TempDir()
	o.Now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	if err := Build(root, o); err != nil {
		t.Fatal(err)
	}
	return root
}

// TestTheTextsAreThoseCheckedByHand compares everything that holds no generated
// key with testdata/hosts, which a person can read and other tests use.
func TestTheTextsAreThoseCheckedByHand(t *testing.T) {
	tests := map[string]Options{}
	for _, kind := range kinds {
		tests[kind.String()] = Options{Kind: kind}
	}
	for _, kind := range distributions {
		tests[kind.String()] = Options{Kind: kind}
		port := "6443"
		if kind == RKE2 {
			port = "9345"
		}
		tests[kind.String()+"-joined"] = Options{Kind: kind, Node: "cp2", Address: "10.0.0.12", Server: "https://k8s.example.test:" + port}
	}
	for name, options := range tests {
		t.Run(name, func(t *testing.T) {
			root := build(t, options)
			golden := filepath.Join("..", "..", "testdata", "hosts", name)
			got := readTexts(t, root)
			if *update {
				if err := os.RemoveAll(golden); err != nil {
					t.Fatal(err)
				}
				for name, text := range got {
					path := filepath.Join(golden, name)
					if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			if diff := cmp.Diff(readTexts(t, golden), got); diff != "" {
				t.Errorf("testdata/hosts/%v differs (-golden +built; run with -update if meant):\n%s", name, diff)
			}
		})
	}
}

// readTexts returns the files that have neither a certificate nor a secret.
func readTexts(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		for _, generated := range []string{"-----BEGIN", "certificate-authority-data", "secret:", `"secret"`, "stands for a", "K10"} {
			if bytes.Contains(data, []byte(generated)) {
				return err
			}
		}
		out[name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestThePKIWorks(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			root := build(t, Options{Kind: kind})
			at := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
			etcd, client := "etc/kubernetes/pki/etcd/", "etc/kubernetes/pki/apiserver-etcd-client"
			if kind == ExternalEtcd {
				etcd, client = "etc/etcd/pki/", "etc/etcd/pki/client"
			}
			for _, c := range []struct {
				pair, ca, host string
				usage          x509.ExtKeyUsage
			}{
				{"etc/kubernetes/pki/apiserver", "etc/kubernetes/pki/ca.crt", "10.96.0.1", x509.ExtKeyUsageServerAuth},
				{"etc/kubernetes/pki/apiserver", "etc/kubernetes/pki/ca.crt", "k8s.example.test", x509.ExtKeyUsageServerAuth},
				{"etc/kubernetes/pki/apiserver-kubelet-client", "etc/kubernetes/pki/ca.crt", "", x509.ExtKeyUsageClientAuth},
				{"etc/kubernetes/pki/front-proxy-client", "etc/kubernetes/pki/front-proxy-ca.crt", "", x509.ExtKeyUsageClientAuth},
				{etcd + "server", etcd + "ca.crt", "127.0.0.1", x509.ExtKeyUsageServerAuth},
				{etcd + "peer", etcd + "ca.crt", "10.0.0.11", x509.ExtKeyUsageClientAuth},
				{client, etcd + "ca.crt", "", x509.ExtKeyUsageClientAuth},
			} {
				p, err := tls.LoadX509KeyPair(filepath.Join(root, c.pair+".crt"), filepath.Join(root, c.pair+".key"))
				if err != nil {
					t.Fatalf("%s: %v", c.pair, err)
				}
				ca, err := os.ReadFile(filepath.Join(root, c.ca))
				if err != nil {
					t.Fatal(err)
				}
				pool := x509.NewCertPool()
				pool.AppendCertsFromPEM(ca)
				if _, err := p.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: c.host, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{c.usage}}); err != nil {
					t.Errorf("%s for %q: %v", c.pair, c.host, err)
				}
			}
			target, err := os.Readlink(filepath.Join(root, "var/lib/kubelet/pki/kubelet-client-current.pem"))
			if err != nil || !strings.HasPrefix(target, "/var/lib/kubelet/pki/kubelet-client-2026-11-20") {
				t.Errorf("kubelet-client-current.pem -> %q, %v; want an absolute link", target, err)
			}
			current := filepath.Join(root, target)
			if _, err := tls.LoadX509KeyPair(current, current); err != nil {
				t.Errorf("kubelet's client certificate: %v", err)
			}
		})
	}
}

func TestTheDistributionsPKIWorks(t *testing.T) {
	at := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	for _, kind := range distributions {
		t.Run(kind.String(), func(t *testing.T) {
			root := build(t, Options{Kind: kind})
			folder, etcdCA, client, api, apiCA := "var/lib/rancher/"+kind.String()+"/server/tls/", "etcd/server-ca.crt", "etcd/client", "serving-kube-apiserver", "server-ca.crt"
			if kind == K0s {
				folder, etcdCA, client, api, apiCA = "var/lib/k0s/pki/", "etcd/ca.crt", "apiserver-etcd-client", "server", "ca.crt"
			}
			for _, c := range []struct {
				pair, ca, host string
				usage          x509.ExtKeyUsage
			}{
				{api, apiCA, "k8s.example.test", x509.ExtKeyUsageServerAuth},
				{client, etcdCA, "", x509.ExtKeyUsageClientAuth},
			} {
				p, err := tls.LoadX509KeyPair(filepath.Join(root, folder+c.pair+".crt"), filepath.Join(root, folder+c.pair+".key"))
				if err != nil {
					t.Fatalf("%s: %v", c.pair, err)
				}
				ca, err := os.ReadFile(filepath.Join(root, folder+c.ca))
				if err != nil {
					t.Fatal(err)
				}
				pool := x509.NewCertPool()
				pool.AppendCertsFromPEM(ca)
				if _, err := p.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: c.host, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{c.usage}}); err != nil {
					t.Errorf("%s for %q: %v", c.pair, c.host, err)
				}
			}
		})
	}
}

func TestAFixtureNeverOverwrites(t *testing.T) {
	root := build(t, Options{})
	if err := Build(root, Options{}); err == nil {
		t.Error("a second Build into the same root succeeded")
	}
}

func TestSecretsAreNotReadableByOthers(t *testing.T) {
	for _, kind := range append([]Kind{ExtraFiles}, distributions...) {
		secretsAreNotReadable(t, build(t, Options{Kind: kind, Server: "https://10.0.0.11:6443"}))
	}
}

func secretsAreNotReadable(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		for _, mark := range []string{"::server:", "PRIVATE KEY", "client-key-data", "secret:"} {
			if info.Mode()&0o007 != 0 && bytes.Contains(data, []byte(mark)) {
				t.Errorf("%s has %q and mode %v", path, mark, info.Mode())
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
