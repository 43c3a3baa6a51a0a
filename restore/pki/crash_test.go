package pki

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var errKilled = errors.New("killed")

// killBefore fails before the n-th change, as a kill would.
func (t *tree) killBefore(n int) {
	t.before = func(string, string) error {
		if n--; n < 0 {
			return errKilled
		}
		return nil
	}
}

// copied is a node with the same files in another folder.
func (n *node) copied(t *testing.T) *node {
	t.Helper()
	out := &node{t: t, root: filepath.Join(t.TempDir(), "root"), aside: filepath.Join(t.TempDir(), "aside"), newKey: n.newKey, cas: n.cas}
	err := filepath.WalkDir(n.root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(out.root, strings.TrimPrefix(file, n.root))
		info, err := d.Info()
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(to, 0o755)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(file)
			return errors.Join(err, os.Symlink(target, to))
		}
		data, err := os.ReadFile(file)
		return errors.Join(err, os.WriteFile(to, data, info.Mode()))
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// leftovers are unfinished files.
func (n *node) leftovers() []string {
	n.t.Helper()
	var out []string
	err := filepath.WalkDir(n.root, func(file string, d fs.DirEntry, err error) error {
		if strings.Contains(file, "lifeboat-") || d.Name() == filepath.Base(journalName) {
			out = append(out, file)
		}
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// fresh is a node whose certificates and kubeconfigs are the smallest set that
// takes every kind of step.
func fresh(t *testing.T) *node {
	t.Helper()
	n := newNode(t, ecdsaKey)
	for _, name := range []string{"apiserver-kubelet-client", "front-proxy-client", "etcd/peer"} {
		for _, ext := range []string{".crt", ".key"} {
			if err := os.Remove(filepath.Join(n.root, "etc/kubernetes/pki", name+ext)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}

func TestARunCanBeKilledBeforeEveryChange(t *testing.T) {
	original := fresh(t)
	before := original.looks()
	for kill := 0; ; kill++ {
		n := original.copied(t)
		p := n.prepare(n.moved())
		p.t.killBefore(kill)
		_, err := p.Apply(t.Context())
		if err != nil && !errors.Is(err, errKilled) {
			t.Fatalf("kill %d: %v", kill, err)
		}
		begun := n.prepare(n.moved()).Unfinished != nil
		if !begun && err != nil {
			if diff := cmp.Diff(before, settled(n.looks())); diff != "" {
				t.Fatalf("kill %d came before the journal and changed something: %s", kill, diff)
			}
		}
		if kill%2 == 0 {
			if _, uerr := Undo(t.Context(), n.root, n.aside); uerr != nil && (begun || err == nil || !errors.Is(uerr, ErrNothingToUndo)) {
				t.Fatalf("kill %d, undo: %v", kill, uerr)
			}
			if diff := cmp.Diff(before, settled(n.looks())); diff != "" {
				t.Fatalf("kill %d, undone: %s", kill, diff)
			}
		}
		n.apply(n.moved())
		n.apply(n.moved())
		n.checkFresh()
		if left := n.leftovers(); len(left) > 0 {
			t.Fatalf("kill %d leaves %q", kill, left)
		}
		if err == nil {
			if kill < 20 {
				t.Errorf("only %d changes were seen", kill)
			}
			return
		}
	}
}

func TestTheSamePlanFinishesWhatItBegan(t *testing.T) {
	n := fresh(t)
	p := n.prepare(n.moved())
	steps := 0
	p.t.before = func(op, _ string) error {
		if op == "rename" {
			if steps++; steps == 3 {
				return errKilled
			}
		}
		return nil
	}
	if _, err := p.Apply(t.Context()); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	if inventory, err := Inspect(t.Context(), n.root, now); err != nil || len(inventory.Interrupted) == 0 {
		t.Errorf("interrupted: %v, %v", inventory, err)
	}
	if r, err := p.Apply(t.Context()); err != nil || len(r.Finished) == 0 {
		t.Fatal(r, err)
	}
	n.checkFresh()
}

func TestAStagedFileThatWasLostIsToldAndCanBeUndone(t *testing.T) {
	n := fresh(t)
	before := n.looks()
	p := n.prepare(n.moved())
	p.t.before = func(op, _ string) error {
		if op == "rename" {
			return errKilled
		}
		return nil
	}
	if _, err := p.Apply(t.Context()); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(n.root, stagedName("etc/kubernetes/pki/apiserver.key"))); err != nil {
		t.Fatal(err)
	}
	if _, err := n.prepare(n.moved()).Apply(t.Context()); !errors.Is(err, errLost) || !strings.Contains(err.Error(), "apiserver.key") {
		t.Fatal(err)
	}
	if _, err := Undo(t.Context(), n.root, n.aside); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, settled(n.looks())); diff != "" {
		t.Error(diff)
	}
	n.apply(n.moved())
	n.checkFresh()
	if left := n.leftovers(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestAnUndoCanBeKilledBeforeEveryChange(t *testing.T) {
	n := fresh(t)
	before := n.looks()
	for kill := 0; ; kill++ {
		n.apply(n.moved())
		tree, err := openTree(n.root)
		if err != nil {
			t.Fatal(err)
		}
		tree.killBefore(kill)
		_, err = tree.undo(t.Context(), n.aside)
		tree.close()
		if err != nil && !errors.Is(err, errKilled) {
			t.Fatalf("kill %d: %v", kill, err)
		}
		if err != nil {
			if _, err := Undo(t.Context(), n.root, n.aside); err != nil {
				t.Fatalf("kill %d: %v", kill, err)
			}
		}
		if diff := cmp.Diff(before, n.looks()); diff != "" {
			t.Fatalf("kill %d: %s", kill, diff)
		}
		if left := n.leftovers(); len(left) > 0 {
			t.Fatalf("kill %d leaves %q", kill, left)
		}
		if err == nil {
			return
		}
	}
}

// settled leaves unfinished files out.
func settled(looks map[string]string) map[string]string {
	for name := range looks {
		if strings.Contains(name, "lifeboat-") {
			delete(looks, name)
		}
	}
	return looks
}

// checkFresh verifies the pairs of a moved fresh node.
func (n *node) checkFresh() {
	n.t.Helper()
	pki := "etc/kubernetes/pki/"
	n.verify(n.pair(pki+"apiserver.crt", pki+"apiserver.key"), clusterCA, server, "cp9", "10.0.0.99")
	n.verify(n.pair(pki+"etcd/server.crt", pki+"etcd/server.key"), etcdCA, server, "cp9", "10.0.0.99")
	tree, err := openTree(n.root)
	if err != nil {
		n.t.Fatal(err)
	}
	defer tree.close()
	s, err := tree.scan(n.t.Context(), nil)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, l := range s.leaves {
		if !l.matchesKey() || l.key.key == nil {
			n.t.Errorf("%s does not match its key", l.name())
		}
	}
}
