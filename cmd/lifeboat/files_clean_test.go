package main

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// typing is a person's answer, before which something happens.
type typing struct {
	before func()
	*strings.Reader
}

func (r *typing) Read(p []byte) (int, error) {
	if r.before != nil {
		r.before()
		r.before = nil
	}
	return r.Reader.Read(p)
}

func TestWhatAnInterruptedRestoreOfFilesHasMovedAsideStays(t *testing.T) {
	w := newWard(t)
	key, inTheWay := filepath.Join(w.root, "etc/kubernetes/pki/ca.key"), filepath.Join(w.root, "var/lib/kubelet/config.yaml")
	must(t, os.MkdirAll(filepath.Dir(key), 0o755))
	must(t, os.WriteFile(key, []byte("the only copy"), 0o600))
	command := []string{"restore", "files", "--config", w.config, "--identity", filepath.Join(filepath.Dir(w.config), "recovery.key"), "--node", "cp1", "--root", w.root, "--restore-id", "r1"}
	clean := []string{"restore", "clean", "--config", w.config, "--root", w.root, "--yes", "-o", "json"}

	var out, errs bytes.Buffer
	person := &typing{func() { must(t, os.MkdirAll(filepath.Join(inTheWay, "x"), 0o700)) }, strings.NewReader("y\n")}
	code := (&app{streams: streams{in: person, out: &out, err: &errs}, now: time.Now, rand: rand.Reader}).run(t.Context(), command)
	kept := filepath.Join(w.state, "aside/r1/etc/kubernetes/pki/ca.key")
	if text, err := os.ReadFile(kept); code == exitDone || err != nil || string(text) != "the only copy" {
		t.Fatalf("exit code %d, kept: %q %v\n%s", code, text, err, errs.String())
	}
	if list := decode[[]keptJSON](t, w.must(clean...)); len(list) != 1 || list[0].Removed || !strings.Contains(list[0].Stays, "--restore-id r1 or") ||
		!strings.HasSuffix(list[0].Stays, "remove "+filepath.Join(w.state, "aside/r1.unfinished")) {
		t.Errorf("%+v", list)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Fatal(err)
	}

	must(t, os.RemoveAll(inTheWay))
	w.must(append(command, "--yes")...)
	if list := decode[[]keptJSON](t, w.must(clean...)); len(list) != 1 || !list[0].Removed {
		t.Errorf("it is finished: %+v", list)
	}
	if left, _ := os.ReadDir(filepath.Join(w.state, "aside")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A bare machine's state folder may be read-only or full.
func TestARestoreOfFilesThatReplacesNothingWritesNoMark(t *testing.T) {
	w := newWard(t)
	aside := filepath.Join(w.state, "aside")
	must(t, os.MkdirAll(w.state, 0o700))
	must(t, os.WriteFile(aside, nil, 0o600)) // nothing can be made below it, by root either
	command := []string{"restore", "files", "--config", w.config, "--identity", filepath.Join(filepath.Dir(w.config), "recovery.key"), "--node", "cp1", "--root", t.TempDir(), "--yes"}
	w.must(command...)
}

func TestARefusedRestoreOfFilesLeavesNoMark(t *testing.T) {
	w := newWard(t)
	key, aside := filepath.Join(w.root, "etc/kubernetes/pki/ca.key"), filepath.Join(w.state, "aside")
	must(t, os.MkdirAll(filepath.Dir(key), 0o755))
	must(t, os.WriteFile(key, []byte("the only copy"), 0o600))
	must(t, os.MkdirAll(aside, 0o700))
	must(t, os.WriteFile(filepath.Join(aside, "r1"), nil, 0o600)) // in the way of the folder
	command := []string{"restore", "files", "--config", w.config, "--identity", filepath.Join(filepath.Dir(w.config), "recovery.key"), "--node", "cp1", "--root", w.root, "--restore-id", "r1", "--yes"}
	w.wants(exitFailed, "nothing was changed", command...)
	if _, err := os.Lstat(unfinishedMark(filepath.Join(aside, "r1"))); !os.IsNotExist(err) {
		t.Errorf("the mark: %v", err)
	}
}
