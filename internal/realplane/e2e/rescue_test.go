package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/realplane"
)

// rescue is a cluster whose backups lie in a folder that outlives its machines,
// with the recovery kit beside them, and what of it must come back.
type rescue struct {
	t       *testing.T
	p       *realplane.Plane
	cluster *realplane.API            // by the load balancer
	apis    map[string]*realplane.API // of each machine, by its name; they outlive its files
	token   string                    // of a service account, from before
	watcher *realplane.Watcher        // from before
	before  realplane.Objects
	version uint64 // the newest resourceVersion that anybody has seen
	lists   int    // how often the watcher had listed when the last check ended
	marks   int
}

// The recovery kit and the store, as machines see them.
const (
	kit      = realplane.Backups + "/kit"
	identity = kit + "/recovery.key"
	backedUp = realplane.Backups + "/store"
)

// Exit codes of lifeboat, see its manual.
const (
	codeFailed  = 1
	codeUsage   = 2
	codeRefused = 4
)

// newRescue brings up a control plane of so many nodes with encrypted Secrets and a
// workload, and backs all of it up.
func newRescue(t *testing.T, nodes int) *rescue {
	t.Helper()
	p := realplane.Start(t, nodes)
	r := &rescue{t: t, p: p, apis: map[string]*realplane.API{}, lists: 1}
	first := p.Machines[0]
	p.Stage(fmt.Sprintf("a control plane of %d node(s) comes up", nodes), func() {
		first.InitControlPlane(realplane.ControlPlane{Endpoint: p.Balance(), SANs: []string{first.Address}, Encryption: "secretbox"})
		for _, m := range p.Machines[1:] {
			m.JoinControlPlane()
		}
	})
	p.Stage("a workload", first.Fill)
	r.cluster = first.ClusterAPI()
	for _, m := range p.Machines {
		r.apis[m.Name] = m.API()
	}
	var err error
	if r.token, err = r.cluster.Token(realplane.WorkloadNamespace, realplane.WorkloadAccount); err != nil {
		t.Fatal(err)
	}
	r.watcher = p.Watch(r.cluster, "/api/v1/namespaces/"+realplane.WorkloadNamespace+"/configmaps")
	p.Stage("init and backup", func() {
		first.Run("lifeboat", "init", "--cluster", "e2e", "--store", "file://"+backedUp, "--out", kit)
		for i, m := range p.Machines {
			r.equip(m)
			if i == 0 {
				r.p.Logf("%s", m.Run("lifeboat", "backup"))
			} else {
				m.Run("lifeboat", "backup", "--only", "files")
			}
		}
	})
	r.before = first.Objects()
	p.Logf("%d objects are to come back", len(r.before))
	return r
}

// equip gives a machine what a person copies there from the recovery kit.
func (r *rescue) equip(m *realplane.Machine) {
	r.t.Helper()
	m.Run("sh", "-ec", `mkdir -p /etc/lifeboat
cp `+kit+`/config.yaml `+kit+`/signing.key `+kit+`/trust /etc/lifeboat/
sed -i "s/^node: .*/node: `+m.Name+`/" /etc/lifeboat/config.yaml
grep -q "^node: `+m.Name+`" /etc/lifeboat/config.yaml`)
}

// write makes a ConfigMap that is in no backup.
func (r *rescue) write(m *realplane.Machine, name string) {
	r.t.Helper()
	r.p.Wait("a write", 30*time.Second, func() string {
		if out, err := m.Try("kubectl", "-n", realplane.WorkloadNamespace, "create", "configmap", name, "--request-timeout=5s"); err != nil && !strings.Contains(out, "already exists") {
			return out
		}
		return ""
	})
}

// planReport is what restore control-plane reports.
type planReport struct {
	RestoreID, Node string
	Continued       bool
	Revision        uint64
	RTO             struct {
		Seconds, Etcd, Ready, Heartbeat float64
		Phases                          []struct {
			Title   string
			Seconds float64
		}
	}
	RPO           struct{ Text string }
	Tidied, Aside []string
	Backups       []struct{ ID, Chain string }
	Left          []string
	Warnings      []string
}

// rebuilding are the words of the command.
func rebuilding(more ...string) []string {
	return append([]string{"lifeboat", "restore", "control-plane", "--identity", identity, "--yes", "-o", "json"}, more...)
}

