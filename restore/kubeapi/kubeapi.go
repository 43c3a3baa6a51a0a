// Package kubeapi looks after a cluster that was just restored: through its API
// server, and through its etcd.
//
// Client is a small client of one API server, made from a kubeconfig such as
// kubeadm's admin.conf. It waits until the server is ready (WaitReady) and until a
// node has renewed its lease after the restore (WaitLease): what the snapshot says
// of nodes is old and proves nothing. It tidies what names
// machines that are gone (RemoveNodes) or addresses that changed (Readdress).
//
// Etcd does the same for etcd's members: it lists them, compares their hashes,
// clears a NOSPACE alarm, and removes the leases of API servers that are gone.
//
// Every change is made under a precondition and can be made again: what is done
// already is not done twice. Nothing here restores, fences or starts anything.
package kubeapi

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// What a caller may branch on.
var (
	// ErrKubeconfig: the kubeconfig can't be used. The error says why, and never
	// what is in it.
	ErrKubeconfig = errors.New("kubeconfig can't be used")
	// ErrNotFound: there is no such object.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the object is not what it was when it was looked at.
	ErrConflict = errors.New("changed meanwhile")
	// ErrDenied: the server doesn't know the client or doesn't let it do this.
	ErrDenied = errors.New("denied")
	// ErrTooLarge: an answer is larger than anything a server has to say.
	ErrTooLarge = errors.New("answer too large")
	// ErrAlive: a machine that should be gone lives. The error names it.
	ErrAlive = errors.New("still alive")
)

// Progress is told what is waited for or done, a line each time that changes. It
// may be nil.
type Progress func(text string)

func (p Progress) tell(format string, args ...any) {
	if p != nil {
		p(fmt.Sprintf(format, args...))
	}
}

// Change is one thing that was changed.
type Change struct {
	Object string `json:"object"` // node cp3, configmap kube-system/kubeadm-config
	What   string `json:"what"`   // deleted, or what became what; may have several lines
}

func (c Change) String() string { return c.Object + ": " + c.What }

// Options say which API server, and as whom.
type Options struct {
	Kubeconfig []byte // its current context counts
	Root       string // below which files that it names lie; default /

	// Server is dialled in place of the kubeconfig's, such as https://127.0.0.1:6443
	// for the one on this machine. Its certificate must then still be for the name
	// or address that the kubeconfig has, or for TLSServerName.
	Server        string
	TLSServerName string

	Limit time.Duration // for one request; default 15 s
	Pause time.Duration // between two looks at what is waited for, and before a retry; default 1 s
	Now   func() time.Time
	// Sleep waits; default: a timer. It returns the context's error when that ends
	// before.
	Sleep func(context.Context, time.Duration) error
}

// Client asks one API server. Its methods may be called from several goroutines.
type Client struct {
	server string // without a final slash
	token  string
	http   *http.Client
	limit  time.Duration
	pause  time.Duration
	now    func() time.Time
	sleep  func(context.Context, time.Duration) error

	mu   sync.Mutex
	skew time.Duration // what the server's clock is ahead of this one's, by its last answer
}

// maxAnswer bounds an answer. Lists come in pages of maxPage, and etcd holds no
// object above 1.5 MiB.
const (
	maxAnswer = 64 << 20
	maxPage   = 100
	attempts  = 6 // to make one change
)

// New reads a kubeconfig. It connects to nothing yet. Errors wrap ErrKubeconfig.
// No proxy is used: a restore talks to the control plane itself.
func New(o Options) (*Client, error) {
	k, err := readKubeconfig(o)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKubeconfig, err)
	}
	c := &Client{server: k.server, token: k.token, limit: cmp.Or(o.Limit, 15*time.Second), pause: cmp.Or(o.Pause, time.Second), now: o.Now, sleep: o.Sleep}
	if c.now == nil {
		c.now = time.Now
	}
	if c.sleep == nil {
		c.sleep = sleep
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:        k.tls,
			DialContext:            (&net.Dialer{Timeout: c.limit, KeepAlive: 15 * time.Second}).DialContext,
			TLSHandshakeTimeout:    c.limit,
			MaxResponseHeaderBytes: 1 << 20,
			MaxIdleConnsPerHost:    4,
			ForceAttemptHTTP2:      true,
		},
		// Following one would carry the credentials to another server.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Server is the URL that is dialled.
func (c *Client) Server() string { return c.server }

// StatusError is an answer that says no.
type StatusError struct {
	Method, Path string
	Code         int    // of HTTP
	Said         string // the server's message, shortened
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("%s %s: %d %s", e.Method, e.Path, e.Code, http.StatusText(e.Code))
	if e.Said != "" {
		text += ": " + e.Said
	}
	return text
}

