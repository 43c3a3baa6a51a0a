package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"
)

// wellKnownSockets are where container runtimes listen: kubeadm's list
// (cmd/kubeadm/app/constants) and those of k3s, rke2 and k0s.
var wellKnownSockets = []string{
	"/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/cri-dockerd.sock",
	"/run/k3s/containerd/containerd.sock", "/run/k0s/containerd.sock",
}

// RuntimeSocket finds the container runtime's socket: Options.Socket, else what
// the running kubelet was told, else what its files tell it, else a well-known
// place. by says which. The socket need not be there if kubelet or Options name it.
// ErrNoRuntime if there is none.
func (l *Local) RuntimeSocket(ctx context.Context) (path, by string, err error) {
	if l.socket != "" {
		return l.ofUnix(l.socket, "the options")
	}
	kubelets, err := l.Processes(ctx, Kubelet)
	if err != nil {
		return "", "", fmt.Errorf("find the container runtime: %w", err)
	}
	kubelets = slices.DeleteFunc(kubelets, func(p Process) bool { return !p.ofMachine() })
	var configs []string
	for _, p := range kubelets {
		words := strings.Join(p.Args, "\n")
		if endpoint := lastMatch(endpointFlag, words); endpoint != "" {
			return l.ofUnix(endpoint, "the running kubelet's arguments")
		}
		if config := lastMatch(configFlag, words); config != "" {
			configs = append(configs, config)
		}
	}
	if len(kubelets) == 0 {
		for _, name := range []string{"/var/lib/kubelet/kubeadm-flags.env", "/etc/default/kubelet", "/etc/sysconfig/kubelet"} {
			data, err := os.ReadFile(l.path(name))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", "", fmt.Errorf("find the container runtime: %w", err)
			}
			if endpoint := lastMatch(endpointFlag, withoutComments(string(data))); endpoint != "" {
				return l.ofUnix(endpoint, name)
			}
		}
	}
	// kubeadm 1.35 and later keep what differs between nodes in a file of its own.
	for _, name := range append(configs, "/var/lib/kubelet/instance-config.yaml", "/var/lib/kubelet/config.yaml") {
		data, err := os.ReadFile(l.path(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", "", fmt.Errorf("find the container runtime: %w", err)
		}
		var config struct {
			ContainerRuntimeEndpoint string `json:"containerRuntimeEndpoint"`
		}
		if err := yaml.Unmarshal(data, &config); err != nil {
			return "", "", fmt.Errorf("find the container runtime: %s is no kubelet configuration: %w", name, err)
		}
		if config.ContainerRuntimeEndpoint != "" {
			return l.ofUnix(config.ContainerRuntimeEndpoint, name)
		}
	}
	for _, name := range wellKnownSockets {
		if info, err := os.Stat(l.path(name)); err == nil && info.Mode().Type() == fs.ModeSocket {
			return l.path(name), "its usual place", nil
		}
	}
	return "", "", fmt.Errorf("find the container runtime: %w: kubelet's files name none, and there is no socket at %s; start containerd or CRI-O, or name its socket",
		ErrNoRuntime, strings.Join(wellKnownSockets, ", "))
}

var (
	endpointFlag = regexp.MustCompile(`--container-runtime-endpoint[=\s]\s*["']?([^\s"']+)`)
	configFlag   = regexp.MustCompile(`--config[=\s]\s*["']?([^\s"']+)`)
)

func lastMatch(pattern *regexp.Regexp, text string) string {
	found := pattern.FindAllStringSubmatch(text, -1)
	if len(found) == 0 {
		return ""
	}
	return found[len(found)-1][1]
}

func withoutComments(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if trimmed := strings.TrimSpace(line); !strings.HasPrefix(trimmed, "#") && !strings.HasPrefix(trimmed, ";") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// ofUnix turns an endpoint into a path.
func (l *Local) ofUnix(endpoint, by string) (string, string, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	if !strings.HasPrefix(path, "/") {
		return "", "", fmt.Errorf("find the container runtime: %s names %q, which is no unix socket", by, endpoint)
	}
	if by == "the options" {
		return path, by, nil
	}
	return l.path(path), by, nil
}

// callLimit is how long one call of the container runtime may take, besides the
// grace of what it stops.
const callLimit = 30 * time.Second

// maxAnswer is kubelet's own limit (staging/src/k8s.io/cri-client, maxMsgSize).
const maxAnswer = 16 << 20

// runtime is a connection to the container runtime.
type runtime struct {
	cri.RuntimeServiceClient
	images cri.ImageServiceClient
	path   string
}

// dial connects; close ends it.
func (l *Local) dial(ctx context.Context) (r *runtime, close func(), err error) {
	path, by, err := l.RuntimeSocket(ctx)
	if err != nil {
		return nil, nil, err
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
		return nil, nil, fmt.Errorf("%w: %s names %s, and no socket is there; start the container runtime", ErrNoRuntime, by, path)
	}
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the container runtime at %s: %w", path, err)
	}
	return &runtime{cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn), path}, func() { _ = conn.Close() }, nil
}

// failed gives a call's error its words.
func (r *runtime) failed(ctx context.Context, doing string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	switch status.Code(err) {
	case codes.Unavailable:
		return fmt.Errorf("%s: %w at %s: %w", doing, ErrNoRuntime, r.path, err)
	case codes.Unimplemented:
		return fmt.Errorf("%s: %w at %s in the CRI's version 1; if that is containerd, its cri plugin is disabled: %w", doing, ErrNoRuntime, r.path, err)
	}
	return fmt.Errorf("%s: container runtime at %s: %w", doing, r.path, err)
}
