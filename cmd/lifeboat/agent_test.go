package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/freeport"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/s3test"
	"lifeboat/internal/status"
)

// A turn after the first begins this much later: the shortest grace.
const turn = 30 * time.Second

func TestTheDeathOfAnAgentAndOfTheLeaderLosesNoSlot(t *testing.T) {
	t.Parallel()
	c := newCrew(t, "", cluster.StartBinary(t, "3.6", cluster.Options{Members: 3, TLS: true}), nil, "full:", "full: \"@every 10m\"")
	killed := c.stoppedInItsStream()
	first, member := c.first()
	if killed != first {
		t.Errorf("%s backs up, and it is the turn of %s", killed.node, first.node)
	}
	for _, p := range c.agents {
		c.until(turn, p.node+" waits for its turn", func() bool {
			return p == killed || slices.ContainsFunc(p.status().Jobs, func(j status.Job) bool {
				return j.Kind == status.Full && j.Why == "the turn of "+member
			})
		})
	}
	// Both die while etcd has the snapshot open.
	killed.ends = true
	begin := time.Now()
	c.etcd.Kill(c.leader())
	_ = killed.cmd.Process.Kill()
	_ = killed.cmd.Wait()
	if ids := c.fulls(); len(ids) > 0 {
		t.Fatalf("%s had committed %v before it was killed", killed.node, ids)
	}
	c.until(4*turn, "another agent serves the slot", func() bool { return len(c.fulls()) > 0 })
	t.Logf("%s was killed; the slot was served %s later", killed.node, time.Since(begin).Round(time.Second))
	c.verified()
	served := ""
	for _, p := range c.agents {
		if p == killed {
			continue
		}
		if r := p.run(status.Full); r.Result == status.Succeeded {
			served += p.node
		}
	}
	if served == "" {
		t.Error("no agent says that it served the slot")
	}
	// The one that comes back finds it served, and takes none of its own.
	before := c.fulls()
	c.start(killed)
	c.until(20*time.Second, "the agent is back", func() bool { return killed.status().Loaded })
	time.Sleep(2 * time.Second)
	if after := c.fulls(); !slices.Equal(after, before) {
		t.Errorf("the agent that came back took another: %v, before %v", after, before)
	}
	c.verified()
}

func TestABackupOutlivesTheLeader(t *testing.T) {
	t.Parallel()
	c := newCrew(t, "", cluster.StartBinary(t, "3.6", cluster.Options{Members: 3, TLS: true}), nil, "full:", "full: \"@every 10m\"")
	p := c.stoppedInItsStream()
	c.etcd.Kill(c.leader())
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.until(2*turn, "its run is over", func() bool { return p.run(status.Full).Result != "" })
	if run := p.run(status.Full); run.Result != status.Succeeded || !slices.Contains(c.fulls(), run.ID) {
		t.Errorf("the run during which the leader died: %+v", run)
	}
	c.verified()
}

func TestAnAgentThatSleptThroughAPruneForksNothing(t *testing.T) {
	t.Parallel()
	c := newCrew(t, "", cluster.StartBinary(t, "3.6", cluster.Options{Members: 3}), nil, "full:", "full: \"@every 10m\"")
	stopped, object := c.stoppedBeforeItsCommit()
	c.until(3*turn, "another agent serves the slot", func() bool { return len(c.fulls()) > 0 })
	before := c.fulls()
	// Hours later, by the store's clock and by a pruner's, what the sleeper has put
	// is garbage, and a prune names it.
	id := manifest.ID(filepath.Base(filepath.Dir(object)))
	c.modified(object, -5*time.Hour)
	pruned, err := c.repository(5*time.Hour).Prune(t.Context(), "etcd/main", nil, repository.PruneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(pruned.Dropped, id) {
		t.Fatalf("the prune drops %v, not %s", pruned.Dropped, id)
	}
	if err := stopped.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.until(60*time.Second, "the sleeper's run is over", func() bool { return stopped.run(status.Full).Result != "" })
	if run := stopped.run(status.Full); run.Result == status.Succeeded || run.ID == string(id) {
		t.Errorf("the sleeper's run: %+v", run)
	}
	if after := c.fulls(); !slices.Equal(after, before) {
		t.Errorf("fulls before %v, after %v", before, after)
	}
	c.verified()
}

func TestWithoutQuorumAnAgentTakesADegradedFullOfItsOwnMember(t *testing.T) {
	t.Parallel()
	etcd := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3})
	c := newCrew(t, "", etcd, nil, "full:", "full: \"@every 10m\"")
	etcd.Kill(1)
	etcd.Kill(2)
	c.start(c.agents[0])
	c.until(2*turn, "a degraded full", func() bool { return len(c.fulls()) > 0 })
	c.until(5*time.Second, "the run is told", func() bool { return c.agents[0].run(status.Full).Result != "" })
	if r := c.agents[0].run(status.Full); r.Result != status.Succeeded || len(r.Degraded) == 0 {
		t.Errorf("the run: %+v; want a degraded success", r)
	}
	c.verified()
}

