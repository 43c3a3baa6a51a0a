package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/etcdtest"
)

func options(t *testing.T, out *bytes.Buffer) Options {
	t.Setenv("TMPDIR", t.TempDir())
	return Options{Out: out, Objects: 200, Version: "test", Now: time.Now, Rand: rand.Reader}
}

func TestTheStoryEndsWellAndLeavesNothing(t *testing.T) {
	var out bytes.Buffer
	opts := options(t, &out)
	if err := Run(t.Context(), opts); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"HashKV", "objects deleted", "as before the mistake", "identical", "Everything is back"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the story does not say %q:\n%s", want, out.String())
		}
	}
	empty(t, os.Getenv("TMPDIR"))
}

func TestAStoryThatIsInterruptedLeavesNothing(t *testing.T) {
	var out bytes.Buffer
	opts := options(t, &out)
	ctx, cancel := context.WithCancel(t.Context())
	opts.Out = writerFunc(func(p []byte) (int, error) {
		if strings.Contains(string(p), "backup of etcd") {
			cancel()
		}
		return out.Write(p)
	})
	if err := Run(ctx, opts); !errors.Is(err, ErrInterrupted) {
		t.Errorf("got %v, want interrupted", err)
	}
	empty(t, os.Getenv("TMPDIR"))
}

func TestAKeptStoryStaysWithItsCommands(t *testing.T) {
	var out bytes.Buffer
	opts := options(t, &out)
	opts.Keep = filepath.Join(t.TempDir(), "kept")
	if err := Run(t.Context(), opts); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	// Else a restore of the control plane would be refused: its etcd would be too old.
	pod, err := os.ReadFile(filepath.Join(opts.Keep, "node/etc/kubernetes/manifests/etcd.yaml"))
	if err != nil || !strings.Contains(string(pod), "etcd:"+etcdtest.EmbeddedVersion+"-") {
		t.Errorf("the static pod's image is not of etcd %s: %v", etcdtest.EmbeddedVersion, err)
	}
	for _, name := range []string{"store", "node/etc/kubernetes/admin.conf", "node/var/lib/etcd/member", "lifeboat/config.yaml", "lifeboat/recovery.key"} {
		if _, err := os.Stat(filepath.Join(opts.Keep, name)); err != nil {
			t.Error(err)
		}
	}
	if !strings.Contains(out.String(), "lifeboat list --config "+filepath.Join(opts.Keep, "lifeboat", "config.yaml")) {
		t.Errorf("no commands to go on:\n%s", out.String())
	}
	if err := Run(t.Context(), opts); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("a second story in the same folder: got %v, want ErrNotEmpty", err)
	}
}

func TestCompareNamesEveryDifference(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{"a": "1", "b": "2", "c": "3"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before, err := readTree(root, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := compare(before, before); err != nil {
		t.Errorf("a tree differs from itself: %v", err)
	}
	if err := errors.Join(os.Remove(filepath.Join(root, "a")), os.Chmod(filepath.Join(root, "b"), 0o644),
		os.WriteFile(filepath.Join(root, "c"), []byte("4"), 0o600), os.Symlink("c", filepath.Join(root, "d"))); err != nil {
		t.Fatal(err)
	}
	after, err := readTree(root, "")
	if err != nil {
		t.Fatal(err)
	}
	err = compare(before, after)
	for _, want := range []string{"a is missing", "b has mode", "c has another content", "d is new"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func empty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("left behind: %s", e.Name())
	}
}
