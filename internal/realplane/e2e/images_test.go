package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/realplane"
)

// airgap is a cluster of one node whose backups lie in a folder that outlives it.
// No machine of a plane reaches a registry.
type airgap struct {
	t      *testing.T
	p      *realplane.Plane
	api    *realplane.API // it outlives the machine's files
	before realplane.Objects
}

// airgapKit is the recovery kit, as machines see it.
const airgapKit = realplane.Backups + "/airgap"

// TestImagesComeBackWithoutARegistry takes a node's container images away, in two
// ways. kubelet starts nothing until they are put back from beside the backups.
func TestImagesComeBackWithoutARegistry(t *testing.T) {
	a := &airgap{t: t, p: realplane.Start(t, 1)}
	cp1 := a.p.Machines[0]
	a.p.Stage("a control plane with a workload", func() {
		cp1.InitKubernetes()
		cp1.Fill()
		a.api, a.before = cp1.API(), cp1.Objects()
	})
	a.p.Stage("backup", func() {
		cp1.Run("lifeboat", "init", "--cluster", "airgap", "--store", "file://"+airgapKit+"/store", "--out", airgapKit+"/kit")
		a.equip(cp1)
		cp1.Run("lifeboat", "backup")
	})
	a.p.Stage("images saved", func() { a.save(cp1) })
	a.p.Stage("image store wiped, and power cut", func() { a.wiped(cp1) })
	a.p.Stage("machine lost, with its images", func() { a.lost(cp1) })
}

// equip gives a machine what a person copies there from the recovery kit.
func (a *airgap) equip(m *realplane.Machine) {
	a.t.Helper()
	m.Run("sh", "-ec", "mkdir -p /etc/lifeboat; cp "+airgapKit+"/kit/config.yaml "+airgapKit+"/kit/signing.key "+airgapKit+"/kit/trust /etc/lifeboat/")
}

// airgapIdentity is the flag that names the key.
var airgapIdentity = []string{"--identity", airgapKit + "/kit/recovery.key"}

// lifeboat runs lifeboat with the key.
func (a *airgap) lifeboat(m *realplane.Machine, args ...string) string {
	a.t.Helper()
	return m.Run(append(append([]string{"lifeboat"}, args...), airgapIdentity...)...)
}

// imageNames are the machine's images with their digests, by name.
func imageNames(m *realplane.Machine) map[string]string {
	out := map[string]string{}
	for _, line := range strings.Split(m.Run("ctr", "-n", "k8s.io", "images", "ls"), "\n") {
		if fields := strings.Fields(line); len(fields) > 3 && strings.HasPrefix(fields[2], "sha256:") && !strings.HasPrefix(fields[0], "sha256:") {
			out[fields[0]] = fields[2]
		}
	}
	return out
}

// save saves what the node needs, and looks whether the facts of its files
// name the same by digest.
func (a *airgap) save(m *realplane.Machine) {
	a.t.Helper()
	a.p.Logf("%s", m.Run("lifeboat", "images", "save"))
	var saved struct {
		Images []struct {
			Names  []string
			Digest string
		}
		LeftOut []struct{ Image string }
		Stores  []struct{ Unchanged bool }
	}
	out := m.Run("lifeboat", "images", "save", "-o", "json", "-q")
	if err := json.Unmarshal([]byte(out), &saved); err != nil || len(saved.Stores) != 1 || !saved.Stores[0].Unchanged || len(saved.LeftOut) > 0 {
		a.t.Fatalf("saved again: %v: %s", err, out)
	}
	have := imageNames(m)
	digests := map[string]string{}
	for _, i := range saved.Images {
		for _, name := range i.Names {
			digests[name] = i.Digest
		}
	}
	for _, part := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd", "pause"} {
		found := false
		for name, digest := range have {
			if strings.HasPrefix(name, "registry.k8s.io/"+part+":") {
				found = digests[name] == digest
			}
		}
		if !found {
			a.t.Errorf("%s is not saved as containerd has it: %v, have %v", part, digests, have)
		}
	}

	m.Run("lifeboat", "backup", "--only", "files")
	var list []struct{ ID, Chain string }
	if err := json.Unmarshal([]byte(m.Run("lifeboat", "list", "-o", "json")), &list); err != nil {
		a.t.Fatal(err)
	}
	var facts struct {
		Images []struct{ Pod, Image, Digest, Why string }
	}
	for _, b := range list {
		if b.Chain == "hosts/"+m.Name {
			if err := json.Unmarshal([]byte(a.lifeboat(m, "cat", b.ID, "lifeboat/facts.json")), &facts); err != nil {
				a.t.Fatal(err)
			}
			break
		}
	}
	sandboxes := 0
	for _, i := range facts.Images {
		if i.Digest == "" || i.Digest != have[i.Image] {
			a.t.Errorf("the facts name %s of %s by digest %q, containerd has %q", i.Image, i.Pod, i.Digest, have[i.Image])
		}
		if i.Why == "sandbox" {
			sandboxes++
		}
	}
	if len(facts.Images) < 5 || sandboxes != 1 {
		a.t.Errorf("the facts name the images %+v", facts.Images)
	}
}

