package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/realplane"
)

// TestAMasterAndItsExternalEtcdComeBack loses a kubeadm master, a host that runs
// its etcd by a unit, and a separate etcd for events on the master. Both machines
// are gone with all that was on them but container images.
func TestAMasterAndItsExternalEtcdComeBack(t *testing.T) {
	p := realplane.Start(t, 2)
	e := &externalEtcd{t: t, p: p, master: p.Machines[0], host: p.Machines[1]}
	p.Stage("an external etcd and a master come up", func() {
		e.etcd = p.StartEtcd(e.host)
		e.master.InitControlPlane(realplane.ControlPlane{Encryption: "secretbox", External: e.etcd, Events: e.etcd.RunEvents(e.master)})
	})
	p.Stage("a workload", e.master.Fill)
	api := e.master.API()
	token, err := api.Token(realplane.WorkloadNamespace, realplane.WorkloadAccount)
	if err != nil {
		t.Fatal(err)
	}
	p.Stage("init and backup", e.backup)
	before, version := e.master.Objects(), listVersion(t, api)
	old := e.events()
	if len(old) < 5 {
		t.Fatalf("there are only these events: %q", old)
	}
	e.master.Kubectl("-n", realplane.WorkloadNamespace, "create", "configmap", "after-the-backup") // gone afterwards

	lost := time.Now()
	e.master.LoseMachine(realplane.KeepImages)
	e.host.LoseMachine(realplane.KeepImages)

	// The master would wait for etcd for ever: it is told what comes first, and nothing changes.
	out, err := e.master.Lifeboat(e.restoring(e.master)...)
	if err == nil || !strings.Contains(out, "restore control-plane --identity FILE --node "+e.host.Name) || !strings.Contains(out, "on other hosts") {
		t.Errorf("a master whose etcd is lost: %v\n%s", err, out)
	}
	if left, _ := filepath.Glob(filepath.Join(e.master.Root, "/etc/kubernetes/*")); len(left) > 0 {
		t.Errorf("the refused restore has made %v", left)
	}

	p.Stage("restore the host of etcd", func() {
		report := e.restore(e.host)
		if report.RTO.Etcd <= 0 || report.RTO.Ready != 0 || report.Revision < 1_000_000_000 {
			t.Errorf("%+v", report)
		}
	})
	if s := e.host.Run("systemctl", "is-active", "etcd"); s != "active" {
		t.Errorf("the unit is %s", s)
	}
	if s := e.host.Run("systemctl", "is-enabled", "etcd"); s != "enabled" {
		t.Errorf("the unit is %s", s)
	}
	p.Stage("restore the master", func() {
		report := e.restore(e.master)
		if report.RTO.Ready <= 0 || report.RTO.Etcd != 0 || report.Revision != 0 || !strings.Contains(report.RPO.Text, "was not touched") {
			t.Errorf("%+v", report)
		}
	})
	p.Logf("STAGE external etcd: from the loss to the end of both restores: %.1f s", time.Since(lost).Seconds())

	p.Wait("all objects are as they were", time.Minute, func() string {
		after, err := api.Objects()
		if err != nil {
			return err.Error()
		}
		return strings.Join(realplane.Diff(before, after), "\n")
	})
	if now := listVersion(t, api); now <= version {
		t.Errorf("resourceVersion went from %d to %d", version, now)
	}
	if user, err := api.Review(token); err != nil || !strings.HasSuffix(user, ":"+realplane.WorkloadAccount) {
		t.Errorf("a token from before is of %q: %v", user, err)
	}
	e.master.WaitWorkload()
	e.master.WaitNodeReady()

	// Events began anew, in their own etcd, beyond all that was seen of them.
	for uid := range e.events() {
		if old[uid] != "" {
			t.Errorf("the event %s from before came back", old[uid])
		}
	}
	e.master.Kubectl("-n", realplane.WorkloadNamespace, "delete", "pod", "-l", "app=web", "--wait=false")
	p.Wait("new events are kept", time.Minute, func() string {
		if len(e.events()) == 0 {
			return "there is none"
		}
		return ""
	})
	var list struct {
		Metadata struct{ ResourceVersion string }
	}
	if err := api.Get("/api/v1/events", &list); err != nil || len(list.Metadata.ResourceVersion) < len("1000000000000") {
		t.Errorf("events are at resourceVersion %s (%v)", list.Metadata.ResourceVersion, err)
	}
	if out, err := e.master.Lifeboat(e.restoring(e.host)...); err == nil {
		t.Errorf("a restore of etcd's host on the master: %s", out)
	}
	if out, err := e.host.Lifeboat(e.restoring(e.host)...); err == nil || !strings.Contains(out, "needs no restore") {
		t.Errorf("a restore beside the living etcd: %v\n%s", err, out)
	}
}

// externalEtcd is a cluster of one master and one host of etcd.
type externalEtcd struct {
	t            *testing.T
	p            *realplane.Plane
	master, host *realplane.Machine
	etcd         *realplane.EtcdHosts
}

// outsideKit is where an operator keeps the recovery kit.
const outsideKit = realplane.Backups + "/kit"

func (e *externalEtcd) config(m *realplane.Machine) string {
	return outsideKit + "/" + m.Name + ".yaml"
}

// backup takes a full, and both machines' files.
func (e *externalEtcd) backup() {
	e.t.Helper()
	runLifeboat(e.master, "init", "--cluster", "e2e", "--store", "file://"+realplane.Backups+"/store", "--out", outsideKit)
	for _, m := range []*realplane.Machine{e.master, e.host} {
		m.Run("sh", "-ec", fmt.Sprintf(`sed "s/^node: .*/node: %s/" %s/config.yaml > %s; grep -q "^node: %[1]s" %[3]s`, m.Name, outsideKit, e.config(m)))
	}
	e.p.Logf("%s", runLifeboat(e.master, "backup", "--config", e.config(e.master)))
	e.p.Logf("%s", runLifeboat(e.host, "backup", "--only", "files", "--config", e.config(e.host)))
}

func (e *externalEtcd) restoring(m *realplane.Machine) []string {
	return []string{"restore", "control-plane", "--node", m.Name, "--config", e.config(m), "--identity", outsideKit + "/recovery.key", "--yes", "-o", "json"}
}

// outsideReport is what these restores report.
type outsideReport struct {
	Revision int64
	RTO      struct {
		Seconds, Etcd, Ready float64
		Phases               []struct {
			Title   string
			Seconds float64
		}
	}
	RPO            struct{ Text string }
	Warnings, Left []string
}

func (e *externalEtcd) restore(m *realplane.Machine) (report outsideReport) {
	e.t.Helper()
	out := runLifeboat(m, e.restoring(m)...)
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		e.t.Fatalf("%v: %s", err, out)
	}
	var phases strings.Builder
	for _, phase := range report.RTO.Phases {
		fmt.Fprintf(&phases, "\n%8.1f s  %s", phase.Seconds, phase.Title)
	}
	e.p.Logf("%s: %.1f s, %.1f s to etcd, %.1f s to /readyz; %s; warnings %q%s", m.Name, report.RTO.Seconds, report.RTO.Etcd, report.RTO.Ready, report.RPO.Text, report.Warnings, phases.String())
	return report
}

// events are all of the cluster's, by UID.
func (e *externalEtcd) events() map[string]string {
	e.t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(e.master.Kubectl("get", "events", "-A", "-o", `jsonpath={range .items[*]}{.metadata.uid} {.metadata.namespace}/{.metadata.name}{"\n"}{end}`)) {
		if uid, name, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			out[uid] = name
		}
	}
	return out
}
