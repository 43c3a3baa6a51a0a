package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"lifeboat/internal/realplane"
)

// planStep is a step of a plan, as a dry run tells of it.
type planStep struct {
	Stage, Title string
	Done         bool
}

// steps are those of the plan that a restore would have now.
func (r *rescue) steps(m *realplane.Machine, more ...string) []planStep {
	r.t.Helper()
	a := r.run(m, append([]string{"lifeboat", "restore", "control-plane", "--identity", identity, "--dry-run", "-o", "json"}, more...)...)
	var plan struct{ Steps []planStep }
	if err := json.Unmarshal([]byte(a.stdout), &plan); a.code != 0 || err != nil || len(plan.Steps) < 10 {
		r.t.Fatalf("%s: a dry run: code %d, %v: %s %s", m.Name, a.code, err, a.stdout, a.stderr)
	}
	return plan.Steps
}

// killInStep runs the restore until it says that it takes a step, and kills it
// there. It returns the steps that the journal has as done then, or that the
// restore was faster and has ended.
func (r *rescue) killInStep(m *realplane.Machine, steps []planStep, n int) (done []string, ended bool) {
	r.t.Helper()
	c := r.start(m, rebuilding()...)
	came := c.killAt(fmt.Sprintf("%d/%d ", n+1, len(steps)))
	a := c.end()
	if a.code == 0 {
		r.report(m, a)
		return nil, true
	}
	if !came {
		r.t.Fatalf("%s: the restore ended with code %d before step %d, %s:\n%s", m.Name, a.code, n+1, steps[n].Title, a.stderr)
	}
	done = r.done(m)
	r.p.Logf("killed in step %d, %s; done: %v", n+1, steps[n].Title, done)
	return done, false
}

// killEverywhere restores a machine that is killed in every step of the plan, one
// after the other, and then lets the restore end.
func (r *rescue) killEverywhere(m *realplane.Machine) {
	r.t.Helper()
	steps := r.steps(m)
	var done []string
	for n, s := range steps {
		if slices.Contains(done, s.Stage) {
			continue // the kill before came too late for it
		}
		var ended bool
		if done, ended = r.killInStep(m, steps, n); ended {
			if n < len(steps)-1 {
				r.t.Errorf("%s: the restore was not killed in %s", m.Name, s.Title)
			}
			return
		}
	}
	if report := r.restore(m); !report.Continued {
		r.t.Errorf("%s: the restore that was killed in its last step did not go on: %+v", m.Name, report)
	}
}

// done are the steps that the journal of an unfinished restore has as done.
func (r *rescue) done(m *realplane.Machine) (stages []string) {
	r.t.Helper()
	for _, s := range r.steps(m) {
		if s.Done {
			stages = append(stages, s.Stage)
		}
	}
	return stages
}

// unchanged is what abort has to bring back as it was.
var unchanged = []string{"/etc/kubernetes", "/var/lib/etcd", "/var/lib/kubelet/config.yaml", "/var/lib/kubelet/pki", "/etc/containerd", "/etc/cni", "/etc/hosts"}

// abortSteps kills a restore in steps that change the machine, and takes it back
// each time. The unit tests of restore/plane do that before and after every step.
func (r *rescue) abortSteps(m *realplane.Machine) {
	r.t.Helper()
	before := r.tree(m, unchanged...)
	kubelet, _ := m.Try("systemctl", "is-active", "kubelet") // exits with 3 where it is not
	steps := r.steps(m)
	for n, s := range steps {
		if !slices.Contains([]string{"stop", "files", "install", "pods"}, s.Stage) {
			continue
		}
		if _, ended := r.killInStep(m, steps, n); ended {
			r.t.Fatalf("%s: the restore was not killed in %s", m.Name, s.Title)
		}
		a := r.run(m, "lifeboat", "restore", "abort", "--yes")
		if a.code != 0 {
			r.t.Fatalf("%s: abort after a kill in %q: code %d\n%s", m.Name, s.Title, a.code, a.stderr)
		}
		if after := r.tree(m, unchanged...); after != before {
			r.t.Errorf("%s: abort after a kill in %q left something else than was there:\n%s", m.Name, s.Title, lineDiff(before, after))
		}
		if state, _ := m.Try("systemctl", "is-active", "kubelet"); state != kubelet {
			r.t.Errorf("%s: abort after a kill in %q: kubelet is %s, was %s", m.Name, s.Title, state, kubelet)
		}
	}
}

// lineDiff shows the lines that only one of two texts has.
func lineDiff(before, after string) string {
	var out []string
	b, a := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range b {
		if !slices.Contains(a, line) {
			out = append(out, "- "+line)
		}
	}
	for _, line := range a {
		if !slices.Contains(b, line) {
			out = append(out, "+ "+line)
		}
	}
	return strings.Join(out[:min(len(out), 40)], "\n")
}
