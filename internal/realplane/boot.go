package realplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// bootVariable carries a boot as JSON to a machine's PID 1.
const bootVariable = "LIFEBOAT_REALPLANE_BOOT"

// boot is all that a machine is told when it is switched on. What it remembers
// is in its root folder.
type bootOrder struct {
	Name    string
	Root    string            // folder that becomes /
	Address string            // 10.77.0.11
	Tools   map[string]string // folder in the machine -> folder of this machine, read-only
}

// boot is a machine's PID 1, in fresh mount, PID, network, host name and IPC
// namespaces.
func boot() int {
	var order bootOrder
	err := json.Unmarshal([]byte(os.Getenv(bootVariable)), &order)
	for _, step := range []func(bootOrder) error{plugIn, mountRoot, enterRoot} {
		if err == nil {
			err = step(order)
		}
	}
	if err == nil {
		err = superviseForever()
	}
	fmt.Fprintln(os.Stderr, "machine", order.Name+":", err)
	return 1
}

// plugIn waits for the cable, which the plane puts into this namespace, and
// sets the addresses.
func plugIn(o bootOrder) error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := net.InterfaceByName("eth0"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return errors.New("wait for eth0: nobody plugged it in")
		}
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"addr", "add", o.Address + "/24", "dev", "eth0"},
		{"link", "set", "eth0", "up"},
		{"route", "add", "default", "via", Gateway},
	} {
		if err := ip(args...); err != nil {
			return err
		}
	}
	return syscall.Sethostname([]byte(o.Name))
}

// ownSysctls are kernel settings that kubelet changes at its start. They belong
// to the whole kernel, so a machine has files of its own in their place.
var ownSysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// shared are folders of the host that a machine sees read-only.
var shared = []string{"/usr", "/etc/alternatives", "/etc/ssl"}

// mountRoot puts the machine's file systems together below its root folder.
func mountRoot(o bootOrder) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to this machine: %w", err)
	}
	if err := bind(o.Root, o.Root, false); err != nil {
		return err
	}
	in := func(path string) string { return filepath.Join(o.Root, path) }
	for _, folder := range shared {
		if err := bind(folder, in(folder), true); err != nil {
			return err
		}
	}
	for folder, source := range o.Tools {
		if err := bind(source, in(folder), true); err != nil {
			return err
		}
	}
	for _, m := range []struct {
		kind, at string
		flags    uintptr
		options  string
	}{
		{"proc", "/proc", 0, ""},
		{"sysfs", "/sys", 0, ""},
		{"tmpfs", "/run", 0, "mode=755"},
		{"tmpfs", "/tmp", 0, "mode=1777"},
	} {
		if err := os.MkdirAll(in(m.at), 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.kind, in(m.at), m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	for _, tree := range []string{"/dev", cgroupRoot} {
		if err := bind(tree, in(tree), false); err != nil {
			return err
		}
	}
	for _, name := range ownSysctls {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		own := in(filepath.Join("/run/sysctl", name))
		if err := os.MkdirAll(filepath.Dir(own), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(own, value, 0o644); err != nil {
			return err
		}
		if err := syscall.Mount(own, in(filepath.Join("/proc/sys", name)), "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover sysctl %s: %w", name, err)
		}
	}
	return nil
}

// bind mounts a folder with all that is mounted in it at another place.
func bind(source, target string, readOnly bool) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount(source, target, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s at %s: %w", source, target, err)
	}
	if !readOnly {
		return nil
	}
	if err := syscall.Mount("", target, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", target, err)
	}
	return nil
}

// enterRoot makes the root folder the root and forgets the host's.
func enterRoot(o bootOrder) error {
	old := filepath.Join(o.Root, "run", "old")
	if err := os.MkdirAll(old, 0o700); err != nil {
		return err
	}
	if err := syscall.PivotRoot(o.Root, old); err != nil {
		return fmt.Errorf("enter the root %s: %w", o.Root, err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := syscall.Unmount("/run/old", syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's files: %w", err)
	}
	// Kubelet wants mounts to reach its containers.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts with containers: %w", err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1\n"), 0o644); err != nil {
		return fmt.Errorf("forward packets: %w", err)
	}
	return nil
}

// service is a program that PID 1 keeps running.
type service struct {
	name  string
	ready func() bool // may it run now
	args  func() []string
	pid   int // 0: not running
}

// superviseForever starts services and reaps every process that ends. It
// returns only an error; a power cut kills it.
func superviseForever() error {
	services := []*service{
		{name: "containerd", ready: func() bool { return true }, args: func() []string {
			return []string{"containerd", "-c", "/etc/containerd/config.toml"}
		}},
		{name: "kubelet", ready: kubeletMayRun, args: kubeletArgs},
	}
	for ; ; time.Sleep(100 * time.Millisecond) {
		for _, s := range services {
			if err := s.tend(); err != nil {
				return err
			}
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if err != nil || pid <= 0 {
				break
			}
			for _, s := range services {
				if s.pid == pid {
					s.pid = 0
				}
			}
		}
	}
}

// tend starts a service that may run and doesn't, and ends one that must not.
func (s *service) tend() error {
	ready := s.ready()
	if s.pid != 0 {
		if !ready {
			_ = syscall.Kill(s.pid, syscall.SIGTERM)
		}
		return nil
	}
	if !ready {
		return nil
	}
	log, err := os.OpenFile(filepath.Join("/var/log", s.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	args := s.args()
	if err := os.Setenv("PATH", Path); err != nil {
		return err
	}
	program, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	process, err := os.StartProcess(program, args, &os.ProcAttr{
		Env: []string{"PATH=" + Path, "HOME=/root"}, Files: []*os.File{nil, log, log}, Dir: "/",
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	s.pid = process.Pid
	return process.Release() // the loop above reaps it
}

// kubeletSwitch is a file that keeps kubelet off, across power cuts too.
const kubeletSwitch = "/var/lib/machine/kubelet-off"

// kubeletMayRun is what the kubelet package's unit does by restarting for ever:
// without its configuration, which kubeadm writes, it can't start.
func kubeletMayRun() bool {
	if _, err := os.Stat(kubeletSwitch); err == nil {
		return false
	}
	info, err := os.Stat("/var/lib/kubelet/config.yaml")
	return err == nil && info.Size() > 0
}

// kubeletArgs is the command of kubeadm's unit file, by a shell because of the
// environment file.
func kubeletArgs() []string {
	return []string{"/bin/sh", "-c", `[ ! -e /var/lib/kubelet/kubeadm-flags.env ] || . /var/lib/kubelet/kubeadm-flags.env
exec kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf \
	--config=/var/lib/kubelet/config.yaml $KUBELET_KUBEADM_ARGS`}
}
