package node_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"lifeboat/internal/durable/tinydisk"
	"lifeboat/restore/node"
)

// plane is a machine with a small control plane: static pods with their
// manifests, containers and processes.
type plane struct {
	*tree
	cri              *criServer
	machine          *node.Local
	manifests, aside string
}

func newPlane(t *testing.T) *plane {
	tr := newTree(t)
	p := &plane{tree: tr, cri: serve(t), manifests: filepath.Join(tr.root, "etc/kubernetes/manifests"), aside: filepath.Join(t.TempDir(), "aside", "1")}
	p.machine = node.New(node.Options{Root: tr.root, Socket: p.cri.socket})
	p.static("etcd", "1", "a", 101)
	p.static("kube-apiserver", "2", "b", 102)
	p.static("kube-scheduler", "3", "c", 103)
	p.cri.pod("coredns-x", "4", "d", "api")
	tr.process(104, 9, id("d"), "coredns")
	p.cri.onStop = func(container string) {
		for pid, letter := range map[int]string{101: "a", 102: "b", 103: "c"} {
			if container == id(letter) {
				tr.end(pid)
			}
		}
	}
	return p
}

func (p *plane) static(name, sandbox, container string, pid int) {
	p.write("etc/kubernetes/manifests/"+name+".yaml", "kind: Pod\nmetadata: {name: "+name+", namespace: kube-system}\n")
	p.cri.pod(name+"-cp1", sandbox, container, "file")
	p.process(pid, 9, id(container), name)
}

func (p *plane) options() node.FenceOptions {
	return node.FenceOptions{Manifests: p.manifests, Aside: p.aside, Node: "cp1", Grace: time.Second, Limit: time.Minute, Settle: 200 * time.Millisecond}
}

