package node_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"lifeboat/restore/node"
)

var ignoreTicks = cmpopts.IgnoreUnexported(node.Process{})

func TestProcessesAreFoundByTheirFirstArgument(t *testing.T) {
	tr := newTree(t)
	tr.process(20, 60, id("a"), "etcd", "--name=cp1", "--data-dir=/var/lib/etcd")
	tr.process(7, 30, "", "/usr/bin/kubelet", "--config", "x y")
	tr.process(30, 90, "", "vi", "/etc/etcd") // speaks of etcd and is none
	tr.process(31, 90, "", "/usr/local/bin/etcd-backup")
	tr.process(40, 90, id("c"), "etcd")
	tr.network(40, "net:[2]")               // of another cluster, in a container
	tr.write("proc/50/cmdline", "")         // the kernel's
	tr.write("proc/51/cmdline", "etcd\x00") // has ended between two reads
	tr.write("proc/52/cmdline", "etcd\x00") // has ended, and its parent doesn't look
	tr.write("proc/52/stat", "52 (etcd) Z 1 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 9 0 5 1000 10\n")
	tr.write("proc/sys/kernel/panic", "0")
	got, err := node.New(node.Options{Root: tr.root}).Processes(t.Context(), "etcd", "kubelet")
	if err != nil {
		t.Fatal(err)
	}
	boot := time.Unix(1700000000, 0).UTC()
	want := []node.Process{
		{PID: 7, Program: "kubelet", Args: []string{"/usr/bin/kubelet", "--config", "x y"}, Start: boot.Add(30 * time.Second), HostNetwork: true},
		{PID: 20, Program: "etcd", Args: []string{"etcd", "--name=cp1", "--data-dir=/var/lib/etcd"}, Start: boot.Add(time.Minute), Container: id("a"), HostNetwork: true},
		{PID: 40, Program: "etcd", Args: []string{"etcd"}, Start: boot.Add(90 * time.Second), Container: id("c")},
	}
	if diff := cmp.Diff(want, got, ignoreTicks); diff != "" {
		t.Error(diff)
	}
	all, err := node.New(node.Options{Root: tr.root}).Processes(t.Context())
	if err != nil || len(all) != 6 {
		t.Errorf("all processes: %v, %v", all, err)
	}
}

