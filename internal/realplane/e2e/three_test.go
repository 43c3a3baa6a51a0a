package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/realplane"
)

// TestThreeNodesComeBackByOneCommand loses one, two and all nodes of a control plane
// of three, and does what lifeboat says.
func TestThreeNodesComeBackByOneCommand(t *testing.T) {
	r := newRescue(t, 3)
	r.p.Stage("one of three lost: a member replaced", r.oneOfThree)
	r.p.Stage("two of three lost: quorum recovered", r.twoOfThree)
	r.p.Stage("all lost, all restored", r.allRestored)
	r.p.Stage("all lost, one restored and the others joined", r.oneAndJoin)
}

// everywhere restores all nodes from one order, at the same time as people would
// do it: the first writes the order, the others take it.
func (r *rescue) everywhere(nodes []*realplane.Machine) {
	r.t.Helper()
	const order = "restore.json"
	if err := os.RemoveAll(filepath.Join(r.p.Backups, order)); err != nil {
		r.t.Fatal(err)
	}
	began := time.Now()
	commands := []*running{r.start(nodes[0], rebuilding("--members", "all", "--share", realplane.Backups+"/"+order)...)}
	r.p.Wait("the order for the others", time.Minute, func() string {
		_, err := os.Stat(filepath.Join(r.p.Backups, order))
		if err != nil {
			return err.Error()
		}
		return ""
	})
	for _, m := range nodes[1:] {
		commands = append(commands, r.start(m, rebuilding("--with", realplane.Backups+"/"+order)...))
	}
	for _, m := range nodes {
		m.WaitReady(r.apis[m.Name], 2*time.Minute)
	}
	r.p.Logf("STAGE from the first command to %d ready API servers: %.1f s", len(nodes), time.Since(began).Seconds())
	ids := map[string]bool{}
	for i, c := range commands {
		ids[r.report(nodes[i], c.end()).RestoreID] = true
	}
	if len(ids) != 1 {
		r.t.Errorf("not one restore, but %v", ids)
	}
	r.equal(nodes)
}

// equal compares the members' HashKV.
func (r *rescue) equal(nodes []*realplane.Machine) {
	r.t.Helper()
	var list struct {
		Metadata struct {
			ResourceVersion int64 `json:",string"`
		}
	}
	if err := r.apis[nodes[0].Name].Get("/api/v1/namespaces", &list); err != nil {
		r.t.Fatal(err)
	}
	first, compacted := nodes[0].EtcdHash(list.Metadata.ResourceVersion)
	for _, m := range nodes[1:] {
		r.p.Wait(m.Name+"'s etcd has the same hash", 30*time.Second, func() string {
			hash, at := m.EtcdHash(list.Metadata.ResourceVersion)
			if at != compacted {
				first, compacted = nodes[0].EtcdHash(list.Metadata.ResourceVersion)
				return "it was compacted meanwhile"
			}
			if hash != first {
				return "it is another"
			}
			return ""
		})
	}
}

// loseMachines takes all of the machines but their images.
func (r *rescue) loseMachines(machines ...*realplane.Machine) {
	r.t.Helper()
	for _, m := range machines {
		m.PowerCut() // all at once
	}
	for _, m := range machines {
		m.LoseMachine(realplane.KeepImages)
		r.equip(m)
	}
}

func (r *rescue) allRestored() {
	r.write(r.p.Machines[0], "after-the-backup")
	r.loseMachines(r.p.Machines...)
	r.everywhere(r.p.Machines)
	r.check(r.p.Machines)
}