// restore gives a machine its control plane back, which must succeed.
func (r *rescue) restore(m *realplane.Machine, more ...string) *planReport {
	r.t.Helper()
	return r.report(m, r.run(m, rebuilding(more...)...))
}

// report reads and logs what a restore said, which must have succeeded.
func (r *rescue) report(m *realplane.Machine, a answer) *planReport {
	r.t.Helper()
	if a.code != 0 {
		r.t.Fatalf("%s: the restore ended with code %d:\n%s", m.Name, a.code, a.stderr)
	}
	var report planReport
	if err := json.Unmarshal([]byte(a.stdout), &report); err != nil {
		r.t.Fatalf("%s: %v: %s", m.Name, err, a.stdout)
	}
	var phases strings.Builder
	for _, phase := range report.RTO.Phases {
		fmt.Fprintf(&phases, "\n%8.1f s  %s", phase.Seconds, phase.Title)
	}
	r.p.Logf("RTO of %s: %.1f s; %.1f s to /readyz, %.1f s to a heartbeat; %s%s", m.Name, report.RTO.Seconds, report.RTO.Ready, report.RTO.Heartbeat, report.RPO.Text, phases.String())
	if len(report.Tidied)+len(report.Warnings) > 0 {
		r.p.Logf("tidied %q, warnings %q", report.Tidied, report.Warnings)
	}
	return &report
}

// answer is how a command in a machine ended.
type answer struct {
	stdout, stderr string
	code           int
}

// run runs a command in a machine to its end.
func (r *rescue) run(m *realplane.Machine, args ...string) answer {
	r.t.Helper()
	return r.start(m, args...).end()
}

// running is a command in a machine that has not ended.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr *bytes.Buffer
	lines  *bufio.Reader // of its standard error
}

func (r *rescue) start(m *realplane.Machine, args ...string) *running {
	r.t.Helper()
	c := &running{t: r.t, cmd: m.Command(append([]string{"timeout", "--signal=KILL", "300"}, args...)...), stderr: &bytes.Buffer{}}
	c.cmd.Stdout = &c.stdout
	pipe, err := c.cmd.StderrPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	c.lines = bufio.NewReader(io.TeeReader(pipe, c.stderr))
	if err := c.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return c
}

// end waits for it.
func (c *running) end() answer {
	c.t.Helper()
	_, _ = io.Copy(io.Discard, c.lines) // to its end, which the next call tells of
	err := c.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	return answer{c.stdout.String(), c.stderr.String(), c.cmd.ProcessState.ExitCode()}
}

// killAt ends it as a power cut ends a process, as soon as it says a line that
// begins in this way. It returns whether that line came.
func (c *running) killAt(line string) (came bool) {
	c.t.Helper()
	for {
		text, err := c.lines.ReadString('\n')
		if err != nil {
			return false
		}
		if strings.HasPrefix(strings.TrimSpace(text), line) {
			break
		}
	}
	for _, pid := range programs("lifeboat", c.cmd.Process.Pid) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			c.t.Errorf("kill %d: %v", pid, err)
		}
		came = true
	}
	return came
}

// programs finds the descendants of a process that run a program.
func programs(name string, of int) (pids []int) {
	family := map[int]bool{of: true}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for range 4 { // env, nsenter's child, timeout, the program
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
			if err != nil {
				continue // it ended
			}
			_, after, _ := strings.Cut(string(stat), ") ")
			fields := strings.Fields(after) // state, ppid
			if len(fields) < 2 {
				continue
			}
			if parent, err := strconv.Atoi(fields[1]); err == nil && family[parent] {
				family[pid] = true
			}
		}
	}
	for pid := range family {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err == nil && strings.TrimSpace(string(text)) == name {
			pids = append(pids, pid)
		}
	}
	return pids
}

