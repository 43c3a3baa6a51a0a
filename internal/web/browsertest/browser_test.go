package browsertest

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"lifeboat/internal/status"
	"lifeboat/internal/web"
)

// Sizes of windows: a small telephone and a desk.
const (
	phone = 360
	desk  = 1280
)

// browser is one Chromium for all tests; each has tabs of its own.
var browser context.Context

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	path := os.Getenv("CHROMIUM")
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path == "" {
			path, _ = exec.LookPath(name)
		}
	}
	if path == "" {
		println("no Chromium: apt-get install --no-install-recommends chromium, or CHROMIUM=its path")
		return 1
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.Flag("no-proxy-server", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.WSURLReadTimeout(time.Minute))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // it refuses to start as root otherwise
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	defer cancel()
	ctx, cancel = chromedp.NewContext(ctx)
	defer cancel()
	if err := chromedp.Do(ctx); err != nil {
		println("start Chromium:", err.Error())
		return 1
	}
	browser = ctx
	return m.Run()
}

// tab is a browser's tab with what happened in it.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	errors   []string // on the console
	requests []string
}

// open makes a tab of a width.
func open(t *testing.T, width int64) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	ctx, cancelTime := context.WithTimeout(ctx, time.Minute)
	t.Cleanup(cancelTime)
	b := &tab{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, b.hear); err != nil {
		t.Fatal(err)
	}
	send(b, network.Enable, network.EnableParams{})
	send(b, log.Enable, cdp.Empty{})
	send(b, runtime.Enable, cdp.Empty{})
	send(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: 740, DeviceScaleFactor: 1, Mobile: width == phone})
	return b
}

func (b *tab) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		for _, argument := range e.Args {
			b.errors = append(b.errors, "console: "+string(argument.Value))
		}
	case *runtime.EventExceptionThrown:
		b.errors = append(b.errors, "exception: "+e.ExceptionDetails.Text)
	case *log.EventEntryAdded:
		b.errors = append(b.errors, "log: "+e.Entry.Text)
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL)
	}
}

// send has the browser do a command of its protocol.
func send[P, R any](b *tab, command cdp.Command[P, R], params P) R {
	b.t.Helper()
	result, err := chromedp.Call(b.ctx, command, params)
	if err != nil {
		b.t.Fatal(err)
	}
	return result
}

// eval runs a script in the page.
func eval[T any](b *tab, script string) T {
	b.t.Helper()
	result, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](script))
	if err != nil {
		b.t.Fatal(err)
	}
	return result
}

func (b *tab) press(key string) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, chromedp.KeyEvent(key)); err != nil {
		b.t.Fatal(err)
	}
}

// look has the page look again, as it does when it comes to the front.
func (b *tab) look() {
	b.t.Helper()
	eval[chromedp.Void](b, `document.dispatchEvent(new Event("visibilitychange"))`)
}

// until waits for a script to return true.
func (b *tab) until(what, script string) {
	b.t.Helper()
	for range 200 {
		if eval[bool](b, script) {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	b.t.Fatalf("%s: not within five seconds", what)
}

// scheme has the tab prefer light or dark.
func (b *tab) scheme(name string) {
	b.t.Helper()
	b.media("", name)
}

// media has the tab show the page on a medium, for one who prefers a scheme.
func (b *tab) media(medium, scheme string) {
	b.t.Helper()
	send(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Media: medium, Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
}

// quiet fails the test if the console is not empty or if a request went
// anywhere but to the allowed addresses and data URLs.
func (b *tab) quiet(allowed ...string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.errors {
		b.t.Errorf("the console says %s", e)
	}
	if len(b.requests) == 0 {
		b.t.Error("no request was seen at all")
	}
next:
	for _, request := range b.requests {
		for _, prefix := range append(allowed, "data:", "about:blank") {
			if strings.HasPrefix(request, prefix) {
				continue next
			}
		}
		b.t.Errorf("a request to %s", request)
	}
}

// agent serves statuses that can change.
type agent struct {
	*httptest.Server
	mu  sync.Mutex
	now *status.Status
}

func (a *agent) set(s *status.Status) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now = s
}

func serve(t *testing.T, s *status.Status, tokenFile string) *agent {
	t.Helper()
	a := &agent{now: s}
	a.Server = httptest.NewServer(web.New(web.Options{TokenFile: tokenFile, Metrics: http.NotFoundHandler(), Status: func() *status.Status {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.now
	}}).Handler())
	t.Cleanup(a.Close)
	return a
}

// load opens an agent's page.
func (b *tab) load(a *agent) {
	b.t.Helper()
	response, err := chromedp.RunResponse(b.ctx, chromedp.Navigate(a.URL+"/"))
	if err != nil {
		b.t.Fatal(err)
	}
	if response == nil {
		b.t.Fatal(errors.New("no response"))
	}
	if response.Status != 200 {
		b.t.Fatalf("the page answers %d", response.Status)
	}
}
