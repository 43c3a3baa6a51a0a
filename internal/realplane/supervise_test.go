package realplane

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/restore/node"
)

// testSupervisor makes the test binary a supervisor; its value is a folder.
const testSupervisor = "LIFEBOAT_TEST_SUPERVISOR"

func TestMain(m *testing.M) {
	if folder := os.Getenv(testSupervisor); folder != "" {
		if err := supervisorOf(folder).run(filepath.Join(folder, "socket")); err != nil {
			panic(err)
		}
		return
	}
	os.Exit(Isolate(m))
}

// supervisorOf has one service: a sleep called kubelet, which can run when the
// folder has a file named able.
func supervisorOf(folder string) *supervisor {
	return &supervisor{asked: make(chan question), services: []*service{{
		name: "kubelet", disabled: filepath.Join(folder, "disabled"), log: filepath.Join(folder, "log"),
		able: func() bool {
			_, err := os.Stat(filepath.Join(folder, "able"))
			return err == nil
		},
		command: func() []string { return []string{"sleep", "600"} },
	}}}
}

// TestARestoreTakesTheSupervisorForSystemd lets restore/node, with nothing
// changed in it, ask and order by systemctl.
func TestARestoreTakesTheSupervisorForSystemd(t *testing.T) {
	folder := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(folder, systemctlName)); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(folder, "root/run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"proc", "sys"} { // processes are the real ones
		if err := os.Symlink("/"+name, filepath.Join(folder, "root", name)); err != nil {
			t.Fatal(err)
		}
	}
	supervisor := exec.Command(self)
	supervisor.Env = append(os.Environ(), testSupervisor+"="+folder)
	var words bytes.Buffer
	supervisor.Stdout, supervisor.Stderr = &words, &words
	if err := supervisor.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = supervisor.Process.Signal(syscall.SIGTERM)
		_ = supervisor.Wait()
	})
	t.Setenv(supervisorVariable, filepath.Join(folder, "socket"))
	t.Setenv("PATH", folder+":"+os.Getenv("PATH"))
	local := node.New(node.Options{Root: filepath.Join(folder, "root")})
	ctx := context.Background()

	expect := func(want string) node.Service {
		t.Helper()
		var s node.Service
		var err error
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if s, err = local.Service(ctx, node.Kubelet); err == nil && s.Active == want {
				return s
			}
		}
		t.Fatalf("kubelet is %+v (%v), want %s; the supervisor said %s", s, err, want, words.String())
		return s
	}

	if s := expect("activating"); s.Stopped() || s.PID != 0 || s.Enabled != "enabled" {
		t.Errorf("without its configuration kubelet is %+v", s)
	}
	if err := os.WriteFile(filepath.Join(folder, "able"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	first := expect("active")
	if first.PID == 0 || first.Unit != "kubelet.service" {
		t.Errorf("a running kubelet is %+v", first)
	}
	if err := local.Stop(ctx, node.Kubelet); err != nil {
		t.Fatal(err)
	}
	if s := expect("inactive"); !s.Stopped() || s.PID != 0 {
		t.Errorf("a stopped kubelet is %+v", s)
	}
	if err := local.Start(ctx, node.Kubelet); err != nil {
		t.Fatal(err)
	}
	if s := expect("active"); s.PID == first.PID {
		t.Error("it is the process that was stopped")
	}
	if s, err := local.Service(ctx, "etcd"); err != nil || s.Unit != "" {
		t.Errorf("an etcd that no unit runs is %+v (%v)", s, err)
	}

	for _, c := range []struct{ args, out, err, code string }{
		{"is-active kubelet", "active\n", "", "0"},
		{"is-enabled kubelet.service", "enabled\n", "", "0"},
		{"disable --now kubelet", "", "", "0"},
		{"is-active kubelet", "inactive\n", "", "3"},
		{"is-enabled kubelet", "disabled\n", "", "1"},
		{"show --value -p ActiveState,LoadState kubelet", "loaded\ninactive\n", "", "0"},
		{"start nothing", "", "Failed to start nothing.service: Unit nothing.service not found.\n", "5"},
		{"show --property=LoadState nothing", "LoadState=not-found\n", "", "0"},
		{"status nothing", "", "Unit nothing.service could not be found.\n", "4"},
		{"daemon-reload", "", "", "0"},
		{"kill kubelet", "", "systemctl: the stand-in of a test machine does not know verb kill\n", "1"},
		{"stop --force kubelet", "", "systemctl: the stand-in of a test machine does not know option --force\n", "1"},
	} {
		cmd := exec.Command("sh", "-c", "systemctl "+c.args+"; echo $?")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil || string(out) != c.out+c.code+"\n" || stderr.String() != c.err {
			t.Errorf("systemctl %s: %q, %q (%v), want %q, %q and code %s", c.args, out, stderr.String(), err, c.out, c.err, c.code)
		}
	}
}