// oneAndJoin restores the first node, and does what its report says with the
// others.
func (r *rescue) oneAndJoin() {
	cp1, others := r.p.Machines[0], r.p.Machines[1:]
	r.loseMachines(r.p.Machines...)
	began := time.Now()
	report := r.restore(cp1)
	var advice string
	for _, left := range report.Left {
		if strings.Contains(left, "kubeadm join") || strings.Contains(left, "join command") {
			advice = left
		}
	}
	if advice == "" {
		r.t.Fatalf("nothing is said of the other nodes: %q", report.Left)
	}
	r.p.Logf("left to do: %s", advice)
	var here, there []string
	for _, line := range strings.Split(advice, "\n") {
		line = strings.TrimSpace(line)
		if command, ok := strings.CutPrefix(line, "here: "); ok {
			here = append(here, command)
		}
		if command, ok := strings.CutPrefix(line, "there: "); ok {
			there = append(there, command)
		}
	}
	said := &words{r: r}
	for _, command := range here {
		said.obey(cp1, command)
	}
	for _, m := range others {
		for _, command := range there {
			said.obey(m, command)
		}
		m.WaitNodeReady()
	}
	r.p.Logf("STAGE from the loss to three joined nodes: %.1f s", time.Since(began).Seconds())
	for _, m := range others {
		r.apis[m.Name] = m.API()
	}
	r.check(r.p.Machines, madeAnew("cp2", "cp3"))
	r.equal(r.p.Machines)
}

// words are a person who types what lifeboat and kubeadm have printed.
type words struct {
	r              *rescue
	join           string // "kubeadm join ENDPOINT --token TOKEN --discovery-token-ca-cert-hash HASH"
	certificateKey string
	exported       map[*realplane.Machine]string // what was exported in the shell there
}

// obey runs a command as it was printed, with what commands before it have printed
// in the place of capital words.
func (w *words) obey(m *realplane.Machine, command string) {
	w.r.t.Helper()
	command, _, _ = strings.Cut(command, "    #")
	command = strings.Replace(command, "that join command, with", w.join, 1)
	if fields := strings.Fields(w.join); len(fields) == 7 {
		for i, placeholder := range map[int]string{2: "ENDPOINT", 4: "TOKEN", 6: "HASH"} {
			command = strings.ReplaceAll(command, " "+placeholder, " "+fields[i])
		}
	}
	command = strings.ReplaceAll(command, "CERTIFICATE-KEY", w.certificateKey)
	command = strings.ReplaceAll(command, "THAT-NODE", m.Name)
	command = strings.ReplaceAll(command, "--identity FILE", "--yes --identity "+identity)
	if strings.HasPrefix(command, "kubeadm join ") {
		command += " --ignore-preflight-errors=all" // of a machine that is none
	}
	w.r.p.Logf("%s# %s", m.Name, regexp.MustCompile(`[0-9a-f]{32,}|[0-9a-z]{6}\.[0-9a-z]{16}`).ReplaceAllString(command, "..."))
	if strings.HasPrefix(command, "export ") {
		if w.exported == nil {
			w.exported = map[*realplane.Machine]string{}
		}
		w.exported[m] += command + "\n"
	}
	// A root's shell has no KUBECONFIG, as Run has.
	out := m.Run("env", "-u", "KUBECONFIG", "sh", "-c", w.exported[m]+command)
	switch {
	case strings.Contains(command, "upload-certs"):
		lines := strings.Fields(out)
		w.certificateKey = lines[len(lines)-1]
	case strings.Contains(command, "--print-join-command"):
		lines := strings.Split(out, "\n")
		w.join = strings.TrimSpace(lines[len(lines)-1])
	}
}

// madeAnew says of which differences it is the reason that nodes were joined
// again.
func madeAnew(nodes ...string) func(line string) bool {
	names := "(" + strings.Join(nodes, "|") + ")"
	node := regexp.MustCompile(`^(nodes|csinodes\.storage\.k8s\.io) ` + names + `: `)
	mirror := regexp.MustCompile(`^pods kube-system/(etcd|kube-apiserver|kube-controller-manager|kube-scheduler)-` + names + `: `)
	web := regexp.MustCompile(`^pods ` + realplane.WorkloadNamespace + `/web-[0-9a-z-]+: is (gone|new)$`)
	join := regexp.MustCompile(`^secrets kube-system/(bootstrap-token-[0-9a-z]+|kubeadm-certs)\b|^configmaps kube-public/cluster-info: \.(data\.jws|metadata\.managedFields\b.*\bf:jws)-kubeconfig-|^certificatesigningrequests\.certificates\.k8s\.io csr-[0-9a-z]+: is new$|^(roles|rolebindings)\.rbac\.authorization\.k8s\.io kube-system/kubeadm:kubeadm-certs\b`)
	return func(line string) bool {
		return node.MatchString(line) || mirror.MatchString(line) || web.MatchString(line) || join.MatchString(line)
	}
}
