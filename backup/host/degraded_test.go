package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/seal"
)

func has(texts []string, part string) bool {
	return slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(text, part) })
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// secret stands for what must never get into a reason.
const secret = "hunter2"

func TestWhatIsWrongDegradesAndNeverRefuses(t *testing.T) {
	const pki = "etc/kubernetes/pki/"
	for _, c := range []struct {
		name     string
		kind     kubefixture.Kind
		breakIt  func(root string) error
		degraded string // part of a reason
		warning  string
		stored   string // still in the archive
		lost     string // not in the archive
	}{
		{name: "a certificate that can't be parsed", stored: pki + "apiserver.crt", degraded: "etc/kubernetes/pki/apiserver.crt: a PEM file that can't be parsed",
			breakIt: replaceFile(pki+"apiserver.crt", secret)},
		{name: "a certificate with damaged bytes", stored: pki + "ca.crt", degraded: "etc/kubernetes/pki/ca.crt: a certificate that can't be parsed",
			breakIt: replaceFile(pki+"ca.crt", "-----BEGIN CERTIFICATE-----\naHVudGVyMg==\n-----END CERTIFICATE-----\n")},
		{name: "a key that can't be parsed", stored: pki + "sa.key", degraded: "etc/kubernetes/pki/sa.key: a private key that can't be parsed",
			breakIt: replaceFile(pki+"sa.key", "-----BEGIN PRIVATE KEY-----\naHVudGVyMg==\n-----END PRIVATE KEY-----\n")},
		{name: "an empty key", stored: pki + "ca.key", degraded: "etc/kubernetes/pki/ca.key: a PEM file that can't be parsed", breakIt: replaceFile(pki+"ca.key", "")},
		{name: "a certificate with another's key", stored: pki + "ca.key", degraded: "etc/kubernetes/pki/ca.crt does not match its key etc/kubernetes/pki/ca.key",
			breakIt: copyFile(pki+"front-proxy-ca.key", pki+"ca.key")},
		{name: "a service account's key with another's public half", degraded: "etc/kubernetes/pki/sa.pub does not match its key", breakIt: copyFile(pki+"ca.key", pki+"sa.key")},
		{name: "a kubeconfig whose key is another's", degraded: "etc/kubernetes/admin.conf: the client certificate and its key don't match",
			breakIt: edit("etc/kubernetes/admin.conf", func(text string) string {
				return strings.Replace(text, "client-key-data: ", "client-key-data: aHVudGVyMg==\n    ignored: ", 1)
			})},
		{name: "a kubeconfig that is not YAML", stored: "etc/kubernetes/scheduler.conf", degraded: "etc/kubernetes/scheduler.conf: not a kubeconfig",
			breakIt: replaceFile("etc/kubernetes/scheduler.conf", "users: ["+secret)},
		{name: "a kubelet's configuration that is not YAML", stored: "var/lib/kubelet/config.yaml", degraded: "var/lib/kubelet/config.yaml: not a kubelet's configuration",
			breakIt: replaceFile("var/lib/kubelet/config.yaml", "a: ["+secret)},
		{name: "a cloud provider's configuration, which is no YAML", stored: "etc/kubernetes/cloud.conf", breakIt: replaceFile("etc/kubernetes/cloud.conf", "[Global]\npassword="+secret)},
		{name: "a long secret that looks like a path", stored: "etc/kubernetes/x.yaml",
			breakIt: replaceFile("etc/kubernetes/x.yaml", "kind: X\nsecret: /"+strings.Repeat(secret, 100)+"\n")},
		{name: "an authority's file with the old one first", stored: "etc/kubernetes/pki/ca.crt", breakIt: func(root string) error {
			a, err1 := os.ReadFile(filepath.Join(root, "etc/kubernetes/pki/front-proxy-ca.crt"))
			b, err2 := os.ReadFile(filepath.Join(root, "etc/kubernetes/pki/ca.crt"))
			return errors.Join(err1, err2, os.WriteFile(filepath.Join(root, "etc/kubernetes/pki/ca.crt"), append(a, b...), 0o644))
		}},
		{name: "a kubeconfig whose data is not base64", degraded: "certificate-authority-data is not base64",
			breakIt: edit("etc/kubernetes/admin.conf", func(text string) string {
				return strings.Replace(text, "certificate-authority-data: ", "certificate-authority-data: "+secret+"-", 1)
			})},
		{name: "a kubeconfig that names a missing file", degraded: "client-key in etc/kubernetes/kubelet.conf) does not exist",
			breakIt: edit("etc/kubernetes/kubelet.conf", func(text string) string {
				return strings.Replace(text, "client-key: /var/lib/kubelet/pki/kubelet-client-current.pem", "client-key: /var/lib/kubelet/pki/none.pem", 1)
			})},
		{name: "a manifest that can't be parsed", stored: "etc/kubernetes/manifests/etcd.yaml", degraded: "etc/kubernetes/manifests/etcd.yaml: not a static pod",
			breakIt: replaceFile("etc/kubernetes/manifests/etcd.yaml", "kind: Pod\nspec: "+secret)},
		{name: "a flag that names a missing file", kind: kubefixture.ExtraFiles, degraded: "--audit-policy-file of kube-apiserver",
			breakIt: func(root string) error { return os.Remove(filepath.Join(root, "opt/kube/audit/policy.yaml")) }},
		{name: "an encryption configuration that can't be parsed", kind: kubefixture.ExtraFiles, degraded: "srv/kube/encryption/config.yaml: an encryption configuration that can't be parsed",
			breakIt: replaceFile("srv/kube/encryption/config.yaml", "kind: EncryptionConfiguration\nresources: "+secret+"\n")},
		{name: "a link to nothing", stored: "etc/kubernetes/pki/gone.crt", warning: "etc/kubernetes/pki/gone.crt is a link to /nowhere/gone.crt, which does not exist",
			breakIt: func(root string) error {
				return os.Symlink("/nowhere/gone.crt", filepath.Join(root, "etc/kubernetes/pki/gone.crt"))
			}},
		{name: "a link that loops", stored: "etc/kubernetes/loop", degraded: "too many symbolic links",
			breakIt: func(root string) error { return os.Symlink("loop", filepath.Join(root, "etc/kubernetes/loop")) }},
		{name: "a link that climbs past the root", lost: "etc/kubernetes/up", stored: "opt/kube.txt", degraded: "etc/kubernetes/up: the link's target climbs past the root",
			breakIt: func(root string) error {
				return errors.Join(os.MkdirAll(filepath.Join(root, "opt"), 0o755), os.WriteFile(filepath.Join(root, "opt/kube.txt"), nil, 0o600),
					os.Symlink("../../../opt/kube.txt", filepath.Join(root, "etc/kubernetes/up")))
			}},
		{name: "a file that is too large", lost: "etc/kubernetes/huge", degraded: "etc/kubernetes/huge (a node's usual files): larger than the limit",
			breakIt: func(root string) error {
				return errors.Join(os.WriteFile(filepath.Join(root, "etc/kubernetes/huge"), nil, 0o600), os.Truncate(filepath.Join(root, "etc/kubernetes/huge"), 65<<20))
			}},
		{name: "a name that no archive can hold", lost: "etc/kubernetes/a\nb", degraded: "the name can't be archived",
			breakIt: replaceFile("etc/kubernetes/a\nb", "x")},
		{name: "a fifo and a socket", lost: "etc/kubernetes/fifo",
			breakIt: func(root string) error {
				l, err := net.Listen("unix", filepath.Join(root, "etc/kubernetes/s"))
				if err == nil {
					l.(*net.UnixListener).SetUnlinkOnClose(false)
					err = l.Close()
				}
				return errors.Join(err, syscall.Mkfifo(filepath.Join(root, "etc/kubernetes/fifo"), 0o600))
			}},
		{name: "a node without static pods", stored: "var/lib/kubelet/config.yaml", warning: "no static pod was found",
			breakIt: func(root string) error { return os.RemoveAll(filepath.Join(root, "etc/kubernetes/manifests")) }},
		{name: "an expired certificate that was rotated out", stored: "var/lib/kubelet/pki/kubelet-client-2024-01-01-00-00-00.pem",
			breakIt: func(root string) error {
				old, err := expired()
				return errors.Join(err, os.WriteFile(filepath.Join(root, "var/lib/kubelet/pki/kubelet-client-2024-01-01-00-00-00.pem"), old, 0o600))
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := node(t, c.kind)
			must(t, c.breakIt(root))
			var heard []string
			o := options(root)
			o.Events = func(e events.Event) {
				if w, ok := e.(events.Warning); ok {
					heard = append(heard, w.Message)
				}
			}
			r, headers, bodies := captured(t, o)
			switch {
			case c.degraded == "" && c.warning == "" && len(r.Degraded) > 0:
				t.Errorf("degraded: %q", r.Degraded)
			case c.degraded != "" && !has(r.Degraded, c.degraded):
				t.Errorf("degraded %q lacks %q", r.Degraded, c.degraded)
			case c.warning != "" && !has(r.Warnings, c.warning):
				t.Errorf("warnings %q lack %q", r.Warnings, c.warning)
			}
			if !slices.Equal(heard, r.Warnings) {
				t.Errorf("heard %q", heard)
			}
			if c.stored != "" && headers[c.stored] == nil {
				t.Errorf("%s is not stored", c.stored)
			}
			if c.lost != "" && headers[c.lost] != nil {
				t.Errorf("%s is stored", c.lost)
			}
			reasons := strings.Join(append(r.Degraded, r.Warnings...), "\n") + string(bodies[FactsName])
			if strings.Contains(reasons, secret) || strings.Contains(reasons, "PRIVATE KEY") || strings.Contains(reasons, "aHVudGVyMg") {
				t.Errorf("a secret got out: %s", reasons)
			}
		})
	}
}

