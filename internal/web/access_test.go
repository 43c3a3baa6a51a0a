package web

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/web/webtest"
)

const secret = "correct-horse-battery-staple-0123"

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func bearer(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

func basic(user, password string) func(*http.Request) {
	return func(r *http.Request) { r.SetBasicAuth(user, password) }
}

func header(value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", value) }
}

func TestToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	writeFile(t, path, secret+"\n")
	h := New(Options{Status: webtest.Well, Metrics: metrics("m 1\n"), TokenFile: path}).Handler()
	nothing := func(*http.Request) {}
	for _, test := range []struct {
		name   string
		path   string
		change func(*http.Request)
		code   int
	}{
		{"health needs none", "/healthz", nothing, 200},
		{"readiness needs none", "/readyz", nothing, 200},
		{"the page needs one", "/", nothing, 401},
		{"metrics need one", "/metrics", nothing, 401},
		{"status needs one", "/status.json", nothing, 401},
		{"what is not there can't be told without", "/nowhere", nothing, 401},
		{"what is not there, with it", "/nowhere", bearer(secret), 404},
		{"a bearer", "/metrics", bearer(secret), 200},
		{"the scheme's case does not matter", "/metrics", header("bEARER " + secret), 200},
		{"a browser: any user", "/", basic("me", secret), 200},
		{"a browser: no user", "/", basic("", secret), 200},
		{"wrong", "/metrics", bearer("wrong"), 401},
		{"nearly", "/metrics", bearer(secret[:len(secret)-1]), 401},
		{"longer", "/metrics", bearer(secret + "x"), 401},
		{"empty", "/metrics", bearer(""), 401},
		{"token as the user", "/", basic(secret, ""), 401},
		{"wrong password", "/", basic("me", "wrong"), 401},
		{"no scheme", "/", header(secret), 401},
		{"another scheme", "/", header("Digest " + secret), 401},
		{"in the address", "/?token=" + secret, nothing, 401},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := ask(h, "GET", test.path, test.change)
			text := body(t, r)
			if r.StatusCode != test.code {
				t.Errorf("got %d, want %d: %s", r.StatusCode, test.code, text)
			}
			schemes := strings.Join(r.Header.Values("WWW-Authenticate"), "; ")
			if asks := strings.Contains(schemes, "Bearer ") && strings.Contains(schemes, "Basic "); asks != (test.code == 401) {
				t.Errorf("asks with %q", schemes)
			}
			if strings.Contains(text+schemes, secret) {
				t.Error("the answer tells the token")
			}
		})
	}
}

func TestTokenFileIsReadAgainAndFailsClosed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	writeFile(t, path, "first")
	var heard warnings
	h := New(Options{TokenFile: path, Events: heard.listen}).Handler()
	check := func(when, token string, code int) {
		t.Helper()
		for range 3 {
			if r := ask(h, "GET", "/", bearer(token)); r.StatusCode != code {
				t.Errorf("%s: %d, want %d", when, r.StatusCode, code)
			}
		}
		if r := ask(h, "GET", "/healthz"); r.StatusCode != 200 {
			t.Errorf("%s: health is %d", when, r.StatusCode)
		}
	}
	check("at first", "first", 200)
	writeFile(t, path, "second")
	check("the old token", "first", 401)
	check("the new token", "second", 200)
	os.Remove(path)
	check("without its file", "second", 503)
	writeFile(t, path, " \n")
	check("empty, and so does the request", "", 503)
	writeFile(t, path, "two words")
	check("two words", "two words", 503)
	os.Remove(path)
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	check("a pipe", "second", 503)
	os.Remove(path)
	writeFile(t, path, strings.Repeat("x", maxFileBytes+1))
	check("too large", "second", 503)
	writeFile(t, path, "third")
	check("well again", "third", 200)
	list := heard.all()
	if len(list) != 5 {
		t.Errorf("%d warnings, want one a change: %v", len(list), list)
	}
	for _, w := range list {
		if w.Subject != path || strings.Contains(w.Message, "second") || strings.Contains(w.Message, "two words") {
			t.Errorf("warning %+v", w)
		}
	}
}

