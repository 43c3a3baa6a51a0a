package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// docker is a daemon of the test's own: it has no bridge, changes no firewall,
// and keeps all its files in a temporary folder.
type docker struct {
	t    *testing.T
	host string
}

func startDocker(t *testing.T, cgroup string) *docker {
	t.Helper()
	dir, err := os.MkdirTemp("", "docker-")
	if err != nil {
		t.Fatal(err)
	}
	d := &docker{t: t, host: "unix://" + filepath.Join(dir, "sock")}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("dockerd", "--bridge=none", "--iptables=false", "--ip-forward=false",
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--cgroup-parent", "/"+cgroup+"/docker", "-H", d.host)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("start dockerd: %v (Debian: apt-get install docker.io)", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its log says why
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		out, err := d.command("version").CombinedOutput()
		if err == nil {
			return d
		}
		select {
		case <-ended:
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("dockerd ended:\n%s", text)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("dockerd does not answer: %s", out)
		}
	}
}

// command is a docker command. The classic builder is used, which needs no
// plugin.
func (d *docker) command(args ...string) *exec.Cmd {
	cmd := exec.Command("docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+d.host, "DOCKER_BUILDKIT=0")
	return cmd
}

// run runs a docker command, which must succeed, and returns its standard
// output.
func (d *docker) run(args ...string) string {
	d.t.Helper()
	cmd := d.command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		d.t.Fatalf("docker %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// importBase makes an image that can build Go programs as golang:1.26 can, but
// from this machine's own Go, shell and certificates. It holds the modules that
// the build asks for, and needs no network.
func (d *docker) importBase(name, modules string) {
	d.t.Helper()
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := d.command("import",
		"-c", "ENV PATH=/usr/local/go/bin:/usr/bin:/bin HOME=/root GOTOOLCHAIN=local GOFLAGS= GOPROXY=file:///modules GOSUMDB=off", "-", name)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	w := tar.NewWriter(stdin)
	err = errors.Join(
		addTree(w, strings.TrimSpace(string(goroot)), "usr/local/go", func(name string) bool {
			return name == "test" || name == "doc" || name == "api" || strings.HasSuffix(name, "testdata")
		}),
		addTree(w, modules, "modules", func(string) bool { return false }),
		addPrograms(w, "sh", "mkdir"),
		addFile(w, "/etc/ssl/certs/ca-certificates.crt", "etc/ssl/certs/ca-certificates.crt"),
		addFolder(w, "tmp", 0o1777), addFolder(w, "root", 0o700),
		w.Close(), stdin.Close(),
	)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		d.t.Fatalf("import the base image: %v: %s", err, output.String())
	}
}

func addFolder(w *tar.Writer, name string, mode int64) error {
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode})
}

// addFile adds what a name leads to, under another.
func addFile(w *tar.Writer, source, name string) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: int64(info.Mode().Perm()), Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

// addTree adds the regular files below a folder, but for those in folders to
// skip, which are named relative to it.
func addTree(w *tar.Writer, root, name string, skip func(string) bool) error {
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch {
		case entry.IsDir() && skip(rel):
			return fs.SkipDir
		case entry.Type().IsRegular():
			return addFile(w, path, filepath.Join(name, rel))
		}
		return nil
	})
}

// library matches a line of ldd.
var library = regexp.MustCompile(`(?:=> )?(/\S+) \(0x`)

// addPrograms adds programs of this machine, where their names say, with the
// libraries that they need.
func addPrograms(w *tar.Writer, names ...string) error {
	added := map[string]bool{}
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		if err := addFile(w, path, "bin/"+name); err != nil {
			return err
		}
		libraries, err := exec.Command("ldd", path).Output()
		if err != nil {
			return fmt.Errorf("libraries of %s: %w", path, err)
		}
		for _, match := range library.FindAllStringSubmatch(string(libraries), -1) {
			if added[match[1]] {
				continue
			}
			added[match[1]] = true
			if err := addFile(w, match[1], strings.TrimPrefix(match[1], "/")); err != nil {
				return err
			}
		}
	}
	return nil
}