func replaceFile(name, text string) func(string) error {
	return func(root string) error { return os.WriteFile(filepath.Join(root, name), []byte(text), 0o600) }
}

func copyFile(from, to string) func(string) error {
	return func(root string) error {
		data, err := os.ReadFile(filepath.Join(root, from))
		return errors.Join(err, os.WriteFile(filepath.Join(root, to), data, 0o600))
	}
}

func edit(name string, change func(string) string) func(string) error {
	return func(root string) error {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return err
		}
		text := change(string(data))
		if text == string(data) {
			return fmt.Errorf("%s was not changed", name)
		}
		return os.WriteFile(filepath.Join(root, name), []byte(text), 0o600)
	}
}

// expired returns a kubelet's client certificate of another time, with its key.
func expired() ([]byte, error) {
	dir, err := os.MkdirTemp("", "expired")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	err = kubefixture.Build(dir, kubefixture.Options{Now: now.AddDate(-2, 0, 0)})
	data, readErr := os.ReadFile(filepath.Join(dir, "var/lib/kubelet/pki/kubelet-client-2024-11-20-12-00-00.pem"))
	return data, errors.Join(err, readErr)
}

func TestExpiredCertificatesInUseDegrade(t *testing.T) {
	root := nodeWith(t, kubefixture.Options{LeafValidity: -time.Hour})
	r, headers, _ := captured(t, options(root))
	for _, name := range []string{"etc/kubernetes/pki/apiserver.crt", "etc/kubernetes/pki/etcd/server.crt", "var/lib/kubelet/pki/kubelet-client-2026-11-20-12-00-00.pem"} {
		if !has(r.Degraded, name+": the certificate expired on 2026-11-20") || headers[name] == nil {
			t.Errorf("%s: degraded %q, stored %v", name, r.Degraded, headers[name] != nil)
		}
	}
	r, _, _ = captured(t, options(nodeWith(t, kubefixture.Options{LeafValidity: 48 * time.Hour})))
	if !has(r.Warnings, "etc/kubernetes/pki/apiserver.crt: the certificate expires on 2026-11-22") || len(r.Degraded) > 0 {
		t.Errorf("warnings %q, degraded %q", r.Warnings, r.Degraded)
	}
}

