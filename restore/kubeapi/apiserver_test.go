//go:build deploy

package kubeapi_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/freeport"
	"lifeboat/restore/kubeapi"
	"lifeboat/restore/readdress"
)

// plane is a real kube-apiserver on a real etcd, and nothing else. It ends with
// the test.
type plane struct {
	t       *testing.T
	etcd    *cluster.Cluster
	url     string
	options kubeapi.Options
	http    *http.Client
}

func startPlane(t *testing.T) *plane {
	t.Helper()
	_, self, _, _ := runtime.Caller(0)
	binary := filepath.Join(filepath.Dir(self), "..", "..", "bin", "tools", "kube", "kube-apiserver")
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("kube-apiserver is missing (%v): run make tools-e2e", err)
	}
	port, err := freeport.Take()
	if err != nil {
		t.Fatal(err)
	}
	dir, ca := t.TempDir(), newAuthority(t)
	write := func(name string, data []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	p := &plane{t: t, etcd: cluster.StartBinary(t, "3.6", cluster.Options{}), url: fmt.Sprintf("https://127.0.0.1:%d", port)}
	cert, key := ca.issue("kube-apiserver", serverName)
	_, accounts := ca.issue("accounts")
	client, clientKey := ca.issue("kubernetes-admin")
	pair, err := tls.X509KeyPair(client, clientKey)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	p.http = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, ServerName: serverName}}}
	p.options = kubeapi.Options{Kubeconfig: kubeconfig("https://"+serverName+":6443", ca.pem, client, clientKey), Server: p.url, Pause: 100 * time.Millisecond}

	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	file := write("accounts.key", accounts)
	cmd := exec.Command(binary,
		"--etcd-servers="+p.etcd.Members[0].Endpoint, "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port), "--advertise-address=192.0.2.11",
		"--tls-cert-file="+write("apiserver.crt", cert), "--tls-private-key-file="+write("apiserver.key", key), "--client-ca-file="+write("ca.crt", ca.pem),
		"--authorization-mode=RBAC", "--service-account-issuer=https://plane.test", "--service-account-key-file="+file, "--service-account-signing-key-file="+file,
		"--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged=true", "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
	)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = []string{"HOME=" + dir}
	// It dies with the test. The kernel ties that to the thread that started it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("the API server's log ends:\n%s", text[max(0, len(text)-3000):])
		}
	})
	return p
}

// create makes an object, and returns it.
func (p *plane) create(path string, object map[string]any) map[string]any {
	p.t.Helper()
	body, err := json.Marshal(object)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.send("POST", path, "application/json", body)
}

