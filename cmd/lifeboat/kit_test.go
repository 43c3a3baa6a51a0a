package main

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/demo"
	"lifeboat/internal/recoverykit"
	"lifeboat/internal/snapdb"
)

// kitOfADemo makes the kit of a demonstration's cluster, and leaves of all else
// the store and the identity: in a folder of its own, which becomes the working
// one. It returns the store's URL.
func kitOfADemo(t *testing.T) (store string) {
	t.Helper()
	world := t.TempDir()
	dir := filepath.Join(t.TempDir(), "demo")
	if err := demo.Run(t.Context(), demo.Options{
		Out: new(bytes.Buffer), Keep: dir, Objects: 100, Version: "test", Now: time.Now, Rand: rand.Reader,
	}); err != nil {
		t.Fatal(err)
	}
	t.Chdir(world)
	t.Setenv("HOME", world)
	t.Setenv("XDG_STATE_HOME", filepath.Join(world, "xdg"))
	keys := filepath.Join(dir, "lifeboat")
	mustRun(t, "kit", "--config", filepath.Join(keys, "config.yaml"), "--out", world, "--identity", filepath.Join(keys, "recovery.key"), "--identity-kept", "safe in Berlin")
	if err := os.Rename(filepath.Join(keys, "recovery.key"), "recovery.key"); err != nil {
		t.Fatal(err)
	}
	store = filepath.Join(dir, "store")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(store) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	return "file://" + store
}

func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if code := run(t.Context(), args, streams{in: strings.NewReader(""), out: &out, err: &errs}); code != exitDone {
		t.Fatalf("lifeboat %s: exit code %d\n%s", strings.Join(args, " "), code, errs.String())
	}
	return out.String()
}

func TestEveryCommandInAKitExistsAndNamesTheCluster(t *testing.T) {
	store := kitOfADemo(t)
	if seen := parseCommands(t, "restore.md"); seen < 30 {
		t.Errorf("found only %d commands", seen)
	}
	text, err := os.ReadFile("restore.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"my-bucket", "prod-eu1", "10.0.0.11", "10.0.0.44", "cp4"} {
		if bytes.Contains(text, []byte(name)) {
			t.Errorf("the kit speaks of %s", name)
		}
	}
	for _, name := range []string{store, "--cluster demo", "--node cp1", "https://ADDRESS-1:2380", "--rename cp1=NEW-NAME", "safe in Berlin"} {
		if !bytes.Contains(text, []byte(name)) {
			t.Errorf("the kit does not speak of %s", name)
		}
	}
}

// TestWhatAKitSaysWorks takes a kit at its word, in a world where nothing is left
// but it, the binary, the identity and the store.
func TestWhatAKitSaysWorks(t *testing.T) {
	store := kitOfADemo(t)
	full, files := backupIn(t, store, "etcd/main", "snapshot.db.zst.age"), backupIn(t, store, "hosts/cp1", "files.tar.zst.age")
	root := filepath.Join(t.TempDir(), "root")
	data := filepath.Join(root, "var/lib/etcd")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	names := strings.NewReplacer(
		"--backup ID", "--backup "+full, "show ID", "show "+full, "cat ID", "cat "+files,
		"/var/lib/etcd", data, "--root /", "--root "+root, "/root/snapshot.db", "second.db", "file:///mnt/copy", store,
		"TOKEN", "fresh-token", "--bump N", "--bump 1000000000", " DIR", " newkit", "WHERE", "there",
		"ADDRESS-1", "192.0.2.1", "--node NODE-3", "--node cp1", "NODE-2", "n2", "NODE-3", "n3", "ADDRESS-2", "192.0.2.2", "ADDRESS-3", "192.0.2.3",
	)
	ran := map[string]int{}
	for _, line := range commands(t, firstPages(t)) {
		args := arguments(names.Replace(line))
		verb := args[0]
		if verb == "restore" {
			verb += " " + args[1]
		}
		switch {
		case strings.Contains(line, "--name NODE"), strings.Contains(line, "--node NODE-2"), strings.Contains(line, "--at "), strings.Contains(line, "--revision "):
			continue // of nodes and of points that this cluster does not have
		case strings.Contains(line, "--from-data-dir"):
			continue // none has survived here; testdata/script/survivor.txtar has one
		case verb == "restore etcd", verb == "restore files":
			if !strings.Contains(line, "--dry-run") {
				args = append(args, "--yes")
			}
		case verb == "kit":
			args = append(args, "--config", "config.yaml")
		case verb == "list", verb == "verify", verb == "show", verb == "cat", verb == "export":
		default:
			continue // on a real machine
		}
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, streams{in: strings.NewReader(""), out: &out, err: &errs}); code != exitDone {
			t.Errorf("%q: exit code %d\n%s", line, code, errs.String())
		}
		ran[verb]++
	}
	for _, verb := range []string{"list", "verify", "show", "cat", "export", "restore files", "restore etcd", "kit"} {
		if ran[verb] == 0 {
			t.Errorf("the kit has no %q", verb)
		}
	}
	facts, err := snapdb.Inspect(t.Context(), filepath.Join(data, "member/snap/db"), snapdb.Options{})
	if err != nil || facts.BumpedTo < 1e9 || facts.Revisions < 100 {
		t.Errorf("etcd's data: %+v, %v", facts, err)
	}
	for _, name := range []string{"etc/kubernetes/pki/ca.key", "etc/kubernetes/manifests/etcd.yaml"} {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Error(err)
		}
	}
}

// firstPages is a file with those pages of a kit that are for every cluster: its
// own and docs/restore.md. The others have machines of another kind in mind.
func firstPages(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("restore.md")
	if err != nil {
		t.Fatal(err)
	}
	pages := strings.SplitN(string(text), recoverykit.Separator, 3)
	if len(pages) != 3 || !strings.Contains(pages[1], "# When all is lost") {
		t.Fatalf("the kit has %d pages, or others", len(pages))
	}
	path := filepath.Join(t.TempDir(), "first.md")
	if err := os.WriteFile(path, []byte(pages[0]+"\n"+pages[1]), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// backupIn is the id of the one backup of a chain in a store.
func backupIn(t *testing.T, store, chain, object string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(strings.TrimPrefix(store, "file://"), "demo-*", filepath.FromSlash(chain), "data", "*", object))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v %v", chain, found, err)
	}
	return filepath.Base(filepath.Dir(found[0]))
}
