package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/status"
)

func TestTheAgentServesByItsTokenAndCertificateAlone(t *testing.T) {
	t.Parallel()
	etcd := cluster.StartBinary(t, "3.6", cluster.Options{TLS: true})
	pki := filepath.Dir(etcd.CAFile) // its server's certificate is of 127.0.0.1, too
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("open-sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newCrew(t, "", etcd, nil, `certFile: "" # the server's`, "certFile: "+filepath.Join(pki, "server.crt"),
		`keyFile: "" # its key`, "keyFile: "+filepath.Join(pki, "server.key"), "tokenFile:", "tokenFile: "+token)
	// One of the node's own certificates, as kubeadm names it.
	const name = "/etc/kubernetes/pki/apiserver.crt"
	if err := os.MkdirAll(filepath.Join(c.dir, "root/etc/kubernetes/pki"), 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(pki, "server.crt"), filepath.Join(c.dir, "root", name))
	p := c.agents[0]
	c.start(p)

	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: etcd.TLS().RootCAs}, DisableKeepAlives: true,
	}}
	ask := func(scheme, path, token string) (code int, body string) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, scheme+"://"+p.listen+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		answer, err := client.Do(request)
		if err != nil {
			return 0, err.Error()
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Error(err)
		}
		return answer.StatusCode, string(text)
	}
	c.until(60*time.Second, "it answers over TLS, without a token", func() bool {
		code, _ := ask("https", "/healthz", "")
		return code == http.StatusOK
	})
	for _, path := range []string{"/", "/status.json", "/metrics"} {
		for _, wrong := range []string{"", "open-sesam"} {
			if code, body := ask("https", path, wrong); code != http.StatusUnauthorized || strings.Contains(body, "prod") {
				t.Errorf("%s with the token %q: %d %.200s", path, wrong, code, body)
			}
		}
		if code, body := ask("https", path, "open-sesame"); code != http.StatusOK || !strings.Contains(body, "prod") {
			t.Errorf("%s with the token: %d %.200s", path, code, body)
		}
		if code, body := ask("http", path, "open-sesame"); code == http.StatusOK || strings.Contains(body, "prod") {
			t.Errorf("%s without TLS: %d %.200s", path, code, body)
		}
	}

	text, err := os.ReadFile(filepath.Join(pki, "server.crt"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	told := regexp.MustCompile(`(?m)^lifeboat_certificate_expiry_timestamp_seconds\{[^}]*name="` + regexp.QuoteMeta(name) + `"[^}]*\} (\S+)$`)
	var found []string
	c.until(60*time.Second, "the certificate's end is told", func() bool {
		_, body := ask("https", "/metrics", "open-sesame")
		found = told.FindStringSubmatch(body)
		return found != nil
	})
	if ends, err := strconv.ParseFloat(found[1], 64); err != nil || int64(ends) != certificate.NotAfter.Unix() {
		t.Errorf("the certificate ends at %s, want %d", found[1], certificate.NotAfter.Unix())
	}
}

func TestTheDeadManURLIsRequestedWhileAllIsWell(t *testing.T) {
	t.Parallel()
	var before, after atomic.Int64
	service := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/before":
			before.Add(1)
		case "/after":
			after.Add(1)
		}
	}))
	t.Cleanup(service.Close)
	dir := t.TempDir()
	file := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, fmt.Appendln(nil, service.URL+"/"+name), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	etcd := cluster.StartBinary(t, "3.6", cluster.Options{})
	c := newCrew(t, "", etcd, nil, "urlFile:", "urlFile: "+file("before"), "interval: 5m", "interval: 1s")
	p := c.agents[0]
	etcd.Kill(0)
	c.start(p)
	c.until(60*time.Second, "a full fails", func() bool { return p.run(status.Full).Result == status.Failed })
	if before.Load() > 0 {
		t.Error("the URL was requested while there is no backup")
	}
	etcd.Restart(0)
	c.until(120*time.Second, "the URL is requested twice", func() bool { return before.Load() > 1 })

	edit(t, p.config, "urlFile:", "urlFile: "+file("after"))
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	c.until(60*time.Second, "the new URL is requested twice", func() bool { return after.Load() > 1 })
	last := before.Load()
	c.until(60*time.Second, "and requested again", func() bool { return after.Load() > 3 })
	if n := before.Load(); n != last {
		t.Errorf("the old URL was requested %d times since", n-last)
	}
}
