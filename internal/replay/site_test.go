package replay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/etcdtest/cluster"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if dir := filepath.Dir(program.path); program.path != "" {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// program is lifeboat, built from this checkout.
var program struct {
	once sync.Once
	path string
	err  error
}

func built(t *testing.T) string {
	t.Helper()
	program.once.Do(func() {
		dir, err := os.MkdirTemp("", "lifeboat-replay-")
		if err != nil {
			program.err = err
			return
		}
		program.path = filepath.Join(dir, "lifeboat")
		if out, err := exec.Command("go", "build", "-o", program.path, "lifeboat/cmd/lifeboat").CombinedOutput(); err != nil {
			program.err = fmt.Errorf("build lifeboat: %w\n%s", err, out)
		}
	})
	if program.err != nil {
		t.Fatal(program.err)
	}
	return program.path
}

// site is a configured lifeboat beside a cluster.
type site struct {
	t        *testing.T
	dir      string
	config   string
	identity string
	env      []string
}

// newSite makes keys and a configuration. store is a URL, empty for a folder;
// edits are pairs of a line's beginning (after its indent) and what stands there
// instead.
func newSite(t *testing.T, c *cluster.Cluster, store string, env []string, edits ...string) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), env: env}
	if store == "" {
		store = "file://" + filepath.Join(s.dir, "store")
	}
	keys := filepath.Join(s.dir, "keys")
	s.config, s.identity = filepath.Join(keys, "config.yaml"), filepath.Join(keys, "recovery.key")
	s.must("init", "--cluster", "proof", "--store", store, "--out", keys, "--host-root", s.dir, "--node", "cp1", "--etcd", strings.Join(c.Endpoints(), ","))
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	edits = append(edits, "stateDir:", "stateDir: "+filepath.Join(s.dir, "state"))
	var lines []string
	for line := range strings.Lines(string(text)) {
		bare := strings.TrimLeft(line, " ")
		for i := 0; i < len(edits); i += 2 {
			if strings.HasPrefix(bare, edits[i]) {
				line = line[:len(line)-len(bare)] + edits[i+1] + "\n"
			}
		}
		lines = append(lines, line)
	}
	if err := os.WriteFile(s.config, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// command is one call of the program with the site's configuration.
func (s *site) command(args ...string) *exec.Cmd {
	s.t.Helper()
	if args[0] != "init" {
		args = append(args, "--config", s.config)
	}
	cmd := exec.Command(built(s.t), args...)
	cmd.Env = append(os.Environ(), s.env...)
	return cmd
}

// run calls the program to its end.
func (s *site) run(args ...string) (out string, code int, errs string) {
	s.t.Helper()
	cmd := s.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return stdout.String(), cmd.ProcessState.ExitCode(), stderr.String()
}

// must calls the program and fails the test if that fails.
func (s *site) must(args ...string) string {
	s.t.Helper()
	out, code, errs := s.run(args...)
	if code != 0 {
		s.t.Fatalf("lifeboat %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// insist calls the program until it succeeds: members and stores come back.
func (s *site) insist(args ...string) string {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		out, code, errs := s.run(args...)
		if code == 0 {
			return out
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("lifeboat %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
		}
	}
}

func (s *site) decode(text string, v any) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		s.t.Fatalf("%v in %s", err, text)
	}
}

// process is a lifeboat that runs until it is killed or stopped.
type process struct {
	s    *site
	args []string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
}

// crashes is how the log of a program tells that Go ended it.
var crashes = regexp.MustCompile(`(?m)^(panic|fatal error|unexpected fault address): ?.*$`)

// start runs the program. It ends with the test; its output is told when the
// test has failed.
func (s *site) start(args ...string) *process {
	s.t.Helper()
	p := &process{s: s, args: args, log: filepath.Join(s.t.TempDir(), "log")}
	p.run()
	s.t.Cleanup(func() {
		p.kill()
		text, err := os.ReadFile(p.log)
		if err != nil {
			s.t.Error(err)
		}
		if crash := crashes.Find(text); crash != nil { // one that is started again may lose nothing by it
			s.t.Errorf("lifeboat %s crashed: %s", strings.Join(args, " "), crash)
		}
		if s.t.Failed() {
			s.t.Logf("lifeboat %s:\n%s", strings.Join(args, " "), text[max(0, len(text)-20_000):])
		}
	})
	return p
}

func (p *process) run() {
	p.s.t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.s.t.Fatal(err)
	}
	defer log.Close()
	cmd, done, started := p.s.command(p.args...), make(chan struct{}), make(chan error)
	cmd.Stdout, cmd.Stderr = log, log
	// It dies with the test. The kernel ties that to the thread that started it,
	// so the goroutine keeps its thread.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(done)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		p.s.t.Fatal(err)
	}
	p.cmd, p.done = cmd, done
}

// running says whether the process is there.
func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// kill ends it as a power cut would.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// stop ends it in order and fails the test if it takes long.
func (p *process) stop() {
	p.s.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.s.t.Errorf("lifeboat %s does not stop", strings.Join(p.args, " "))
		p.kill()
	}
}
