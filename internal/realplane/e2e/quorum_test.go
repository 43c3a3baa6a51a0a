package e2e

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/realplane"
)

// oneOfThree loses a member while the others have a quorum. A restore is refused
// there, and says how the member is replaced; what it says is done, to the letter.
func (r *rescue) oneOfThree() {
	r.t.Helper()
	cp1, cp3 := r.p.Machines[0], r.p.Machines[2]
	r.loseMachines(cp3)
	r.write(cp1, "while-two-of-three")
	a := r.run(cp3, rebuilding()...)
	if a.code != codeRefused {
		r.t.Fatalf("a restore beside a living quorum: code %d\n%s", a.code, a.stderr)
	}
	r.p.Logf("%s", a.stderr)
	said := &words{r: r}
	on, commands := cp1, 0
	for _, line := range strings.Split(a.stderr, "\n") {
		switch {
		case strings.HasPrefix(line, "On the machine that takes the lost one's place"):
			on = cp3
		case strings.HasPrefix(line, "On "):
			on = cp1
		case strings.HasPrefix(line, "  "):
			said.obey(on, strings.TrimSpace(line))
			commands++
		}
	}
	if commands < 6 {
		r.t.Fatalf("it says %d commands only", commands)
	}
	cp3.WaitNodeReady()
	r.apis[cp3.Name] = cp3.API()
	cp1.WaitReady(r.apis[cp1.Name], 0)
	cp1.Run("kubectl", "-n", realplane.WorkloadNamespace, "delete", "configmap", "while-two-of-three")
	r.equal(r.p.Machines)

	// Nothing was restored, so the watcher goes on as if nothing had been.
	seen := r.watcher.Seen()
	if len(seen.Backward) > 0 || seen.Lists > r.lists {
		r.t.Errorf("the watcher: %+v", seen)
	}
	cp1.WaitWorkload()
	r.waitStaticPods(cp3)
	for i, m := range r.p.Machines {
		if i == 0 {
			m.Run("lifeboat", "backup")
		} else {
			m.Run("lifeboat", "backup", "--only", "files")
		}
	}
	r.before = cp1.Objects()
}

// waitStaticPods waits until the API server tells of a machine's static pods as
// those of the Node that it is now, and of none that is going.
func (r *rescue) waitStaticPods(m *realplane.Machine) {
	r.t.Helper()
	r.p.Wait(m.Name+"'s static pods belong to the new node", 2*time.Minute, func() string {
		uid, err := m.Try("kubectl", "get", "node", m.Name, "-o", "jsonpath={.metadata.uid}")
		if err != nil || uid == "" {
			return fmt.Sprintf("node %q, %v", uid, err)
		}
		out, err := m.Try("kubectl", "-n", "kube-system", "get", "pods", "-l", "tier=control-plane", "--field-selector", "spec.nodeName="+m.Name,
			"-o", `jsonpath={range .items[*]}{.metadata.ownerReferences[0].uid}{.metadata.deletionTimestamp}{"\n"}{end}`)
		if pods := strings.Fields(out); err != nil || len(pods) != 4 || slices.ContainsFunc(pods, func(owner string) bool { return owner != uid }) {
			return fmt.Sprintf("%d pods, of %q: %q, %v", len(pods), uid, out, err)
		}
		return ""
	})
}

// twoOfThree loses the quorum. The survivor can't serve, and is restored with the
// two others; that it may have more than the backup is said.
func (r *rescue) twoOfThree() {
	r.t.Helper()
	cp1 := r.p.Machines[0]
	r.write(cp1, "after-the-backup")
	r.loseMachines(r.p.Machines[1:]...)
	a := r.run(cp1, "lifeboat", "restore", "control-plane", "--identity", identity, "--members", "all", "--dry-run")
	for _, word := range []string{"without a quorum", "salvage"} {
		if a.code != 0 || !strings.Contains(a.stdout, word) {
			r.t.Errorf("the plan beside a survivor (code %d) does not say %q:\n%s%s", a.code, word, a.stdout, a.stderr)
		}
	}
	r.everywhere(r.p.Machines)
	r.check(r.p.Machines)
}
