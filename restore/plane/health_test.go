package plane

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/hostfacts"
	"lifeboat/restore/nodefiles"
)

// staged is a node's staged files, by hand: a kubeconfig and how to reach etcd.
func staged(t *testing.T, etcd hostfacts.Discovery, kubeconfig string) *nodefiles.Staged {
	t.Helper()
	dir := t.TempDir()
	record, err := json.Marshal(nodefiles.Staged{Facts: &hostfacts.Facts{Format: hostfacts.Format, Node: "cp1"}, Etcd: &etcd})
	check(t, err)
	check(t, os.MkdirAll(filepath.Join(dir, "tree/etc/kubernetes"), 0o700))
	check(t, os.WriteFile(filepath.Join(dir, "staged.json"), record, 0o600))
	if kubeconfig != "" {
		check(t, os.WriteFile(filepath.Join(dir, "tree", adminConf), []byte(kubeconfig), 0o600))
	}
	s, err := nodefiles.Load(dir)
	check(t, err)
	return s
}

// server is an API server that is ready, as far as its protocol goes.
func server(t *testing.T) (url, kubeconfig string) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" || r.Header.Get("Authorization") != "Bearer admin" {
			http.NotFound(w, r)
			return
		}
		w.Write([]byte("ok"))
	}))
	t.Cleanup(s.Close)
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	return s.URL, `apiVersion: v1
kind: Config
current-context: admin
clusters: [{name: k, cluster: {server: "https://example.com:6443", certificate-authority-data: ` + ca + `}}]
contexts: [{name: admin, context: {cluster: k, user: admin}}]
users: [{name: admin, user: {token: admin}}]
`
}

func TestALivingControlPlaneIsAskedWithItsOwnCredentials(t *testing.T) {
	etcd, err := etcdtest.StartEmbedded(t.TempDir(), etcdtest.EmbeddedOptions{})
	check(t, err)
	t.Cleanup(func() { etcd.Close() })
	url, kubeconfig := server(t)
	l, err := NewLiving(LivingOptions{Staged: staged(t, hostfacts.Discovery{EtcdEndpoints: []string{etcd.Endpoint}}, kubeconfig), Node: "cp1", Server: url})
	check(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	check(t, l.Etcd(ctx))
	check(t, l.API(ctx))
	if done, left, err := l.Tidy(ctx); err != nil || len(done)+len(left) > 0 {
		t.Errorf("nothing had to be tidied: %v, %v, %v", done, left, err)
	}
}

func TestADeadEtcdIsWaitedForAndTold(t *testing.T) {
	_, kubeconfig := server(t)
	var told []string
	l, err := NewLiving(LivingOptions{
		Staged: staged(t, hostfacts.Discovery{EtcdEndpoints: []string{"http://127.0.0.1:1"}}, kubeconfig), Progress: func(text string) { told = append(told, text) },
	})
	check(t, err)
	defer l.Close()
	l.pause = 10 * time.Millisecond
	late := errors.New("late")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, late)
	defer cancel()
	if err := l.Etcd(ctx); !errors.Is(err, late) || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("%v", err)
	}
	if len(told) == 0 || !strings.Contains(told[0], "etcd:") {
		t.Errorf("told %q", told)
	}
}

func TestCredentialsThatCantBeUsedAreNamed(t *testing.T) {
	_, kubeconfig := server(t)
	for name, c := range map[string]struct {
		etcd       hostfacts.Discovery
		kubeconfig string
		say        string
	}{
		"no kubeconfig":   {hostfacts.Discovery{EtcdEndpoints: []string{"http://x"}}, "", adminConf},
		"no CA":           {hostfacts.Discovery{EtcdEndpoints: []string{"https://x"}, CAFile: "/etc/kubernetes/ca.crt"}, kubeconfig, "/etc/kubernetes/ca.crt"},
		"a CA that isn't": {hostfacts.Discovery{EtcdEndpoints: []string{"https://x"}, CAFile: adminConf}, kubeconfig, "holds no certificate"},
	} {
		if _, err := NewLiving(LivingOptions{Staged: staged(t, c.etcd, c.kubeconfig)}); err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
