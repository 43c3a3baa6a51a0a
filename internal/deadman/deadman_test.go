package deadman

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/events"
)

// service stands for the outside one on fake time.
type service func(*http.Request) (*http.Response, error)

func (s service) RoundTrip(r *http.Request) (*http.Response, error) { return s(r) }

func answer(code int) *http.Response {
	return &http.Response{StatusCode: code, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("OK"))}
}

func urlFile(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestTheURLIsRequestedAtOnceAndEveryIntervalWhileAllIsWell(t *testing.T) {
	file := urlFile(t, "https://example.test/secret\n")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		begin := time.Now()
		var asked []time.Duration
		var healthy atomic.Bool
		healthy.Store(true)
		go Run(ctx, Options{
			URLFile: file, Interval: 5 * time.Minute, Healthy: healthy.Load,
			Client: &http.Client{Transport: service(func(r *http.Request) (*http.Response, error) {
				if r.URL.String() != "https://example.test/secret" {
					t.Errorf("asked for %s", r.URL)
				}
				asked = append(asked, time.Since(begin))
				return answer(200), nil
			})},
		})
		time.Sleep(11 * time.Minute)
		healthy.Store(false)
		time.Sleep(time.Hour)
		healthy.Store(true)
		time.Sleep(4 * time.Minute) // soon after it is well again
		cancel()
		synctest.Wait()
		want := []time.Duration{0, 5 * time.Minute, 10 * time.Minute, 71*time.Minute + 10*time.Second}
		if len(asked) != len(want) || !slices.Equal(asked[:3], want[:3]) || asked[3] < 71*time.Minute || asked[3] > want[3] {
			t.Errorf("asked after %v, want %v", asked, want)
		}
	})
}

func TestAFailedRequestIsRepeatedAnIntervalLater(t *testing.T) {
	file := urlFile(t, "https://example.test/secret")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		results := []any{answer(503), errors.New("https://example.test/secret broke"), answer(503), answer(503), answer(204)}
		var well []bool
		var said []string
		go Run(ctx, Options{
			URLFile: file, Interval: time.Minute, Healthy: func() bool { return true },
			OnPing: func(_ time.Time, ok bool) { well = append(well, ok) },
			Events: func(e events.Event) { said = append(said, e.(events.Warning).Message) },
			Client: &http.Client{Transport: service(func(*http.Request) (*http.Response, error) {
				next := results[0]
				results = results[1:]
				if err, ok := next.(error); ok {
					return nil, err
				}
				return next.(*http.Response), nil
			})},
		})
		time.Sleep(4*time.Minute + 30*time.Second)
		cancel()
		synctest.Wait()
		if want := []bool{false, false, false, false, true}; !slices.Equal(well, want) {
			t.Errorf("pings went %v, want %v", well, want)
		}
		if want := []string{"the service answered 503", "the request failed", "the service answered 503"}; !slices.Equal(said, want) {
			t.Errorf("said %q, want %q: each new reason once", said, want)
		}
	})
}

func TestAServiceThatHangsHoldsUpNothing(t *testing.T) {
	file := urlFile(t, "https://example.test/secret")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		begin := time.Now()
		var ends []time.Duration
		var said []string
		done := make(chan struct{})
		go func() {
			defer close(done)
			Run(ctx, Options{
				URLFile: file, Interval: time.Minute, Healthy: func() bool { return true },
				OnPing: func(time.Time, bool) { ends = append(ends, time.Since(begin)) },
				Events: func(e events.Event) { said = append(said, e.(events.Warning).Message) },
				Client: &http.Client{Transport: service(func(r *http.Request) (*http.Response, error) {
					<-r.Context().Done()
					return nil, r.Context().Err()
				})},
			})
		}()
		time.Sleep(2*time.Minute + 15*time.Second)
		cancel() // in the middle of a request
		<-done
		if want := []time.Duration{30 * time.Second, 2 * time.Minute}; !slices.Equal(ends, want) {
			t.Errorf("requests ended after %v, want %v", ends, want)
		}
		if !slices.Equal(said, []string{"no answer in time"}) {
			t.Errorf("said %q", said)
		}
	})
}

