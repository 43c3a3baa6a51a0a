package restore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/backup/host"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
)

func withCount(op *clientv3.Op) {
	clientv3.WithPrefix()(op)
	clientv3.WithCountOnly()(op)
}

func (f *fixture) deepOptions(t *testing.T) DeepOptions {
	return DeepOptions{Identities: []age.Identity{f.id}, Scratch: filepath.Join(t.TempDir(), "scratch"), Now: time.Now}
}

func TestDeepVerifyOfADatabase(t *testing.T) {
	tests := []struct {
		name     string
		manifest func(*manifest.Manifest)
		damage   func([]byte) []byte
		want     error
		proof    bool
	}{
		{name: "a good backup"},
		{name: "an unproved one gets a proof", manifest: func(m *manifest.Manifest) { m.Unproved = []string{"one member"} }, proof: true},
		{name: "one without a HashKV too", manifest: func(m *manifest.Manifest) {
			m.Unproved, m.Etcd.HashKV, m.Etcd.Revision = []string{"no scratch"}, 0, 1
		}, proof: true},
		{name: "a wrong HashKV", manifest: func(m *manifest.Manifest) { m.Etcd.HashKV ^= 1 }, want: repository.ErrVerification},
		{name: "a damaged object", damage: func(b []byte) []byte { b[len(b)/3] ^= 1; return b }, want: repository.ErrVerification},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			m := f.full(t, snapshotFile(t), tt.manifest)
			if tt.damage != nil {
				f.overwrite(t, m, tt.damage)
			}
			opts := f.deepOptions(t)
			report, err := DeepVerify(t.Context(), f.repo, m, opts)
			if !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			if left, _ := os.ReadDir(opts.Scratch); len(left) != 0 {
				t.Errorf("left in scratch: %v", left)
			}
			if err != nil {
				return
			}
			if (report.Proof != nil) != tt.proof {
				t.Fatalf("proof %v", report.Proof)
			}
			if !tt.proof {
				return
			}
			id, _ := manifest.NewID(bytes.NewReader(make([]byte, 64)))
			if _, err := f.repo.Commit(t.Context(), &manifest.Manifest{
				Chain: m.Chain, Kind: manifest.KindProof, ID: id, Created: f.now, Writer: m.Writer, Proof: report.Proof,
			}); err != nil {
				t.Fatal(err)
			}
			backups, _, err := f.repo.Backups(t.Context())
			if err != nil || len(backups) != 1 || !backups[0].Proved {
				t.Errorf("after the proof: %+v, %v", backups, err)
			}
		})
	}
}

