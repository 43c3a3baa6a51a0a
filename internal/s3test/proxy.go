package s3test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
	"time"
)

// Fault is what happens to a request. Exactly one of Status to Delay is set.
type Fault struct {
	// Match selects requests; nil matches all.
	Match func(*http.Request) bool
	// Times is how many matching requests are hit; 0 is all of them.
	Times int
	// Skip is how many matching requests pass before the first is hit.
	Skip int

	Status      int           // answer with this status and an S3 error of Code
	ResetUpload bool          // reset the connection after UploadBytes of the request's body; the server sees nothing
	LoseAnswer  bool          // pass the request on, then reset instead of answering: failed but done
	Stall       bool          // take the request and never answer, until the client leaves
	CutAnswer   bool          // pass the request on, reset after AnswerBytes of the answer's body
	StallAnswer bool          // pass the request on, send AnswerBytes of the answer's body and then nothing more
	Delay       time.Duration // pass the request on, but only after so long

	Code        string
	UploadBytes int64
	AnswerBytes int64
}

// Request is what the proxy saw of a request.
type Request struct {
	Method, Path, Query string
	Header              http.Header
}

// Proxy stands between a client and a server (HTTP, on loopback), records the
// requests and injects faults.
type Proxy struct {
	Endpoint string

	mu       sync.Mutex
	faults   []*Fault
	requests []Request
	done     chan struct{}
}

// NewProxy starts a proxy before the server at endpoint. It ends with the
// test.
func NewProxy(t testing.TB, endpoint string) *Proxy {
	t.Helper()
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{done: make(chan struct{})}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	pass := &httputil.ReverseProxy{
		// The client's Host header goes on unchanged: it is part of what the
		// client signed.
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host },
		Transport: transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			reset(w)
		},
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, pass) }))
	p.Endpoint = front.URL
	t.Cleanup(func() {
		close(p.done)
		front.CloseClientConnections()
		front.Close()
		transport.CloseIdleConnections()
	})
	return p
}

// Inject adds a fault. Earlier ones are asked first.
func (p *Proxy) Inject(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = append(p.faults, &f)
}

// Clear removes the faults and forgets the requests.
func (p *Proxy) Clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults, p.requests = nil, nil
}

// Requests is what came so far.
func (p *Proxy) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Request(nil), p.requests...)
}

func (p *Proxy) take(r *http.Request) *Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = append(p.requests, Request{r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Clone()})
	for _, f := range p.faults {
		switch {
		case f.Times < 0 || f.Match != nil && !f.Match(r):
		case f.Skip > 0:
			f.Skip--
		default:
			if f.Times == 1 {
				f.Times = -1 // spent
			} else if f.Times > 1 {
				f.Times--
			}
			hit := *f
			return &hit
		}
	}
	return nil
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	f := p.take(r)
	if f == nil {
		pass.ServeHTTP(w, r)
		return
	}
	switch {
	case f.Status != 0:
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(f.Status)
		fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>injected</Message><RequestId>proxy-1</RequestId></Error>`, f.Code)
	case f.ResetUpload:
		_, _ = io.CopyN(io.Discard, r.Body, f.UploadBytes)
		reset(w)
	case f.LoseAnswer:
		pass.ServeHTTP(httptest.NewRecorder(), r)
		reset(w)
	case f.Stall:
		p.hang(r)
	case f.Delay != 0:
		select {
		case <-time.After(f.Delay):
			pass.ServeHTTP(w, r)
		case <-p.done:
		}
	case f.CutAnswer:
		defer func() { _ = recover() }() // the cut ends the copying by a panic
		pass.ServeHTTP(&cutWriter{ResponseWriter: w, left: f.AnswerBytes}, r)
	case f.StallAnswer:
		defer func() { _ = recover() }()
		pass.ServeHTTP(&cutWriter{ResponseWriter: w, left: f.AnswerBytes, instead: func() { p.hang(r) }}, r)
	}
}

func (p *Proxy) hang(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-p.done:
	}
}

// reset closes the connection so that the client sees a reset.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// cutWriter passes on so many bytes of a body, flushes them, and breaks.
type cutWriter struct {
	http.ResponseWriter
	left    int64
	instead func() // nil: abort
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if int64(len(p)) < c.left {
		c.left -= int64(len(p))
		return c.ResponseWriter.Write(p)
	}
	_, _ = c.ResponseWriter.Write(p[:c.left])
	_ = http.NewResponseController(c.ResponseWriter).Flush()
	if c.instead != nil {
		c.instead()
	}
	panic(http.ErrAbortHandler)
}