func TestAStoreThatDiesLeavesNoSnapshotOpen(t *testing.T) {
	t.Parallel()
	etcd := cluster.StartBinary(t, "3.6", cluster.Options{Members: 1})
	server := s3test.Start(t, s3test.Options{})
	c := newCrew(t, "s3://"+server.Bucket+"/backups", etcd, server.Env(), "full:", "full: \"@every 10m\"", "files:", "files: \"\"")
	value := make([]byte, 1<<20)
	for i := range 24 { // more than buffers on the way take, were it sent on as it comes
		if _, err := rand.Read(value); err != nil {
			t.Fatal(err)
		}
		if _, err := etcd.Client().Put(t.Context(), fmt.Sprintf("/random/%d", i), string(value)); err != nil {
			t.Fatal(err)
		}
	}
	p := c.agents[0]
	relay := newRelay(t, etcdAddress(etcd.Members[0]))
	edit(t, p.config, "- "+etcd.Members[0].Endpoint, "- http://"+relay.address)
	c.start(p)
	c.until(60*time.Second, "it streams", relay.holds)
	if n := openStreams(t, etcd, 0); n != 1 {
		t.Fatalf("etcd has %d snapshots open, want the one that is held up", n)
	}
	server.Stall() // it answers no more, and breaks no connection
	relay.release()
	c.until(20*time.Second, "etcd is done with the snapshot while the store hangs", func() bool { return openStreams(t, etcd, 0) == 0 })
	if run := p.run(status.Full); run.Result != "" {
		t.Fatalf("the run is over while the store hangs: %+v", run)
	}
	client := etcd.Client()
	slowest := time.Duration(0)
	for i := range 50 {
		start := time.Now()
		if _, err := client.Put(t.Context(), fmt.Sprintf("latency/%d", i), "x"); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(start))
	}
	if slowest > 5*time.Second { // the machine may be busy; a hanging store would hold it for minutes
		t.Errorf("a write took %s while the store hung", slowest)
	}
	server.Kill()
	c.until(60*time.Second, "the run is over", func() bool { return p.run(status.Full).Result != "" })
	if run := p.run(status.Full); run.Result != status.Failed || run.Reason != status.StoreDown {
		t.Errorf("the run ended with %q for the reason %q, and must fail for the store's: %s", run.Result, run.Reason, run.Message)
	}
	if n := openStreams(t, etcd, 0); n != 0 {
		t.Errorf("%d snapshot streams are open", n)
	}
	if left, _ := filepath.Glob(filepath.Join(p.dir, "state/scratch/*")); len(left) > 0 {
		t.Errorf("left in scratch: %q", left)
	}
	server.Restart()
	c.until(2*turn+10*time.Second, "the agent recovers", func() bool { return len(c.fulls()) > 0 })
	c.verified()
}

func TestRenewedCredentialsCountWithoutARestart(t *testing.T) {
	t.Parallel()
	etcd := cluster.StartBinary(t, "3.6", cluster.Options{Members: 1, TLS: true})
	other := cluster.StartBinary(t, "3.6", cluster.Options{Members: 1, TLS: true}) // its client is a stranger to etcd
	server := s3test.Start(t, s3test.Options{})
	dir := t.TempDir()
	credentials := filepath.Join(dir, "credentials")
	write := func(secret string) {
		replace(t, credentials, fmt.Appendf(nil, "[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", server.AccessKey, secret))
	}
	write("wrong")
	var env []string
	for _, e := range server.Env() {
		if !strings.HasPrefix(e, "AWS_ACCESS_KEY_ID") && !strings.HasPrefix(e, "AWS_SECRET") && !strings.HasPrefix(e, "AWS_SHARED") {
			env = append(env, e)
		}
	}
	cert, key := filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key")
	copyFile(t, other.CertFile, cert)
	copyFile(t, other.KeyFile, key)
	own := *etcd
	c := newCrew(t, "s3://"+server.Bucket+"/backups", &own, append(env, "AWS_SHARED_CREDENTIALS_FILE="+credentials), "full:", "full: \"@every 10m\"", "files:", "files: \"\"",
		"certFile: "+etcd.CertFile, "certFile: "+cert, "keyFile: "+etcd.KeyFile, "keyFile: "+key)
	p := c.agents[0]
	c.start(p)
	c.until(30*time.Second, "the run fails for the store", func() bool { return p.run(status.Full).Reason == status.StoreDown })
	write(server.SecretKey)
	copyFile(t, etcd.CertFile, cert)
	copyFile(t, etcd.KeyFile, key)
	c.until(3*turn, "the run succeeds", func() bool { return p.run(status.Full).Result == status.Succeeded })
	c.verified()
}

// replace writes a file as those do who renew: whole, by a rename.
func replace(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	replace(t, to, text)
}

