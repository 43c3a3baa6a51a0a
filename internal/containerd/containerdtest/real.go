package containerdtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/containerd"
	"lifeboat/internal/durable/tinydisk"
	"lifeboat/internal/oci"
	"lifeboat/internal/realplane/image"
)

// Real is a containerd of the test's own, in mount and PID namespaces that end
// with the test.
type Real struct {
	t      testing.TB
	Socket string
	Group  string // of the control groups that its pods may use; removed at the end
	folder string
}

// PauseImage is the image of this containerd's pods. Import puts it there.
const PauseImage = "lifeboat.test/pause:1"

// Start starts one. The test is skipped where there is no containerd, or no root;
// with LIFEBOAT_CI set it fails.
func Start(t testing.TB) *Real {
	t.Helper()
	if _, err := exec.LookPath("containerd"); err != nil {
		tinydisk.Unable(t, "needs ", err)
	}
	for _, program := range []string{"runc", "ctr", "unshare", "go"} {
		if _, err := exec.LookPath(program); err != nil {
			tinydisk.Unable(t, "needs ", err)
		}
	}
	if os.Geteuid() != 0 {
		tinydisk.Unable(t, "needs root")
	}
	folder, err := os.MkdirTemp("", "lb-ctd-") // a short name: sockets' are limited
	if err != nil {
		t.Fatal(err)
	}
	r := &Real{t: t, Socket: filepath.Join(folder, "c.sock"), Group: "lifeboat-" + filepath.Base(folder), folder: folder}
	config := filepath.Join(folder, "config.toml")
	text := fmt.Sprintf(`version = 2
root = %[1]q
state = %[2]q
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = %[3]q
[plugins."io.containerd.internal.v1.opt"]
  path = %[4]q
# What is deleted stays on the disk for a while, as it may on any machine.
[plugins."io.containerd.gc.v1.scheduler"]
  schedule_delay = "2s"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[5]q
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
`, filepath.Join(folder, "root"), filepath.Join(folder, "state"), r.Socket, filepath.Join(folder, "opt"), PauseImage)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var words bytes.Buffer
	server := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
		`mount -t tmpfs tmpfs /run && exec containerd --config "$0"`, config)
	server.Stdout, server.Stderr = &words, &words
	server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait() // it was killed
		if t.Failed() {
			said := words.String()
			t.Logf("containerd said at last:\n%s", said[max(0, len(said)-4000):])
		}
		r.removeGroups()
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err := r.try("plugins", "ls"); err == nil {
			return r
		}
		if time.Now().After(deadline) {
			t.Fatal("containerd does not answer")
		}
	}
}

// Client connects to it.
func (r *Real) Client() *containerd.Client {
	r.t.Helper()
	c, err := containerd.Dial(r.Socket)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (r *Real) try(args ...string) (string, error) {
	out, err := exec.Command("ctr", append([]string{"--address", r.Socket, "-n", containerd.Namespace}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// Ctr runs containerd's own client in the namespace of Kubernetes.
func (r *Real) Ctr(args ...string) string {
	r.t.Helper()
	out, err := r.try(args...)
	if err != nil {
		r.t.Fatalf("ctr %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// Import gives it images whose only program waits: PauseImage, and one for each
// reference, with its path in the image.
func (r *Real) Import(programs map[string]string) {
	r.t.Helper()
	program := filepath.Join(r.folder, "pause")
	build := exec.Command("go", "build", "-o", program, "lifeboat/internal/realplane/pause")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		r.t.Fatalf("build pause: %v: %s", err, out)
	}
	all := map[string]string{PauseImage: "/pause"}
	for reference, entry := range programs {
		all[reference] = entry
	}
	for reference, entry := range all {
		archive := filepath.Join(r.folder, "image.tar")
		if err := image.Write(archive, image.Image{Reference: reference, Files: map[string]string{entry: program}, Entrypoint: []string{entry}}); err != nil {
			r.t.Fatal(err)
		}
		// The native snapshotter is the one that works on every file system.
		r.Ctr("images", "import", "--snapshotter", "native", archive)
		if err := os.Remove(archive); err != nil {
			r.t.Fatal(err)
		}
	}
}

// Blob is the file in which it keeps a blob of the content store.
func (r *Real) Blob(d oci.Digest) string {
	return filepath.Join(r.folder, "root/io.containerd.content.v1.content/blobs/sha256", strings.TrimPrefix(string(d), "sha256:"))
}

// removeGroups removes what no namespace holds. Killed processes take a moment to
// leave theirs.
func (r *Real) removeGroups() {
	tops, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", "*", r.Group))
	for _, top := range append(tops, filepath.Join("/sys/fs/cgroup", r.Group)) {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			left := remove(top)
			if left == nil {
				break
			}
			if time.Now().After(deadline) {
				r.t.Errorf("remove control groups: %v", left)
				break
			}
		}
	}
}

// remove removes a control group and those in it, the inner ones first.
func remove(top string) error {
	entries, err := os.ReadDir(top)
	if os.IsNotExist(err) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			_ = remove(filepath.Join(top, e.Name())) // what is left keeps the outer one, too
		}
	}
	return os.Remove(top)
}