// Is makes the sentinels fit.
func (e *StatusError) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Code == http.StatusNotFound
	case ErrConflict:
		return e.Code == http.StatusConflict
	case ErrDenied:
		return e.Code == http.StatusUnauthorized || e.Code == http.StatusForbidden
	}
	return false
}

// answer is what a server said.
type answer struct {
	code int
	body []byte
	at   time.Time // by the server's clock; by ours where it told none
}

// ask sends one request and reads all of the answer, whatever its code.
func (c *Client) ask(ctx context.Context, method, path, contentType string, body []byte) (answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.limit, fmt.Errorf("no answer within %v", c.limit))
	defer cancel()
	fail := func(err error) (answer, error) {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		var of *url.Error
		if errors.As(err, &of) {
			err = of.Err // the URL is said once
		}
		return answer{}, fmt.Errorf("ask %s: %s %s: %w", c.server, method, path, err)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.server+path, bytes.NewReader(body))
	if err != nil {
		return fail(err)
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", "lifeboat")
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	before := c.now()
	response, err := c.http.Do(request)
	if err != nil {
		return fail(err)
	}
	defer response.Body.Close()
	out := answer{code: response.StatusCode, at: c.clock(before, response.Header.Get("Date"))}
	out.body, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil {
		return fail(err)
	}
	if len(out.body) > maxAnswer {
		return fail(fmt.Errorf("%w: more than %d bytes; see what listens there", ErrTooLarge, maxAnswer))
	}
	return out, nil
}

// clock takes the server's time from a Date header, which has whole seconds, and
// notes how far it is from ours.
func (c *Client) clock(before time.Time, date string) time.Time {
	now := c.now()
	at, err := http.ParseTime(date)
	if err != nil {
		return now
	}
	skew := at.Sub(before.Add(now.Sub(before) / 2))
	if skew.Abs() < 2*time.Second {
		skew = 0 // as far as whole seconds tell
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.skew = skew
	return at
}

// serverTime turns a time of this machine's clock into one of the server's.
func (c *Client) serverTime(t time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return t.Add(c.skew)
}

// do is ask for JSON: an answer of 2xx is decoded into into, if that is not nil,
// any other is a *StatusError.
func (c *Client) do(ctx context.Context, method, path, contentType string, body []byte, into any) (time.Time, error) {
	a, err := c.ask(ctx, method, path, contentType, body)
	if err != nil {
		return time.Time{}, err
	}
	if a.code < 200 || a.code > 299 {
		return a.at, fmt.Errorf("ask %s: %w", c.server, &StatusError{Method: method, Path: path, Code: a.code, Said: said(a.body)})
	}
	if into == nil {
		return a.at, nil
	}
	if err := json.Unmarshal(a.body, into); err != nil {
		return a.at, fmt.Errorf("ask %s: %s %s: the answer is not what an API server says: %w", c.server, method, path, err)
	}
	return a.at, nil
}

func (c *Client) get(ctx context.Context, path string, into any) (time.Time, error) {
	return c.do(ctx, http.MethodGet, path, "", nil, into)
}

// said is what a server gave as the reason: the message of a Status, else the
// beginning of its text, in printable characters.
func said(body []byte) string {
	var status struct {
		Kind    string `json:"kind"`
		Message string `json:"message"`
	}
	text := string(body[:min(len(body), 2000)])
	if json.Unmarshal(body, &status) == nil && status.Kind == "Status" {
		text = status.Message
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return ' '
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if runes := []rune(text); len(runes) > 500 {
		text = string(runes[:500]) + "..."
	}
	return text
}

// try makes a change until it is made: a conflict, an overloaded server and a lost
// connection are tried again, since every change here may be made twice.
func (c *Client) try(ctx context.Context, change func() error) error {
	for i := 1; ; i++ {
		err := change()
		if err == nil || i == attempts || ctx.Err() != nil || !passing(err) {
			return err
		}
		if serr := c.sleep(ctx, c.pause); serr != nil {
			return errors.Join(err, serr)
		}
	}
}

// final is an error that is not tried again.
type final struct{ error }

func (f *final) Unwrap() error { return f.error }

// passing says whether an error may go away by itself.
func passing(err error) bool {
	var stop *final
	if errors.As(err, &stop) {
		return false
	}
	var status *StatusError
	if errors.As(err, &status) {
		return status.Code == http.StatusConflict || status.Code == http.StatusTooManyRequests || status.Code >= 500
	}
	var certificate *tls.CertificateVerificationError
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	return !errors.As(err, &certificate) && !errors.As(err, &syntax) && !errors.As(err, &kind) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrAlive)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
