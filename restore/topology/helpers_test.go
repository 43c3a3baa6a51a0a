package topology_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/hostfacts"
	"lifeboat/internal/kubefixture"
	"lifeboat/restore/node"
	"lifeboat/restore/topology"
)

// now is when these tests take place.
var now = time.Date(2026, 11, 21, 14, 0, 0, 0, time.UTC)

// machine is one that is only told of.
type machine struct {
	node.Machine // what must not be called panics
	identity     node.Identity
	services     map[string]node.Service
	processes    []node.Process
	pods         []node.Pod
	images       []string
	listeners    []node.Listener
	failing      error // of all that is asked
	runtime      error
}

func (m *machine) Identity() (node.Identity, error) { return m.identity, m.failing }

func (m *machine) Service(_ context.Context, name string) (node.Service, error) {
	s := m.services[name]
	s.Name = name
	return s, m.failing
}

func (m *machine) Processes(_ context.Context, programs ...string) ([]node.Process, error) {
	var out []node.Process
	for _, p := range m.processes {
		if slices.Contains(programs, p.Program) {
			out = append(out, p)
		}
	}
	return out, m.failing
}

func (m *machine) Pods(context.Context) ([]node.Pod, error) {
	return m.pods, errors.Join(m.runtime, m.failing)
}

func (m *machine) HasImage(_ context.Context, reference string) (bool, error) {
	return slices.Contains(m.images, reference), errors.Join(m.runtime, m.failing)
}

func (m *machine) Space(path string) (node.Space, error) {
	if m.failing != nil {
		return node.Space{}, m.failing
	}
	if strings.HasSuffix(path, "/var/lib/containerd") {
		return node.Space{MountPoint: "/var/lib/containerd", Type: "xfs", Free: 5 << 30, Total: 9 << 30, ReadOnly: true}, nil
	}
	return node.Space{MountPoint: "/", Type: "ext4", Free: 3 << 30, Total: 20 << 30}, nil
}

func (m *machine) Listeners(_ context.Context, ports ...uint16) ([]node.Listener, error) {
	var out []node.Listener
	for _, l := range m.listeners {
		if slices.Contains(ports, l.Address.Port()) {
			out = append(out, l)
		}
	}
	return out, m.failing
}

func at(addresses ...string) (out []node.Address) {
	out = []node.Address{{Interface: "lo", Prefix: netip.MustParsePrefix("127.0.0.1/8")}, {Interface: "cni0", Prefix: netip.MustParsePrefix("10.244.0.1/24")}}
	for i, a := range addresses {
		out = append(out, node.Address{Interface: "eth" + string(rune('0'+i)), Prefix: netip.MustParsePrefix(a)})
	}
	return out
}

// cp1 is the machine that the fixtures are of.
func cp1() *machine {
	return &machine{
		identity: node.Identity{Hostname: "cp1", Addresses: at("10.0.0.11/24")},
		services: map[string]node.Service{"kubelet": {Unit: "kubelet.service", Active: "active", Enabled: "enabled", PID: 812}},
		images:   []string{"registry.k8s.io/etcd:3.6.8-0", "registry.k8s.io/kube-apiserver:v1.36.3"},
	}
}

// facts are those of cp1's backup.
func facts() *hostfacts.Facts {
	return &hostfacts.Facts{
		Format: hostfacts.Format, Node: "cp1", Hostname: "cp1", Created: now.Add(-time.Hour),
		Addresses: []hostfacts.Address{{Interface: "lo", Address: "127.0.0.1/8"}, {Interface: "eth0", Address: "10.0.0.11/24"}, {Interface: "eth1", Address: "192.168.7.11/24"}, {Interface: "cni0", Address: "10.244.0.1/24"}},
		Servers:   []string{"https://k8s.example.test:6443", "https://10.0.0.11:6443"},
		Images:    []hostfacts.Image{{Pod: "etcd", Container: "etcd", Image: "registry.k8s.io/etcd:3.6.7-0"}, {Pod: "kube-apiserver", Container: "kube-apiserver", Image: "registry.k8s.io/kube-apiserver:v1.36.2"}},
		Etcd:      &hostfacts.Discovery{Kind: "stacked", Name: "cp1", DataDir: "/var/lib/etcd", PeerURLs: "https://10.0.0.11:2380", EtcdEndpoints: []string{"https://127.0.0.1:2379"}, Image: "registry.k8s.io/etcd:3.6.7-0"},
	}
}

// deadNetwork refuses every connection.
func deadNetwork(_ context.Context, network, address string) (net.Conn, error) {
	return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
}

// cutOff lets nothing through.
func cutOff(ctx context.Context, _, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func inspect(t *testing.T, in topology.Inputs) *topology.Host {
	t.Helper()
	if in.Machine == nil {
		in.Machine = cp1()
	}
	if in.Now == nil {
		in.Now = func() time.Time { return now }
	}
	if in.Dial == nil {
		in.Dial = deadNetwork
	}
	h, err := topology.Inspect(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func fixture(t *testing.T, kind kubefixture.Kind) string {
	t.Helper()
	root := t.TempDir()
	if err := kubefixture.Build(root, kubefixture.Options{Kind: kind, Now: now}); err != nil {
		t.Fatal(err)
	}
	return root
}

func testdata(t *testing.T, name string) string {
	t.Helper()
	_, self, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(self), "..", "..", "testdata", "hosts", name)
}

// write makes files below a new root.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	return with(t, t.TempDir(), files)
}

// with adds files to a root.
func with(t *testing.T, root string, files map[string]string) string {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}
