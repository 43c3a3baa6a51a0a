package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/freeport"
	"lifeboat/internal/status"
)

// crew is agents, each a process of the program beside one member of a real
// etcd, that share a store and keys.
type crew struct {
	*site
	etcd   *cluster.Cluster
	agents []*process
	env    []string
}

// process is one agent. Its own member is the first endpoint that its
// configuration names, since all are on one machine here.
type process struct {
	t      *testing.T
	node   string
	dir    string // configuration and state
	config string
	listen string
	cmd    *exec.Cmd
	ends   bool // as the test wants
	out    *output
}

// output is what a process writes while others read it.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// newCrew makes a cluster and configurations of agents cp1, cp2 ... beside its
// members. edits are pairs of a line's beginning and the line in its place.
func newCrew(t *testing.T, store string, etcd *cluster.Cluster, env []string, edits ...string) *crew {
	t.Helper()
	c := &crew{site: &site{t: t, dir: t.TempDir()}, etcd: etcd, env: env}
	if _, err := etcdtest.Fill(t.Context(), etcd.Client(), etcdtest.FillOptions{Objects: 3000}); err != nil {
		t.Fatal(err)
	}
	if store == "" {
		store = "file://" + filepath.Join(c.dir, "store")
	}
	root := filepath.Join(c.dir, "root/etc/kubernetes")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "admin.conf"), []byte("apiVersion: v1\nkind: Config\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"init", "--cluster", "prod", "--store", store, "--out", filepath.Join(c.dir, "keys"), "--host-root", filepath.Join(c.dir, "root"),
		"--node", "cp1", "--etcd", strings.Join(etcd.Endpoints(), ",")}
	if etcd.CAFile != "" {
		args = append(args, "--etcd-cacert", etcd.CAFile, "--etcd-cert", etcd.CertFile, "--etcd-key", etcd.KeyFile)
	}
	c.run(exitDone, args...)
	c.config, c.identity = filepath.Join(c.dir, "keys/config.yaml"), filepath.Join(c.dir, "keys/recovery.key")
	for i := range etcd.Members {
		c.agents = append(c.agents, c.agent(i, edits...))
	}
	edit(t, c.config, "stateDir:", "stateDir: "+filepath.Join(c.dir, "state"))
	return c
}

func (c *crew) agent(i int, edits ...string) *process {
	c.t.Helper()
	p := &process{t: c.t, node: fmt.Sprintf("cp%d", i+1), listen: freeport.Address(c.t), out: &output{}}
	p.dir = filepath.Join(c.dir, p.node)
	p.config = filepath.Join(p.dir, "config.yaml")
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	text, err := os.ReadFile(c.config)
	if err != nil {
		c.t.Fatal(err)
	}
	first, own := c.etcd.Members[0].Endpoint, c.etcd.Members[i].Endpoint
	text = []byte(strings.NewReplacer("- "+first+"\n", "- "+own+"\n", "- "+own+"\n", "- "+first+"\n").Replace(string(text)))
	if err := os.WriteFile(p.config, text, 0o600); err != nil {
		c.t.Fatal(err)
	}
	edit(c.t, p.config, append([]string{
		"node:", "node: " + p.node, "stateDir:", "stateDir: " + filepath.Join(p.dir, "state"), "listen:", "listen: " + p.listen,
		"keyFile: signing.key", "keyFile: " + filepath.Join(c.dir, "keys/signing.key"), "trustFile: trust", "trustFile: " + filepath.Join(c.dir, "keys/trust"),
	}, edits...)...)
	return p
}

// edit replaces lines of a configuration by how they begin.
func edit(t *testing.T, path string, pairs ...string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for i := 0; i < len(pairs); i += 2 {
		at := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(strings.TrimSpace(line), pairs[i]) })
		if at < 0 {
			t.Fatalf("%s has no line %q", path, pairs[i])
		}
		indent := lines[at][:len(lines[at])-len(strings.TrimLeft(lines[at], " "))]
		lines[at] = indent + pairs[i+1]
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// start runs an agent until the test ends, or something ends it sooner.
func (c *crew) start(p *process, args ...string) {
	c.t.Helper()
	p.ends = false
	p.cmd = exec.Command("lifeboat", append([]string{"agent", "--config", p.config, "--log-level", "debug"}, args...)...)
	p.cmd.Env = append(os.Environ(), c.env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	if err := p.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	cmd := p.cmd
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if c.t.Failed() {
			c.t.Logf("%s said:\n%s", p.node, p.out)
		}
	})
}

// get asks an agent.
func (p *process) get(path string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second}
	answer, err := client.Get("http://" + p.listen + path)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return string(body), err
}

// status is what an agent knows; empty while it does not answer.
func (p *process) status() status.Status {
	var s status.Status
	if text, err := p.get("/status.json"); err == nil {
		_ = json.Unmarshal([]byte(text), &s)
	}
	return s
}

// run is the newest run of a kind; zero if there was none.
func (p *process) run(kind status.Kind) status.Run {
	for _, r := range p.status().Runs {
		if r.Kind == kind {
			return r
		}
	}
	return status.Run{}
}

// until waits for something to become true.
func (c *crew) until(limit time.Duration, what string, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("not within %s: %s", limit, what)
		}
		for _, p := range c.agents {
			if p.cmd != nil && !p.ends && over(p.cmd) {
				c.t.Fatalf("%s has ended", p.node)
			}
		}
	}
}

