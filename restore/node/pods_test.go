package node_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"lifeboat/restore/node"
)

func TestPodsAndStaticPods(t *testing.T) {
	s := serve(t)
	s.pod("etcd-cp1", "1", "a", "file")
	s.pod("coredns-x", "2", "b", "api")
	s.containers = append(s.containers, &cri.Container{
		Id: id("c"), PodSandboxId: id("1"), State: cri.ContainerState_CONTAINER_EXITED, CreatedAt: 1e9,
		Metadata: &cri.ContainerMetadata{Name: "etcd-cp1"}, Image: &cri.ImageSpec{Image: "example/etcd:0"},
	})
	m := node.New(node.Options{Root: newTree(t).root, Socket: s.socket})
	pods, err := m.Pods(t.Context())
	if err != nil || len(pods) != 2 {
		t.Fatal(pods, err)
	}
	want := node.Pod{
		ID: id("1"), Namespace: "kube-system", Name: "etcd-cp1", UID: "uid-etcd-cp1", Static: true, Ready: true, Created: time.Unix(1, 0).UTC(),
		Containers: []node.Container{
			{ID: id("a"), Name: "etcd-cp1", Image: "example/etcd-cp1:1", ImageRef: "example/etcd-cp1@sha256:1", Running: true, Attempt: 1, Created: time.Unix(2, 0).UTC()},
			{ID: id("c"), Name: "etcd-cp1", Image: "example/etcd:0", Created: time.Unix(1, 0).UTC()},
		},
	}
	if diff := cmp.Diff([]node.Pod{want}, node.StaticPods(pods)); diff != "" {
		t.Error(diff)
	}
	if named := node.StaticPods(pods, "coredns-x"); len(named) != 2 {
		t.Errorf("with a name: %v", named)
	}
	if text := pods[1].String(); text != "pod kube-system/etcd-cp1 (running etcd-cp1 aaaaaaaaaaaa)" {
		t.Errorf("it prints as %q", text)
	}
}

func TestStopPods(t *testing.T) {
	s := serve(t)
	s.pod("etcd-cp1", "1", "a", "file")
	s.pod("other", "2", "b", "api")
	m := node.New(node.Options{Root: newTree(t).root, Socket: s.socket})
	pods, err := m.Pods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	static := node.StaticPods(pods)
	for range 2 { // the second time there is nothing left
		if err := m.StopPods(t.Context(), static, 1500*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"stop container a", "stop pod 1", "remove pod 1", "stop container a", "stop pod 1", "remove pod 1"}
	if diff := cmp.Diff(want, s.ordered()); diff != "" {
		t.Error(diff)
	}
	if s.graces[0] != 2 {
		t.Errorf("a grace of 1.5 s was ordered as %d s", s.graces[0])
	}
	if left, err := m.Pods(t.Context()); err != nil || len(left) != 1 || left[0].Name != "other" {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestAPodThatDoesNotGoIsNamed(t *testing.T) {
	s := serve(t)
	s.pod("etcd-cp1", "1", "a", "file")
	s.pod("kube-apiserver-cp1", "2", "b", "file")
	s.stubborn = true
	m := node.New(node.Options{Root: newTree(t).root, Socket: s.socket})
	pods, err := m.Pods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	err = m.StopPods(ctx, pods[:1], time.Second)
	if !errors.Is(err, node.ErrAlive) || !strings.Contains(err.Error(), "kube-system/etcd-cp1 (no container runs)") || strings.Contains(err.Error(), "apiserver") {
		t.Errorf("error %v", err)
	}
	// One that can't be stopped does not keep the others.
	s.stubborn = false
	s.refuse[id("b")] = true
	s.pod("kube-scheduler-cp1", "3", "c", "file")
	if pods, err = m.Pods(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = m.StopPods(t.Context(), pods, time.Second)
	if err == nil || !strings.Contains(err.Error(), "stop container kube-apiserver-cp1 bbbbbbbbbbbb of kube-system/kube-apiserver-cp1") || !strings.Contains(err.Error(), "it does not die") {
		t.Errorf("error %v", err)
	}
	if !slices.Contains(s.ordered(), "remove pod 3") {
		t.Errorf("ordered %v", s.ordered())
	}
}

func TestImages(t *testing.T) {
	s := serve(t)
	s.images = []*cri.Image{{Id: "sha256:1", RepoTags: []string{"r/etcd:3"}, RepoDigests: []string{"r/etcd@sha256:2"}, Size: 5, Pinned: true}}
	m := node.New(node.Options{Root: newTree(t).root, Socket: "unix://" + s.socket})
	got, err := m.Images(t.Context())
	want := []node.Image{{ID: "sha256:1", Tags: []string{"r/etcd:3"}, Digests: []string{"r/etcd@sha256:2"}, Size: 5, Pinned: true}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	for reference, want := range map[string]bool{"r/etcd:3": true, "r/etcd@sha256:2": true, "r/etcd:4": false} {
		if got, err := m.HasImage(t.Context(), reference); err != nil || got != want {
			t.Errorf("%s: %v, %v", reference, got, err)
		}
	}
}

func TestARuntimeWithoutTheCRI(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	go func() { _ = server.Serve(l) }() // ends with Stop
	defer server.Stop()
	_, err = node.New(node.Options{Root: newTree(t).root, Socket: socket}).Pods(t.Context())
	if !errors.Is(err, node.ErrNoRuntime) || !strings.Contains(err.Error(), "cri plugin is disabled") {
		t.Errorf("error %v", err)
	}
}
