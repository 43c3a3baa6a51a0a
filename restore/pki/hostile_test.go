package pki

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestWhatCannotBeReadIsNamed(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		data string
	}{
		"garbage":              {"etc/kubernetes/pki/apiserver.crt", "garbage"},
		"no certificate":       {"etc/kubernetes/pki/apiserver.crt", "-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n"},
		"a cut block":          {"etc/kubernetes/pki/etcd/server.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n"},
		"no DER":               {"etc/kubernetes/pki/etcd/server.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
		"no key":               {"etc/kubernetes/pki/ca.key", "-----BEGIN RSA PRIVATE KEY-----\nc2VjcmV0\n-----END RSA PRIVATE KEY-----\n"},
		"a huge key":           {"etc/kubernetes/pki/ca.key", "-----BEGIN RSA PRIVATE KEY-----\n" + strings.Repeat("AAAA", keyLimit/2) + "\n-----END RSA PRIVATE KEY-----\n"},
		"an empty key":         {"etc/kubernetes/pki/ca.key", ""},
		"a huge file":          {"etc/kubernetes/pki/huge.pem", strings.Repeat("x", fileLimit+1)},
		"no YAML":              {"etc/kubernetes/admin.conf", "a: [\n"},
		"no kubeconfig":        {"etc/kubernetes/admin.conf", "a: b\n"},
		"an empty kubeconfig":  {"etc/kubernetes/admin.conf", ""},
		"two documents":        {"etc/kubernetes/admin.conf", "clusters: []\nusers: []\n---\nx: y\n"},
		"an alias":             {"etc/kubernetes/admin.conf", "clusters: &a []\nusers: *a\n"},
		"a field twice":        {"etc/kubernetes/admin.conf", "clusters: []\nusers: []\nusers: []\n"},
		"no base64":            {"etc/kubernetes/admin.conf", "clusters: []\nusers:\n- user: {client-certificate-data: \"%\"}\n"},
		"base64 of no PEM":     {"etc/kubernetes/admin.conf", "clusters: []\nusers:\n- user: {client-key-data: c2VjcmV0}\n"},
		"a huge kubeconfig":    {"etc/kubernetes/scheduler.conf", strings.Repeat("#", fileLimit+1)},
		"a journal of nothing": {journalName, "{}"},
		"a journal of others":  {journalName, `{"moves":[{"place":"etc/kubernetes/admin.conf","staged":"etc/shadow"}]}`},
		"a journal outside":    {journalName, `{"moves":[{"place":"../x"}]}`},
	} {
		t.Run(name, func(t *testing.T) {
			n := &node{t: t, root: t.TempDir(), aside: t.TempDir()}
			n.write(c.file, []byte(c.data), 0o600)
			_, err := Inspect(t.Context(), n.root, now)
			if !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), "/"+c.file) {
				t.Errorf("inspect: %v", err)
			}
			if err != nil && (strings.Contains(err.Error(), "c2VjcmV0") || strings.Contains(err.Error(), "secret")) {
				t.Errorf("it tells the content: %v", err)
			}
			if _, err := Prepare(t.Context(), n.options()); !errors.Is(err, ErrUnreadable) {
				t.Errorf("prepare: %v", err)
			}
		})
	}
}

func TestAFifoIsRefusedAndDoesNotBlock(t *testing.T) {
	n := &node{t: t, root: t.TempDir()}
	n.write("etc/kubernetes/pki/x", nil, 0o600)
	if err := syscall.Mkfifo(filepath.Join(n.root, "etc/kubernetes/pki/apiserver.crt"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(t.Context(), n.root, now); !errors.Is(err, ErrUnreadable) {
		t.Error(err)
	}
}

func TestLinksMeanTheRootsAndNeverLeadOut(t *testing.T) {
	n := newNode(t, ecdsaKey)
	outside := t.TempDir()
	if err := os.CopyFS(filepath.Join(outside, "etc"), os.DirFS(filepath.Join(n.root, "etc"))); err != nil {
		t.Fatal(err)
	}
	before := map[string][]byte{}
	err := filepath.WalkDir(outside, func(file string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			before[file], err = os.ReadFile(file)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// The same names, but as links: one to a folder of the root, one that leads out.
	if err := os.Rename(filepath.Join(n.root, "etc/kubernetes/pki"), filepath.Join(n.root, "data")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../data", filepath.Join(n.root, "etc/kubernetes/pki")); err != nil {
		t.Fatal(err)
	}
	admin := filepath.Join(n.root, "etc/kubernetes/admin.conf")
	if err := errors.Join(os.Remove(admin), os.Symlink(filepath.Join(outside, "etc/kubernetes/admin.conf"), admin)); err != nil {
		t.Fatal(err)
	}
	n.apply(n.moved())
	n.verify(n.pair("data/apiserver.crt", "data/apiserver.key"), "data/ca", server, "cp9")
	if _, err := os.Lstat(filepath.Join(n.aside, "data/apiserver.key")); err != nil {
		t.Error(err)
	}
	for file, data := range before {
		if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, data) {
			t.Errorf("%s outside changed, %v", file, err)
		}
	}
}

func TestTooManyFilesAreRefused(t *testing.T) {
	n := &node{t: t, root: t.TempDir()}
	n.write("etc/kubernetes/pki/0", nil, 0o600)
	for i := range folderLimit {
		n.write("etc/kubernetes/pki/x"+string(rune('a'+i%26))+strings.Repeat("y", i/26), nil, 0o600)
	}
	if _, err := Inspect(t.Context(), n.root, now); !errors.Is(err, ErrUnreadable) {
		t.Error(err)
	}
}

func TestTwoRunsDoNotMeet(t *testing.T) {
	n := newNode(t, ecdsaKey)
	p := n.prepare(n.moved())
	unlock, err := p.t.lock()
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	other := n.prepare(n.moved())
	if _, err := other.Apply(t.Context()); !errors.Is(err, ErrInUse) {
		t.Error(err)
	}
	if _, err := Undo(t.Context(), n.root, n.aside); !errors.Is(err, ErrInUse) {
		t.Error(err)
	}
}
