package host

import (
	"path"
	"strings"

	"lifeboat/internal/chroot"
)

// wellKnown are the files and folders that make a node, whatever names them.
// Folders are taken whole; those in which k3s, rke2 and k0s keep their state are
// distribution.go's. Sources: kubeadm's, k3s's, rke2's and k0s's documents on their
// folders, Kubernetes' "PKI certificates and requirements", kubespray's and etcd's
// packages for external etcd.
var wellKnown = []string{
	"etc/kubernetes",
	"var/lib/kubelet/pki", "var/lib/kubelet/config.yaml", "var/lib/kubelet/instance-config.yaml",
	"var/lib/kubelet/kubeadm-flags.env", "var/lib/kubelet/kubelet.conf", "var/lib/kubelet/kubeconfig",
	"etc/default/kubelet", "etc/sysconfig/kubelet",

	"etc/containerd", "etc/crictl.yaml", "etc/crio", "etc/docker/daemon.json", "etc/docker/certs.d",
	"etc/containers/registries.conf", "etc/containers/registries.conf.d", "etc/containers/policy.json",
	"etc/cni/net.d",
	"etc/modules-load.d/k8s.conf", "etc/modules-load.d/containerd.conf", "etc/modules-load.d/kubernetes.conf",
	"etc/sysctl.d/k8s.conf", "etc/sysctl.d/kubernetes.conf", "etc/sysctl.d/99-kubernetes-cri.conf",

	"etc/etcd", "etc/etcd.env", "etc/etcd-events.env", "etc/etcd.conf", "etc/default/etcd", "etc/sysconfig/etcd", "etc/ssl/etcd",
	"etc/haproxy", "etc/keepalived", "etc/kube-vip",

	"etc/rancher", "etc/k0s", "var/lib/k0s/pki",
	"etc/default/k3s", "etc/sysconfig/k3s", "etc/default/rke2-server", "etc/sysconfig/rke2-server", "etc/sysconfig/k0scontroller",

	"usr/local/share/ca-certificates", "etc/pki/ca-trust/source/anchors", // an operator's own authorities
}

// unitFolders hold systemd's units, in no order: all are taken.
var unitFolders = []string{"etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system", "usr/local/lib/systemd/system"}

// units are the services of a node. Each has a folder of drop-ins; k3s and
// rke2 keep an environment file beside the unit.
var units = []string{
	"kubelet", "containerd", "crio", "docker", "cri-docker", "etcd", "etcd-member", "etcd-events",
	"k3s", "k3s-agent", "rke2-server", "rke2-agent", "k0scontroller", "k0sworker",
	"haproxy", "keepalived", "kube-apiserver", "kube-controller-manager", "kube-scheduler",
}

func places() []string {
	out := append([]string(nil), wellKnown...)
	for _, folder := range unitFolders {
		for _, unit := range units {
			out = append(out, folder+"/"+unit+".service", folder+"/"+unit+".service.d", folder+"/"+unit+".service.env", folder+"/"+unit+".env")
		}
	}
	for _, unit := range units { // that it is enabled
		out = append(out, unitFolders[0]+"/multi-user.target.wants/"+unit+".service")
	}
	return out
}

// manifestFolders are where a kubelet looks for static pods unless it is told
// another place.
var manifestFolders = []string{"etc/kubernetes/manifests", "var/lib/rancher/k3s/agent/pod-manifests", "var/lib/rancher/rke2/agent/pod-manifests"}

// never are the folders of which nothing is stored: they are not files of the
// host but the kernel's and the running system's, or grow without end.
var never = []string{
	"proc", "sys", "dev", "run", "var/run", "var/log",
	"etc/kubernetes/tmp", // kubeadm upgrade leaves copies of etcd's data here
	"var/lib/etcd", "var/lib/rancher/k3s/server/db", "var/lib/rancher/rke2/server/db", "var/lib/k0s/etcd", "var/lib/k0s/db",
	"var/lib/rancher/k3s/server/logs", "var/lib/rancher/rke2/server/logs",
	"var/lib/containerd", "var/lib/docker", "var/lib/kubelet/pods",
}

// broad are folders that a pod may mount to reach something in them: only what
// is named inside is stored.
var broad = map[string]bool{
	".": true, "bin": true, "boot": true, "etc": true, "home": true, "lib": true, "lib64": true, "lib/modules": true, "media": true,
	"mnt": true, "opt": true, "root": true, "sbin": true, "srv": true, "tmp": true, "usr": true, "usr/bin": true, "usr/lib": true,
	"usr/lib/modules": true, "usr/lib64": true, "usr/local": true, "usr/local/bin": true, "usr/sbin": true, "usr/share": true, "usr/src": true,
	"var": true, "var/cache": true, "var/lib": true, "var/lib/kubelet": true, "var/lib/rancher": true, "var/tmp": true, "opt/cni/bin": true,
}

// trust are the operating system's trust folders: packages bring them back, so
// they are noted by hash. A file in them that is named itself is stored.
var trust = []string{
	"etc/ssl/certs", "etc/ca-certificates", "usr/share/ca-certificates", "usr/share/pki/ca-trust-source", "usr/share/pki/trust",
	"etc/pki/tls", "etc/pki/ca-trust", "etc/pki/trust", "usr/share/ca-certs", "etc/ca-certificates.conf",
}

func excluded(name string) bool {
	for _, n := range never {
		if chroot.Within(name, n) {
			return true
		}
	}
	return false
}

func trusted(name string) bool {
	for _, n := range wellKnown {
		if chroot.Within(name, n) && inTrust(n) {
			return false // an operator's own authorities within the system's folder
		}
	}
	return inTrust(name)
}

func inTrust(name string) bool {
	for _, n := range trust {
		if chroot.Within(name, n) {
			return true
		}
	}
	return false
}

// program says whether a path is one of a program: units name them, packages
// bring them back.
func program(p string) bool {
	dir := path.Base(path.Dir(p))
	return dir == "bin" || dir == "sbin" || strings.HasSuffix(p, ".so")
}
