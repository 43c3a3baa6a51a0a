package e2e

import (
	"path/filepath"
	"strings"
	"time"

	"lifeboat/internal/realplane"
)

// wrecked takes /etc/kubernetes and etcd's data of a node that runs on, and gives
// them back with what the command says to a person. Beside a living etcd it refuses,
// before and after.
func (r *rescue) wrecked(m *realplane.Machine) {
	r.t.Helper()
	refused := func(when string) {
		r.t.Helper()
		if a := r.run(m, rebuilding()...); a.code != codeRefused || !strings.Contains(a.stderr, "etcd needs no restore") {
			r.t.Errorf("%s: code %d:\n%s", when, a.code, a.stderr)
		}
	}
	refused("beside a living etcd")
	r.write(m, "after-the-backup") // gone afterwards
	m.LoseFiles()
	r.p.Wait("the old control plane has ended", 2*time.Minute, func() string {
		if pids, err := m.Try("pgrep", "-x", "etcd|kube-apiserver|kube-controller|kube-scheduler"); err == nil {
			return "processes " + pids
		}
		return ""
	})
	out := m.Run("lifeboat", "restore", "control-plane", "--identity", identity, "--yes")
	r.p.Logf("the report:\n%s", out)
	for _, words := range []string{"The control plane of node cp1 is back", "RTO: ", "to /readyz", "RPO: ", "etcd/main", "hosts/cp1", "Left to do:"} {
		if !strings.Contains(out, words) {
			r.t.Errorf("the report does not say %q", words)
		}
	}
	r.check([]*realplane.Machine{m})

	// The new history lives, and what is kept of the old can be removed.
	refused("once more")
	m.Run("lifeboat", "restore", "clean", "--yes")
	if left, _ := filepath.Glob(filepath.Join(m.Root, "/var/lib/lifeboat/aside/*")); len(left) > 0 {
		r.t.Errorf("left after restore clean: %v", left)
	}
}