// capturedFrom captures through a tree whose opening the test controls.
func capturedFrom(t *testing.T, o Options, change func(*tree)) *Result {
	t.Helper()
	tr, err := openTree(o.Root)
	must(t, err)
	defer tr.close()
	change(tr)
	var out bytes.Buffer
	w := seal.NewArchiveWriter(&out)
	r, err := capture(t.Context(), tr, o, w)
	must(t, err)
	must(t, w.Close())
	return r
}

func TestAnUnreadableFileDegrades(t *testing.T) {
	root := node(t, kubefixture.Stacked)
	r := capturedFrom(t, options(root), func(tr *tree) {
		open := tr.open
		tr.open = func(name string) (*os.File, error) {
			if name == "etc/kubernetes/pki/sa.key" {
				return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EACCES}
			}
			return open(name)
		}
	})
	if !has(r.Degraded, "etc/kubernetes/pki/sa.key") || !has(r.Degraded, "permission denied") {
		t.Errorf("degraded %q", r.Degraded)
	}
	if !slices.Contains(r.Facts.Skipped, SkippedFile{Path: "etc/kubernetes/pki/sa.key", Why: "permission denied"}) {
		t.Errorf("skipped %v", r.Facts.Skipped)
	}
}

func TestFilesAreReadUntilTheyAreStable(t *testing.T) {
	for _, c := range []struct {
		name    string
		changes int // how many readings find another content
		stable  bool
	}{{"a change between the first two readings", 2, true}, {"a file that never rests", 1000, false}} {
		t.Run(c.name, func(t *testing.T) {
			root := node(t, kubefixture.Stacked)
			const name = "etc/kubernetes/admin.conf"
			before, err := os.ReadFile(filepath.Join(root, name))
			must(t, err)
			readings := 0
			r := capturedFrom(t, options(root), func(tr *tree) {
				open := tr.open
				tr.open = func(n string) (*os.File, error) {
					if n == name && readings < c.changes {
						readings++
						must(t, os.WriteFile(filepath.Join(root, name), append(before, fmt.Sprintf("# %d\n", readings)...), 0o600))
					}
					return open(n)
				}
			})
			if c.stable != (len(r.Degraded) == 0) || !c.stable && !has(r.Degraded, name+" changed while it was read") {
				t.Errorf("degraded %q", r.Degraded)
			}
			if c.stable && readings != c.changes {
				t.Errorf("%d readings", readings)
			}
		})
	}
}

