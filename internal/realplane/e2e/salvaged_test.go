package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"lifeboat/internal/realplane"
)

// salvaged takes all of a machine by a power cut, but its images and etcd's data
// directory, which has what no backup has: that comes back too.
func (r *rescue) salvaged(m *realplane.Machine) {
	r.t.Helper()
	const dataDir = "/var/lib/etcd"
	r.write(m, "in-no-backup")
	time.Sleep(time.Second) // by then it is in the database too, not in the log alone: a plan looks there
	m.PowerCut()
	member, kept := filepath.Join(m.Root, dataDir), filepath.Join(r.t.TempDir(), "etcd")
	move := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			r.t.Fatal(err)
		}
	}
	move(member, kept)
	m.Format(realplane.KeepImages)
	if err := os.MkdirAll(filepath.Dir(member), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Remove(member); err != nil && !os.IsNotExist(err) {
		r.t.Fatal(err)
	}
	move(kept, member)
	m.PowerOn()
	r.equip(m)

	offer := r.run(m, "lifeboat", "restore", "control-plane", "--identity", identity, "--dry-run")
	if offer.code != 0 || !strings.Contains(offer.stdout+offer.stderr, "--from-data-dir") {
		r.t.Errorf("code %d; what has survived is not offered:\n%s%s", offer.code, offer.stdout, offer.stderr)
	}
	report := r.restore(m, "--from-data-dir", dataDir)
	if !strings.Contains(report.RPO.Text, dataDir) {
		r.t.Errorf("RPO: %q", report.RPO.Text)
	}
	m.WaitReady(r.apis[m.Name], time.Minute)
	if out, err := m.Try("kubectl", "-n", realplane.WorkloadNamespace, "delete", "configmap", "in-no-backup"); err != nil {
		r.t.Errorf("what was written last did not survive: %s", out)
	}
	m.Run("lifeboat", "backup", "--only", "etcd") // without it, as the stages that follow expect
	r.check([]*realplane.Machine{m})
}
