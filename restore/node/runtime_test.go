package node_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/restore/node"
)

func TestRuntimeSocket(t *testing.T) {
	for _, c := range []struct {
		name     string
		prepare  func(tr *tree)
		path, by string
		says     string // of the error
	}{
		{name: "the running kubelet's arguments come first", prepare: func(tr *tree) {
			tr.process(9, 3, "", "kubelet", "--container-runtime-endpoint", "unix:///run/a.sock", "--v=2")
			tr.write("var/lib/kubelet/config.yaml", "containerRuntimeEndpoint: unix:///run/b.sock\n")
		}, path: "run/a.sock", by: "the running kubelet's arguments"},
		{name: "the running kubelet's configuration", prepare: func(tr *tree) {
			tr.process(9, 3, "", "kubelet", "--config=/etc/k.yaml")
			tr.write("etc/k.yaml", "containerRuntimeEndpoint: unix:///run/a.sock\n")
			tr.write("var/lib/kubelet/config.yaml", "containerRuntimeEndpoint: unix:///run/b.sock\n")
			tr.write("var/lib/kubelet/kubeadm-flags.env", "K=\"--container-runtime-endpoint=unix:///run/old.sock\"\n")
		}, path: "run/a.sock", by: "/etc/k.yaml"},
		{name: "kubeadm's flags, but for comments", prepare: func(tr *tree) {
			tr.write("var/lib/kubelet/kubeadm-flags.env", "# --container-runtime-endpoint=unix:///run/no.sock\nKUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/a.sock --v=2\"\n")
		}, path: "run/a.sock", by: "/var/lib/kubelet/kubeadm-flags.env"},
		{name: "the node's own configuration before the cluster's", prepare: func(tr *tree) {
			tr.write("var/lib/kubelet/instance-config.yaml", "containerRuntimeEndpoint: /run/a.sock\n")
			tr.write("var/lib/kubelet/config.yaml", "containerRuntimeEndpoint: unix:///run/b.sock\n")
		}, path: "run/a.sock", by: "/var/lib/kubelet/instance-config.yaml"},
		{name: "a usual place where a socket is", prepare: func(tr *tree) {
			tr.write("var/lib/kubelet/config.yaml", "containerRuntimeEndpoint: \"\"\n")
			tr.write("run/containerd/containerd.sock", "a file\n")
			tr.socket("run/crio/crio.sock")
		}, path: "run/crio/crio.sock", by: "its usual place"},
		{name: "another machine's kubelet is not asked", prepare: func(tr *tree) {
			tr.process(9, 3, "", "kubelet", "--container-runtime-endpoint=unix:///run/no.sock")
			tr.network(9, "net:[2]")
			tr.socket("run/containerd/containerd.sock")
		}, path: "run/containerd/containerd.sock", by: "its usual place"},
		{name: "none", prepare: func(*tree) {}, says: "start containerd or CRI-O"},
		{name: "no unix socket", prepare: func(tr *tree) {
			tr.process(9, 3, "", "kubelet", "--container-runtime-endpoint=tcp://1.2.3.4:5")
		}, says: "no unix socket"},
		{name: "a damaged configuration", prepare: func(tr *tree) {
			tr.write("var/lib/kubelet/config.yaml", "a: [")
		}, says: "no kubelet configuration"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := newTree(t)
			c.prepare(tr)
			path, by, err := node.New(node.Options{Root: tr.root}).RuntimeSocket(t.Context())
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("error %v should say %q", err, c.says)
				}
				return
			}
			if err != nil || path != filepath.Join(tr.root, c.path) || by != c.by {
				t.Errorf("got %s by %s, %v", path, by, err)
			}
		})
	}
}

func TestARuntimeThatDoesNotAnswer(t *testing.T) {
	tr := newTree(t)
	m := node.New(node.Options{Root: tr.root, Socket: "unix:///no/such/socket"})
	if _, err := m.Pods(t.Context()); !errors.Is(err, node.ErrNoRuntime) || !strings.Contains(err.Error(), "start the container runtime") {
		t.Errorf("without a socket: %v", err)
	}
	tr.socket("run/containerd/containerd.sock")
	if _, err := node.New(node.Options{Root: tr.root}).Images(t.Context()); !errors.Is(err, node.ErrNoRuntime) {
		t.Errorf("with a dead socket: %v", err)
	}
}
