package containerd

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
)

func TestReferencesAreNamedAsContainerdDoes(t *testing.T) {
	for reference, want := range map[string]string{
		"registry.k8s.io/etcd:3.6.4-0":           "registry.k8s.io/etcd:3.6.4-0",
		"registry.k8s.io/etcd":                   "registry.k8s.io/etcd:latest",
		"etcd":                                   "docker.io/library/etcd:latest",
		"etcd:3.6":                               "docker.io/library/etcd:3.6",
		"lifeboat:e2e":                           "docker.io/library/lifeboat:e2e",
		"bitnami/etcd:3":                         "docker.io/bitnami/etcd:3",
		"docker.io/etcd:3":                       "docker.io/library/etcd:3",
		"localhost/etcd:3":                       "localhost/etcd:3",
		"registry:5000/etcd":                     "registry:5000/etcd:latest",
		"registry.k8s.io/a/b@sha256:0123":        "registry.k8s.io/a/b@sha256:0123",
		"etcd@sha256:0123":                       "docker.io/library/etcd@sha256:0123",
		"sha256:0123456789012345678901234567890": "sha256:0123456789012345678901234567890",
	} {
		if got := Normalize(reference); got != want {
			t.Errorf("%s is named %s, want %s", reference, got, want)
		}
		if got := Normalize(Normalize(reference)); got != want {
			t.Errorf("%s, named twice: %s", reference, got)
		}
	}
}

func TestANetworksContainersAreKnownByTheirMounts(t *testing.T) {
	for spec, want := range map[string]bool{
		`{"mounts":[{"source":"proc"},{"destination":"/host/opt/cni/bin","source":"/opt/cni/bin"}]}`: true,
		`{"mounts":[{"source":"/etc/cni/net.d"}]}`:                                                   true,
		`{"mounts":[{"source":"/etc/cni/../cni"}]}`:                                                  true,
		`{"mounts":[{"source":"/etc/cnicorp"},{"source":"/etc"}]}`:                                   false,
		`{"mounts":[{"source":"/opt/cni/../../var/lib"}]}`:                                           false,
		`{"mounts":7}`: false,
		``:             false,
	} {
		if got := ofNetwork([]byte(spec)); got != want {
			t.Errorf("%s: %v", spec, got)
		}
	}
}

func TestWhatIsNoContainerd(t *testing.T) {
	folder, err := os.MkdirTemp("", "lb-c-") // a short name: sockets' are limited
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	file := filepath.Join(folder, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(folder, "nothing"), file} {
		if _, err := Dial(path); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	listen := func(name string) (string, net.Listener) {
		path := filepath.Join(folder, name)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		return path, l
	}
	path, l := listen("other")
	server := grpc.NewServer() // it serves nothing
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Images(t.Context()); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no containerd") {
		t.Errorf("another server: %v", err)
	}
	path, l = listen("dead")
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	dead, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	if _, err := dead.Used(t.Context()); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), path) {
		t.Errorf("a socket that nobody listens on: %v", err)
	}
}

func FuzzOfNetwork(f *testing.F) {
	f.Add([]byte(`{"mounts":[{"source":"/opt/cni/bin"}]}`))
	f.Add([]byte(`{"mounts":[null,{"source":""}]}`))
	f.Fuzz(func(t *testing.T, spec []byte) {
		if ofNetwork(spec) && !json.Valid(spec) {
			t.Errorf("%s is no specification", spec)
		}
	})
}

func FuzzNormalize(f *testing.F) {
	for _, s := range []string{"etcd", "a/b:c", "registry:5000/x@sha256:0", "/", ":", "sha256:", "docker.io/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if once := Normalize(s); Normalize(once) != once {
			t.Errorf("%q is named %q and then %q", s, once, Normalize(once))
		}
	})
}
