package readdress

import (
	"path"
	"slices"
	"strings"
)

// KindOf tells the kind of a node's file by its usual name: slash-separated,
// relative to the root. It says false of files in which neither names nor
// addresses of nodes are to be expected, and of those that no kind fits.
func KindOf(name string) (Kind, bool) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	dir, base := path.Dir(name), path.Base(name)
	unit := strings.TrimSuffix(base, ".service")
	if strings.HasSuffix(dir, ".service.d") {
		unit, dir = strings.TrimSuffix(path.Base(dir), ".service.d"), path.Dir(dir)
	}
	inUnits := slices.Contains([]string{"etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system", "usr/local/lib/systemd/system"}, dir)
	switch {
	case strings.HasPrefix(base, "."):
		return 0, false // kubelet doesn't read these either
	case slices.Contains([]string{"etc/kubernetes/manifests", "var/lib/rancher/k3s/agent/pod-manifests", "var/lib/rancher/rke2/agent/pod-manifests"}, dir):
		return StaticPod, true
	case slices.Contains([]string{"var/lib/kubelet/kubeadm-flags.env", "etc/default/kubelet", "etc/sysconfig/kubelet"}, name), inUnits && unit == "kubelet":
		return KubeletFlags, true
	case name == "var/lib/kubelet/config.yaml", name == "var/lib/kubelet/instance-config.yaml":
		return KubeletConfig, true
	case name == "etc/kubernetes/scheduler.conf", name == "etc/kubernetes/controller-manager.conf":
		return LocalKubeconfig, true // kubeadm's localAPIEndpoint
	case dir == "etc/kubernetes" && strings.HasSuffix(base, ".conf"), name == "var/lib/kubelet/kubeconfig", name == "var/lib/kubelet/kubelet.conf":
		return Kubeconfig, true
	case slices.Contains([]string{"etc/etcd.env", "etc/etcd/etcd.env", "etc/default/etcd", "etc/sysconfig/etcd"}, name), inUnits && strings.HasPrefix(unit, "etcd"):
		return EtcdUnit, true
	case slices.Contains([]string{"etc/etcd/etcd.conf.yml", "etc/etcd/etcd.conf.yaml", "etc/etcd/etcd.yaml", "etc/etcd/config.yaml"}, name):
		return EtcdConfig, true
	case name == "etc/etcd.conf", name == "etc/etcd/etcd.conf":
		return EtcdUnit, true // Red Hat's packages keep the environment there
	}
	return 0, false
}
