// Package web serves what an agent knows: the status page for people,
// status.json and the metrics for programs, and two health checks. It only
// reads; there is nothing to change or to start here.
//
// Start at New. page.go turns a status into what page.html shows, and access.go
// holds the token and the certificate.
package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/status"
)

// How long a client may take, and how much it may say: requests carry no body
// and answers are small, so that whoever is slower is not a reader.
const (
	headerTimeout  = 10 * time.Second
	readTimeout    = 15 * time.Second
	writeTimeout   = time.Minute
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 16 << 10
	maxConnections = 128 // one more ends the oldest
	maxRenders     = 2   // at once; a flood of requests must not take the CPU from etcd
	maxTexts       = 4   // of status.json in memory at once: with thousands of chains one is 10 MB
	textWait       = 10 * time.Second
	readyFor       = time.Second     // how long an answer about readiness, which anybody may ask for, is given again
	endGrace       = 2 * time.Second // a reload at the same address waits for it
)

// Options say what a Server serves, and to whom.
type Options struct {
	// Status gives the newest status, of which the server keeps nothing. It
	// must return at once. Nil, or a nil status: nothing is known yet.
	Status func() *status.Status

	// Metrics answers /metrics. Nil: there are none.
	Metrics http.Handler

	// CertFile and KeyFile are the server's certificate and key in PEM: with
	// both it speaks TLS. TokenFile holds the token that all but the health
	// checks ask for; empty: no token is needed. The files are read again for
	// every connection and request: a renewed one needs no restart.
	CertFile, KeyFile, TokenFile string

	// Events hears of files that can't be used, once a change.
	Events events.Listener
}

// Server is an agent's HTTP server.
type Server struct {
	options     Options
	token       *tokenFile   // nil: none is asked for
	certificate *certificate // nil: no TLS
	renders     chan struct{}
	texts       chan struct{}

	mu      sync.Mutex
	asked   time.Time // when the status was last asked whether it is ready
	isReady bool
}

// New makes a server. Nothing is read before Serve.
func New(options Options) *Server {
	s := &Server{options: options, renders: make(chan struct{}, maxRenders), texts: make(chan struct{}, maxTexts)}
	if options.TokenFile != "" {
		s.token = &tokenFile{path: options.TokenFile, events: options.Events}
	}
	if options.CertFile != "" || options.KeyFile != "" {
		s.certificate = &certificate{certFile: options.CertFile, keyFile: options.KeyFile, events: options.Events}
	}
	return s
}

// Serve answers on the listener until ctx ends, then lets the requests under
// way finish for two seconds at most and returns nil. It closes the listener in
// every case. A certificate or token file that can't be used is an error at
// once: a server that was told to protect itself never runs without.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	defer listener.Close()
	if err := s.Check(); err != nil {
		return err
	}
	server := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          log.New(io.Discard, "", 0), // what strangers do to the port is no news
	}
	ended := make(chan error, 1)
	few := newCrowd(listener, maxConnections)
	go func() {
		if s.certificate == nil {
			ended <- server.Serve(few)
			return
		}
		server.TLSConfig = s.certificate.config()
		ended <- server.ServeTLS(few, "", "")
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("serve http on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), endGrace)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		server.Close()
	}
	<-ended
	return nil
}

// Check reads the token and certificate files and reports what keeps Serve from
// protecting itself. Serve checks too; a caller may want to know before.
func (s *Server) Check() error {
	if s.token != nil {
		if _, err := s.token.read(); err != nil {
			return err
		}
	}
	if s.certificate != nil {
		return s.certificate.check()
	}
	return nil
}

// Handler answers requests, with or without a listener of its own.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.answer) }

func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("X-Frame-Options", "DENY")
	defer func() {
		if failure := recover(); failure != nil {
			if failure == http.ErrAbortHandler {
				panic(failure)
			}
			s.options.Events.Emit(events.Warning{Subject: r.URL.Path, Message: fmt.Sprintf("a request could not be answered: %v", failure)})
			say(w, http.StatusInternalServerError, "internal error; the agent's log says more")
		}
	}()

	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		say(w, http.StatusMethodNotAllowed, "only GET and HEAD")
		return
	}
	switch r.URL.Path {
	case "/healthz":
		say(w, http.StatusOK, "ok")
		return
	case "/readyz":
		s.ready(w)
		return
	}
	if s.token != nil && !s.token.admit(w, r) {
		return
	}
	switch r.URL.Path {
	case "/":
		s.page(w, r)
	case "/status.json":
		s.json(w, r)
	case "/metrics":
		if s.options.Metrics == nil {
			say(w, http.StatusNotFound, "not found: this agent has no metrics")
			return
		}
		// Whoever reads slowly must not hold one of the few places that the
		// metrics' handler has.
		whole := &buffered{header: header, code: http.StatusOK}
		s.options.Metrics.ServeHTTP(whole, r)
		header.Set("Content-Length", strconv.Itoa(whole.body.Len()))
		if whole.code != http.StatusOK {
			w.WriteHeader(whole.code)
		}
		w.Write(whole.body.Bytes()) // the client may be gone
	default:
		say(w, http.StatusNotFound, "not found; there are /, /status.json, /metrics, /healthz and /readyz")
	}
}

// ready says 200 once what is shown is true.
func (s *Server) ready(w http.ResponseWriter) {
	if !s.loaded() {
		say(w, http.StatusServiceUnavailable, "not ready: the stores have not all been asked since the start")
		return
	}
	say(w, http.StatusOK, "ready")
}

func (s *Server) loaded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked.IsZero() || time.Since(s.asked) >= readyFor {
		s.isReady = s.status().Loaded
		s.asked = time.Now()
	}
	return s.isReady
}

// json holds its place until the last byte is out: a text lives that long.
func (s *Server) json(w http.ResponseWriter, r *http.Request) {
	wait := time.NewTimer(textWait)
	defer wait.Stop()
	select {
	case s.texts <- struct{}{}:
		defer func() { <-s.texts }()
	case <-wait.C:
		say(w, http.StatusServiceUnavailable, "too many ask at once")
		return
	case <-r.Context().Done():
		return
	}
	text, err := json.Marshal(s.status())
	if err != nil {
		panic(err) // plain data
	}
	w.Header().Set("Content-Type", "application/json")
	write(w, append(text, '\n'))
}

func (s *Server) page(w http.ResponseWriter, r *http.Request) {
	select {
	case s.renders <- struct{}{}:
	case <-r.Context().Done():
		return
	}
	text, err := func() ([]byte, error) {
		defer func() { <-s.renders }() // after a panic too
		return render(s.status())
	}()
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", policy)
	write(w, text)
}

// status is the newest, never nil.
func (s *Server) status() *status.Status {
	if s.options.Status != nil {
		if known := s.options.Status(); known != nil {
			return known
		}
	}
	return &status.Status{}
}

// buffered keeps an answer until it is whole.
type buffered struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (b *buffered) Header() http.Header         { return b.header }
func (b *buffered) WriteHeader(code int)        { b.code = code }
func (b *buffered) Write(p []byte) (int, error) { return b.body.Write(p) }

// say answers with one line of text.
func say(w http.ResponseWriter, code int, line string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	io.WriteString(w, line+"\n") // the client may be gone
}

func write(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body) // the client may be gone
}

// ErrFile is wrapped by errors about a token or certificate file.
var ErrFile = errors.New("can't protect the http server")
