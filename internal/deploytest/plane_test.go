//go:build deploy

package deploytest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/freeport"
)

// plane is a real kube-apiserver with its etcd and nothing else: no
// controllers, no kubelet. It ends with the test.
type plane struct {
	t      *testing.T
	url    string
	token  string // of a user in system:masters
	ca     string // file
	client *http.Client
	stop   func() // ends the API server, and returns when it has ended
}

func startPlane(t *testing.T) *plane {
	t.Helper()
	member, err := etcdtest.StartEmbedded(filepath.Join(t.TempDir(), "etcd"), etcdtest.EmbeddedOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = member.Close() })
	return startAPIServer(t, member.Endpoint)
}

// startAPIServer starts an API server on an etcd that is there.
func startAPIServer(t *testing.T, etcd string, flags ...string) *plane {
	t.Helper()
	dir := t.TempDir()
	port, err := freeport.Take()
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{t: t, url: fmt.Sprintf("https://127.0.0.1:%d", port), token: rand.Text(), ca: filepath.Join(dir, "certs", "apiserver.crt")}
	write := func(name string, data []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	accounts := write("accounts.key", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	tokens := write("tokens.csv", []byte(p.token+`,admin,admin,"system:masters"`+"\n"))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(tool(t, filepath.Join("kube", "kube-apiserver")), append([]string{
		"--etcd-servers=" + etcd, "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port), "--advertise-address=127.0.0.1",
		"--cert-dir=" + filepath.Join(dir, "certs"), "--token-auth-file=" + tokens, "--authorization-mode=RBAC",
		"--service-account-issuer=https://plane.test", "--service-account-key-file=" + accounts, "--service-account-signing-key-file=" + accounts,
		"--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged=true",
	}, flags...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
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
	p.stop = func() { _ = cmd.Process.Kill(); <-ended }
	t.Cleanup(p.stop)
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if p.client == nil {
			p.client = trusting(p.ca)
		}
		if p.client != nil {
			if code, _ := p.ask("GET", "/readyz", "", nil); code == http.StatusOK {
				return p
			}
		}
		select {
		case <-ended:
		default:
			if time.Now().Before(deadline) {
				continue
			}
		}
		text, _ := os.ReadFile(log.Name())
		t.Fatalf("the API server does not get ready:\n%s", tail(text))
	}
}

func tail(text []byte) []byte { return text[max(0, len(text)-4000):] }

// trusting is a client that believes the certificates in a file, nil while
// there is none.
func trusting(file string) *http.Client {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, Timeout: 30 * time.Second}
}

// ask sends a request and returns the answer's code and body; 0 if there is
// no answer.
func (p *plane) ask(method, path, contentType string, body []byte) (int, string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, p.url+path, bytes.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+p.token)
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	answer, err := p.client.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(text)
}

// places are the collections of the kinds that deploy/ holds. Namespaces
// have %s where they are namespaced.
var places = map[string]string{
	"Namespace":                "/api/v1/namespaces",
	"CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
	"ServiceAccount":           "/api/v1/namespaces/%s/serviceaccounts",
	"ConfigMap":                "/api/v1/namespaces/%s/configmaps",
	"Service":                  "/api/v1/namespaces/%s/services",
	"Pod":                      "/api/v1/namespaces/%s/pods",
	"DaemonSet":                "/apis/apps/v1/namespaces/%s/daemonsets",
	"CronJob":                  "/apis/batch/v1/namespaces/%s/cronjobs",
	"NetworkPolicy":            "/apis/networking.k8s.io/v1/namespaces/%s/networkpolicies",
	"PodMonitor":               "/apis/monitoring.coreos.com/v1/namespaces/%s/podmonitors",
	"ServiceMonitor":           "/apis/monitoring.coreos.com/v1/namespaces/%s/servicemonitors",
	"PrometheusRule":           "/apis/monitoring.coreos.com/v1/namespaces/%s/prometheusrules",
}

// apply is a server-side apply in which unknown fields are errors. With
// dryRun everything is done but storing.
func (p *plane) apply(o object, dryRun bool) error {
	place, known := places[fmt.Sprint(o["kind"])]
	if !known {
		return fmt.Errorf("the test does not know where a %v goes", o["kind"])
	}
	if strings.Contains(place, "%s") {
		place = fmt.Sprintf(place, o.at("metadata.namespace"))
	}
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	query := "?fieldManager=test&force=true&fieldValidation=Strict"
	if dryRun {
		query += "&dryRun=All"
	}
	code, answer := p.ask("PATCH", place+"/"+o.name()+query, "application/apply-patch+yaml", body)
	if code != http.StatusOK && code != http.StatusCreated {
		return fmt.Errorf("apply %v %s: %d %s", o["kind"], o.name(), code, answer)
	}
	return nil
}

// namespace makes one whose pods must keep to a level of Pod Security.
func (p *plane) namespace(name, enforce string) {
	p.t.Helper()
	err := p.apply(object{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{
		"name": name, "labels": map[string]any{"pod-security.kubernetes.io/enforce": enforce},
	}}, false)
	if err != nil {
		p.t.Fatal(err)
	}
	err = p.apply(object{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": map[string]any{"name": "lifeboat", "namespace": name}}, false)
	if err != nil {
		p.t.Fatal(err)
	}
}

// kubeconfig writes what kubectl and helm need.
func (p *plane) kubeconfig() string {
	p.t.Helper()
	file := filepath.Join(p.t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"p","contexts":[{"name":"p","context":{"cluster":"p","user":"p"}}],
"clusters":[{"name":"p","cluster":{"server":%q,"certificate-authority":%q}}],"users":[{"name":"p","user":{"token":%q}}]}`, p.url, p.ca, p.token)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return file
}

// podIn makes a pod of a template's spec.
func podIn(namespace, name string, spec object) object {
	return object{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name, "namespace": namespace}, "spec": map[string]any(spec)}
}
