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
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/realplane"
)

const version = "v0.0.0-image-test"

// TestTheImage builds the image, looks into it, and runs it as Kubernetes would.
func TestTheImage(t *testing.T) {
	cgroup := realplane.Require(t)
	source := copySource(t)
	d := startDocker(t, cgroup)

	began := time.Now()
	d.importBase("local/golang", moduleProxy(t, source))
	t.Logf("base image imported in %.0f s", time.Since(began).Seconds())
	began = time.Now()
	d.run("build", "--network", "none", "--build-arg", "GO_IMAGE=local/golang", "--build-arg", "BASE_IMAGE=scratch",
		"--build-arg", "VERSION="+version, "--build-arg", "REVISION=abc123", "-t", "lifeboat:test", source)
	t.Logf("image built in %.0f s, from nothing cached and without a network", time.Since(began).Seconds())

	contents := unpack(t, d)
	t.Run("holds the binary and certificates and nothing else", func(t *testing.T) {
		var names []string
		for name, file := range contents {
			if len(file) > 0 {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		if want := []string{"etc/ssl/certs/ca-certificates.crt", "lifeboat"}; !slices.Equal(names, want) {
			t.Errorf("files %q, want %q", names, want)
		}
	})
	t.Run("the binary is the same as one built elsewhere", func(t *testing.T) {
		elsewhere := filepath.Join(t.TempDir(), "lifeboat")
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -X main.buildVersion="+version, "-o", elsewhere, "./cmd/lifeboat")
		cmd.Dir = source
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOPROXY=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build: %v: %s", err, out)
		}
		text, err := os.ReadFile(elsewhere)
		if err != nil {
			t.Fatal(err)
		}
		if a, b := digest(contents["lifeboat"]), digest(text); a != b {
			t.Errorf("built twice, the binary has SHA-256 %s in the image and %s here", a, b)
		} else {
			t.Logf("SHA-256 %s, twice", a)
		}
	})
	t.Run("says what it is", func(t *testing.T) { inspect(t, d) })
	t.Run("the bill of materials lists every module", func(t *testing.T) { billOfMaterials(t, contents["lifeboat"], source) })
	runUnprivileged(t, d)
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// copySource copies what git knows and would know of the tree, as it is now.
func copySource(t *testing.T) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "source")
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = realplane.Source(".")
	names, err := cmd.Output()
	if err != nil {
		t.Fatalf("list the source: %v", err)
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		text, err := os.ReadFile(realplane.Source(name))
		if errors.Is(err, os.ErrNotExist) {
			continue // removed, and not yet committed
		}
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// moduleProxy is a folder that serves as GOPROXY: exactly the modules that go.mod
// asks for, out of this machine's module cache.
func moduleProxy(t *testing.T, source string) string {
	t.Helper()
	cache, err := exec.Command("go", "env", "GOMODCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	fresh := t.TempDir()
	cmd := exec.Command("go", "mod", "download")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "GOMODCACHE="+fresh, "GOFLAGS=-modcacherw", "GOSUMDB=off",
		"GOPROXY=file://"+filepath.Join(strings.TrimSpace(string(cache)), "cache", "download"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("collect modules: %v: run go mod download first: %s", err, out)
	}
	return filepath.Join(fresh, "cache", "download")
}

// unpack is the image's files by name.
func unpack(t *testing.T, d *docker) map[string][]byte {
	t.Helper()
	id := d.run("create", "--network", "none", "lifeboat:test")
	defer d.run("rm", id)
	out, err := d.command("export", id).Output()
	if err != nil {
		t.Fatalf("export: %v", err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(out)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func inspect(t *testing.T, d *docker) {
	var images []struct {
		Size   int64
		Config struct {
			User       string
			Entrypoint []string
			Env        []string
			Labels     map[string]string
		}
	}
	if err := json.Unmarshal([]byte(d.run("image", "inspect", "lifeboat:test")), &images); err != nil {
		t.Fatal(err)
	}
	c := images[0].Config
	t.Logf("image of %.1f MB", float64(images[0].Size)/1e6)
	if c.User != "65532:65532" || !slices.Equal(c.Entrypoint, []string{"/lifeboat"}) {
		t.Errorf("user %q, entry point %q", c.User, c.Entrypoint)
	}
	for name, want := range map[string]string{"title": "lifeboat", "licenses": "Apache-2.0", "version": version, "revision": "abc123"} {
		if got := c.Labels["org.opencontainers.image."+name]; got != want {
			t.Errorf("label %s is %q, want %q", name, got, want)
		}
	}
	for _, variable := range c.Env {
		if !strings.HasPrefix(variable, "PATH=") {
			t.Errorf("the image sets %s", variable)
		}
	}
}