func TestDeepVerifyOfFiles(t *testing.T) {
	root := filepath.Join(t.TempDir(), "node")
	if err := kubefixture.Build(root, kubefixture.Options{}); err != nil {
		t.Fatal(err)
	}
	capture := func(t *testing.T) (*host.Result, []byte) {
		var text bytes.Buffer
		w := seal.NewArchiveWriter(&text)
		captured, err := host.Capture(t.Context(), host.Options{Root: root, Node: "cp1", Resolver: nobody{},
			Addresses: func() ([]host.Address, error) { return nil, nil }}, w)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return captured, text.Bytes()
	}
	t.Run("of a kubeadm node", func(t *testing.T) {
		f := newFixture(t)
		captured, text := capture(t)
		m := f.commit(t, &manifest.Manifest{Chain: "hosts/cp1", Kind: manifest.KindFiles,
			Host: &manifest.Host{Node: "cp1", Files: captured.Files, Bytes: captured.Bytes}}, manifest.RoleFiles, "files.tar.zst.age", text)
		report, err := DeepVerify(t.Context(), f.repo, m, f.deepOptions(t))
		if err != nil {
			t.Fatal(err)
		}
		if report.Files != captured.Files || report.Pairs < 5 || len(report.Warnings) != 0 {
			t.Errorf("%d files, %d pairs, warnings %q", report.Files, report.Pairs, report.Warnings)
		}
	})
	t.Run("that are fewer than the manifest says", func(t *testing.T) {
		f := newFixture(t)
		captured, text := capture(t)
		m := f.commit(t, &manifest.Manifest{Chain: "hosts/cp1", Kind: manifest.KindFiles,
			Host: &manifest.Host{Node: "cp1", Files: captured.Files + 1, Bytes: captured.Bytes}}, manifest.RoleFiles, "files.tar.zst.age", text)
		if _, err := DeepVerify(t.Context(), f.repo, m, f.deepOptions(t)); !errors.Is(err, repository.ErrVerification) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("with a flipped byte before sealing", func(t *testing.T) {
		f := newFixture(t)
		captured, text := capture(t)
		i := bytes.LastIndex(text, []byte("-----BEGIN CERTIFICATE-----\n")) + 60
		text[i] ^= 1
		m := f.commit(t, &manifest.Manifest{Chain: "hosts/cp1", Kind: manifest.KindFiles,
			Host: &manifest.Host{Node: "cp1", Files: captured.Files, Bytes: captured.Bytes}}, manifest.RoleFiles, "files.tar.zst.age", text)
		if _, err := DeepVerify(t.Context(), f.repo, m, f.deepOptions(t)); !errors.Is(err, repository.ErrVerification) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("of which a large one vanished while it was archived", func(t *testing.T) {
		testLateChange(t, root, func(path string) error { return os.Remove(path) })
	})
	t.Run("of which a large one was cut while it was archived", func(t *testing.T) {
		testLateChange(t, root, func(path string) error { return os.Truncate(path, 5) })
	})
	t.Run("whose certificate and key don't belong together", func(t *testing.T) {
		pki := filepath.Join(root, "etc/kubernetes/pki")
		key, err := os.ReadFile(filepath.Join(pki, "ca.key"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(pki, "apiserver.key"), key, 0o600); err != nil {
			t.Fatal(err)
		}
		f := newFixture(t)
		captured, text := capture(t)
		m := f.commit(t, &manifest.Manifest{Chain: "hosts/cp1", Kind: manifest.KindFiles,
			Host: &manifest.Host{Node: "cp1", Files: captured.Files, Bytes: captured.Bytes}}, manifest.RoleFiles, "files.tar.zst.age", text)
		report, err := DeepVerify(t.Context(), f.repo, m, f.deepOptions(t))
		if err != nil {
			t.Fatal(err)
		}
		if len(report.Warnings) != 1 {
			t.Errorf("warnings %q", report.Warnings)
		}
	})
}

// nobody is a resolver without a network.
type nobody struct{}

func (nobody) LookupHost(context.Context, string) ([]string, error) { return nil, nil }

// testLateChange changes a file that is too large to hold in memory after the
// facts know it and before the archive has it.
func testLateChange(t *testing.T, root string, change func(path string) error) {
	const name = "etc/kubernetes/large"
	path := filepath.Join(root, name)
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 25<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	var text bytes.Buffer
	w := seal.NewArchiveWriter(&text)
	captured, err := host.Capture(t.Context(), host.Options{Root: root, Node: "cp1", Resolver: nobody{},
		Addresses: func() ([]host.Address, error) { return nil, change(path) }}, w)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if len(captured.Degraded) == 0 {
		t.Fatal("the capture is not degraded")
	}
	f := newFixture(t)
	draft := manifest.Manifest{Chain: "hosts/cp1", Kind: manifest.KindFiles, Degraded: captured.Degraded,
		Host: &manifest.Host{Node: "cp1", Files: captured.Files, Bytes: captured.Bytes}}
	degraded, quiet := draft, draft
	quiet.Degraded = nil
	m := f.commit(t, &degraded, manifest.RoleFiles, "files.tar.zst.age", text.Bytes())
	report, err := DeepVerify(t.Context(), f.repo, m, f.deepOptions(t))
	if err != nil {
		t.Fatalf("a degraded backup: %v", err)
	}
	if len(report.Warnings) != 1 || !strings.Contains(report.Warnings[0], name) {
		t.Errorf("warnings %q, want one that names %s", report.Warnings, name)
	}
	m = f.commit(t, &quiet, manifest.RoleFiles, "files.tar.zst.age", text.Bytes())
	if _, err := DeepVerify(t.Context(), f.repo, m, f.deepOptions(t)); !errors.Is(err, repository.ErrVerification) {
		t.Errorf("a manifest that does not say so: %v", err)
	}
}
