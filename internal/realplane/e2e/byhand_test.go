package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/realplane"
)

// TestThreeNodesComeBackByHand loses a control plane of three nodes in every
// way that the harness knows, and brings it back with etcdutl and cp, as people
// do it today. It shows that the losses are losses and that what other tests
// compare can be equal, and is the yardstick for the time a restore takes.
func TestThreeNodesComeBackByHand(t *testing.T) {
	realplane.RequireFull(t)
	p := realplane.Start(t, 3)
	cp1, cp3 := p.Machines[0], p.Machines[2]
	p.Stage("three nodes come up", func() {
		cp1.InitControlPlane(realplane.ControlPlane{Endpoint: p.Balance(), SANs: []string{"api.plane.test"}, Encryption: "secretbox"})
		for _, m := range p.Machines[1:] {
			m.JoinControlPlane()
		}
	})
	p.Stage("a workload", cp1.Fill)

	h := &byHand{t: t, p: p, cluster: cp1.ClusterAPI(), nodes: p.Machines}
	for _, m := range h.nodes {
		h.apis = append(h.apis, m.API())
	}
	var err error
	if h.token, err = h.cluster.Token(realplane.WorkloadNamespace, realplane.WorkloadAccount); err != nil {
		t.Fatal(err)
	}
	h.watcher = p.Watch(h.cluster, "/api/v1/namespaces/"+realplane.WorkloadNamespace+"/configmaps")

	p.Stage("one of three is off, and on again", func() {
		cp3.PowerCut()
		h.write("while-off")
		cp3.PowerOn()
		cp3.WaitReady(h.apis[2], time.Minute)
	})
	p.Stage("one of three is cut off, and back", func() {
		cp3.Partition()
		p.Wait("cp3 has no quorum", 30*time.Second, func() string {
			if out, err := cp3.Try("kubectl", "--server=https://"+cp3.Address+":6443", "get", "--raw=/readyz", "--request-timeout=2s"); err == nil {
				return "its API server says " + out
			}
			return ""
		})
		h.write("while-cut-off")
		cp3.Heal()
		cp3.WaitReady(h.apis[2], time.Minute)
	})

	p.Stage("backup by hand", h.backup)
	h.write("after-the-backup") // gone afterwards
	began := time.Now()
	p.Stage("all files lost", func() {
		for _, m := range h.nodes {
			m.LoseFiles()
		}
	})
	h.restore("files", began)
	h.check()

	began = time.Now()
	p.Stage("all machines lost", func() {
		for _, m := range h.nodes {
			m.LoseMachine(realplane.KeepImages)
		}
	})
	h.restore("machines", began)
	h.check()

	seen := h.watcher.Stop()
	t.Logf("a watcher from before: %d lists, %d connections, %d events, told %d times that it was too old", seen.Lists, seen.Watches, seen.Events, seen.Expired)
	if len(seen.Backward) > 0 {
		t.Errorf("resourceVersions went back for a watcher: %q", seen.Backward)
	}

	p.Stage("a new machine without images", func() {
		cp4 := p.NewMachine(realplane.NoImages)
		if images := cp4.Run("ctr", "-n", "k8s.io", "images", "ls", "-q"); images != "" {
			t.Errorf("a new machine has images: %s", images)
		}
		if state, _ := cp4.Try("systemctl", "is-active", "kubelet"); state != "activating" {
			t.Errorf("kubelet without a configuration is %s", state)
		}
		cp4.PowerOff()
	})
}

// byHand is a person with etcdctl, etcdutl and cp.
type byHand struct {
	t       *testing.T
	p       *realplane.Plane
	nodes   []*realplane.Machine
	apis    []*realplane.API // of the nodes
	cluster *realplane.API   // by the load balancer
	token   string
	watcher *realplane.Watcher
	before  realplane.Objects
	bumps   int // restores from the one snapshot
}

// write makes a ConfigMap by the load balancer.
func (h *byHand) write(name string) {
	h.t.Helper()
	h.p.Wait("a write", 30*time.Second, func() string {
		if out, err := h.nodes[0].Try("kubectl", "-n", realplane.WorkloadNamespace, "create", "configmap", name, "--request-timeout=5s"); err != nil && !strings.Contains(out, "already exists") {
			return out
		}
		return ""
	})
}

// What a person copies of a node besides etcd.
var copied = []string{"/etc/kubernetes", "/var/lib/kubelet/pki", "/var/lib/kubelet/config.yaml", "/var/lib/kubelet/instance-config.yaml", "/var/lib/kubelet/kubeadm-flags.env"}

const snapshot = realplane.Backups + "/snapshot.db"

