package e2e

import (
	"strings"
	"time"

	"lifeboat/internal/realplane"
)

// everything is what no refused restore may touch: all of a machine's own files
// but lifeboat's state folder, the image store and logs.
var everything = []string{"/etc", "/root", "/opt/cni", "/var/lib/etcd", "/var/lib/kubelet", "/var/lib/machine", "/var/tmp"}

// quiet is that part of it in which a living control plane does not write.
var quiet = []string{"/etc", "/root", "/opt/cni", "/var/lib/kubelet/config.yaml", "/var/lib/kubelet/pki", "/var/lib/machine", "/var/tmp"}

// refused lets a restore be refused, with an exit code and words, and looks whether
// the machine is as it was.
func (r *rescue) refused(m *realplane.Machine, why string, code int, words []string, args ...string) {
	r.t.Helper()
	folders := everything
	if _, err := m.Try("pgrep", "-x", "etcd"); err == nil {
		folders = quiet
	}
	before := r.tree(m, folders...)
	kubelet, _ := m.Try("systemctl", "is-active", "kubelet") // exits with 3 where it is not
	a := r.run(m, args...)
	if a.code != code {
		r.t.Errorf("%s: %s: code %d, want %d:\n%s", m.Name, why, a.code, code, a.stderr)
	}
	for _, w := range words {
		if !strings.Contains(a.stderr, w) {
			r.t.Errorf("%s: %s: it does not say %q:\n%s", m.Name, why, w, a.stderr)
		}
	}
	if after := r.tree(m, folders...); after != before {
		r.t.Errorf("%s: %s: it was refused, and has changed\n%s", m.Name, why, lineDiff(before, after))
	}
	if state, _ := m.Try("systemctl", "is-active", "kubelet"); state != kubelet {
		r.t.Errorf("%s: %s: kubelet is %s, was %s", m.Name, why, state, kubelet)
	}
	if left, err := m.Try("grep", "-rl", "PRIVATE KEY", "/var/lib/lifeboat"); err == nil {
		r.t.Errorf("%s: %s: private keys are left in %s", m.Name, why, left)
	}
	lines := strings.Split(strings.TrimSpace(a.stderr), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "lifeboat: ") {
			r.p.Logf("%s: refused: %s", why, strings.Join(lines[i:], "\n"))
		}
	}
}

// olderFiles takes a backup of the node's files in which etcd is an older version
// than the one that wrote the snapshots, and then one as it is. It returns the
// first one's id.
func (r *rescue) olderFiles(m *realplane.Machine) (id string) {
	r.t.Helper()
	m.Run("sh", "-ec", `mkdir -p /root/older/var/lib/kubelet
mkdir -p /root/older/etc
cp -a /etc/kubernetes /root/older/etc/
cp -a /var/lib/kubelet/config.yaml /var/lib/kubelet/pki /root/older/var/lib/kubelet/
cp -a /etc/lifeboat /root/lifeboat
sed -i "s|etcd:v*3\.[0-9.]*|etcd:3.5.21|" /root/older/etc/kubernetes/manifests/etcd.yaml
grep -q "etcd:3.5.21" /root/older/etc/kubernetes/manifests/etcd.yaml
sed -i "s|^  root: .*|  root: /root/older|" /root/lifeboat/config.yaml
grep -q "root: /root/older" /root/lifeboat/config.yaml`)
	out := m.Run("lifeboat", "backup", "--only", "files", "--config", "/root/lifeboat/config.yaml")
	id, _, _ = strings.Cut(out, " ")
	m.Run("lifeboat", "backup", "--only", "files")
	m.Run("rm", "-r", "/root/older", "/root/lifeboat")
	return id
}

// strangers refuses, on a machine that lost its disk, what does not belong to it.
func (r *rescue) strangers(m *realplane.Machine, olderFiles string) {
	r.t.Helper()
	m.Run("lifeboat", "init", "--cluster", "other", "--store", "file:///root/nowhere", "--etcd", "https://127.0.0.1:2379", "--out", "/root/other")
	with := rebuilding()
	for i := range with {
		if with[i] == identity {
			with[i] = "/root/other/recovery.key"
		}
	}
	r.refused(m, "a wrong key", codeFailed, []string{"none of the keys"}, with...)
	r.refused(m, "a trust file of another cluster", codeUsage, []string{"is of cluster other"},
		append(rebuilding(), "--store", "file://"+backedUp, "--cluster", "e2e", "--trust", "/root/other/trust")...)
	r.refused(m, "a newer etcd's snapshot", codeRefused, []string{"the snapshot is of etcd 3.6 and the target is 3.5"}, rebuilding("--files-backup", olderFiles)...)
}

// anotherCluster makes the machine, which is off and no member any more, the only
// node of another cluster. That must not be replaced by ours, alive or dead.
func (r *rescue) anotherCluster(m *realplane.Machine) {
	r.t.Helper()
	m.Format(realplane.KeepImages)
	m.PowerOn()
	m.InitControlPlane(realplane.ControlPlane{})
	r.equip(m)
	other := m.API()
	before := m.Objects()
	r.refused(m, "a machine of another cluster that lives", codeRefused, []string{"another cluster"}, rebuilding()...)
	if err := other.Ready(); err != nil {
		r.t.Errorf("the other cluster's API server: %v", err)
	}
	for _, line := range realplane.Diff(before, m.Objects()) { // it is new, and changes by itself
		if strings.Contains(line, ": is gone") || strings.Contains(line, ": was made anew") {
			r.t.Errorf("the other cluster: %s", line)
		}
	}
	fence(r, m)
	m.Run("systemctl", "stop", "kubelet") // it would go on to tidy up behind the pods
	r.refused(m, "a machine of another cluster that is down", codeRefused, []string{"another cluster"}, rebuilding()...)
}

// fence takes the static pods away, as a person does it, and waits until they
// have ended.
func fence(r *rescue, m *realplane.Machine) {
	r.t.Helper()
	m.Run("sh", "-ec", "mkdir -p /root/fenced; mv /etc/kubernetes/manifests/*.yaml /root/fenced/")
	r.p.Wait(m.Name+"'s control plane has ended", time.Minute, func() string {
		if pids, err := m.Try("pgrep", "-x", "etcd|kube-apiserver|kube-controller|kube-scheduler"); err == nil { // 15 letters of each
			_, _ = m.Try(append([]string{"kill", "-KILL"}, strings.Fields(pids)...)...) // they may end by themselves
			return "processes " + pids
		}
		return ""
	})
}