// check compares what came back with what was there. Differences that are wanted
// are left out by the filters, which say so of a line of realplane.Diff.
func (r *rescue) check(nodes []*realplane.Machine, wanted ...func(line string) bool) {
	r.t.Helper()
	for _, m := range nodes {
		m.WaitReady(r.apis[m.Name], 3*time.Minute)
	}
	nodes[0].WaitWorkload()
	r.p.Wait("all objects are as they were", 2*time.Minute, func() string {
		after, err := r.apis[nodes[0].Name].Objects()
		if err != nil {
			return err.Error()
		}
		return strings.Join(slices.DeleteFunc(realplane.Diff(r.before, after), func(line string) bool {
			return slices.ContainsFunc(wanted, func(w func(string) bool) bool { return w(line) })
		}), "\n")
	})
	if user, err := r.cluster.Review(r.token); err != nil || !strings.HasSuffix(user, ":"+realplane.WorkloadAccount) {
		r.t.Errorf("a token from before is of %q: %v", user, err)
	}
	r.checkVersions(nodes)
	r.checkPods(nodes)
	r.checkWatcher(nodes[0])
}

// checkVersions looks whether resourceVersions went on, at each API server.
func (r *rescue) checkVersions(nodes []*realplane.Machine) {
	r.t.Helper()
	newest := r.watcher.Seen().Version
	for _, m := range nodes {
		var list struct {
			Metadata struct{ ResourceVersion string }
		}
		if err := r.apis[m.Name].Get("/api/v1/namespaces", &list); err != nil {
			r.t.Fatal(err)
		}
		version, err := strconv.ParseUint(list.Metadata.ResourceVersion, 10, 64)
		if err != nil || version < r.version {
			r.t.Errorf("%s: resourceVersion %s, %d was seen before (%v)", m.Name, list.Metadata.ResourceVersion, r.version, err)
		}
		newest = max(newest, version)
	}
	r.version = newest
}

// checkPods looks whether the containers that the API server tells of really run.
func (r *rescue) checkPods(nodes []*realplane.Machine) {
	r.t.Helper()
	r.p.Wait("the workload's containers run", 2*time.Minute, func() string {
		var tasks string
		for _, m := range nodes {
			out, err := m.Try("ctr", "-n", "k8s.io", "tasks", "ls")
			if err != nil {
				return out
			}
			tasks += out
		}
		out, err := nodes[0].Try("kubectl", "-n", realplane.WorkloadNamespace, "get", "pods", "-l", "app=web", "-o",
			`jsonpath={range .items[*]}{.status.containerStatuses[0].containerID}{"\n"}{end}`)
		if err != nil {
			return out
		}
		ids := strings.Fields(out)
		if len(ids) != realplane.WorkloadPods {
			return fmt.Sprintf("%d containers", len(ids))
		}
		for _, id := range ids {
			if !strings.Contains(tasks, strings.TrimPrefix(id, "containerd://")) {
				return id + " does not run"
			}
		}
		return ""
	})
}

// checkWatcher looks whether a client that has watched from before the loss has
// listed again, since, and sees what is written now.
func (r *rescue) checkWatcher(m *realplane.Machine) {
	r.t.Helper()
	r.marks++
	mark := fmt.Sprintf("restored-%d", r.marks)
	r.write(m, mark)
	r.p.Wait("the watcher from before has listed again, and sees what is written now", 2*time.Minute, func() string {
		seen := r.watcher.Seen()
		if seen.Objects[realplane.WorkloadNamespace+"/"+mark] == "" || seen.Lists <= r.lists {
			return fmt.Sprintf("it is at %d, after %d lists; last trouble: %s", seen.Version, seen.Lists, seen.Trouble)
		}
		return ""
	})
	seen := r.watcher.Seen()
	if len(seen.Backward) > 0 {
		r.t.Errorf("resourceVersions went back for a watcher: %q", seen.Backward)
	}
	r.lists, r.version = seen.Lists, max(r.version, seen.Version)
	if out, err := m.Try("kubectl", "-n", realplane.WorkloadNamespace, "delete", "configmap", mark); err != nil {
		r.t.Errorf("%s", out)
	}
}

// tree is what a restore might change on a machine: names, modes, owners and
// contents below these folders.
func (r *rescue) tree(m *realplane.Machine, folders ...string) string {
	r.t.Helper()
	script := `for folder; do
[ -e "$folder" ] || { echo "no $folder"; continue; }
find "$folder" -printf '%p %m %U:%G %y %l\n' | sort
find "$folder" -type f -print0 | sort -z | xargs -0r sha256sum
done`
	return m.Run(append([]string{"sh", "-c", script, "sh"}, folders...)...)
}
