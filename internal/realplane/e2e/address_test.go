package e2e

import (
	"regexp"
	"strings"

	"lifeboat/internal/realplane"
)

// moved restores the files and etcd of a machine that is off on a new one, with
// another name and address.
func (r *rescue) moved(from *realplane.Machine) *realplane.Machine {
	r.t.Helper()
	to := r.p.NewMachine(realplane.KeepImages)
	r.equip(to)
	report := r.restore(to, "--rename", from.Name+"="+to.Name, "--address", from.Address+"="+to.Address)
	if report.Node != to.Name {
		r.t.Errorf("the restored node is called %s", report.Node)
	}
	tidied := strings.Join(report.Tidied, "\n")
	for _, want := range []string{
		"/registry/masterleases/" + from.Address + ": deleted", "node " + from.Name + ": deleted",
		"configmap kube-system/kubeadm-config: ",
	} {
		if !strings.Contains(tidied, want) {
			r.t.Errorf("the report does not tell %q:\n%s", want, tidied)
		}
	}
	r.apis[to.Name] = to.API()
	// Kubernetes collects the pods of a node that is gone by itself, in minutes.
	to.Run("kubectl", "-n", realplane.WorkloadNamespace, "delete", "pods", "-l", "app=web", "--force", "--grace-period=0")
	r.check([]*realplane.Machine{to}, movedTo(from.Name, to.Name))
	if out := to.Run("kubectl", "get", "nodes", "-o", "name"); out != "node/"+to.Name {
		r.t.Errorf("nodes: %s", out)
	}
	if out := to.Run("kubectl", "get", "endpoints", "kubernetes", "-o", "jsonpath={.subsets[*].addresses[*].ip}"); out != to.Address {
		r.t.Errorf("the API servers' addresses are %s, want %s", out, to.Address)
	}
	r.namesNobody(to, from)
	return to
}

// namesNobody looks for the name and address of a machine that is gone in what the
// new one has.
func (r *rescue) namesNobody(m, gone *realplane.Machine) {
	r.t.Helper()
	words := `(^|[^0-9a-z.])(` + regexp.QuoteMeta(gone.Address) + `|` + gone.Name + `)([^0-9a-z]|$)`
	if out, err := m.Try("grep", "-rlE", words, "/etc/kubernetes", "/var/lib/kubelet/config.yaml", "/var/lib/kubelet/kubeadm-flags.env"); err == nil {
		r.t.Errorf("%s: %s is still named in\n%s", m.Name, gone.Name, out)
	}
	for _, certificate := range strings.Fields(m.Run("sh", "-c", "find /etc/kubernetes/pki /var/lib/kubelet/pki -name '*.crt' -o -name '*-current.pem'")) {
		out := m.Run("openssl", "x509", "-noout", "-subject", "-ext", "subjectAltName", "-in", certificate)
		if regexp.MustCompile(words).MatchString(out) {
			r.t.Errorf("%s: %s is still named in %s: %s", m.Name, gone.Name, certificate, out)
		}
	}
	config := m.Run("kubectl", "-n", "kube-system", "get", "configmap", "kubeadm-config", "-o", "yaml")
	if regexp.MustCompile(words).MatchString(config) {
		r.t.Errorf("kubeadm-config names %s:\n%s", gone.Name, config)
	}
	if !strings.Contains(config, m.Address) { // the plane began with its address in it
		r.t.Errorf("kubeadm-config does not name %s:\n%s", m.Address, config)
	}
}

// movedTo says of which differences a new name of the node is the reason: the node
// is another, and so are the pods that were on it.
func movedTo(from, to string) func(line string) bool {
	node := regexp.MustCompile(`^(nodes |csinodes\.storage\.k8s\.io |pods kube-system/(etcd|kube-apiserver|kube-controller-manager|kube-scheduler)-)(` + from + `: is gone|` + to + `: is new)$`)
	web := regexp.MustCompile(`^pods ` + realplane.WorkloadNamespace + `/web-[0-9a-z-]+: is (gone|new)$`)
	// What stands in kubeadm's ConfigMaps, and what the API servers tell of themselves.
	told := regexp.MustCompile(`^(configmaps kube-system/kubeadm-config|configmaps kube-public/cluster-info|endpoints default/kubernetes|endpointslices\.discovery\.k8s\.io default/kubernetes)\b`)
	return func(line string) bool {
		return node.MatchString(line) || web.MatchString(line) || told.MatchString(line)
	}
}