// pair is a self-signed certificate for 127.0.0.1 with its key, in PEM.
func pair(t *testing.T, serial int64) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "agent"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}

// shake connects and returns the serial of the server's certificate.
func shake(address string, config *tls.Config) (int64, uint16, error) {
	config = config.Clone()
	config.InsecureSkipVerify = true // the serial is what is looked at
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	state := conn.ConnectionState()
	return state.PeerCertificates[0].SerialNumber.Int64(), state.Version, nil
}

func TestCertificateIsReadAgainAndTheLastGoodOneStays(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	cert1, key1 := pair(t, 1)
	cert2, key2 := pair(t, 2)
	writeFile(t, certFile, cert1)
	writeFile(t, keyFile, key1)
	var heard warnings
	address, _ := serve(t, Options{Status: webtest.Well, CertFile: certFile, KeyFile: keyFile, Events: heard.listen})
	check := func(when string, want int64) {
		t.Helper()
		got, _, err := shake(address, &tls.Config{})
		if err != nil || got != want {
			t.Errorf("%s: certificate %d, %v; want %d", when, got, err, want)
		}
	}
	check("at first", 1)
	writeFile(t, certFile, cert2)
	check("between the two files", 1)
	writeFile(t, keyFile, key2)
	check("renewed", 2)
	os.Remove(certFile)
	check("gone", 2)
	check("still gone", 2)
	writeFile(t, certFile, cert1)
	writeFile(t, keyFile, key1)
	check("the first again", 1)
	if list := heard.all(); len(list) != 2 {
		t.Errorf("%d warnings, want one a change: %v", len(list), list)
	} else {
		for _, w := range list {
			if strings.Contains(w.Message, "PRIVATE KEY") || !strings.Contains(w.Message, certFile) {
				t.Errorf("warning %+v", w)
			}
		}
	}

	if _, _, err := shake(address, &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}); err == nil {
		t.Error("it speaks TLS 1.1")
	}
	if _, version, err := shake(address, &tls.Config{MaxVersion: tls.VersionTLS12}); err != nil || version != tls.VersionTLS12 {
		t.Errorf("TLS 1.2: %v", err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	r, err := client.Get("https://" + address + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != 200 || r.ProtoMajor != 2 {
		t.Errorf("over TLS: %s, %s", r.Status, r.Proto)
	}
}

func TestNothingIsServedWithoutTheProtectionAskedFor(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, content)
		return path
	}
	cert, key := pair(t, 1)
	_, otherKey := pair(t, 2)
	good, goodKey := file("good.crt", cert), file("good.key", key)
	missing := filepath.Join(dir, "missing")
	for _, test := range []struct {
		name    string
		options Options
		says    string
	}{
		{"no token file", Options{TokenFile: missing}, "read token: stat " + missing},
		{"an empty token", Options{TokenFile: file("empty", "\n")}, "is empty"},
		{"a token that no header can carry", Options{TokenFile: file("two", secret+"\n"+secret)}, "one word"},
		{"a folder for a token", Options{TokenFile: dir}, "not a regular file"},
		{"no certificate", Options{CertFile: missing, KeyFile: goodKey}, missing},
		{"no key", Options{CertFile: good, KeyFile: missing}, missing},
		{"only a certificate", Options{CertFile: good}, "both a certificate and a key"},
		{"only a key", Options{KeyFile: goodKey}, "both a certificate and a key"},
		{"a certificate that is none", Options{CertFile: file("bad.crt", "no PEM"), KeyFile: goodKey}, "bad.crt"},
		{"a key of another certificate", Options{CertFile: good, KeyFile: file("other.key", otherKey)}, "other.key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			err = New(test.options).Serve(t.Context(), listener)
			if !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want one that says %q", err, test.says)
			}
			if err != nil && (strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "PRIVATE KEY")) {
				t.Errorf("the error tells a secret: %v", err)
			}
			if _, err := net.Dial("tcp", listener.Addr().String()); err == nil {
				t.Error("the listener is still open")
			}
		})
	}
}