func files(t *testing.T, folder string) string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func pods(manifests []node.Manifest) string {
	var names []string
	for _, m := range manifests {
		name := m.Pod
		if name == "" {
			name = m.File
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

func TestFenceAndUnfence(t *testing.T) {
	p := newPlane(t)
	p.write("etc/kubernetes/manifests/.hidden.yaml", "kind: Pod\nmetadata: {name: etcd}\n")
	p.write("etc/kubernetes/manifests/etcd.yaml.bak", "kind: Pod\nmetadata: {name: etcd}\n") // kubelet runs this, too
	p.write("etc/kubernetes/manifests/README", "not a pod\n")
	if err := os.Mkdir(filepath.Join(p.manifests, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := node.Fence(t.Context(), p.machine, p.options())
	if err != nil {
		t.Fatal(err)
	}
	if pods(got.Moved) != "kube-scheduler README kube-apiserver etcd etcd" || len(got.Aside) != 0 || len(got.Stopped) != 3 || got.Runtime != nil {
		t.Errorf("got %+v", got)
	}
	if in, out := files(t, p.manifests), files(t, p.aside); in != ".hidden.yaml folder" || out != "README etcd.yaml etcd.yaml.bak kube-apiserver.yaml kube-scheduler.yaml" {
		t.Errorf("%s stay, %s went", in, out)
	}
	if info, err := os.Stat(p.aside); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the aside folder: %v, %v", info, err)
	}
	again, err := node.Fence(t.Context(), p.machine, p.options())
	if err != nil || len(again.Moved) != 0 || len(again.Aside) != 5 || len(again.Stopped) != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
	if left, err := p.machine.Pods(t.Context()); err != nil || len(left) != 1 || left[0].Name != "coredns-x" {
		t.Errorf("left: %v, %v", left, err)
	}

	var ready []string
	back := node.UnfenceOptions{Manifests: p.manifests, Aside: p.aside, Ready: func(_ context.Context, m node.Manifest) error {
		if _, err := os.Stat(filepath.Join(p.manifests, m.File)); err != nil {
			t.Error(err)
		}
		ready = append(ready, m.File)
		return nil
	}}
	if put, err := node.Unfence(t.Context(), back); err != nil || pods(put) != "etcd etcd kube-apiserver README kube-scheduler" {
		t.Errorf("put back %v, %v", put, err)
	}
	if diff := cmp.Diff(strings.Fields("etcd.yaml etcd.yaml.bak kube-apiserver.yaml README kube-scheduler.yaml"), ready); diff != "" {
		t.Error(diff)
	}
	if put, err := node.Unfence(t.Context(), back); err != nil || len(put) != 0 || files(t, p.aside) != "" {
		t.Errorf("again: %v, %v", put, err)
	}
}

// What a wrecked node has in place of manifests. The pods of before may run on.
func TestBrokenManifestsMakeRoomAndTheirPodsStop(t *testing.T) {
	p := newPlane(t)
	p.write("etc/kubernetes/manifests/etcd.yaml", "")
	p.write("etc/kubernetes/manifests/kube-apiserver.yaml", "kind: Pod\n\tmetadata: {name: kube-apiserver}\n")
	scheduler := filepath.Join(p.manifests, "kube-scheduler.yaml")
	if err := errors.Join(os.Remove(scheduler), os.Symlink("/nowhere", scheduler)); err != nil {
		t.Fatal(err)
	}
	got, err := node.Fence(t.Context(), p.machine, p.options())
	if err != nil || len(got.Moved) != 3 || len(got.Stopped) != 3 || files(t, p.manifests) != "" {
		t.Errorf("%+v, %v; %s stay", got, err, files(t, p.manifests))
	}
	put, err := node.Unfence(t.Context(), node.UnfenceOptions{Manifests: p.manifests, Aside: p.aside})
	if err != nil || len(put) != 3 || files(t, p.manifests) != "etcd.yaml kube-apiserver.yaml kube-scheduler.yaml" {
		t.Errorf("put back %+v, %v", put, err)
	}
	if to, err := os.Readlink(scheduler); err != nil || to != "/nowhere" {
		t.Errorf("%s, %v", to, err)
	}
}

func TestFenceOfSomePods(t *testing.T) {
	p := newPlane(t)
	p.static("etcd-events", "5", "e", 105)
	o := p.options()
	o.Names, o.Node = []string{"etcd"}, ""
	got, err := node.Fence(t.Context(), p.machine, o)
	if err != nil || pods(got.Moved) != "etcd" || len(got.Stopped) != 1 || got.Stopped[0].Name != "etcd-cp1" {
		t.Errorf("got %+v, %v", got, err)
	}
	if in := files(t, p.manifests); in != "etcd-events.yaml kube-apiserver.yaml kube-scheduler.yaml" {
		t.Errorf("%s stay", in)
	}
	if put, err := node.Unfence(t.Context(), node.UnfenceOptions{Manifests: p.manifests, Aside: p.aside, Names: []string{"kube-apiserver"}}); err != nil || len(put) != 0 {
		t.Errorf("of another name: %v, %v", put, err)
	}
}

func TestAWrongNodeNameLetsNothingEscape(t *testing.T) {
	p := newPlane(t)
	o := p.options()
	o.Node = "cp9"
	if got, err := node.Fence(t.Context(), p.machine, o); err != nil || len(got.Stopped) != 3 {
		t.Errorf("got %+v, %v", got, err)
	}
}

// With the node's name a pod is told from another whose manifest is nowhere.
func TestAPodOfALongerNameIsLeft(t *testing.T) {
	p := newPlane(t)
	p.cri.pod("etcd-events-cp1", "5", "e", "file")
	p.process(105, 9, id("e"), "etcd")
	o := p.options()
	o.Names = []string{"etcd"}
	if got, err := node.Fence(t.Context(), p.machine, o); err != nil || len(got.Stopped) != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
}

// Kubelet has not noticed yet, and starts a pod once more.
func TestAPodThatComesBackIsStoppedAgain(t *testing.T) {
	p := newPlane(t)
	p.process(50, 5, "", "kubelet")
	o, looks := p.options(), 0
	o.Sleep = func(context.Context, time.Duration) error {
		if looks++; looks == 2 { // the first look after stopping has found nothing
			p.cri.pod("etcd-cp1", "6", "f", "file")
		}
		return nil
	}
	got, err := node.Fence(t.Context(), p.machine, o)
	if err != nil || len(got.Stopped) != 4 || got.Stopped[3].ID != id("6") {
		t.Errorf("got %+v, %v", got, err)
	}
}

// until is a wait that time runs out of after some looks.
func until(looks int) func(context.Context, time.Duration) error {
	return func(context.Context, time.Duration) error {
		if looks--; looks < 0 {
			return errors.New("no more time")
		}
		return nil
	}
}

func TestFenceEndsAtItsLimit(t *testing.T) {
	p := newPlane(t)
	p.process(111, 9, "", "/usr/bin/etcd")
	o := p.options()
	o.Limit = 50 * time.Millisecond
	if _, err := node.Fence(t.Context(), p.machine, o); err == nil || !strings.Contains(err.Error(), "no end after 50ms") {
		t.Errorf("error %v", err)
	}
}

func TestFenceNamesWhatStillLives(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(p *plane)
		says    string
	}{
		{"a pod that can't be stopped", func(p *plane) { p.cri.refuse[id("a")] = true }, "pod kube-system/etcd-cp1 (running etcd-cp1 aaaaaaaaaaaa), process 101 (etcd)"},
		{"a container's process that stays", func(p *plane) { p.cri.onStop = func(string) {} }, "still running: process 101 (etcd), process 102 (kube-apiserver), process 103 (kube-scheduler)"},
		{"a helper in a container", func(p *plane) { p.process(110, 9, id("1"), "/pause") }, "still running: process 110 (pause)"},
		{"an etcd without a container", func(p *plane) { p.process(111, 9, "", "/usr/bin/etcd") }, "still running: process 111 (etcd)"},
		{"an etcd that the runtime has forgotten", func(p *plane) { p.process(112, 9, id("9"), "etcd") }, "still running: process 112 (etcd)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlane(t)
			c.prepare(p)
			o := p.options()
			o.Sleep = until(4)
			_, err := node.Fence(t.Context(), p.machine, o)
			if !errors.Is(err, node.ErrAlive) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "run this again") || !strings.Contains(err.Error(), "no more time") {
				t.Fatalf("error %v should say %q", err, c.says)
			}
			// Once a person has seen to it, it goes on.
			p.cri.mu.Lock()
			clear(p.cri.refuse)
			p.cri.mu.Unlock()
			for _, pid := range []int{101, 102, 103, 110, 111, 112} {
				p.end(pid)
			}
			got, err := node.Fence(t.Context(), p.machine, p.options())
			if err != nil || len(got.Moved) != 0 || len(got.Aside) != 3 {
				t.Errorf("again: %+v, %v", got, err)
			}
		})
	}
}

func TestFenceLeavesOthersAlone(t *testing.T) {
	p := newPlane(t)
	p.process(120, 9, id("7"), "etcd")
	p.network(120, "net:[7]") // of a machine in a container
	p.cri.pod("my-etcd-0", "8", "9", "api")
	p.process(121, 9, id("9"), "etcd") // an ordinary pod's, in the machine's network
	if got, err := node.Fence(t.Context(), p.machine, p.options()); err != nil || len(got.Stopped) != 3 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestFenceWithoutARuntimeLooksAtProcesses(t *testing.T) {
	p := newPlane(t)
	p.write("etc/kubernetes/manifests/lb.yaml", "kind: Pod\nmetadata: {name: haproxy}\n")
	p.process(130, 9, id("9"), "haproxy")
	m := node.New(node.Options{Root: p.root, Socket: filepath.Join(p.root, "none.sock")})
	o := p.options()
	o.Sleep = until(2)
	got, err := node.Fence(t.Context(), m, o)
	if !errors.Is(err, node.ErrAlive) || !strings.Contains(err.Error(), "process 101 (etcd), process 102 (kube-apiserver), process 103 (kube-scheduler), process 130 (haproxy)") || !errors.Is(got.Runtime, node.ErrNoRuntime) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, pid := range []int{101, 102, 103, 130} {
		p.end(pid)
	}
	if got, err := node.Fence(t.Context(), m, o); err != nil || !errors.Is(got.Runtime, node.ErrNoRuntime) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestFenceRefusesAnAsideFolderThatKubeletReads(t *testing.T) {
	p := newPlane(t)
	link := filepath.Join(t.TempDir(), "link")
	p.link(link, p.manifests)
	for _, aside := range []string{"", p.manifests, filepath.Join(p.manifests, "old"), filepath.Join(link, "old", "older")} {
		o := p.options()
		o.Aside = aside
		if _, err := node.Fence(t.Context(), p.machine, o); err == nil {
			t.Errorf("%q was taken", aside)
		}
		if _, err := node.Unfence(t.Context(), node.UnfenceOptions{Manifests: p.manifests, Aside: aside}); err == nil {
			t.Errorf("%q was taken back", aside)
		}
	}
	if in := files(t, p.manifests); in != "etcd.yaml kube-apiserver.yaml kube-scheduler.yaml" || len(p.cri.ordered()) != 0 {
		t.Errorf("%s stay, ordered %v", in, p.cri.ordered())
	}
}

func TestAManifestWhoseNameIsTaken(t *testing.T) {
	p := newPlane(t)
	if err := os.MkdirAll(p.aside, 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, p.aside, "etcd.yaml", "kind: Pod\nmetadata: {name: etcd, labels: {x: y}}\n")
	_, err := node.Fence(t.Context(), p.machine, p.options())
	if err == nil || !strings.Contains(err.Error(), "another file is there") {
		t.Errorf("another file: %v", err)
	}
	if in := files(t, p.manifests); in != "etcd.yaml" {
		t.Errorf("%s stay", in)
	}
	// What a crash between copying and removing leaves: the same file twice.
	text, err := os.ReadFile(filepath.Join(p.manifests, "etcd.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	put(t, p.aside, "etcd.yaml", string(text))
	if err := os.Chmod(filepath.Join(p.manifests, "etcd.yaml"), 0o640); err != nil {
		t.Fatal(err)
	}
	if got, err := node.Fence(t.Context(), p.machine, p.options()); err != nil || len(got.Moved) != 1 || files(t, p.manifests) != "" {
		t.Errorf("the same file: %+v, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(p.aside, "etcd.yaml")); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("its mode: %v, %v", info, err)
	}
}

func TestManifestsMoveBetweenFileSystems(t *testing.T) {
	p := newPlane(t)
	other, err := os.MkdirTemp("/dev/shm", "lifeboat-test-")
	if err != nil {
		tinydisk.Unable(t, "no other file system to write to: ", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(other) })
	var here, there unix.Stat_t
	if err := errors.Join(unix.Stat(p.root, &here), unix.Stat(other, &there)); err != nil {
		t.Fatal(err)
	}
	if here.Dev == there.Dev {
		tinydisk.Unable(t, "/dev/shm is the file system of temporary folders")
	}
	p.aside = filepath.Join(other, "aside")
	file := filepath.Join(p.manifests, "etcd.yaml")
	when := time.Unix(1600000000, 5)
	if err := errors.Join(os.Chmod(file, 0o640), os.Chtimes(file, when, when)); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Lchown(file, 12, 34); err != nil {
			t.Fatal(err)
		}
	}
	p.write("etc/kubernetes/proxy.yaml", "kind: Pod\nmetadata: {name: proxy}\n")
	p.link(filepath.Join(p.manifests, "proxy.yaml"), "../proxy.yaml")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	look := func(file string) unix.Stat_t {
		var st unix.Stat_t
		if err := unix.Lstat(file, &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	want := look(file)
	for _, dir := range []string{p.aside, p.manifests} {
		if dir == p.aside {
			if got, err := node.Fence(t.Context(), p.machine, p.options()); err != nil || pods(got.Moved) != "proxy kube-scheduler kube-apiserver etcd" || files(t, p.manifests) != "" {
				t.Fatalf("got %+v, %v", got, err)
			}
		} else if got, err := node.Unfence(t.Context(), node.UnfenceOptions{Manifests: p.manifests, Aside: p.aside}); err != nil || len(got) != 4 || files(t, p.aside) != "" {
			t.Fatalf("got %+v, %v", got, err)
		}
		moved := filepath.Join(dir, "etcd.yaml")
		data, err := os.ReadFile(moved)
		if st := look(moved); err != nil || !bytes.Equal(data, before) || st.Mode != want.Mode || st.Uid != want.Uid || st.Gid != want.Gid || st.Mtim != want.Mtim {
			t.Errorf("%s: %+v, %v", moved, st, err)
		}
		if target, err := os.Readlink(filepath.Join(dir, "proxy.yaml")); err != nil || target != "../proxy.yaml" {
			t.Errorf("the link leads to %s, %v", target, err)
		}
	}
}

func TestUnfenceStopsWhereAPodIsNotReady(t *testing.T) {
	p := newPlane(t)
	if _, err := node.Fence(t.Context(), p.machine, p.options()); err != nil {
		t.Fatal(err)
	}
	dead := errors.New("etcd has no leader")
	put, err := node.Unfence(t.Context(), node.UnfenceOptions{Manifests: p.manifests, Aside: p.aside, Ready: func(context.Context, node.Manifest) error { return dead }})
	if !errors.Is(err, dead) || pods(put) != "etcd" || files(t, p.manifests) != "etcd.yaml" {
		t.Errorf("put %v, %v", put, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if put, err := node.Unfence(ctx, node.UnfenceOptions{Manifests: p.manifests, Aside: p.aside}); !errors.Is(err, context.Canceled) || len(put) != 0 {
		t.Errorf("put %v, %v", put, err)
	}
}