func (h *byHand) backup() {
	h.t.Helper()
	const pki = "/etc/kubernetes/pki/etcd/"
	h.nodes[0].WaitWorkload()
	h.nodes[0].Run("etcdctl", "--endpoints=https://127.0.0.1:2379", "--cacert="+pki+"ca.crt",
		"--cert="+pki+"healthcheck-client.crt", "--key="+pki+"healthcheck-client.key", "snapshot", "save", snapshot)
	for _, m := range h.nodes {
		for _, from := range copied {
			to := path.Join(realplane.Backups, m.Name, path.Dir(from))
			m.Run("mkdir", "-p", to)
			m.Run("cp", "-a", from, to)
		}
	}
	db, err := os.ReadFile(filepath.Join(h.p.Backups, filepath.Base(snapshot)))
	if err != nil {
		h.t.Fatal(err)
	}
	if !bytes.Contains(db, []byte("k8s:enc:secretbox:v1:")) || bytes.Contains(db, []byte("plain-password-")) {
		h.t.Error("Secrets are not encrypted in etcd")
	}
	h.before = h.nodes[0].Objects()
	h.p.Logf("%d objects are to come back", len(h.before))
}

// restore brings all nodes back from the one snapshot. It returns how long that
// took since the loss, until their API servers were ready.
func (h *byHand) restore(what string, lost time.Time) (took time.Duration) {
	h.t.Helper()
	// Each restore must go beyond what the one before let people see.
	h.bumps++
	var members []string
	for _, m := range h.nodes {
		members = append(members, m.Name+"=https://"+m.Address+":2380")
	}
	h.p.Stage(what+" by hand: restore files and etcd", func() {
		for _, m := range h.nodes {
			m.Run("systemctl", "stop", "kubelet")
			h.end(m)
		}
		for _, m := range h.nodes {
			for _, from := range copied {
				m.Run("mkdir", "-p", path.Dir(from))
				m.Run("cp", "-a", path.Join(realplane.Backups, m.Name, from), path.Dir(from))
			}
			m.Run("rm", "-rf", "/var/lib/etcd")
			m.Run("etcdutl", "snapshot", "restore", snapshot, "--data-dir=/var/lib/etcd", "--name="+m.Name,
				"--initial-cluster="+strings.Join(members, ","), fmt.Sprintf("--initial-cluster-token=by-hand-%d", h.bumps),
				"--initial-advertise-peer-urls=https://"+m.Address+":2380",
				fmt.Sprintf("--bump-revision=%d", h.bumps*1_000_000_000), "--mark-compacted")
		}
	})
	started := time.Now()
	h.p.Stage(what+" by hand: from kubelet's start to ready API servers", func() {
		for _, m := range h.nodes {
			m.Run("systemctl", "start", "kubelet")
		}
		for i, m := range h.nodes {
			m.WaitReady(h.apis[i], 2*time.Minute)
		}
	})
	took = time.Since(lost)
	h.p.Logf("STAGE %s by hand: from the loss to ready API servers: %.1f s", what, took.Seconds())
	h.p.Stage(what+" by hand: until leases are renewed and the workload is available", func() {
		for _, m := range h.nodes {
			h.p.Wait(m.Name+"'s lease is renewed", 2*time.Minute, func() string {
				out, err := m.Try("kubectl", "-n", "kube-node-lease", "get", "lease", m.Name, "-o", "jsonpath={.spec.renewTime}")
				renewed, bad := time.Parse(time.RFC3339, out)
				if err != nil || bad != nil || renewed.Before(started) {
					return "the last time was " + out
				}
				return ""
			})
		}
		h.nodes[0].WaitWorkload()
	})
	return took
}

// end kills what is left of the node's control plane.
func (h *byHand) end(m *realplane.Machine) {
	h.t.Helper()
	h.p.Wait(m.Name+"'s old control plane has ended", 30*time.Second, func() string {
		pids, err := m.Try("pgrep", "-x", "etcd|kube-apiserver|kube-controller|kube-scheduler") // 15 letters of each
		if err != nil {
			return "" // none
		}
		_, _ = m.Try(append([]string{"kill", "-KILL"}, strings.Fields(pids)...)...) // they may end by themselves
		return "processes " + pids
	})
}

// check compares what came back.
func (h *byHand) check() {
	h.t.Helper()
	h.p.Wait("all objects are as they were", time.Minute, func() string {
		after, err := h.apis[0].Objects()
		if err != nil {
			return err.Error()
		}
		return strings.Join(realplane.Diff(h.before, after), "\n")
	})
	if user, err := h.cluster.Review(h.token); err != nil || !strings.HasSuffix(user, ":"+realplane.WorkloadAccount) {
		h.t.Errorf("a token from before is of %q: %v", user, err)
	}
	mark := fmt.Sprintf("restored-%d", h.bumps)
	h.write(mark)
	h.p.Wait("the watcher from before sees what is written now", time.Minute, func() string {
		seen := h.watcher.Seen()
		if seen.Objects[realplane.WorkloadNamespace+"/"+mark] == "" {
			return fmt.Sprintf("it is at %d, after %d lists; last trouble: %s", seen.Version, seen.Lists, seen.Trouble)
		}
		return ""
	})
}