func (p *plane) send(method, path, contentType string, body []byte) map[string]any {
	p.t.Helper()
	request, err := http.NewRequest(method, p.url+path, bytes.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	request.Header.Set("Content-Type", contentType)
	answer, err := p.http.Do(request)
	if err != nil {
		p.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode > 299 {
		p.t.Fatalf("%s %s: %d %s %v", method, path, answer.StatusCode, text, err)
	}
	var out map[string]any
	if err := json.Unmarshal(text, &out); err != nil {
		p.t.Fatal(err)
	}
	return out
}

func (p *plane) node(name, ready string, renewed time.Time) {
	p.t.Helper()
	p.create("/api/v1/nodes", map[string]any{"metadata": map[string]any{"name": name}})
	p.send("PATCH", "/api/v1/nodes/"+name+"/status", "application/merge-patch+json", fmt.Appendf(nil, `{"status":{"conditions":[{"type":"Ready","status":%q}]}}`, ready))
	p.create(strings.TrimSuffix(leases, "/"), map[string]any{"metadata": map[string]any{"name": name}, "spec": lease(renewed)["spec"]})
}

func (p *plane) renew(name string) {
	p.t.Helper()
	body, err := json.Marshal(map[string]any{"spec": lease(time.Now())["spec"]})
	if err != nil {
		p.t.Fatal(err)
	}
	p.send("PATCH", leases+name, "application/merge-patch+json", body)
}

func TestARealAPIServer(t *testing.T) {
	p := startPlane(t)
	client, err := kubeapi.New(p.options)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var told []string
	if err := client.WaitReady(ctx, func(text string) { told = append(told, text) }); err != nil {
		t.Fatal(err)
	}
	if len(told) == 0 {
		t.Error("nothing was told of what was waited for")
	}
	for _, namespace := range []string{"kube-node-lease", "kube-system", "kube-public"} {
		for { // the server makes them itself, a little later
			answer, err := p.http.Get(p.url + "/api/v1/namespaces/" + namespace)
			if err != nil {
				t.Fatal(err)
			}
			_ = answer.Body.Close()
			if answer.StatusCode == 200 {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	p.node("cp1", "True", time.Now().Add(-time.Hour))
	p.node("cp3", "True", time.Now().Add(-time.Hour))
	for _, pod := range []struct{ name, on string }{{"etcd-cp1", "cp1"}, {"etcd-cp3", "cp3"}} {
		p.create("/api/v1/namespaces/kube-system/pods", map[string]any{
			"metadata": map[string]any{"name": pod.name, "annotations": map[string]any{"kubernetes.io/config.mirror": "x", "kubernetes.io/config.source": "file"}},
			"spec":     map[string]any{"nodeName": pod.on, "hostNetwork": true, "containers": []any{map[string]any{"name": "etcd", "image": "etcd"}}},
		})
	}
	for path, object := range kubeadms().objects {
		p.create(path[:strings.LastIndex(path, "/")], map[string]any{"metadata": map[string]any{"name": path[strings.LastIndex(path, "/")+1:]}, "data": object["data"]})
	}
	r, err := p.etcd.Client().Get(ctx, "x")
	if err != nil {
		t.Fatal(err)
	}
	since := kubeapi.Since{Time: time.Now(), Revision: r.Header.Revision}

	short, done := context.WithTimeout(ctx, 500*time.Millisecond)
	defer done()
	if _, err := client.WaitLease(short, "cp1", since, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nodes of the snapshot were taken for ready: %v", err)
	}
	p.renew("cp1")
	if l, err := client.WaitLease(ctx, "cp1", since, nil); err != nil || l.Revision <= since.Revision {
		t.Errorf("%+v, %v", l, err)
	}

	removal := kubeapi.Removal{Since: since, Observe: time.Second}
	if got, err := client.RemoveNodes(ctx, []string{"cp1", "cp3"}, removal); !errors.Is(err, kubeapi.ErrAlive) || len(got) != 0 {
		t.Errorf("a live node was removed: %v, %v", got, err)
	}
	got, err := client.RemoveNodes(ctx, []string{"cp3"}, removal)
	if err != nil || len(got) != 3 {
		t.Fatalf("%v, %v", got, err)
	}
	if nodes, err := client.Nodes(ctx); err != nil || len(nodes) != 1 || nodes[0].Name != "cp1" {
		t.Errorf("%v, %v", nodes, err)
	}
	if got, err = client.RemoveNodes(ctx, []string{"cp3"}, removal); err != nil || len(got) != 0 {
		t.Errorf("again: %v, %v", got, err)
	}

	m := mapping(t, readdress.Options{Addresses: []string{"10.0.0.11=10.0.0.44", "10.0.0.44=10.0.0.11"}})
	for i, want := range []int{3, 0} {
		if got, err = client.Readdress(ctx, m, "r1"); err != nil || len(got) != want {
			t.Errorf("readdressed for the %d. time: %v, %v", i+1, got, err)
		}
	}
	info := p.send("GET", clusterInfo, "", nil)["data"].(map[string]any)
	if len(info) != 2 || !strings.Contains(info["kubeconfig"].(string), "https://10.0.0.44:6443") {
		t.Errorf("%v", info)
	}

	// The server notes its address in etcd, as 192.0.2.11.
	put(t, p.etcd.Client(), "/registry/masterleases/192.0.2.12", "x")
	e := connect(t, p.etcd)
	stale, err := e.StaleMasters(ctx, []netip.Addr{netip.MustParseAddr("192.0.2.11")}, "")
	if err != nil || len(stale) != 1 || stale[0].Address.String() != "192.0.2.12" {
		t.Fatalf("%v, %v", stale, err)
	}
	all, err := e.StaleMasters(ctx, []netip.Addr{netip.MustParseAddr("192.0.2.99")}, "")
	if err != nil || !slices.ContainsFunc(all, func(m kubeapi.MasterLease) bool { return m.Address.String() == "192.0.2.11" }) {
		t.Errorf("the living one's key is not where it is looked for: %v, %v", all, err)
	}
	if done, err := e.DeleteMasters(ctx, stale); err != nil || len(done) != 1 {
		t.Errorf("%v, %v", done, err)
	}

	p.etcd.Kill(0)
	for { // the server remembers its last look at etcd for a while
		err := client.Ready(ctx)
		if err == nil {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		var not *kubeapi.NotReadyError
		if !errors.As(err, &not) || !slices.Contains(not.Checks, "etcd") {
			t.Errorf("without etcd: %v", err)
		}
		break
	}
}
