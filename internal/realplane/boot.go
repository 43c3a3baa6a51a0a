package realplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
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
	Cgroup  string            // of the plane; the machine's is the one below it with its name
	Tools   map[string]string // folder in the machine -> folder of this machine, read-only
	Backups string            // folder of this machine that is at Backups
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
		err = newSupervisor(path.Join("/", order.Cgroup, order.Name)).run(supervisorSocket)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "machine", order.Name+":", err)
		return 1
	}
	return 0 // switched off
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
	if err := bind(o.Backups, in(Backups), false); err != nil {
		return err
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
	// Its being there means that systemd runs the machine (sd_booted(3)): see systemctl.go.
	if err := os.MkdirAll(in("/run/systemd/system"), 0o755); err != nil {
		return err
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
