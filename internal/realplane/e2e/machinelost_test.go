package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/realplane"
)

// TestOneNodeComesBack loses the only node of a cluster again and again, and lets
// restores end half way. Everything comes back by one command, and what does not
// belong to the machine is refused.
func TestOneNodeComesBack(t *testing.T) {
	r := newRescue(t, 1)
	cp1 := r.p.Machines[0]
	var older string

	r.p.Stage("node wrecked", func() { r.wrecked(cp1) })
	r.p.Stage("machine lost", func() { r.machineLost(cp1) })
	r.p.Stage("a few objects out of the past", func() { r.oneObject(cp1) })
	r.p.Stage("all lost but the data directory", func() { r.salvaged(cp1) })
	r.p.Stage("killed and given up", func() { older = r.aborted(cp1) })
	r.p.Stage("what does not belong to the machine is refused", func() {
		cp1.LoseMachine(realplane.KeepImages)
		r.equip(cp1)
		r.strangers(cp1, older)
	})
	r.p.Stage("killed in every step", func() {
		r.killEverywhere(cp1)
		r.check(r.p.Machines)
	})
	r.p.Stage("new name and address", func() {
		cp1.PowerCut()
		r.moved(cp1)
	})
	r.watcher.Stop()
	r.p.Stage("another cluster is refused", func() { r.anotherCluster(cp1) })
}

// machineLost takes all of a machine but its images.
func (r *rescue) machineLost(m *realplane.Machine) {
	r.t.Helper()
	r.write(m, "after-the-backup")
	lost := time.Now()
	m.LoseMachine(realplane.KeepImages)
	r.equip(m)
	if state, _ := m.Try("systemctl", "is-active", "kubelet"); state != "activating" {
		r.t.Errorf("kubelet without a configuration is %s", state)
	}
	report := r.restore(m)
	r.p.Logf("STAGE machine lost, from the loss to the restore's end: %.1f s", time.Since(lost).Seconds())
	var chains []string
	for _, b := range report.Backups {
		chains = append(chains, b.Chain)
	}
	if got := strings.Join(chains, " "); got != "etcd/main hosts/"+m.Name {
		r.t.Errorf("new backups of %q", got)
	}
	r.namesImages(m, report)
	r.check([]*realplane.Machine{m})
}

// aborted lets restores be given up half way, on a machine whose
// control plane a person has stopped. What was there is there again, and serves.
// It returns the id of a backup of files of an older etcd.
func (r *rescue) aborted(m *realplane.Machine) (olderFiles string) {
	r.t.Helper()
	olderFiles = r.olderFiles(m)
	r.write(m, "only-here")
	fence(r, m)
	r.abortSteps(m)
	m.Run("sh", "-ec", "mv /root/fenced/* /etc/kubernetes/manifests/; rmdir /root/fenced")
	m.WaitReady(r.apis[m.Name], 3*time.Minute)
	r.p.Wait("the old control plane has what was written after the backup", time.Minute, func() string {
		out, err := m.Try("kubectl", "-n", realplane.WorkloadNamespace, "delete", "configmap", "only-here")
		if err != nil {
			return out
		}
		return ""
	})
	if seen := r.watcher.Seen(); len(seen.Backward) > 0 {
		r.t.Errorf("resourceVersions went back for a watcher: %q", seen.Backward)
	}
	return olderFiles
}

// namesImages looks at what the backup that a restore took says of the machine's
// images: one that lost them, too, has nothing else to go by.
func (r *rescue) namesImages(m *realplane.Machine, report *planReport) {
	r.t.Helper()
	for _, b := range report.Backups {
		if !strings.HasPrefix(b.Chain, "hosts/") {
			continue
		}
		var facts struct {
			Images []struct{ Image, Digest, Why string }
		}
		if err := json.Unmarshal([]byte(m.Run("lifeboat", "cat", b.ID, "lifeboat/facts.json", "--identity", identity)), &facts); err != nil {
			r.t.Fatal(err)
		}
		sandboxes := 0
		for _, i := range facts.Images {
			if i.Why == "sandbox" {
				sandboxes++
			}
			if i.Digest == "" {
				r.t.Errorf("%s is named without its digest", i.Image)
			}
		}
		if sandboxes != 1 || len(facts.Images) < 5 {
			r.t.Errorf("the backup after the restore names %+v", facts.Images)
		}
	}
}
