package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"filippo.io/age"

	"lifeboat/internal/containerd/containerdtest"
)

const etcdPod = `apiVersion: v1
kind: Pod
metadata: {name: etcd, namespace: kube-system}
spec:
  containers:
  - name: etcd
    image: lifeboat.test/etcd:3.6
    command: [etcd, --data-dir=/var/lib/etcd]
`

// mariner types commands.
type mariner struct {
	t      *testing.T
	folder string
}

func (m *mariner) run(code int, args ...string) (out, errs string) {
	m.t.Helper()
	var stdout, stderr bytes.Buffer
	if got := run(context.Background(), args, streams{in: strings.NewReader(""), out: &stdout, err: &stderr}); got != code {
		m.t.Fatalf("lifeboat %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, stdout.String(), stderr.String())
	}
	return stdout.String(), stderr.String()
}

// images runs a verb of images with the configuration.
func (m *mariner) images(code int, verb string, args ...string) (out, errs string) {
	m.t.Helper()
	return m.run(code, append([]string{"images", verb, "--config", filepath.Join(m.folder, "keys/config.yaml")}, args...)...)
}

func (m *mariner) json(into any, out string) {
	m.t.Helper()
	if err := json.Unmarshal([]byte(out), into); err != nil {
		m.t.Fatalf("%v in %s", err, out)
	}
}

func newMariner(t *testing.T) *mariner {
	t.Helper()
	m := &mariner{t: t, folder: t.TempDir()}
	manifests := filepath.Join(m.folder, "root/etc/kubernetes/manifests")
	must(t, os.MkdirAll(manifests, 0o755))
	must(t, os.WriteFile(filepath.Join(manifests, "etcd.yaml"), []byte(etcdPod), 0o600))
	m.run(0, "init", "--cluster", "prod", "--store", "file://"+m.folder+"/one", "--store", "file://"+m.folder+"/two",
		"--out", m.folder+"/keys", "--host-root", m.folder+"/root", "--node", "cp1", "--etcd", "http://127.0.0.1:1")
	rewrite(t, filepath.Join(m.folder, "keys/config.yaml"), "stateDir: ", "stateDir: "+m.folder+"/state #")
	return m
}

func TestImagesAreSavedAndLoadedByTheCommand(t *testing.T) {
	old := containerdtest.Start(t)
	old.Import(map[string]string{"lifeboat.test/etcd:3.6": "/etcd", "lifeboat.test/other:1": "/other"})
	m := newMariner(t)
	key := filepath.Join(m.folder, "keys/recovery.key")

	if _, errs := m.images(0, "list"); !strings.Contains(errs, "no images are saved yet") {
		t.Error(errs)
	}
	m.images(5, "load", "--socket", old.Socket, "--identity", key)
	var saved savedJSON
	out, _ := m.images(0, "save", "--socket", old.Socket, "--dry-run", "-o", "json")
	if m.json(&saved, out); !saved.DryRun || len(saved.Images) != 1 || saved.Stores[1].Put != saved.Blobs || saved.Stores[0].ID != "" {
		t.Errorf("%s", out)
	}
	if _, err := os.Stat(m.folder + "/one"); err == nil {
		t.Error("a dry run wrote")
	}
	m.images(1, "save", "--socket", old.Socket, "--image", "lifeboat.test/nowhere:1")
	out, _ = m.images(0, "save", "--socket", old.Socket, "--image", "lifeboat.test/other:1")
	if !strings.Contains(out, "saved to file://"+m.folder+"/two: 2 images") || !strings.Contains(out, "static pod etcd") {
		t.Error(out)
	}
	out, _ = m.images(0, "save", "--socket", old.Socket, "--image", "lifeboat.test/other:1", "-o", "json")
	if m.json(&saved, out); !saved.Stores[0].Unchanged || saved.Stores[1].Put != 0 {
		t.Error(out)
	}
	var list []imagesJSON
	out, _ = m.images(0, "list", "-o", "json")
	if m.json(&list, out); len(list) != 1 || list[0].Node != "cp1" || !list[0].Whole || len(list[0].Images) != 2 {
		t.Fatal(out)
	}
	id := string(list[0].ID)
	if out, _ = m.images(0, "list", id[:6]); !strings.Contains(out, string(list[0].Images[0].Digest)) || !strings.Contains(out, "lifeboat.test/etcd:3.6") {
		t.Error(out)
	}
	if out, _ = m.images(0, "list"); !strings.Contains(out, id) || !strings.Contains(out, "cp1") {
		t.Error(out)
	}
	m.images(5, "list", "--node", "cp9")
	if out, _ = m.run(0, "__complete", "images", "load", "--config", m.folder+"/keys/config.yaml", ""); !strings.Contains(out, id) {
		t.Error(out)
	}
	if out, _ = m.run(0, "show", id, "--config", m.folder+"/keys/config.yaml"); !strings.Contains(out, "lifeboat.test/etcd:3.6") {
		t.Error(out)
	}
	if out, _ = m.run(0, "list", "--config", m.folder+"/keys/config.yaml"); !strings.Contains(out, id) {
		t.Error(out)
	}

	// Whole, inside too; and sealed anew.
	config := []string{"--config", m.folder + "/keys/config.yaml"}
	m.run(0, append(config, "verify", "--deep", "--identity", key)...)
	identity, err := age.GenerateX25519Identity()
	must(t, err)
	held, err := os.ReadFile(key)
	must(t, err)
	public := regexp.MustCompile(`age1[0-9a-z]+`)
	text, err := os.ReadFile(m.folder + "/keys/config.yaml")
	must(t, err)
	must(t, os.WriteFile(m.folder+"/keys/config.yaml", public.ReplaceAll(text, []byte(identity.Recipient().String())), 0o600))
	if out, _ = m.run(0, append(config, "rekey", "--dry-run")...); !strings.Contains(out, "parts of container images") {
		t.Error(out)
	}
	m.run(0, append(config, "rekey", "--identity", key)...)
	must(t, os.WriteFile(key, []byte(identity.String()+"\n"), 0o600))
	m.run(0, append(config, "verify", "--deep", "--identity", key)...)
	must(t, os.WriteFile(m.folder+"/old.key", held, 0o600))
	m.run(1, append(config, "images", "load", "--socket", old.Socket, "--identity", m.folder+"/old.key")...)
	out, _ = m.run(0, append(config, "copy", "--to", "file://"+m.folder+"/three")...)
	if !strings.Contains(out, "blobs: copied") {
		t.Error(out)
	}
	m.run(0, append(config, "prune", "--yes")...)

	// On a machine that has none; from the second store, since the first lost a blob.
	empty := containerdtest.Start(t)
	blobs, err := filepath.Glob(m.folder + "/one/*/images/data/*/*")
	if err != nil || len(blobs) == 0 {
		t.Fatal(blobs, err)
	}
	for _, name := range blobs {
		flip(t, name)
	}
	out, _ = m.images(0, "load", "--socket", empty.Socket, "--identity", key, "--dry-run", "-q")
	if !strings.Contains(out, "would be loaded") || empty.Ctr("images", "ls", "-q") != "" {
		t.Error(out)
	}
	out, errs := m.images(0, "load", id, "--socket", empty.Socket, "--identity", key)
	if !strings.Contains(out, "lifeboat.test/etcd:3.6") || !strings.Contains(errs, "going on with the same backup") {
		t.Error(out, errs)
	}
	if have := empty.Ctr("images", "ls", "-q"); !strings.Contains(have, "lifeboat.test/etcd:3.6") || !strings.Contains(have, "lifeboat.test/other:1") {
		t.Error(have)
	}
	var loaded loadedJSON
	out, _ = m.images(0, "load", "--socket", empty.Socket, "--identity", key, "-o", "json", "-q")
	if m.json(&loaded, out); loaded.Blobs != 0 || !loaded.Images[0].Present || loaded.Node != "cp1" {
		t.Error(out)
	}
	m.run(3, "verify", "--store", "file://"+m.folder+"/one", "--config", m.folder+"/keys/config.yaml")
	m.run(0, "verify", "--store", "file://"+m.folder+"/two", "--config", m.folder+"/keys/config.yaml")

	// Without the configuration, and for another name of another image.
	from := []string{"--store", "file://" + m.folder + "/two", "--cluster", "prod", "--trust", m.folder + "/keys/trust", "--state-dir", m.folder + "/elsewhere"}
	empty.Ctr("images", "rm", "--sync", "lifeboat.test/etcd:3.6")
	empty.Ctr("images", "tag", "lifeboat.test/other:1", "lifeboat.test/etcd:3.6")
	load := append([]string{"images", "load", "--socket", empty.Socket, "--identity", key, "--node", "cp1"}, from...)
	if _, errs := m.run(4, load...); !strings.Contains(errs, "--replace") {
		t.Error(errs)
	}
	m.run(4, append(load, "--dry-run")...)
	m.run(0, append(load, "--replace")...)
	m.run(2, append(load, "--image", "lifeboat.test/nowhere:1")...)
	m.run(5, append(load, "--node", "cp9")...)
	if _, errs := m.run(0, append(load[:len(load)-len(from)-2:len(load)-len(from)-2], from...)...); !strings.Contains(errs, "taking those of cp1") {
		t.Errorf("a machine of another name: %s", errs)
	}

	// What is damaged is put back.
	one := []string{"images", "load", id, "--socket", empty.Socket, "--identity", key, "--store", "file://" + m.folder + "/one", "--config", m.folder + "/keys/config.yaml"}
	m.run(3, one...)
	save := []string{"--socket", old.Socket, "--image", "lifeboat.test/other:1"}
	out, _ = m.images(0, "save", append(save, "--anew", "--dry-run", "-o", "json")...)
	if m.json(&saved, out); saved.Stores[0].Put != saved.Blobs {
		t.Error(out)
	}
	if out, _ = m.images(0, "save", append(save, "--anew")...); !strings.Contains(out, "/one: 2 images") {
		t.Error(out)
	}
	m.run(0, one...)
}

// flip damages a file.
func flip(t *testing.T, name string) {
	t.Helper()
	data, err := os.ReadFile(name)
	must(t, err)
	data[len(data)/2] ^= 1
	must(t, os.Chmod(name, 0o600))
	must(t, os.WriteFile(name, data, 0o600))
}

func TestImagesSayWhatIsWrong(t *testing.T) {
	m := newMariner(t)
	if _, errs := m.images(1, "save", "--socket", m.folder+"/nothing.sock"); !strings.Contains(errs, "nothing.sock") || !strings.Contains(errs, "start containerd") {
		t.Error(errs)
	}
	m.images(2, "load", "--socket", m.folder+"/nothing.sock")
	m.images(2, "list", "a", "b")
	m.images(2, "save", "--image")
	m.images(2, "save", "-o", "yaml")
	if _, errs := m.run(2, "images", "list", "--config", m.folder+"/keys/no.yaml"); !strings.Contains(errs, "no.yaml") {
		t.Error(errs)
	}
	for _, verb := range []string{"save", "load", "list"} {
		if out, _ := m.run(0, "images", verb, "--help"); !strings.Contains(out, "Examples:") {
			t.Errorf("%s: %s", verb, out)
		}
	}
}

func TestALoadTellsWhatItsSaveLacks(t *testing.T) {
	node := containerdtest.Start(t)
	node.Import(map[string]string{"lifeboat.test/etcd:3.6": "/etcd", "lifeboat.test/other:1": "/other"})
	m := newMariner(t)
	other := strings.NewReplacer("name: etcd", "name: other", "etcd:3.6", "other:1").Replace(etcdPod)
	must(t, os.WriteFile(filepath.Join(m.folder, "root/etc/kubernetes/manifests/other.yaml"), []byte(other), 0o600))
	key := filepath.Join(m.folder, "keys/recovery.key")
	m.images(0, "save", "--socket", node.Socket)
	node.Ctr("images", "rm", "--sync", "lifeboat.test/other:1")
	m.images(1, "save", "--socket", node.Socket)

	var list []imagesJSON
	out, _ := m.images(0, "list", "-o", "json")
	if m.json(&list, out); len(list) != 2 || len(list[0].Degraded) != 1 || len(list[1].Degraded) != 0 {
		t.Fatal(out)
	}
	degraded, whole := string(list[0].ID), string(list[1].ID)
	_, errs := m.images(0, "load", "--socket", node.Socket, "--identity", key)
	for _, says := range []string{degraded, "lifeboat.test/other:1", "is left out", "lifeboat images load " + whole} {
		if !strings.Contains(errs, says) {
			t.Errorf("it does not say %q: %s", says, errs)
		}
	}
	var loaded loadedJSON
	out, _ = m.images(0, "load", "--socket", node.Socket, "--identity", key, "-o", "json", "-q")
	if m.json(&loaded, out); len(loaded.Degraded) != 1 || loaded.LastWhole == nil || string(*loaded.LastWhole) != whole {
		t.Error(out)
	}
	out, errs = m.images(0, "load", whole, "--socket", node.Socket, "--identity", key, "-o", "json")
	if m.json(&loaded, out); loaded.Degraded == nil || len(loaded.Degraded) != 0 || strings.Contains(errs, "lacks") {
		t.Error(out, errs)
	}
	if have := node.Ctr("images", "ls", "-q"); !strings.Contains(have, "lifeboat.test/other:1") {
		t.Error(have)
	}
}
