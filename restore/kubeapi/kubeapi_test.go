package kubeapi_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lifeboat/restore/kubeapi"
)

func TestReady(t *testing.T) {
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		want    string
		is      error
	}{
		{name: "a server that is ready", handler: func(w http.ResponseWriter, r *http.Request) {
			if r.URL.String() != "/readyz?verbose" || r.Method != "GET" {
				w.WriteHeader(404)
			}
		}},
		{name: "failing checks are named", want: "500 Internal Server Error: failing are etcd, poststarthook/rbac/bootstrap-roles", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			fmt.Fprint(w, "[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\n[-]poststarthook/rbac/bootstrap-roles failed: reason withheld\nreadyz check failed\n")
		}},
		{name: "a foreign certificate", want: "is the kubeconfig this cluster's", is: kubeapi.ErrDenied, handler: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(401)
			fmt.Fprint(w, `{"kind":"Status","message":"Unauthorized"}`)
		}},
		{name: "garbage", want: "503 Service Unavailable: no <b>server</b> here", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(503)
			fmt.Fprint(w, "no\x00\x1b <b>server</b>\nhere")
		}},
		{name: "a redirect is not followed", want: "307 Temporary Redirect", handler: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://example.com/", http.StatusTemporaryRedirect)
		}},
		{name: "a hang ends", want: "no answer within 100ms", handler: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		{name: "a body that hangs ends", want: "no answer within 100ms", handler: func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}},
		{name: "an endless answer is given up", is: kubeapi.ErrTooLarge, want: "more than", handler: func(w http.ResponseWriter, _ *http.Request) {
			block := make([]byte, 1<<20)
			for {
				if _, err := w.Write(block); err != nil {
					return
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			limit := 30 * time.Second
			if strings.Contains(c.want, "100ms") {
				limit = 100 * time.Millisecond
			}
			err := serve(t, c.handler, func(o *kubeapi.Options) { o.Limit = limit }).Ready(t.Context())
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestWaitReadyTellsWhatItWaitsFor(t *testing.T) {
	var looks atomic.Int32
	client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n := looks.Add(1); n <= 4 {
			w.WriteHeader(500)
			fmt.Fprintf(w, "[-]check-%d failed: reason withheld\n", (n+1)/2)
		}
	}))
	var told []string
	if err := client.WaitReady(t.Context(), func(text string) { told = append(told, text) }); err != nil {
		t.Fatal(err)
	}
	if len(told) != 2 || !strings.Contains(told[0], "failing are check-1") || !strings.Contains(told[1], "failing are check-2") {
		t.Errorf("told %q", told)
	}
}

func TestWaitReadyEndsWithItsContextAndSaysWhatWasMissing(t *testing.T) {
	client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(500)
		fmt.Fprint(w, "[-]etcd failed\n")
	}))
	enough := errors.New("enough of it")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, enough)
	defer cancel()
	err := client.WaitReady(ctx, nil)
	if !errors.Is(err, enough) || !strings.Contains(err.Error(), "failing are etcd") {
		t.Errorf("%v", err)
	}
}

