package realplane

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Machine is one node: namespaces while it is on, and a disk that outlives
// them.
type Machine struct {
	Name    string
	Address string
	Root    string // its root file system, also when it is off; changes are seen at once

	plane    *Plane
	number   int
	installs int       // how often it was formatted
	cmd      *exec.Cmd // PID 1; nil when off
	done     chan struct{}
}

// Format gives the machine, which is off, an empty disk, with what an
// installation of the operating system and of containerd leaves there. Only
// containerd's images stay, if they are to.
func (m *Machine) Format(images Images) {
	m.plane.t.Helper()
	m.installs++
	if m.cmd != nil {
		m.plane.t.Fatalf("format %s: it is on", m.Name)
	}
	if err := os.RemoveAll(m.Root); err != nil {
		m.plane.t.Fatal(err)
	}
	for _, folder := range []string{
		"/etc/cni/net.d", "/etc/containerd", "/etc/kubernetes", "/opt", "/opt/cni/bin", "/root", "/var/lib/kubelet",
		"/var/lib/machine", "/var/log", "/var/tmp",
	} {
		if err := os.MkdirAll(filepath.Join(m.Root, folder), 0o755); err != nil {
			m.plane.t.Fatal(err)
		}
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+name, filepath.Join(m.Root, name)); err != nil {
			m.plane.t.Fatal(err)
		}
	}
	if err := os.Symlink("../run", filepath.Join(m.Root, "/var/run")); err != nil { // where kubeadm looks for containerd
		m.plane.t.Fatal(err)
	}
	for name, text := range m.installation() {
		if err := os.WriteFile(filepath.Join(m.Root, name), []byte(text), 0o644); err != nil {
			m.plane.t.Fatal(err)
		}
	}
	if images == KeepImages {
		m.linkStore()
	} else if err := os.MkdirAll(filepath.Join(m.Root, imageStore), 0o755); err != nil {
		m.plane.t.Fatal(err)
	}
}