func TestTheURLIsReadAgainForEveryRequest(t *testing.T) {
	var paths []string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { paths = append(paths, r.URL.Path) }))
	defer server.Close()
	file := urlFile(t, server.URL+"/one\n")
	client := newClient(Options{Interval: time.Minute})
	for _, path := range []string{"/one", "/two"} {
		if err := os.WriteFile(file, []byte(server.URL+path), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ping(t.Context(), client, file); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(paths, []string{"/one", "/two"}) {
		t.Errorf("asked for %v", paths)
	}
}

func TestNoErrorHoldsAnyOfTheURL(t *testing.T) {
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "loop"):
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		case strings.HasSuffix(r.URL.Path, "torn"):
			panic(http.ErrAbortHandler)
		default:
			http.Error(w, "no such check: "+r.URL.Path, http.StatusNotFound)
		}
	}))
	plain.Config.ErrorLog = nil
	defer plain.Close()
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for name, c := range map[string]struct{ content, want string }{
		"not found":              {plain.URL + "/topsecret", "the service answered 404"},
		"a loop of redirects":    {plain.URL + "/topsecret/loop", "too many redirects, or one from https to http"},
		"a torn connection":      {plain.URL + "/topsecret/torn", "the request failed"},
		"nobody listens":         {closed.URL + "/topsecret", "no connection to the host"},
		"an unknown certificate": {secure.URL + "/topsecret", "the server's certificate can't be verified"},
		"no URL":                 {"topsecret", "does not hold one http or https URL"},
		"a bad escape":           {"https://topsecret/%zz", "does not hold one http or https URL"},
		"a control character":    {"https://example.test/\x01topsecret", "does not hold one http or https URL"},
		"two lines":              {"https://example.test/topsecret\nhttps://example.test/topsecret", "does not hold one http or https URL"},
		"another scheme":         {"file:///topsecret", "does not hold one http or https URL"},
		"too long":               {"https://example.test/topsecret" + strings.Repeat("x", maxURL), "does not hold one http or https URL"},
		"nothing":                {"", "does not hold one http or https URL"},
	} {
		t.Run(name, func(t *testing.T) {
			err := ping(t.Context(), newClient(Options{Interval: 10 * time.Second}), urlFile(t, c.content))
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.HasSuffix(err.Error(), c.want) {
				t.Errorf("%q, want %q", err, c.want)
			}
			for deep := err; deep != nil; deep = errors.Unwrap(deep) {
				if strings.Contains(deep.Error(), "topsecret") || strings.Contains(deep.Error(), "127.0.0.1") {
					t.Errorf("the error tells the URL: %q", deep)
				}
			}
		})
	}
	if err := ping(t.Context(), newClient(Options{Interval: time.Minute}), filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestAnErrorOfTheNetworkIsPutIntoOurWords(t *testing.T) {
	file := urlFile(t, "https://topsecret.example/")
	for want, cause := range map[string]error{
		"the host's name can't be resolved": &net.OpError{Op: "dial", Err: &net.DNSError{Name: "topsecret.example", IsNotFound: true}},
		"no answer in time":                 &net.OpError{Op: "dial", Err: &net.DNSError{Name: "topsecret.example", IsTimeout: true}},
		"no connection to the host":         &net.OpError{Op: "dial", Err: errors.New("topsecret.example: unreachable")},
		"the request failed":                &net.OpError{Op: "read", Err: errors.New("topsecret.example: reset")},
	} {
		client := newClient(Options{Interval: time.Minute, Client: &http.Client{
			Transport: service(func(*http.Request) (*http.Response, error) { return nil, cause }),
		}})
		if err := ping(t.Context(), client, file); err == nil || err.Error() != want {
			t.Errorf("%v becomes %q, want %q", cause, err, want)
		}
	}
}

func TestARedirectDoesNotCarryTheURLOn(t *testing.T) {
	var referer atomic.Value
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { referer.Store(r.Referer()) }))
	defer other.Close()
	first := httptest.NewServer(http.RedirectHandler(other.URL+"/landing", http.StatusFound))
	defer first.Close()
	if err := ping(t.Context(), newClient(Options{Interval: time.Minute}), urlFile(t, first.URL+"/topsecret")); err != nil {
		t.Fatal(err)
	}
	if got := referer.Load(); got != "" {
		t.Errorf("the other server saw the referer %q", got)
	}
}

func TestARedirectFromHTTPSToHTTPIsNotFollowed(t *testing.T) {
	var reached atomic.Bool
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	defer plain.Close()
	secure := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusFound))
	defer secure.Close()
	err := ping(t.Context(), newClient(Options{Interval: time.Minute, Client: secure.Client()}), urlFile(t, secure.URL))
	if err == nil || reached.Load() {
		t.Errorf("error %v, reached %v", err, reached.Load())
	}
}

func TestAPipeInTheFilesPlaceHoldsUpNothing(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "url")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- ping(t.Context(), newClient(Options{Interval: time.Minute}), pipe) }()
	select {
	case err := <-ended:
		if err == nil || !strings.HasSuffix(err.Error(), "is not a regular file") {
			t.Errorf("got %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("it waits for a writer")
	}
}
