package plane

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/hostfacts"
	"lifeboat/restore/kubeapi"
)

// TestANodeThatGotAnotherNameAndStillLivesStays: whether the old machine lives is
// told by a lease that is newer than the restore.
func TestANodeThatGotAnotherNameAndStillLivesStays(t *testing.T) {
	const began = 1_000_000_455
	etcd, err := etcdtest.StartEmbedded(t.TempDir(), etcdtest.EmbeddedOptions{})
	check(t, err)
	t.Cleanup(func() { etcd.Close() })
	deleted := false
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		deleted = deleted || r.Method == http.MethodDelete
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Path == "/readyz":
			fmt.Fprint(w, "ok")
		case strings.HasSuffix(r.URL.Path, "/kube-node-lease/leases"):
			fmt.Fprintf(w, `{"kind":"LeaseList","metadata":{"resourceVersion":"%d"},"items":[{"metadata":{"name":"cp1","uid":"u","resourceVersion":"%d"},"spec":{"renewTime":"2026-11-20T12:00:00.000000Z"}}]}`, began+9, began+5)
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"kind":"Status","code":404,"reason":"NotFound"}`)
		}
	}))
	t.Cleanup(s.Close)
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	_, kubeconfig := server(t)
	before, _, _ := strings.Cut(kubeconfig, "certificate-authority-data: ")
	_, after, _ := strings.Cut(kubeconfig, "}}]")
	kubeconfig = before + "certificate-authority-data: " + ca + "}}]" + after
	l, err := NewLiving(LivingOptions{
		Staged: staged(t, hostfacts.Discovery{EtcdEndpoints: []string{etcd.Endpoint}}, kubeconfig), Node: "cp4", Server: s.URL, Revision: began,
		Order: Order{Node: "cp1", Rename: []string{"cp1=cp4"}, RestoreID: "r1"},
	})
	check(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, _, err := l.Tidy(ctx); !errors.Is(err, kubeapi.ErrAlive) || !strings.Contains(err.Error(), "cp1") {
		t.Errorf("%v", err)
	}
	if deleted {
		t.Error("something was deleted")
	}
}