func TestALargeFileThatShrinksBeforeItIsArchivedSpoilsNothingElse(t *testing.T) {
	root := node(t, kubefixture.Stacked)
	const name = "etc/kubernetes/large"
	must(t, os.WriteFile(filepath.Join(root, name), bytes.Repeat([]byte("x"), keepLimit+1), 0o600))
	opened := 0
	r := capturedFrom(t, options(root), func(tr *tree) {
		open := tr.open
		tr.open = func(n string) (*os.File, error) {
			if n == name {
				if opened++; opened == 3 { // two readings, then the archive
					must(t, os.Truncate(filepath.Join(root, name), 10))
				}
			}
			return open(n)
		}
	})
	if !has(r.Degraded, name+" changed while it was archived") || len(r.Degraded) != 1 {
		t.Errorf("degraded %q", r.Degraded)
	}
}

func TestLimitsBoundACapture(t *testing.T) {
	root := node(t, kubefixture.Stacked)
	o := options(root)
	o.Limits = Limits{Files: 20}
	r, headers, _ := captured(t, o)
	if !has(r.Degraded, "more than 20 files") || len(headers) > 40 {
		t.Errorf("%d entries, degraded %q", len(headers), r.Degraded)
	}
	o.Limits = Limits{TotalBytes: 20_000}
	r, _, _ = captured(t, o)
	if !has(r.Degraded, "larger than 20000 bytes") || r.Bytes > 20_000 {
		t.Errorf("%d bytes, degraded %q", r.Bytes, r.Degraded)
	}
}

func TestCaptureEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Capture(ctx, options(node(t, kubefixture.Stacked)), seal.NewArchiveWriter(&bytes.Buffer{})); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestAFailingWriterEndsTheCapture(t *testing.T) {
	full := errors.New("disk full")
	if _, err := Capture(t.Context(), options(node(t, kubefixture.Stacked)), seal.NewArchiveWriter(failing{full})); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestAnExtraPatternThatMatchesNothingDegrades(t *testing.T) {
	root := node(t, kubefixture.Stacked)
	for pattern, matches := range map[string]bool{
		"/etc/kubernetes/*.conf": true, "/etc/kubernetes/*.nothing": false, "/no/such/folder/*": false,
	} {
		o := options(root)
		o.ExtraPaths = []string{pattern}
		r, _, _ := captured(t, o)
		if want := pattern + " (extraPaths) matches nothing"; has(r.Degraded, want) == matches {
			t.Errorf("%s: degraded %q", pattern, r.Degraded)
		}
	}
}
