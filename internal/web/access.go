package web

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"

	"lifeboat/internal/events"
)

// No token, certificate chain or key is larger than this.
const maxFileBytes = 1 << 20

// tokenFile knows whom to let in. The file is read for every request: a token
// that was withdrawn must not work a moment longer.
type tokenFile struct {
	path   string
	events events.Listener
	told   news
}

// read returns the token. Its errors never hold it.
func (t *tokenFile) read() (string, error) {
	content, err := readSmall(t.path)
	if err != nil {
		return "", fmt.Errorf("%w: read token: %w", ErrFile, err)
	}
	token := strings.TrimSpace(string(content))
	if token == "" {
		return "", fmt.Errorf("%w: token file %s is empty", ErrFile, t.path)
	}
	for _, c := range []byte(token) {
		if c <= ' ' || c > '~' {
			return "", fmt.Errorf("%w: token file %s must hold one word of printable ASCII", ErrFile, t.path)
		}
	}
	return token, nil
}

// admit reports whether the request carries the token, as a bearer token or as
// the password of HTTP Basic, which is what browsers can ask for. If not it
// has answered. A file that can't be read lets nobody in.
func (t *tokenFile) admit(w http.ResponseWriter, r *http.Request) bool {
	token, err := t.read()
	t.told.change(t.events, t.path, err)
	if err != nil {
		say(w, http.StatusServiceUnavailable, "nobody is let in: the agent can't read its token file; its log says more")
		return false
	}
	given, ok := credential(r)
	want, got := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(given)) // equal lengths: the time tells nothing
	if ok && subtle.ConstantTimeCompare(want[:], got[:]) == 1 {
		return true
	}
	w.Header().Add("WWW-Authenticate", `Bearer realm="lifeboat"`)
	w.Header().Add("WWW-Authenticate", `Basic realm="lifeboat: any user, the token as the password", charset="UTF-8"`)
	say(w, http.StatusUnauthorized, "a token is needed: as a bearer token, or as the password of any user")
	return false
}

// credential is the token that a request gives.
func credential(r *http.Request) (string, bool) {
	if _, password, ok := r.BasicAuth(); ok {
		return password, true
	}
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(token), ok && strings.EqualFold(scheme, "Bearer")
}

// certificate is the server's, read again for every connection. While new
// files don't fit together, as between the writing of the two, the last good
// ones stay: they protect as well as before, and clients see when they expire.
type certificate struct {
	certFile, keyFile string
	events            events.Listener
	told              news

	mu        sync.Mutex
	cert, key []byte           // what loaded was made from
	loaded    *tls.Certificate // nil: none could be read yet
}

func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			loaded, err := c.load()
			c.told.change(c.events, c.certFile, err)
			if loaded == nil {
				return nil, err
			}
			return loaded, nil
		},
	}
}

// check reports what is wrong with the files now.
func (c *certificate) check() error {
	if c.certFile == "" || c.keyFile == "" {
		return fmt.Errorf("%w: TLS needs both a certificate and a key file", ErrFile)
	}
	_, err := c.load()
	return err
}

// load returns the newest certificate that is usable, and with it, if that
// isn't what the files hold, an error.
func (c *certificate) load() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cert, certErr := readSmall(c.certFile)
	key, keyErr := readSmall(c.keyFile)
	if err := errors.Join(certErr, keyErr); err != nil {
		return c.loaded, fmt.Errorf("%w: read certificate and key: %w", ErrFile, err)
	}
	if c.loaded != nil && bytes.Equal(cert, c.cert) && bytes.Equal(key, c.key) {
		return c.loaded, nil
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return c.loaded, fmt.Errorf("%w: certificate %s with key %s: %w", ErrFile, c.certFile, c.keyFile, err)
	}
	c.cert, c.key, c.loaded = cert, key, &pair
	return c.loaded, nil
}

// news tells the listener of an error once, and again when it becomes another.
type news struct {
	mu   sync.Mutex
	last string
}

func (n *news) change(listener events.Listener, subject string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	n.mu.Lock()
	changed := text != n.last
	n.last = text
	n.mu.Unlock()
	if changed && text != "" {
		listener.Emit(events.Warning{Subject: subject, Message: text})
	}
}

// readSmall reads a regular file: never a pipe, which would make every request
// wait for whoever writes into it.
func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
	if err == nil && len(content) > maxFileBytes {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFileBytes)
	}
	return content, err
}