// stoppedInItsStream starts the agents, and stops the first that takes a snapshot
// while etcd still has it to give. It begins anew until one was caught.
func (c *crew) stoppedInItsStream() *process {
	c.t.Helper()
	for range 20 {
		for _, p := range c.agents {
			c.start(p)
		}
		var taker *process
		for deadline := time.Now().Add(60 * time.Second); taker == nil && time.Now().Before(deadline); time.Sleep(50 * time.Microsecond) {
			for _, p := range c.agents {
				found, _ := filepath.Glob(filepath.Join(p.dir, "state/scratch/*/snapshot.db"))
				if info, err := os.Stat(strings.Join(found, "")); taker == nil && err == nil && info.Size() > 0 {
					_ = p.cmd.Process.Signal(syscall.SIGSTOP)
					taker = p
				}
			}
		}
		if taker != nil && stopped(taker.cmd) {
			open := 0
			for i := range c.etcd.Members {
				open += openStreams(c.t, c.etcd, i)
			}
			if found, _ := filepath.Glob(filepath.Join(c.dir, "store/*/etcd/main/manifests/*")); open == 1 && len(found) == 0 {
				return taker
			}
		}
		c.anew()
	}
	c.t.Fatal("no agent was caught while it took a snapshot")
	return nil
}

// anew ends the agents and forgets all that they did.
func (c *crew) anew() {
	c.t.Helper()
	for _, p := range c.agents {
		p.ends = true
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		for _, dir := range []string{filepath.Join(p.dir, "state"), filepath.Join(c.dir, "store"), filepath.Join(c.dir, "state")} {
			if err := os.RemoveAll(dir); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

// stoppedBeforeItsCommit starts the agents, and stops the first whose snapshot is
// in the store while its manifest is not. It begins anew until one was caught.
func (c *crew) stoppedBeforeItsCommit() (sleeper *process, object string) {
	c.t.Helper()
	find := func(pattern string) []string {
		found, err := filepath.Glob(filepath.Join(c.dir, pattern))
		if err != nil {
			c.t.Fatal(err)
		}
		return found
	}
	for range 20 {
		for _, p := range c.agents {
			c.start(p)
		}
		var taker *process
		for deadline := time.Now().Add(30 * time.Second); object == "" && time.Now().Before(deadline); time.Sleep(50 * time.Microsecond) {
			for _, p := range c.agents {
				if taker == nil && len(find(p.node+"/state/scratch/*/snapshot.db")) > 0 {
					taker = p
				}
			}
			if found := find("store/*/etcd/main/data/*/*"); len(found) > 0 && taker != nil {
				_ = taker.cmd.Process.Signal(syscall.SIGSTOP)
				object = found[0]
			}
		}
		if taker != nil && object != "" && stopped(taker.cmd) && len(find("store/*/etcd/main/manifests/*")) == 0 {
			return taker, object
		}
		object = ""
		c.anew()
	}
	c.t.Fatal("no agent was caught between its snapshot and its commit")
	return nil, ""
}

// fulls are the ids of the etcd backups in the store, newest first.
func (c *crew) fulls() []string {
	c.t.Helper()
	cmd := exec.Command("lifeboat", "list", "-q", "-o", "json", "--config", c.config)
	cmd.Env = append(os.Environ(), c.env...)
	out, err := cmd.Output()
	if err != nil {
		return nil
	}
	var list []struct{ ID, Chain string }
	if json.Unmarshal(out, &list) != nil {
		return nil
	}
	var ids []string
	for _, b := range list {
		if b.Chain == "etcd/main" {
			ids = append(ids, b.ID)
		}
	}
	return ids
}

// sound fails the test unless verify finds nothing wrong.
func (c *crew) verified() {
	c.t.Helper()
	cmd := exec.Command("lifeboat", "verify", "--config", c.config)
	cmd.Env = append(os.Environ(), c.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("verify: %v\n%s", err, out)
	}
}

// leader is the index of the member that leads.
func (c *crew) leader() int {
	c.t.Helper()
	for i, m := range c.etcd.Members {
		if !m.Running() {
			continue
		}
		client := c.etcd.Client(i)
		answer, err := client.Status(c.t.Context(), m.Endpoint)
		if err == nil && answer.Leader == answer.Header.MemberId {
			return i
		}
	}
	c.t.Fatal("no member leads")
	return 0
}

// first is the agent whose turn it is by rule while all members are well: the one
// beside the member with the lowest id.
func (c *crew) first() (*process, string) {
	c.t.Helper()
	list, err := c.etcd.Client().MemberList(c.t.Context())
	if err != nil || len(list.Members) != len(c.agents) {
		c.t.Fatalf("the members: %v, %v", list, err)
	}
	lowest := slices.MinFunc(list.Members, func(a, b *etcdserverpb.Member) int { return cmp.Compare(a.ID, b.ID) })
	at := slices.IndexFunc(c.etcd.Members, func(m *cluster.Member) bool { return m.Name == lowest.Name })
	return c.agents[at], lowest.Name
}

// openStreams is how many snapshots a member is giving out, by its own metrics.
func openStreams(t *testing.T, c *cluster.Cluster, i int) int {
	t.Helper()
	client := http.Client{Transport: &http.Transport{TLSClientConfig: c.TLS(), DisableKeepAlives: true}, Timeout: 5 * time.Second}
	answer, err := client.Get(c.Members[i].Endpoint + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	sum := func(name string) int {
		n := 0
		for line := range strings.SplitSeq(string(text), "\n") {
			if strings.HasPrefix(line, name) && strings.Contains(line, `grpc_method="Snapshot"`) {
				v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
				if err != nil {
					t.Fatal(err)
				}
				n += int(v)
			}
		}
		return n
	}
	started := sum("grpc_server_started_total")
	if !strings.Contains(string(text), "grpc_server_started_total") {
		t.Fatal("etcd does not count its streams")
	}
	return started - sum("grpc_server_handled_total")
}
