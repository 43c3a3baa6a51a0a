package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/realplane"
)

// TestThreeNodesComeBackFromOneOrder loses all files of three nodes and restores
// each from the first one's order. The first waits for the second; the third finds
// the two alive.
func TestThreeNodesComeBackFromOneOrder(t *testing.T) {
	realplane.RequireFull(t)
	const (
		kit   = realplane.Backups + "/kit"
		order = realplane.Backups + "/restore.json"
	)
	p := realplane.Start(t, 3)
	first := p.Machines[0]
	p.Stage("three nodes come up", func() {
		first.InitControlPlane(realplane.ControlPlane{Endpoint: p.Balance(), Encryption: "secretbox"})
		for _, m := range p.Machines[1:] {
			m.JoinControlPlane()
		}
	})
	p.Stage("a workload", first.Fill)
	var apis []*realplane.API
	for _, m := range p.Machines {
		apis = append(apis, m.API())
	}
	p.Stage("backups", func() {
		runLifeboat(first, "init", "--cluster", "e2e", "--store", "file://"+realplane.Backups+"/store", "--out", kit)
		for i, m := range p.Machines {
			m.Run("sh", "-ec", "mkdir -p /etc/lifeboat; cp "+kit+"/config.yaml "+kit+"/signing.key "+kit+"/trust /etc/lifeboat/; sed -i 's/^node: .*/node: "+m.Name+"/' /etc/lifeboat/config.yaml")
			only := []string{"files"}
			if i == 0 {
				only = []string{"etcd", "files"}
			}
			for _, what := range only {
				runLifeboat(m, "backup", "--only", what)
			}
		}
	})
	before := first.Objects()
	version := listVersion(t, apis[0])
	for _, m := range p.Machines {
		m.LoseFiles()
	}
	for _, m := range p.Machines {
		p.Wait("the old control plane of "+m.Name+" has ended", 2*time.Minute, func() string {
			if pids, err := m.Try("pgrep", "-x", "etcd|kube-apiserver|kube-controller|kube-scheduler"); err == nil {
				return "processes " + pids
			}
			return ""
		})
	}
	restore := func(m *realplane.Machine, more ...string) (string, error) {
		return m.Lifeboat(append([]string{"restore", "control-plane", "--identity", kit + "/recovery.key", "--yes"}, more...)...)
	}
	type ended struct {
		said string
		err  error
	}
	done := make(chan ended, 1)
	p.Stage("three restores", func() {
		go func() {
			said, err := restore(first, "--members", "all", "--share", order)
			done <- ended{said, err}
		}()
		p.Wait("the order is there", time.Minute, func() string {
			if _, err := os.Stat(filepath.Join(p.Backups, "restore.json")); err != nil {
				return err.Error()
			}
			return ""
		})
		for _, m := range p.Machines[1:] {
			said, err := restore(m, "--with", order)
			if err != nil {
				t.Fatalf("%s: %v\n%s", m.Name, err, said)
			}
			t.Logf("%s:\n%s", m.Name, said)
		}
		if e := <-done; e.err != nil || !strings.Contains(e.said, "The control plane of node cp1 is back") {
			t.Fatalf("%s: %v\n%s", first.Name, e.err, e.said)
		} else {
			t.Logf("%s:\n%s", first.Name, e.said)
		}
	})
	for i, m := range p.Machines {
		m.WaitReady(apis[i], time.Minute)
	}
	p.Wait("all objects are as they were", 2*time.Minute, func() string {
		after, err := apis[2].Objects()
		if err != nil {
			return err.Error()
		}
		return strings.Join(realplane.Diff(before, after), "\n")
	})
	if now := listVersion(t, apis[1]); now <= version {
		t.Errorf("resourceVersion went from %d to %d", version, now)
	}
	const pki = "/etc/kubernetes/pki/etcd/"
	members := first.Run("etcdctl", "--endpoints=https://127.0.0.1:2379", "--cacert="+pki+"ca.crt", "--cert="+pki+"healthcheck-client.crt", "--key="+pki+"healthcheck-client.key", "member", "list")
	if strings.Count(members, "started") != 3 {
		t.Errorf("etcd's members:\n%s", members)
	}
	first.WaitWorkload()

	// The same order again on a node that is done is told so.
	if said, err := restore(p.Machines[1], "--with", order); err == nil || !strings.Contains(said, "was done on this machine and has ended") {
		t.Errorf("the order once more: %v\n%s", err, said)
	}
}

// runLifeboat runs lifeboat in a machine, which must succeed, and returns its
// standard output.
func runLifeboat(m *realplane.Machine, args ...string) string {
	return m.Run(append([]string{"lifeboat"}, args...)...)
}

// listVersion is a list's: the revision of etcd now.
func listVersion(t *testing.T, api *realplane.API) int64 {
	t.Helper()
	var list struct {
		Metadata struct{ ResourceVersion string }
	}
	if err := api.Get("/api/v1/namespaces", &list); err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(list.Metadata.ResourceVersion, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