func TestWaitReadyDoesNotWaitForAnotherClustersServer(t *testing.T) {
	for name, change := range map[string]func(*kubeapi.Options){
		"a certificate for another name": func(o *kubeapi.Options) { o.TLSServerName = "kubernetes" },
		"another cluster's CA": func(o *kubeapi.Options) {
			ca := newAuthority(t)
			cert, key := ca.issue("kubernetes-admin")
			o.Kubeconfig = kubeconfig("https://"+serverName+":6443", ca.pem, cert, key)
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := serve(t, newStore(), change).WaitReady(t.Context(), nil)
			var certificate *tls.CertificateVerificationError
			if !errors.As(err, &certificate) || !strings.Contains(err.Error(), "another cluster's server") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestAServerThatIsNotThereIsWaitedFor(t *testing.T) {
	client := serve(t, newStore(), func(o *kubeapi.Options) { o.Server = "https://127.0.0.1:1" })
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := client.WaitReady(ctx, nil)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("%v", err)
	}
}

func TestKubeconfigsThatCantBeUsed(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.issue("kubernetes-admin")
	good := string(kubeconfig("https://10.0.0.11:6443", ca.pem, cert, key))
	_, otherKey := ca.issue("somebody")
	b64 := base64.StdEncoding.EncodeToString
	secret := b64(key)[40:80]
	for _, c := range []struct{ name, text, want string }{
		{"no YAML", "client-key-data: [" + secret, "no YAML"},
		{"no base64", strings.Replace(good, b64(key), "'@@@ "+secret+"'", 1), "no YAML"},
		{"no context", strings.Replace(good, "current-context: kubernetes-admin@kubernetes", "current-context: other", 1), `no context "other"`},
		{"no such cluster", strings.Replace(good, "    cluster: kubernetes\n", "    cluster: lost\n", 1), `cluster "lost"`},
		{"no such user", strings.Replace(good, "    user: kubernetes-admin\n", "    user: lost\n", 1), `user "lost"`},
		{"plain text", strings.Replace(good, "https://", "http://", 1), "not with https"},
		{"credentials in the URL", strings.Replace(good, "https://", "https://me:"+secret+"@", 1), "more than host"},
		{"no verification", strings.Replace(good, "    server:", "    insecure-skip-tls-verify: true\n    server:", 1), "insecure"},
		{"a CA that is none", strings.Replace(good, b64(ca.pem), b64([]byte("x")), 1), "no PEM"},
		{"another one's key", strings.Replace(good, b64(key), b64(otherKey), 1), "certificate and key"},
		{"no credentials", good[:strings.Index(good, "    client-certificate-data")] + "    token: ''\n", "neither a certificate"},
		{"a token with line breaks", good[:strings.Index(good, "    client-certificate-data")] + "    token: \"" + secret + "\\nX: y\"\n", "its token is none"},
		{"a file that is missing", strings.Replace(good, "client-key-data: "+b64(key), "client-key: /etc/none.key", 1), "read /etc/none.key"},
		{"a file without its folder", strings.Replace(good, "client-key-data: "+b64(key), "client-key: none.key", 1), "not absolute"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := kubeapi.New(kubeapi.Options{Kubeconfig: []byte(c.text), Root: t.TempDir()})
			if !errors.Is(err, kubeapi.ErrKubeconfig) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Error("the error shows a secret")
			}
		})
	}
}

func FuzzNew(f *testing.F) {
	f.Add([]byte("current-context: a\ncontexts: [{name: a}]\n"))
	f.Add([]byte("users: [{user: {client-key: /etc/passwd}}]"))
	root := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := kubeapi.New(kubeapi.Options{Kubeconfig: text, Root: root}); err != nil && !errors.Is(err, kubeapi.ErrKubeconfig) {
			t.Error(err)
		}
	})
}

func TestCredentialsComeFromFilesBelowTheRoot(t *testing.T) {
	root := t.TempDir()
	write := func(name string, data []byte) {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	client := serve(t, newStore(), func(o *kubeapi.Options) {
		text := string(o.Kubeconfig)
		for field, file := range map[string]string{"certificate-authority": "/etc/pki/ca.crt", "client-certificate": "/pki/current.pem", "client-key": "/pki/current.pem"} {
			at := strings.Index(text, field+"-data: ")
			line, _, _ := strings.Cut(text[at:], "\n")
			data, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(line, field+"-data: "))
			if err != nil {
				t.Fatal(err)
			}
			text = strings.Replace(text, line, field+": "+file, 1)
			if strings.HasPrefix(field, "client") {
				if old, err := os.ReadFile(filepath.Join(root, "pki/2026.pem")); err == nil {
					data = append(data, old...)
				}
				write("pki/2026.pem", data)
			} else {
				write(file, data)
			}
		}
		if err := os.Symlink("/pki/2026.pem", filepath.Join(root, "pki/current.pem")); err != nil {
			t.Fatal(err)
		}
		o.Kubeconfig, o.Root = []byte(text), root
	})
	if err := client.Ready(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestListsComeInPagesAndBeginAnewWhenTheirPlaceIsGone(t *testing.T) {
	s := newStore()
	for _, name := range []string{"cp1", "cp2", "cp3", "w1", "w2"} {
		s.put(nodes+name, node("True"))
	}
	gone := true
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("continue") == nodes+"cp2" && gone {
			gone = false
			w.WriteHeader(http.StatusGone)
			return true
		}
		return false
	}
	got, err := serve(t, s).Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range got {
		names = append(names, n.Name)
	}
	if !slices.Equal(names, []string{"cp1", "cp2", "cp3", "w1", "w2"}) || gone {
		t.Errorf("%v, gone %v", names, gone)
	}
}

func TestAnAnswerThatIsNoAPIServersIsAnError(t *testing.T) {
	client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>hello</html>") }))
	if _, err := client.Nodes(t.Context()); err == nil || !strings.Contains(err.Error(), "not what an API server says") {
		t.Errorf("%v", err)
	}
	if _, err := client.RemoveNodes(t.Context(), []string{"cp3"}, kubeapi.Removal{Since: kubeapi.Since{Revision: 1}}); err == nil {
		t.Error("nodes were removed on the word of a server that is none")
	}
}
