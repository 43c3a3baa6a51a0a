package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// entries reads a tar whole.
func entries(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := found[h.Name]; twice {
			t.Errorf("%s is there twice", h.Name)
		}
		if found[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnArchiveNamesItsPartsByTheirHashes(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("code"), 0o700); err != nil {
		t.Fatal(err)
	}
	i := Image{
		Reference: "example.test/a:1", Files: map[string]string{"/usr/local/bin/a": program, "/b": program},
		Folders: []Folder{{Path: "/var/lib/a", Mode: 0o700, UID: 65532}}, Entrypoint: []string{"/b"}, User: "65532",
	}
	var archives [2][]byte
	for n := range archives {
		file := filepath.Join(dir, string(rune('0'+n))+".tar")
		if err := Write(file, i); err != nil {
			t.Fatal(err)
		}
		var err error
		if archives[n], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
		if err := Write(file, i); err == nil {
			t.Error("an archive was written over another")
		}
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the same content gave two archives")
	}

	parts := entries(t, archives[0])
	var index []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(parts["manifest.json"], &index); err != nil || len(index) != 1 || len(index[0].Layers) != 1 || index[0].RepoTags[0] != i.Reference {
		t.Fatalf("manifest.json: %v: %s", err, parts["manifest.json"])
	}
	config, layer := parts[index[0].Config], parts[index[0].Layers[0]]
	if sum := sha256.Sum256(config); index[0].Config != hex.EncodeToString(sum[:])+".json" {
		t.Errorf("the configuration is named %s", index[0].Config)
	}
	var c struct {
		Config struct {
			Entrypoint []string
			User       string
		}
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(config, &c); err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(layer); len(c.RootFS.DiffIDs) != 1 || c.RootFS.DiffIDs[0] != "sha256:"+hex.EncodeToString(sum[:]) {
		t.Errorf("the layer is named %q", c.RootFS.DiffIDs)
	}
	if c.Config.User != "65532" || len(c.Config.Entrypoint) != 1 || c.Config.Entrypoint[0] != "/b" {
		t.Errorf("configuration %+v", c.Config)
	}
	files := entries(t, layer)
	for _, name := range []string{"usr/", "usr/local/", "usr/local/bin/", "var/lib/a/", "tmp/", "etc/passwd"} {
		if _, ok := files[name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
	if string(files["usr/local/bin/a"]) != "code" || string(files["b"]) != "code" {
		t.Error("a program is not what it was")
	}
}

func TestAnImageOfMissingOrOddFilesIsRefused(t *testing.T) {
	dir := t.TempDir()
	for name, source := range map[string]string{"missing": filepath.Join(dir, "none"), "a folder": dir} {
		if err := Write(filepath.Join(dir, "out.tar"), Image{Reference: "a:1", Files: map[string]string{"/a": source}}); err == nil {
			t.Errorf("%s was packed", name)
		}
		if _, err := os.Stat(filepath.Join(dir, "out.tar")); err == nil {
			t.Errorf("%s: half an archive was left", name)
		}
	}
}
