package node_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// tree is a machine's file system in a folder, with a /proc of our own making.
type tree struct {
	t    *testing.T
	root string
}

// newTree boots at 1,700,000,000 seconds.
func newTree(t *testing.T) *tree {
	tr := &tree{t, t.TempDir()}
	tr.write("proc/stat", "cpu 1 2 3\nbtime 1700000000\nprocesses 9\n")
	tr.process(1, 0, "", "/sbin/init")
	return tr
}

func (tr *tree) write(name, text string) {
	tr.t.Helper()
	path := filepath.Join(tr.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		tr.t.Fatal(err)
	}
}

// process adds one that began some seconds after the boot.
func (tr *tree) process(pid, seconds int, container string, args ...string) {
	tr.t.Helper()
	folder := "proc/" + strconv.Itoa(pid)
	tr.write(folder+"/cmdline", strings.Join(args, "\x00")+"\x00")
	tr.write(folder+"/stat", fmt.Sprintf("%d (a ) b) S 1 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 9 0 %d 1000 10\n", pid, seconds*100))
	if container != "" {
		tr.write(folder+"/cgroup", "12:memory:/kubepods/burstable/pod1/"+container+"\n0::/\n")
	}
	tr.network(pid, "net:[1]")
}

// network puts a process into a network namespace.
func (tr *tree) network(pid int, name string) {
	tr.t.Helper()
	link := filepath.Join(tr.root, "proc", strconv.Itoa(pid), "ns/net")
	_ = os.Remove(link)
	tr.link(link, name)
}

func (tr *tree) link(link, target string) {
	tr.t.Helper()
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		tr.t.Fatal(err)
	}
}

func (tr *tree) end(pid int) {
	tr.t.Helper()
	if err := os.RemoveAll(filepath.Join(tr.root, "proc", strconv.Itoa(pid))); err != nil {
		tr.t.Fatal(err)
	}
}

// socket makes a socket that nobody answers on.
func (tr *tree) socket(name string) {
	tr.t.Helper()
	path := filepath.Join(tr.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		tr.t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		tr.t.Fatal(err)
	}
}

// id is a container's, told by one letter.
func id(letter string) string { return strings.Repeat(letter, 64) }
