package realplane

import (
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// PowerCut ends everything in the machine at once.
func (m *Machine) PowerCut() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	<-m.done
	m.cmd = nil
}

// PowerOff switches the machine off in an orderly way: all processes get
// SIGTERM and some seconds.
func (m *Machine) PowerOff() {
	m.plane.t.Helper()
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Signal(syscall.SIGTERM) // see supervisor.off
	select {
	case <-m.done:
	case <-time.After(2 * offLimit):
		m.plane.t.Errorf("power off %s: it was still on after %v", m.Name, 2*offLimit)
	}
	m.PowerCut()
}

// LoseFiles removes all of /etc/kubernetes and /var/lib/etcd of a machine that
// is on and whose control plane goes on writing there.
func (m *Machine) LoseFiles() {
	m.plane.t.Helper()
	for _, folder := range []string{"/etc/kubernetes", "/var/lib/etcd"} {
		if err := os.RemoveAll(filepath.Join(m.Root, folder)); err != nil {
			m.plane.t.Fatalf("%s: lose %s: %v", m.Name, folder, err)
		}
	}
	m.plane.Logf("%s lost /etc/kubernetes and /var/lib/etcd", m.Name)
}

// LoseMachine cuts the power, and boots the machine again with its name and
// address and nothing else: the disk is as Format makes it. Its kubelet is
// enabled, and starts once /var/lib/kubelet/config.yaml is there, as on any new
// master. Plane.NewMachine is one with another name and address.
func (m *Machine) LoseMachine(images Images) {
	m.plane.t.Helper()
	m.PowerCut()
	m.Format(images)
	m.PowerOn()
	m.plane.Logf("%s lost its disk (images kept: %v)", m.Name, images)
}

// partitionChain is the machine's chain of rules for Partition.
const partitionChain = "PARTITION"

// Partition drops every packet between the machine and the others, or without
// any named, between it and the world. Heal undoes it; so does a power cut.
func (m *Machine) Partition(others ...*Machine) {
	m.plane.t.Helper()
	iptables := func(args ...string) { m.Run(append([]string{"iptables", "-w", "5"}, args...)...) }
	if _, err := m.Try("iptables", "-w", "5", "-N", partitionChain); err == nil {
		for _, hook := range []string{"INPUT", "OUTPUT", "FORWARD"} {
			iptables("-I", hook, "-j", partitionChain)
		}
	}
	if len(others) == 0 {
		iptables("-A", partitionChain, "-i", "eth0", "-j", "DROP")
		iptables("-A", partitionChain, "-o", "eth0", "-j", "DROP")
	}
	for _, other := range others {
		iptables("-A", partitionChain, "-s", other.Address, "-j", "DROP")
		iptables("-A", partitionChain, "-d", other.Address, "-j", "DROP")
	}
}

// Heal ends all partitions of the machine.
func (m *Machine) Heal() {
	m.plane.t.Helper()
	m.Run("iptables", "-w", "5", "-F", partitionChain)
}