func TestTheConfigurationIsReadAgainAndABadOneRefused(t *testing.T) {
	t.Parallel()
	c := newCrew(t, "", cluster.StartBinary(t, "3.6", cluster.Options{}), nil)
	p := c.agents[0]
	c.start(p)
	c.until(30*time.Second, "the first full", func() bool { return p.run(status.Full).Result == status.Succeeded })
	hup := func() {
		t.Helper()
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	successful := func(want string) func() bool {
		return func() bool {
			text, err := p.get("/metrics")
			return err == nil && regexp.MustCompile(`(?m)^lifeboat_config_reload_successful\{[^}]*\} `+want+`$`).MatchString(text)
		}
	}
	c.until(5*time.Second, "a good start is told", successful("1"))

	good, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	replace(t, p.config, append(good, []byte("\nnonsense: true\n")...))
	hup()
	c.until(10*time.Second, "the bad one is told", successful("0"))
	c.until(5*time.Second, "the page says so", func() bool {
		return slices.ContainsFunc(p.status().Problems, func(p status.Problem) bool { return strings.Contains(p.Message, "nonsense") })
	})
	if !strings.Contains(p.out.String(), "refused") {
		t.Error("the log does not say so")
	}

	// A listener that can't be had is a reason to refuse; one that can moves.
	replace(t, p.config, good)
	edit(t, p.config, "listen:", "listen: "+etcdAddress(c.etcd.Members[0]))
	hup()
	c.until(10*time.Second, "the address in use is refused", func() bool { return strings.Contains(p.out.String(), "address already in use") })
	if p.status().Node != "cp1" {
		t.Error("the old address does not answer any more")
	}
	old, next := p.listen, freeport.Address(t)
	edit(t, p.config, "listen:", "listen: "+next, "full:", "full: \"@every 2h\"")
	hup()
	p.listen = next
	c.until(10*time.Second, "the new address answers", func() bool { return p.status().Node == "cp1" })
	c.until(5*time.Second, "the new schedule counts", func() bool {
		return slices.ContainsFunc(p.status().Jobs, func(j status.Job) bool { return j.Kind == status.Full && j.Schedule == "@every 2h" })
	})
	p.listen = old
	if _, err := p.get("/healthz"); err == nil {
		t.Error("the old address still answers")
	}

	p.listen = next
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("told to stop, it ended with %v", err)
	}
	c.verified()
}

func etcdAddress(m *cluster.Member) string { return strings.TrimPrefix(m.Endpoint, "http://") }

func TestOnceServesWhatIsDueAndSaysHowItWent(t *testing.T) {
	t.Parallel()
	etcd := cluster.StartBinary(t, "3.6", cluster.Options{})
	c := newCrew(t, "", etcd, nil)
	p := c.agents[0]
	once := func() int {
		t.Helper()
		cmd := exec.Command("lifeboat", "agent", "--once", "--config", p.config, "--log-format", "json")
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if code := cmd.ProcessState.ExitCode(); code != exitDone && code != exitFailed {
			t.Fatalf("exit code %d\n%s", code, out)
		}
		return cmd.ProcessState.ExitCode()
	}
	if code := once(); code != exitDone {
		t.Errorf("exit code %d when all went well", code)
	}
	first := c.fulls()
	if len(first) != 1 {
		t.Fatalf("fulls: %v", first)
	}
	if code := once(); code != exitDone || len(c.fulls()) != 1 {
		t.Errorf("nothing is due: exit code %d, fulls %v", code, c.fulls())
	}
	etcd.Kill(0)
	edit(t, p.config, "full:", "full: \"@every 1s\"")
	time.Sleep(time.Second) // so that one is due, however quick all was
	if code := once(); code != exitFailed {
		t.Errorf("exit code %d when etcd is gone", code)
	}
	c.verified()
}

func TestTheAgentFindsEveryEtcdOfTheAPIServer(t *testing.T) {
	t.Parallel()
	main, events := cluster.StartBinary(t, "3.6", cluster.Options{}), cluster.StartBinary(t, "3.5", cluster.Options{})
	c := newCrew(t, "", main, nil, "files:", "files: \"\"", "prune:", "prune: \"\"", "discover:", "discover: true", "- name: main", "- name: by-hand")
	p := c.agents[0]
	manifests := filepath.Join(c.dir, "root/etc/kubernetes/manifests")
	if err := os.MkdirAll(manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	pod := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: kube-apiserver}\nspec:\n  containers:\n  - name: kube-apiserver\n    image: x\n"+
		"    command: [kube-apiserver, --etcd-servers=%s, '--etcd-servers-overrides=/events#%s']\n", main.Endpoints()[0], events.Endpoints()[0])
	c.start(p)
	c.until(20*time.Second, "what is named by hand is backed up", func() bool { return p.run(status.Full).Target == "etcd/by-hand" })
	if !strings.Contains(p.out.String(), "can't be discovered") {
		t.Error("that nothing can be discovered yet is not said")
	}
	replace(t, filepath.Join(manifests, "kube-apiserver.yaml"), []byte(pod))
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	c.until(30*time.Second, "all three chains have a backup", func() bool {
		found, _ := filepath.Glob(filepath.Join(c.dir, "store/*/etcd/*/manifests/*1"))
		return len(found) == 3
	})
	c.verified()
	found, _ := filepath.Glob(filepath.Join(c.dir, "store/*/etcd/*"))
	for i := range found {
		found[i] = filepath.Base(found[i])
	}
	if !slices.Equal(found, []string{"by-hand", "events", "main"}) {
		t.Errorf("chains: %q", found)
	}
}