func TestAMachineInAContainerHasProcessesOfItsOwn(t *testing.T) {
	tr := newTree(t)
	tr.write("proc/1/cgroup", "0::/docker/"+id("d")+"\n")
	tr.process(7, 30, "", "kubelet")
	tr.write("proc/7/cgroup", "0::/docker/"+id("d")+"/kubelet\n")
	tr.process(8, 30, "", "etcd")
	tr.write("proc/8/cgroup", "0::/docker/"+id("d")+"/kubelet/kubepods/cri-containerd-"+id("e")+".scope\n")
	got, err := node.New(node.Options{Root: tr.root}).Processes(t.Context(), "kubelet", "etcd")
	if err != nil || len(got) != 2 || got[0].Container != "" || got[1].Container != id("e") {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestProcessesOfADamagedTree(t *testing.T) {
	for _, c := range []struct{ file, text, says string }{
		{"proc/stat", "cpu 1\n", "btime"},
		{"proc/stat", "btime x\n", "booted"},
		{"proc/1/stat", "1 (init\n", "proc_pid_stat"},
		{"proc/1/stat", "1 (init) S 1 2\n", "proc_pid_stat"},
	} {
		tr := newTree(t)
		tr.write(c.file, c.text)
		if _, err := node.New(node.Options{Root: tr.root}).Processes(t.Context()); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("with %q in %s: %v", c.text, c.file, err)
		}
	}
}

// A real process, under a name of our own.
func TestARealProcessIsSeenAndItsEndAwaited(t *testing.T) {
	program := "lifeboat-test-" + strconv.Itoa(os.Getpid())
	cmd := exec.Command("sleep", "600")
	cmd.Args[0] = "/no/such/folder/" + program
	before := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	m := node.New(node.Options{})
	var got []node.Process
	for len(got) == 0 { // until it has become sleep
		var err error
		if got, err = m.Processes(t.Context(), program); err != nil {
			t.Fatal(err)
		}
	}
	if len(got) != 1 || got[0].PID != cmd.Process.Pid || got[0].Args[1] != "600" || !got[0].HostNetwork && os.Geteuid() == 0 && ownNetworkIsOfProcessOne() {
		t.Fatalf("got %+v", got)
	}
	if age := got[0].Start.Sub(before); age < -3*time.Second || age > 3*time.Second {
		t.Errorf("it began at %v, seen to start at %v", got[0].Start, before)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
	defer cancel()
	if err := m.WaitGone(ctx, got); !errors.Is(err, node.ErrAlive) || !strings.Contains(err.Error(), program) {
		t.Errorf("while it lives: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// It is a zombie until Wait: it runs no more.
	if err := m.WaitGone(t.Context(), got); err != nil {
		t.Error(err)
	}
}

func ownNetworkIsOfProcessOne() bool {
	a, err1 := os.Readlink("/proc/1/ns/net")
	b, err2 := os.Readlink("/proc/self/ns/net")
	return err1 == nil && err2 == nil && a == b
}

func TestAnotherProcessUnderTheSameNumberIsNotWaitedFor(t *testing.T) {
	tr := newTree(t)
	tr.process(20, 60, "", "etcd")
	m := node.New(node.Options{Root: tr.root, Sleep: func(context.Context, time.Duration) error {
		tr.end(20)
		tr.process(20, 61, "", "kubelet")
		return nil
	}})
	got, err := m.Processes(t.Context(), "etcd")
	if err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	if err := m.WaitGone(t.Context(), got); err != nil {
		t.Error(err)
	}
}

const tcpTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:094B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1001 1 0000000000000000 100 0 0 10 0
   1: 0B00000A:094B 0B00000A:D431 01 00000000:00000000 00:00000000 00000000     0        0 1002 1 0000000000000000 100 0 0 10 0
   2: 0B00000A:094C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1003 1 0000000000000000 100 0 0 10 0
   3: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1004 1 0000000000000000 100 0 0 10 0
`

const tcp6Table = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:192B 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2001 1 0000000000000000 100 0 0 10 0
   1: 000000FD000000000000000011000000:094B 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2002 1 0000000000000000 100 0 0 10 0
`

func TestListeners(t *testing.T) {
	tr := newTree(t)
	tr.write("proc/1/net/tcp", tcpTable)
	tr.write("proc/1/net/tcp6", tcp6Table)
	tr.process(20, 60, "", "etcd")
	tr.process(21, 60, "", "kube-apiserver")
	for fd, target := range map[string]string{"0": "/dev/null", "7": "socket:[1001]", "8": "socket:[1003]", "9": "socket:[9999]"} {
		tr.link(filepath.Join(tr.root, "proc/20/fd", fd), target)
	}
	tr.link(filepath.Join(tr.root, "proc/21/fd/3"), "socket:[2001]")
	got, err := node.New(node.Options{Root: tr.root}).Listeners(t.Context(), 2379, 2380, 6443)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, l := range got {
		lines = append(lines, l.String())
	}
	want := []string{
		"127.0.0.1:2379 (process 20 (etcd))", "10.0.0.11:2380 (process 20 (etcd))",
		"[::]:6443 (process 21 (kube-apiserver))", "[fd00::11]:2379 (of a process that can't be seen)",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Error(diff)
	}
	tr.write("proc/1/net/tcp", "heading\n 0: zz:0 0:0 0A 0 0 0 0 0 7 \n")
	if _, err := node.New(node.Options{Root: tr.root}).Listeners(t.Context(), 2379); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Errorf("of a damaged table: %v", err)
	}
}

func TestARealListenerIsOurs(t *testing.T) {
	if !ownNetworkIsOfProcessOne() {
		t.Skip("this test is in another network than process 1, or may not see that one's")
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("no listener at %s on this machine: %v", address, err)
			continue
		}
		defer l.Close()
		at := netip.MustParseAddrPort(l.Addr().String())
		got, err := node.New(node.Options{}).Listeners(t.Context(), at.Port())
		if err != nil || len(got) == 0 || got[len(got)-1].Address != at || got[len(got)-1].Process.PID != os.Getpid() {
			t.Errorf("listening at %v, got %+v, %v", at, got, err)
		}
	}
}
