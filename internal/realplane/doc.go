// Package realplane gives tests a real Kubernetes control plane on one Linux
// machine: kubelet, containerd and kubeadm's static pods, without systemd, a
// registry or Docker. It is for tests only, needs root, and is at home in
// internal/realplane/e2e.
//
// Each machine of the plane is a process tree in namespaces of its own, with its
// own root file system (a folder), host name, addresses and cgroups. All of them
// live inside one more set of namespaces, the plane, into which Isolate puts the
// whole test binary: nothing is mounted, listened on or routed outside of it, and
// when the test ends, in whatever way, the kernel ends all that is in it.
//
// Start reading at Isolate and Start; boot.go is what a machine does when it is
// switched on.
package realplane
