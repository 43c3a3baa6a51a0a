package web

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/status"
	"lifeboat/internal/web/webtest"
)

// warnings collects what a server says.
type warnings struct {
	mu   sync.Mutex
	list []events.Warning
}

func (w *warnings) listen(e events.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if warning, ok := e.(events.Warning); ok {
		w.list = append(w.list, warning)
	}
}

func (w *warnings) all() []events.Warning {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]events.Warning(nil), w.list...)
}

func metrics(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })
}

// ask sends one request to a handler.
func ask(h http.Handler, method, path string, change ...func(*http.Request)) *http.Response {
	r := httptest.NewRequest(method, "http://agent"+path, nil)
	for _, c := range change {
		c(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestPaths(t *testing.T) {
	loaded := New(Options{Status: webtest.Well, Metrics: metrics("lifeboat_up 1\n")}).Handler()
	fresh := New(Options{Status: webtest.NotLoaded}).Handler()
	bare := New(Options{}).Handler()
	for _, test := range []struct {
		name, method, path string
		handler            http.Handler
		code               int
		kind, says         string
	}{
		{"alive", "GET", "/healthz", loaded, 200, "text/plain", "ok"},
		{"alive before anything is known", "GET", "/healthz", bare, 200, "text/plain", "ok"},
		{"ready", "GET", "/readyz", loaded, 200, "text/plain", "ready"},
		{"not ready, with the reason", "GET", "/readyz", fresh, 503, "text/plain", "not ready: the stores have not all been asked"},
		{"not ready without a status", "GET", "/readyz", bare, 503, "text/plain", "not ready"},
		{"the page", "GET", "/", loaded, 200, "text/html", "<h1>prod-eu1-7f3a91c2</h1>"},
		{"the page before anything is known", "GET", "/", fresh, 200, "text/html", "Not known yet"},
		{"the page without a status", "GET", "/", bare, 200, "text/html", "Not known yet"},
		{"status", "GET", "/status.json", loaded, 200, "application/json", `"cluster":"prod-eu1-7f3a91c2"`},
		{"metrics", "GET", "/metrics", loaded, 200, "text/plain", "lifeboat_up 1"},
		{"no metrics", "GET", "/metrics", bare, 404, "text/plain", "no metrics"},
		{"nothing else", "GET", "/favicon.ico", loaded, 404, "text/plain", "not found"},
		{"nothing below", "GET", "/status.json/", loaded, 404, "text/plain", "not found"},
		{"no way around", "GET", "//metrics", loaded, 404, "text/plain", "not found"},
		{"no way up", "GET", "/../etc/passwd", loaded, 404, "text/plain", "not found"},
		{"no debugging", "GET", "/debug/pprof/", loaded, 404, "text/plain", "not found"},
		{"only reading", "POST", "/", loaded, 405, "text/plain", "only GET and HEAD"},
		{"only reading health", "DELETE", "/healthz", loaded, 405, "text/plain", "only GET and HEAD"},
		{"no tracing", "TRACE", "/", loaded, 405, "text/plain", "only GET and HEAD"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := ask(test.handler, test.method, test.path)
			text := body(t, r)
			if r.StatusCode != test.code || !strings.HasPrefix(r.Header.Get("Content-Type"), test.kind) || !strings.Contains(text, test.says) {
				t.Errorf("%d %s %.200q, want %d %s with %q", r.StatusCode, r.Header.Get("Content-Type"), text, test.code, test.kind, test.says)
			}
			for name, want := range map[string]string{
				"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
				"X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin",
			} {
				if got := r.Header.Get(name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
			csp := r.Header.Get("Content-Security-Policy")
			if !strings.HasPrefix(csp, "default-src 'none'") || (test.kind == "text/html") != (csp == policy) {
				t.Errorf("policy %q", csp)
			}
			if (test.code == 405) != (r.Header.Get("Allow") == "GET, HEAD") {
				t.Errorf("Allow is %q", r.Header.Get("Allow"))
			}
		})
	}
}

func TestStatusJSONIsTheStatus(t *testing.T) {
	want := webtest.StoreDown()
	r := ask(New(Options{Status: func() *status.Status { return want }}).Handler(), "GET", "/status.json")
	var got status.Status
	if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", *want) {
		t.Errorf("got %+v, want %+v", got, *want)
	}
}

func TestAPanicIsAnAnswerAndAWarning(t *testing.T) {
	var heard warnings
	h := New(Options{Status: func() *status.Status { panic("a bug") }, Events: heard.listen}).Handler()
	if r := ask(h, "GET", "/"); r.StatusCode != 500 || strings.Contains(body(t, r), "a bug") {
		t.Errorf("answered %d", r.StatusCode)
	}
	if list := heard.all(); len(list) != 1 || !strings.Contains(list[0].Message, "a bug") {
		t.Errorf("warnings %v", list)
	}
}

// serve runs a server on a loopback port until the test ends.
func serve(t *testing.T, options Options) (address string, stop func() error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- New(options).Serve(ctx, listener) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { stop() })
	return listener.Addr().String(), stop
}

func TestServeEndsWithItsContextAndFinishesWhatIsUnderWay(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	address, stop := serve(t, Options{Metrics: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-leave
		if r.Context().Err() != nil {
			t.Error("the request under way was given up")
		}
		io.WriteString(w, "late answer")
	})})
	answer := make(chan string, 1)
	go func() {
		r, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer r.Body.Close()
		text, _ := io.ReadAll(r.Body)
		answer <- string(text)
	}()
	<-entered
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	select {
	case err := <-ended:
		t.Fatalf("Serve returned before the request was answered: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(leave)
	if got := <-answer; got != "late answer" {
		t.Errorf("answer %q", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := http.Get("http://" + address + "/healthz"); err == nil {
		t.Error("it still answers")
	}
}

func TestServeFailsWhenItsListenerDoes(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	if err := New(Options{}).Serve(t.Context(), listener); err == nil || !strings.Contains(err.Error(), "serve http on 127.0.0.1:") {
		t.Errorf("got %v", err)
	}
}

func TestLongHeadersAreRefused(t *testing.T) {
	address, _ := serve(t, Options{})
	request, err := http.NewRequest("GET", "http://"+address+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Long", strings.Repeat("x", 64<<10))
	r, err := http.DefaultClient.Do(request)
	if err == nil && r.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("answered %s", r.Status)
	}
}

func TestHeadHasNoBody(t *testing.T) {
	address, _ := serve(t, Options{Status: webtest.Well})
	r, err := http.Head("http://" + address + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if text := body(t, r); text != "" || r.ContentLength < 10_000 || r.StatusCode != 200 {
		t.Errorf("%s, length %d, %d bytes", r.Status, r.ContentLength, len(text))
	}
}

func TestManyReadersAtOnce(t *testing.T) {
	var mu sync.Mutex
	now := webtest.Well()
	address, _ := serve(t, Options{Metrics: metrics("m 1\n"), Status: func() *status.Status {
		mu.Lock()
		defer mu.Unlock()
		return now
	}})
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			for j := range 10 {
				path := []string{"/", "/status.json", "/metrics", "/readyz"}[(i+j)%4]
				r, err := http.Get("http://" + address + path)
				if err != nil {
					t.Error(err)
					return
				}
				var b bytes.Buffer
				b.ReadFrom(r.Body)
				r.Body.Close()
				if r.StatusCode != 200 || b.Len() == 0 {
					t.Errorf("%s: %s, %d bytes", path, r.Status, b.Len())
				}
				mu.Lock()
				now = webtest.Late()
				mu.Unlock()
			}
		})
	}
	all.Wait()
}
