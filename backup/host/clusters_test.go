package host

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/kubefixture"
)

// apiServer is a static pod of an API server with the given flags.
func apiServer(t *testing.T, root string, flags ...string) {
	t.Helper()
	write(t, root, "etc/kubernetes/manifests/kube-apiserver.yaml", pod("kube-apiserver", append([]string{"kube-apiserver"}, flags...), map[string]string{"/etc/kubernetes/pki": "/etc/kubernetes/pki"}))
}

func TestEveryEtcdOfTheAPIServerIsFound(t *testing.T) {
	const pki = "/etc/kubernetes/pki/"
	own := []string{"--etcd-cafile=" + pki + "etcd/ca.crt", "--etcd-certfile=" + pki + "apiserver-etcd-client.crt", "--etcd-keyfile=" + pki + "apiserver-etcd-client.key"}
	cluster := func(name string, endpoints ...string) EtcdCluster {
		return EtcdCluster{Name: name, Endpoints: endpoints, CAFile: pki + "etcd/ca.crt", CertFile: pki + "apiserver-etcd-client.crt", KeyFile: pki + "apiserver-etcd-client.key"}
	}
	plain := func(c EtcdCluster) EtcdCluster { c.CAFile, c.CertFile, c.KeyFile = "", "", ""; return c }
	main := cluster("main", "https://10.0.0.1:2379")
	for name, test := range map[string]struct {
		overrides string
		want      []EtcdCluster
	}{
		"no overrides":                        {"", []EtcdCluster{main}},
		"events apart":                        {"/events#https://10.0.0.2:2379;https://10.0.0.3:2379", []EtcdCluster{main, cluster("events", "https://10.0.0.2:2379", "https://10.0.0.3:2379")}},
		"a group's resource":                  {"coordination.k8s.io/leases#https://10.0.0.2:2379", []EtcdCluster{main, cluster("coordination.k8s.io-leases", "https://10.0.0.2:2379")}},
		"two resources, one cluster":          {"/events#https://a:1;https://b:1,apps/deployments#https://b:1;https://a:1", []EtcdCluster{main, cluster("events", "https://a:1", "https://b:1")}},
		"an override that leads to the main":  {"/events#https://10.0.0.1:2379", []EtcdCluster{main}},
		"plain HTTP needs no certificates":    {"/events#http://127.0.0.1:2479", []EtcdCluster{main, plain(cluster("events", "http://127.0.0.1:2479"))}},
		"what is no override is passed over":  {"nonsense,#https://x,/events#,/pods#;", []EtcdCluster{main}},
		"a resource that has the main's name": {"/main#https://b:1", []EtcdCluster{main, cluster("main-2", "https://b:1")}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			flags := append([]string{"--etcd-servers=https://10.0.0.1:2379"}, own...)
			if test.overrides != "" {
				flags = append(flags, "--etcd-servers-overrides="+test.overrides)
			}
			apiServer(t, root, flags...)
			got, complete, err := Clusters(root)
			must(t, err)
			if !complete {
				t.Error("the API server was not seen")
			}
			for i := range got {
				for _, file := range []*string{&got[i].CAFile, &got[i].CertFile, &got[i].KeyFile} {
					*file = strings.TrimPrefix(*file, root)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTheMainEtcdOfTwoPodsIsTheOneThatTheAPIServerNames(t *testing.T) {
	root := t.TempDir()
	etcd := func(name, port string) {
		write(t, root, "etc/kubernetes/manifests/"+name+".yaml", pod(name, []string{
			"etcd", "--name=" + name, "--data-dir=/var/lib/" + name, "--listen-client-urls=https://127.0.0.1:" + port + ",https://10.0.0.1:" + port,
		}, map[string]string{"/var/lib/" + name: "/var/lib/" + name}))
	}
	etcd("etcd", "2379")
	etcd("etcd-events", "2479")
	apiServer(t, root, "--etcd-servers=https://127.0.0.1:2379", "--etcd-servers-overrides=/events#https://127.0.0.1:2479")
	got, _, err := Clusters(root)
	must(t, err)
	if len(got) != 2 || got[0].Endpoints[0] != "https://127.0.0.1:2379" || got[1].Name != "events" || got[1].Endpoints[0] != "https://127.0.0.1:2479" {
		t.Errorf("got %+v", got)
	}
	d, err := Discover(root)
	must(t, err)
	if d.Name != "etcd" {
		t.Errorf("the main etcd is %q", d.Name)
	}
}

func selfSigned(t *testing.T, name string, until time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestCertificatesAreThoseThatSomebodyMustRenew(t *testing.T) {
	root := t.TempDir()
	soon := now.Add(time.Hour).Truncate(time.Second)
	add := func(file, name string, after time.Duration) {
		write(t, root, file, string(selfSigned(t, name, soon.Add(after))))
	}
	add("etc/kubernetes/pki/ca.crt", "ca", 5*time.Hour)
	add("etc/kubernetes/pki/etcd/server.crt", "etcd-server", 4*time.Hour)
	add("var/lib/kubelet/pki/kubelet-client-2026-01-01-00-00-00.pem", "old", -2*time.Hour)
	add("var/lib/kubelet/pki/kubelet-client-2026-02-01-00-00-00.pem", "kubelet", 3*time.Hour)
	must(t, os.Symlink("/var/lib/kubelet/pki/kubelet-client-2026-02-01-00-00-00.pem", filepath.Join(root, "var/lib/kubelet/pki/kubelet-client-current.pem")))
	write(t, root, "etc/kubernetes/pki/sa.pub", "-----BEGIN PUBLIC KEY-----\n")
	write(t, root, "etc/kubernetes/pki/broken.crt", "nonsense")
	write(t, root, "etc/kubernetes/pki/apiserver.key", string(selfSigned(t, "in a key's file", soon)))
	admin := base64.StdEncoding.EncodeToString(selfSigned(t, "admin", soon))
	write(t, root, "etc/kubernetes/admin.conf", fmt.Sprintf("users: [{name: kubernetes-admin, user: {client-certificate-data: %s, client-key-data: AA==}}]\nclusters: []\n", admin))
	write(t, root, "etc/kubernetes/kubelet.conf", "users: [{name: kubelet, user: {client-certificate: /var/lib/kubelet/pki/kubelet-client-current.pem}}]\n")
	got, err := Certificates(t.Context(), root)
	must(t, err)
	var files []string
	for _, c := range got {
		files = append(files, c.File+" "+c.Subject)
	}
	want := []string{
		"/etc/kubernetes/admin.conf#kubernetes-admin CN=admin", "/var/lib/kubelet/pki/kubelet-client-current.pem CN=kubelet",
		"/etc/kubernetes/pki/etcd/server.crt CN=etcd-server", "/etc/kubernetes/pki/ca.crt CN=ca",
	}
	if diff := cmp.Diff(want, files); diff != "" {
		t.Error(diff)
	}
	if !got[0].NotAfter.Equal(soon) {
		t.Errorf("expires at %s, want %s", got[0].NotAfter, soon)
	}
}

func TestAKubeadmNodeHasItsCertificates(t *testing.T) {
	got, err := Certificates(t.Context(), node(t, kubefixture.Stacked))
	must(t, err)
	has := map[string]bool{}
	for _, c := range got {
		has[c.File] = true
	}
	for _, want := range []string{"/etc/kubernetes/pki/apiserver.crt", "/etc/kubernetes/pki/etcd/healthcheck-client.crt", "/etc/kubernetes/admin.conf#kubernetes-admin"} {
		if !has[want] {
			t.Errorf("%s is missing among %v", want, has)
		}
	}
}
