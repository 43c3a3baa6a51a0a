// Package deadman requests a URL as long as all is well, so that an outside
// service raises an alarm when it hears nothing: because backups are late,
// because the agent is gone, or because everything is, Prometheus too.
//
// Whoever knows the URL can keep the service quiet. It is a secret: no error,
// event or count that leaves this package holds any part of it.
package deadman

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"lifeboat/internal/events"
)

const (
	answerLimit = 30 * time.Second // for one request, redirects and all
	lookAgain   = 10 * time.Second // while not healthy: soon after the agent is, the service hears of it
	maxURL      = 8 << 10          // bytes of the file
	maxBody     = 64 << 10         // bytes of an answer that are read, to end it well
	redirects   = 3
)

// Options say what to request, and when.
type Options struct {
	URLFile  string        // read again for every request; holds one line
	Interval time.Duration // between two requests; above 0
	Healthy  func() bool   // no request is sent while it is false; it returns at once

	Events events.Listener               // a warning when requests begin to fail or fail for another reason; may be nil
	OnPing func(at time.Time, well bool) // hears of every request; may be nil
	Wall   func() time.Time              // for OnPing; nil: time.Now

	// Client sends the requests; its CheckRedirect and Timeout are replaced.
	// Nil: one that goes through the environment's proxies.
	Client *http.Client
}

// Run requests the URL now and every interval, while all is well, until ctx
// ends. A request that failed is repeated an interval later.
func Run(ctx context.Context, o Options) {
	if o.Wall == nil {
		o.Wall = time.Now
	}
	client := newClient(o)
	complaint := ""
	for {
		wait := o.Interval
		if !o.Healthy() {
			wait = min(wait, lookAgain)
		} else {
			err := ping(ctx, client, o.URLFile)
			if ctx.Err() != nil {
				return
			}
			if o.OnPing != nil {
				o.OnPing(o.Wall(), err == nil)
			}
			complaint = tell(o.Events, complaint, err)
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

// tell warns of a failure unless the last one was the same. It returns what it
// was.
func tell(listener events.Listener, last string, err error) string {
	if err == nil {
		return ""
	}
	if err.Error() != last {
		listener.Emit(events.Warning{Subject: "dead-man URL", Message: err.Error()})
	}
	return err.Error()
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func newClient(o Options) *http.Client {
	client := http.Client{}
	if o.Client != nil {
		client = *o.Client
	} else {
		// A connection of its own each time: five minutes outlast most idle ones.
		client.Transport = &http.Transport{
			Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, ForceAttemptHTTP2: true,
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
		}
	}
	client.Timeout = min(answerLimit, o.Interval)
	client.CheckRedirect = follow
	return &client
}

// errRedirect says why a redirect was not followed.
var errRedirect = errors.New("redirect")

func follow(request *http.Request, via []*http.Request) error {
	request.Header.Del("Referer") // it would carry the URL to wherever this leads
	if len(via) > redirects || via[0].URL.Scheme == "https" && request.URL.Scheme != "https" {
		return errRedirect
	}
	return nil
}

// ping requests the URL once. Its errors hold nothing of the URL.
func ping(ctx context.Context, client *http.Client, file string) error {
	target, err := read(file)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return errors.New("the file does not hold a URL that can be requested")
	}
	request.Header.Set("User-Agent", "lifeboat")
	answer, err := client.Do(request)
	if err != nil {
		return errors.New(reason(err))
	}
	defer answer.Body.Close()
	io.Copy(io.Discard, io.LimitReader(answer.Body, maxBody)) // what it says does not matter
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return fmt.Errorf("the service answered %d", answer.StatusCode)
	}
	return nil
}

// read takes the URL from its file: never from a pipe, which would make the
// agent's reload and its end wait for whoever writes into it.
func read(name string) (string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", fmt.Errorf("read the file with the URL: %w", err)
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file", name)
	}
	file, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("read the file with the URL: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxURL+1))
	if err != nil {
		return "", fmt.Errorf("read the file with the URL: %w", err)
	}
	text := strings.TrimSpace(string(data))
	u, err := url.Parse(text)
	if err != nil || len(data) > maxURL || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", fmt.Errorf("%s does not hold one http or https URL", name)
	}
	return text, nil
}

// reason puts an error into words of our own: net/http's hold the URL, and
// those below it the host's name.
func reason(err error) string {
	var (
		timeout     net.Error
		unknown     *net.DNSError
		certificate *tls.CertificateVerificationError
		authority   x509.UnknownAuthorityError
		dial        *net.OpError
	)
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	case errors.Is(err, errRedirect):
		return "too many redirects, or one from https to http"
	case errors.As(err, &unknown):
		return "the host's name can't be resolved"
	case errors.As(err, &certificate), errors.As(err, &authority):
		return "the server's certificate can't be verified"
	case errors.As(err, &dial) && dial.Op == "dial":
		return "no connection to the host"
	default:
		return "the request failed"
	}
}
