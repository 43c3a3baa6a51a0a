package etcd

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestTheAuthRevisionIsReadFromAMetricsPage(t *testing.T) {
	for page, want := range map[string]uint64{
		"# TYPE etcd_debugging_auth_revision gauge\netcd_debugging_auth_revision 7\n": 7,
		"etcd_debugging_auth_revision 1.048577e+06":                                   1048577,
		"etcd_debugging_auth_revision_total 3\netcd_debugging_auth_revision 0\n":      0,
	} {
		if got, err := authRevision(strings.NewReader(page)); err != nil || got != want {
			t.Errorf("%q: %d, %v", page, got, err)
		}
	}
	for _, page := range []string{"", "etcd_debugging_auth_revision", "etcd_debugging_auth_revision NaN", "etcd_debugging_auth_revision -1", "etcd_debugging_auth_revision 1e30", "etcd_debugging_auth_revision {", strings.Repeat("x", 1<<20)} {
		if got, err := authRevision(strings.NewReader(page)); err == nil {
			t.Errorf("%.40q: %d", page, got)
		}
	}
}

func TestAMetricsPageThatIsNotServedIsAnError(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("etcd_debugging_auth_revision 7\n"))
	}))
	defer elsewhere.Close()
	for name, answer := range map[string]http.HandlerFunc{
		"404":                     http.NotFound,
		"sends to another server": http.RedirectHandler(elsewhere.URL, http.StatusFound).ServeHTTP,
		"another page":            func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("up 1\n")) },
		"the page, as an error": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			w.Write([]byte("etcd_debugging_auth_revision 7\n"))
		},
	} {
		server := httptest.NewServer(answer)
		c, err := Open(Config{Name: "main", Endpoints: []string{server.URL}}, Limits{Call: time.Second}, nil)
		if err != nil {
			t.Fatal(err)
		}
		revision, err := Watchable{Endpoint: server.URL, cluster: c}.AuthRevision(t.Context())
		if err == nil || !strings.Contains(err.Error(), server.URL+"/metrics") {
			t.Errorf("%s: revision %d, error %v", name, revision, err)
		}
		c.Close()
		server.Close()
	}
}
