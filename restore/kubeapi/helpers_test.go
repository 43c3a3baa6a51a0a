package kubeapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/restore/kubeapi"
)

// authority is a CA of a test's own.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &authority{t: t, cert: ca, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue makes a leaf for names, or for a user in system:masters without any.
func (a *authority) issue(common string, names ...string) (cert, key []byte) {
	a.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: common, Organization: []string{"system:masters"}}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, DNSNames: names,
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, private.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
}

// serverName is what the test servers' certificates are for.
const serverName = "api.example.test"

// kubeconfig is as kubeadm writes it.
func kubeconfig(server string, ca, cert, key []byte) []byte {
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: %s
    server: %s
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: kubernetes-admin
  name: kubernetes-admin@kubernetes
current-context: kubernetes-admin@kubernetes
kind: Config
users:
- name: kubernetes-admin
  user:
    client-certificate-data: %s
    client-key-data: %s
`, b64(ca), server, b64(cert), b64(key))
}

// serve starts a TLS server that wants a client certificate, and returns a client
// of it: its kubeconfig names another address, which nobody needs to resolve.
func serve(t *testing.T, handler http.Handler, change ...func(*kubeapi.Options)) *kubeapi.Client {
	t.Helper()
	ca := newAuthority(t)
	server := httptest.NewUnstartedServer(handler)
	cert, key := ca.issue("kube-apiserver", serverName)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	cert, key = ca.issue("kubernetes-admin")
	o := kubeapi.Options{Kubeconfig: kubeconfig("https://"+serverName+":6443", ca.pem, cert, key), Server: server.URL, Pause: time.Millisecond, Sleep: atOnce}
	for _, c := range change {
		c(&o)
	}
	client, err := kubeapi.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// atOnce passes the time in no time, but lets a test's context end.
func atOnce(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(min(d, time.Millisecond)):
		return nil
	}
}

// store is an API server's objects by path, with resource versions and
// preconditions as the real one has them.
type store struct {
	mu       sync.Mutex
	objects  map[string]map[string]any
	revision int
	requests []string                                                 // method and path of what changes something
	before   func(w http.ResponseWriter, r *http.Request) (done bool) // may answer itself; the lock is not held
	after    func(r *http.Request) (code int)                         // may answer something else than what was done
	now      func() time.Time                                         // its clock; nil: the real one
}

func newStore() *store { return &store{objects: map[string]map[string]any{}, revision: 1000} }

// put writes an object, with a new resource version.
func (s *store) put(path string, object map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(path, object)
}

func (s *store) write(path string, object map[string]any) {
	s.revision++
	meta, _ := object["metadata"].(map[string]any)
	if meta == nil {
		meta = map[string]any{}
		object["metadata"] = meta
	}
	meta["resourceVersion"] = strconv.Itoa(s.revision)
	parts := strings.Split(path, "/")
	meta["name"] = parts[len(parts)-1]
	if i := slices.Index(parts, "namespaces"); i >= 0 {
		meta["namespace"] = parts[i+1]
	}
	if meta["uid"] == nil {
		meta["uid"] = "uid-" + strconv.Itoa(s.revision)
	}
	s.objects[path] = object
}

func (s *store) get(path string) map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[path]
}

func (s *store) changes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.now != nil {
		w.Header().Set("Date", s.now().UTC().Format(http.TimeFormat))
	}
	if s.before != nil && s.before(w, r) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	code, answer := s.serve(r)
	if s.after != nil {
		if other := s.after(r); other != 0 {
			code, answer = other, status("lost")
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(answer)
}

func status(message string) map[string]any {
	return map[string]any{"kind": "Status", "message": message}
}

func (s *store) serve(r *http.Request) (int, any) {
	path := r.URL.Path
	if r.Method != http.MethodGet {
		s.requests = append(s.requests, r.Method+" "+path)
	}
	var body struct {
		Preconditions struct{ UID, ResourceVersion string }
		Metadata      struct {
			ResourceVersion string
			Annotations     map[string]string
		}
		Data map[string]*string
	}
	_ = json.NewDecoder(r.Body).Decode(&body)
	if path == "/readyz" {
		return 200, "ok"
	}
	object, ok := s.objects[path]
	if r.Method == http.MethodGet && !ok && (strings.HasSuffix(path, "/nodes") || strings.HasSuffix(path, "/leases") || strings.HasSuffix(path, "/pods")) {
		return s.list(r)
	}
	if !ok {
		return 404, status(path + " not found")
	}
	meta := object["metadata"].(map[string]any)
	switch r.Method {
	case http.MethodGet:
		return 200, object
	case http.MethodDelete:
		if p := body.Preconditions; p.UID != "" && p.UID != meta["uid"] || p.ResourceVersion != "" && p.ResourceVersion != meta["resourceVersion"] {
			return 409, status("Precondition failed")
		}
		delete(s.objects, path)
		return 200, status("")
	case http.MethodPatch:
		if v := body.Metadata.ResourceVersion; v != "" && v != meta["resourceVersion"] {
			return 409, status("the object has been modified")
		}
		data := maps.Clone(object["data"].(map[string]string))
		for k, v := range body.Data {
			if v == nil {
				delete(data, k)
			} else {
				data[k] = *v
			}
		}
		s.write(path, map[string]any{"metadata": map[string]any{"uid": meta["uid"], "annotations": body.Metadata.Annotations}, "data": data})
		return 200, s.objects[path]
	}
	return 405, status("no")
}

// list gives two objects a page.
func (s *store) list(r *http.Request) (int, any) {
	var items []any
	all := slices.Sorted(maps.Keys(s.objects))
	next := ""
	for _, path := range all {
		collection := path[:strings.LastIndex(path, "/")]
		if r.URL.Path == "/api/v1/pods" && strings.HasSuffix(collection, "/pods") {
			collection = r.URL.Path
		}
		if collection != r.URL.Path || path <= r.URL.Query().Get("continue") {
			continue
		}
		if len(items) == 2 {
			next = all[slices.Index(all, path)-1]
			break
		}
		items = append(items, s.objects[path])
	}
	return 200, map[string]any{"metadata": map[string]any{"continue": next}, "items": items}
}

const (
	nodes  = "/api/v1/nodes/"
	leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/"
)

func node(ready string) map[string]any {
	return map[string]any{"status": map[string]any{"conditions": []any{map[string]any{"type": "Ready", "status": ready}}}}
}

func lease(renewed time.Time) map[string]any {
	return map[string]any{"spec": map[string]any{"renewTime": renewed.UTC().Format("2006-01-02T15:04:05.000000Z07:00")}}
}
