package files

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/durable/tinydisk"
)

var errKilled = errors.New("killed")

// killAt stops before the n-th change, as a kill would; 0 for never.
func killAt(n int, steps *int) func(op, name string) error {
	return func(op, name string) error {
		if *steps++; *steps == n {
			return fmt.Errorf("%s %s: %w", op, name, errKilled)
		}
		return nil
	}
}

// machine is a root with an aside folder, and an archive to restore into it.
type machine struct {
	t           *testing.T
	root, aside string
	archive     []byte
	before      Before
	was         string // the root
}

// places are the kinds of aside folders.
var places = []string{"same file system", "other file system"}

// newMachine makes a root that the archive small takes every kind of step in.
func newMachine(t *testing.T, place string) *machine {
	t.Helper()
	m := &machine{t: t, root: t.TempDir(), aside: filepath.Join(t.TempDir(), "aside"), archive: small(t)}
	if place == places[1] {
		dir, err := os.MkdirTemp("/dev/shm", "lifeboat-files-")
		if err != nil {
			tinydisk.Unable(t, "no second file system at hand:", err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if sameDevice(t, dir, m.root) {
			tinydisk.Unable(t, "no second file system at hand: /dev/shm is on the same")
		}
		m.aside = filepath.Join(dir, "aside")
	}
	prepareOld(t, m.root)
	at := time.Date(2020, 1, 2, 3, 4, 5, 6, time.UTC)
	pki := filepath.Join(m.root, "etc/kubernetes/pki")
	if err := errors.Join(
		os.Symlink("/etc/kubernetes/pki/old.key", filepath.Join(pki, "current")),
		os.Chmod(filepath.Join(pki, "ca.key"), 0o400),
		os.Chtimes(filepath.Join(pki, "ca.key"), at, at),
		os.Chtimes(filepath.Join(pki, "same"), at, at),
		os.Chmod(pki, 0o711), os.Chtimes(pki, at, at),
	); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		for name, id := range map[string]int{"ca.key": 1234, "current": 77, "same": 55, ".": 12} {
			if err := os.Lchown(filepath.Join(pki, name), id, id+1); err != nil {
				t.Fatal(err)
			}
		}
	}
	m.was = m.looks()
	return m
}

func sameDevice(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y syscall.Stat_t
	if err := errors.Join(syscall.Stat(a, &x), syscall.Stat(b, &y)); err != nil {
		t.Fatal(err)
	}
	return x.Dev == y.Dev
}

// looks is all that can be seen of the root.
func (m *machine) looks() string {
	m.t.Helper()
	var owners strings.Builder
	err := filepath.WalkDir(m.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == m.root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		uid, gid := ownerOf(info)
		fmt.Fprintf(&owners, "%s %d %d\n", path[len(m.root):], uid, gid)
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return looks(m.t, m.root) + owners.String()
}

// apply restores up to the n-th change. The first one's Before is kept, in the
// form that a journal has.
func (m *machine) apply(n int) (steps int, err error) {
	m.t.Helper()
	p, err := Prepare(m.t.Context(), bytes.NewReader(m.archive), Options{Root: m.root, AsideDir: m.aside, RestoreID: "r1"})
	if err != nil {
		m.t.Fatal(err)
	}
	defer p.Close()
	if m.before.Created == nil && m.before.Replaced == nil {
		text, err := json.Marshal(p.Before())
		if err == nil {
			err = json.Unmarshal(text, &m.before)
		}
		if err != nil {
			m.t.Fatal(err)
		}
	}
	p.step = killAt(n, &steps)
	_, err = p.Apply(m.t.Context(), bytes.NewReader(m.archive))
	return steps, err
}

func (m *machine) mustApply() {
	m.t.Helper()
	if _, err := m.apply(0); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) undo(n int) (result *Undone, steps int, err error) {
	result, err = undo(m.t.Context(), m.root, m.aside, "r1", m.before, killAt(n, &steps))
	return result, steps, err
}

func (m *machine) mustUndo() *Undone {
	m.t.Helper()
	result, _, err := m.undo(0)
	if err != nil {
		m.t.Fatal(err)
	}
	return result
}

func (m *machine) mustBeAsBefore(when string) {
	m.t.Helper()
	if got := m.looks(); got != m.was {
		m.t.Errorf("%s:\n%s\nwant\n%s", when, got, m.was)
	}
}

func (m *machine) path(name string) string { return filepath.Join(m.root, name) }

func (m *machine) write(name, body string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(name), []byte(body), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// undone lists the files that an undo moved, with what is in them.
func (m *machine) undone() map[string]string {
	m.t.Helper()
	out := map[string]string{}
	dir := filepath.Join(m.aside, "r1.undone")
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if to, err := os.Readlink(path); err == nil {
			out[path[len(dir)+1:]] = "-> " + to
			return nil
		}
		body, err := os.ReadFile(path)
		out[path[len(dir)+1:]] = string(body)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.t.Fatal(err)
	}
	return out
}
