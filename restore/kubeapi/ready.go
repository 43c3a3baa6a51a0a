package kubeapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
)

// NotReadyError is what an API server says of itself while it is not ready.
type NotReadyError struct {
	Server string
	Code   int      // of HTTP
	Checks []string // those that fail: etcd, poststarthook/rbac/bootstrap-roles, ...
	Said   string   // the answer, shortened, where it names no checks
}

func (e *NotReadyError) Error() string {
	what := e.Said
	if len(e.Checks) > 0 {
		what = "failing are " + strings.Join(e.Checks, ", ")
	}
	return fmt.Sprintf("API server %s is not ready: %d %s: %s", e.Server, e.Code, http.StatusText(e.Code), what)
}

// failing is a line of /readyz?verbose: "[-]etcd failed: reason withheld".
var failing = regexp.MustCompile(`(?m)^\[-\](\S+)`)

// Ready asks the API server whether it is ready: nil if /readyz says so, a
// *NotReadyError if it says no, ErrDenied if it doesn't take the client's
// certificate, else why it could not be asked.
func (c *Client) Ready(ctx context.Context) error {
	const path = "/readyz?verbose"
	a, err := c.ask(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return err
	}
	if a.code == http.StatusOK {
		return nil
	}
	if a.code == http.StatusUnauthorized || a.code == http.StatusForbidden {
		return fmt.Errorf("ask %s whether it is ready: %w; is the kubeconfig this cluster's, and is its certificate still valid?", c.server,
			&StatusError{Method: http.MethodGet, Path: path, Code: a.code, Said: said(a.body)})
	}
	out := &NotReadyError{Server: c.server, Code: a.code, Said: said(a.body)}
	for _, check := range failing.FindAllSubmatch(a.body, 100) {
		out.Checks = append(out.Checks, said(check[1]))
	}
	return out
}

// WaitReady waits until the API server is ready. It gives up when the context
// ends, and at once when the server's certificate is not what the kubeconfig
// expects: waiting would not change that.
func (c *Client) WaitReady(ctx context.Context, p Progress) error {
	return c.wait(ctx, "the API server "+c.server+" to be ready", p, func() (string, error) {
		err := c.Ready(ctx)
		if err == nil {
			return "", nil
		}
		return err.Error(), hopeless(err)
	})
}

// hopeless keeps of an error what waiting can't change.
func hopeless(err error) error {
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &certificate) {
		return fmt.Errorf("%w; another cluster's server answers there, or its certificate is not for this name or not valid now: see what listens and what time it is, or re-issue the certificate", err)
	}
	return nil
}

// wait looks again and again until look says nothing is missing. Where the
// context ends before, the error tells what was missing the last time.
func (c *Client) wait(ctx context.Context, what string, p Progress, look func() (missing string, err error)) error {
	last, told := "nothing was seen yet", ""
	for {
		if ctx.Err() == nil {
			missing, err := look()
			if err != nil {
				return fmt.Errorf("wait for %s: %w", what, err)
			}
			if missing == "" {
				return nil
			}
			if ctx.Err() == nil || told == "" {
				last = missing // what ended with the context says nothing
			}
			if last != told {
				told = last
				p.tell("waiting for %s: %s", what, last)
			}
		}
		if err := c.sleep(ctx, c.pause); err != nil {
			return fmt.Errorf("wait for %s: %w; the last that was seen: %s", what, err, last)
		}
	}
}
