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

// version is what make calls the clone that the image is built from.
var version string

// TestTheImage builds the image with make, as its users do, looks into it, and
// runs it as Kubernetes would.
func TestTheImage(t *testing.T) {
	cgroup := realplane.Require(t)
	source, revision := cloneSource(t)
	d := startDocker(t, cgroup)

	began := time.Now()
	d.importBase("local/golang", moduleProxy(t, source))
	t.Logf("base image imported in %.0f s", time.Since(began).Seconds())
	began = time.Now()
	makeTarget(t, source, []string{"DOCKER_HOST=" + d.host, "DOCKER_BUILDKIT=0"}, "image", "GO_IMAGE=local/golang", "IMAGE=lifeboat:test")
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
	t.Run("the binary is the same as that of make build", func(t *testing.T) {
		makeTarget(t, source, nil, "build")
		text, err := os.ReadFile(filepath.Join(source, "bin", "lifeboat"))
		if err != nil {
			t.Fatal(err)
		}
		if a, b := digest(contents["lifeboat"]), digest(text); a != b {
			t.Errorf("built twice, the binary has SHA-256 %s in the image and %s here", a, b)
		} else {
			t.Logf("SHA-256 %s, twice", a)
		}
	})
	t.Run("says what it is", func(t *testing.T) { inspect(t, d, revision) })
	t.Run("the bill of materials lists every module", func(t *testing.T) { billOfMaterials(t, contents["lifeboat"], source) })
	runUnprivileged(t, d)
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// makeTarget runs make in a clone as its users do; all that it asks for beyond
// the standard library must be on this machine already.
func makeTarget(t *testing.T, source string, env []string, args ...string) {
	t.Helper()
	cmd := exec.Command("make", append([]string{"-C", source}, args...)...)
	for _, variable := range os.Environ() { // nothing of the make that runs this test
		if name, _, _ := strings.Cut(variable, "="); !slices.Contains([]string{"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "VERSION", "IMAGE"}, name) {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	cmd.Env = append(append(cmd.Env, "GOFLAGS=", "GOPROXY=off"), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// cloneSource is a repository of the tree as it is now, with one commit, whose
// hash it returns.
func cloneSource(t *testing.T) (source, revision string) {
	t.Helper()
	source = copySource(t)
	git := func(args ...string) string {
		cmd := exec.Command("git", append([]string{"-C", source, "-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q")
	git("add", ".")
	git("commit", "-q", "-m", "the tree as it is")
	git("tag", "v0.0.0-image-test")
	// It was built from this very tree, and needs modules of its own.
	tool, err := os.ReadFile(realplane.Tool("sbom"))
	if err == nil {
		err = os.MkdirAll(filepath.Join(source, "bin", "tools"), 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(source, "bin", "tools", "sbom"), tool, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	if version = git("describe", "--tags", "--always", "--dirty"); version != "v0.0.0-image-test" {
		t.Fatalf("the clone is %s", version)
	}
	return source, git("rev-parse", "HEAD")
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

func inspect(t *testing.T, d *docker, revision string) {
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
	for name, want := range map[string]string{"title": "lifeboat", "licenses": "Apache-2.0", "version": version, "revision": revision} {
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
