package hostfacts

import (
	"slices"
	"testing"
)

func TestFilesThatKubeadmJoinDoesNotBring(t *testing.T) {
	f := &Facts{Encryption: []Keys{{File: "/etc/kubernetes/enc/config.yaml"}, {File: "srv/kube/encryption.yaml"}}}
	for _, name := range []string{
		"etc/kubernetes/admin.conf", "etc/kubernetes/pki/etcd/ca.key", "etc/kubernetes/manifests/etcd.yaml", "etc/kubernetes/tmp/x/y", "etc/containerd/config.toml",
		"var/lib/kubelet/config.yaml", "etc/kubernetes/enc/config.yaml", "etc/kubernetes/audit-policy.yaml", "etc/kubernetes/pki-of-ours/ca.crt",
	} {
		f.Files = append(f.Files, File{Name: name})
	}
	want := []string{"/etc/kubernetes/audit-policy.yaml", "/etc/kubernetes/enc/config.yaml", "/etc/kubernetes/pki-of-ours/ca.crt", "/srv/kube/encryption.yaml"}
	if got := f.Unjoined(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := (&Facts{}).Unjoined(); len(got) > 0 {
		t.Errorf("of nothing: %q", got)
	}
}