// wiped leaves the node with all of its files, and no image.
func (a *airgap) wiped(m *realplane.Machine) {
	a.t.Helper()
	before := imageNames(m)
	m.WipeImages()
	m.PowerCut()
	m.PowerOn()
	if have := imageNames(m); len(have) > 0 {
		a.t.Fatalf("it has %v", have)
	}
	a.p.Wait("kubelet fails to start a static pod", time.Minute, func() string {
		log, err := m.Try("grep", "-c", "-E", "ErrImagePull|ImagePullBackOff|failed to pull|failed to get sandbox image", "/var/log/kubelet.log")
		if err != nil {
			return "nothing of images in its log: " + log
		}
		return ""
	})
	a.load(m, before)
	m.WaitReady(a.api, 3*time.Minute)
	m.WaitWorkload()
	if again := a.lifeboat(m, "images", "load", "-q"); !strings.Contains(again, ": 0 blobs") {
		a.t.Errorf("loaded again: %s", again)
	}
}

// load puts the images back and compares them.
func (a *airgap) load(m *realplane.Machine, before map[string]string) {
	a.t.Helper()
	began := time.Now()
	a.p.Logf("%s", a.lifeboat(m, "images", "load"))
	a.p.Logf("STAGE images loaded: %.1f s", time.Since(began).Seconds())
	have := imageNames(m)
	for name, digest := range before {
		if strings.HasPrefix(name, "registry.k8s.io/") && have[name] != digest {
			a.t.Errorf("%s: %q, was %s", name, have[name], digest)
		}
	}
}

// lost takes the machine with all that was on it.
func (a *airgap) lost(m *realplane.Machine) {
	a.t.Helper()
	before := imageNames(m)
	m.LoseMachine(realplane.NoImages)
	a.equip(m)
	if have := imageNames(m); len(have) > 0 {
		a.t.Fatalf("it has %v", have)
	}
	if plan := a.lifeboat(m, "restore", "control-plane", "--dry-run"); !strings.Contains(plan, "lifeboat images load") || !strings.Contains(plan, "registry.k8s.io/etcd") {
		a.t.Errorf("the plan does not tell of the images:\n%s", plan)
	}
	a.load(m, before)
	if plan := a.lifeboat(m, "restore", "control-plane", "--dry-run"); strings.Contains(plan, "lifeboat images load") {
		a.t.Errorf("the plan still wants images:\n%s", plan)
	}
	a.p.Logf("%s", a.lifeboat(m, "restore", "control-plane", "--yes"))
	m.WaitReady(a.api, time.Minute)
	m.WaitWorkload()
	a.p.Wait("all objects are as they were", time.Minute, func() string {
		after, err := a.api.Objects()
		if err != nil {
			return err.Error()
		}
		return strings.Join(realplane.Diff(a.before, after), "\n")
	})
}