// installation is the content of the files that a new machine has.
func (m *Machine) installation() map[string]string {
	hosts := "127.0.0.1 localhost\n"
	for number := range 9 { // those that may come, too
		other := m.plane.machine(number + 1)
		hosts += other.Address + " " + other.Name + "\n"
	}
	return map[string]string{
		"/etc/hosts":         hosts,
		"/etc/hostname":      m.Name + "\n",
		"/etc/machine-id":    fmt.Sprintf("%016x%016x\n", m.number, m.installs),
		"/etc/resolv.conf":   "",
		"/etc/passwd":        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"/etc/group":         "root:x:0:\nnogroup:x:65534:\n",
		"/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
		"/etc/os-release":    "ID=test\nPRETTY_NAME=\"a machine of a real plane\"\n",
		// A machine without systemd needs cgroupfs. Containers must not get a
		// better OOM score than this process may give.
		"/etc/containerd/config.toml": `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
`,
		"/etc/cni/net.d/10-bridge.conflist": fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "bridge", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.%d.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
`, m.number),
	}
}

// PowerOn boots the machine and waits until containerd answers.
func (m *Machine) PowerOn() {
	t := m.plane.t
	t.Helper()
	if m.cmd != nil {
		t.Fatalf("power on %s: it is on", m.Name)
	}
	// What ran before the power cut left groups that a real kernel forgets.
	if err := removeCgroups(filepath.Join(m.plane.cgroup, m.Name)); err != nil {
		t.Fatal(err)
	}
	if err := makeCgroups(m.plane.cgroup, m.Name); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(repository(), "bin")
	order, err := json.Marshal(bootOrder{
		Name: m.Name, Root: m.Root, Address: m.Address, Cgroup: m.plane.cgroup, Backups: m.plane.Backups,
		Tools: map[string]string{
			"/opt/kube":     filepath.Join(bin, "tools", "kube"),
			"/opt/etcd":     filepath.Join(bin, "tools", "etcd-"+etcdVersion),
			"/opt/lifeboat": bin,
			"/opt/machine":  m.plane.tools(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{roleVariable + "=" + roleMachine, bootVariable + "=" + string(order), "PATH=" + os.Getenv("PATH")}
	var words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &words, &words
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("power on %s: %v", m.Name, err)
	}
	m.cmd, m.done = cmd, make(chan struct{})
	go func() {
		_ = cmd.Wait() // what it said is shown below
		close(m.done)
	}()
	cable := "to-" + m.Name
	_ = ip("link", "del", cable) // the kernel removes that of a machine that went off only in its own time
	for _, args := range [][]string{
		{"link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(cmd.Process.Pid)},
		{"link", "set", cable, "master", bridge, "up"},
	} {
		if err := ip(args...); err != nil {
			t.Fatal(err)
		}
	}
	m.plane.Wait(m.Name+" is on", 30*time.Second, func() string {
		select {
		case <-m.done:
			t.Fatalf("%s went off while it booted: %s", m.Name, words.String())
		default:
		}
		if out, err := m.Try("ctr", "version"); err != nil {
			return "containerd does not answer: " + out
		}
		return ""
	})
}

// On reports whether the machine is on.
func (m *Machine) On() bool { return m.cmd != nil }

// Command is a command in the machine, with the machine's names, files and
// network. Machine tools are in Path. Whoever runs it sets a limit.
func (m *Machine) Command(args ...string) *exec.Cmd {
	m.plane.t.Helper()
	return m.command(context.Background(), args...)
}

func (m *Machine) command(ctx context.Context, args ...string) *exec.Cmd {
	m.plane.t.Helper()
	if m.cmd == nil {
		m.plane.t.Fatalf("run %v in %s: it is off", args, m.Name)
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{
		"--target", strconv.Itoa(m.cmd.Process.Pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--",
		"env", "-i", "PATH=" + Path, "HOME=/root", "KUBECONFIG=/etc/kubernetes/admin.conf",
	}, args...)...)
	cmd.WaitDelay = time.Second
	return cmd
}

// runLimit is how long Try and Run let a command take: more than any of
// kubeadm's own limits.
const runLimit = 6 * time.Minute

// Try runs a command in the machine and returns all that it printed.
func (m *Machine) Try(args ...string) (output string, err error) {
	m.plane.t.Helper()
	return m.TryInput("", args...)
}

// TryInput is Try with something to read.
func (m *Machine) TryInput(input string, args ...string) (output string, err error) {
	m.plane.t.Helper()
	ctx, cancel := context.WithTimeoutCause(context.Background(), runLimit, fmt.Errorf("no end after %v", runLimit))
	defer cancel()
	cmd := m.command(ctx, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return strings.TrimSpace(string(out)), err
}

// Run runs a command in the machine, which must succeed, and returns its
// standard output.
func (m *Machine) Run(args ...string) string {
	m.plane.t.Helper()
	return m.RunInput("", args...)
}

// RunInput is Run with something to read.
func (m *Machine) RunInput(input string, args ...string) string {
	m.plane.t.Helper()
	ctx, cancel := context.WithTimeoutCause(context.Background(), runLimit, fmt.Errorf("no end after %v", runLimit))
	defer cancel()
	cmd := m.command(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = strings.NewReader(input), &stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		m.plane.t.Fatalf("%s: %s: %v\n%s%s", m.Name, strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// SwitchKubelet turns the kubelet service on or off, also for the next boots, as
// `systemctl enable --now` and `disable --now` do it. It waits on a machine that
// is on. Containers go on without it.
func (m *Machine) SwitchKubelet(on bool) {
	m.plane.t.Helper()
	if m.cmd != nil {
		verb := "disable"
		if on {
			verb = "enable"
		}
		m.Run("systemctl", verb, "--now", "kubelet")
		return
	}
	file := filepath.Join(m.Root, kubeletSwitch)
	err := os.WriteFile(file, nil, 0o644)
	if on {
		err = os.Remove(file)
	}
	if err != nil {
		m.plane.t.Fatal(err)
	}
}

// Lifeboat runs the binary of `make build` in the machine and returns all that
// it printed.
func (m *Machine) Lifeboat(args ...string) (output string, err error) {
	m.plane.t.Helper()
	return m.Try(append([]string{"lifeboat"}, args...)...)
}

// ImportImages gives containerd images from archives.
func (m *Machine) ImportImages(archives ...string) {
	m.plane.t.Helper()
	for _, archive := range archives {
		f, err := os.Open(archive)
		if err != nil {
			m.plane.t.Fatal(err)
		}
		cmd := m.Command("ctr", "-n", "k8s.io", "images", "import", "-")
		cmd.Stdin = f
		out, err := cmd.CombinedOutput()
		_ = f.Close()
		if err != nil {
			m.plane.t.Fatalf("%s: import %s: %v: %s", m.Name, archive, err, out)
		}
	}
}

// lastWords logs the ends of the machine's logs, lifeboat's at length.
func (m *Machine) lastWords() {
	logs := map[string]int{"/var/log/kubelet.log": 10, "/var/log/containerd.log": 5} // lines
	pods, _ := filepath.Glob(filepath.Join(m.Root, "/var/log/pods/*/*/*.log"))
	for _, pod := range pods {
		name := strings.TrimPrefix(pod, m.Root)
		logs[name] = 3
		if strings.Contains(name, "lifeboat") {
			logs[name] = 40
		}
	}
	for name, keep := range logs {
		text, err := os.ReadFile(filepath.Join(m.Root, name))
		if err != nil || len(text) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		for i := range lines {
			lines[i] = lines[i][:min(len(lines[i]), 400)]
		}
		m.plane.t.Logf("%s %s, the last lines:\n%s", m.Name, name, strings.Join(lines[max(0, len(lines)-keep):], "\n"))
	}
}
