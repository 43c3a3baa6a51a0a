package realplane

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// The test binary runs as three kinds of process, besides systemctl. This
// variable says which.
const roleVariable = "LIFEBOAT_REALPLANE_ROLE"

const (
	rolePlane   = "plane"   // the tests, in namespaces of their own
	roleMachine = "machine" // PID 1 of a machine, see boot.go
)

// EnableVariable must be set for the tests to run: they need root, and minutes.
const EnableVariable = "LIFEBOAT_E2E"

// workVariable tells the plane where its folder is, which outlives it.
const workVariable = "LIFEBOAT_REALPLANE_WORK"

// Isolate runs a package's tests inside namespaces of their own and returns the
// exit code. Call it from TestMain and from nowhere else:
//
//	func TestMain(m *testing.M) { os.Exit(realplane.Isolate(m)) }
//
// Without EnableVariable the tests run as they are, and Start skips them.
func Isolate(m *testing.M) int {
	if filepath.Base(os.Args[0]) == systemctlName {
		return systemctl(os.Args[1:])
	}
	switch os.Getenv(roleVariable) {
	case roleMachine:
		return boot()
	case rolePlane:
		if err := settle(); err != nil {
			fmt.Fprintln(os.Stderr, "realplane:", err)
			return 1
		}
		return m.Run()
	}
	if os.Getenv(EnableVariable) == "" {
		return m.Run()
	}
	code, err := runIsolated()
	if err != nil {
		fmt.Fprintln(os.Stderr, "realplane:", err)
		return 1
	}
	return code
}

// full is the value of EnableVariable with which the long tests run, too.
const full = "full"

// RequireFull skips a test that takes minutes, unless all are wanted.
func RequireFull(t testing.TB) {
	t.Helper()
	if os.Getenv(EnableVariable) != full {
		t.Skipf("takes minutes: make e2e-full sets %s=%s", EnableVariable, full)
	}
}

// Require skips a test unless EnableVariable is set, and returns the name of the
// cgroup below which all that it starts belongs.
func Require(t testing.TB) (cgroup string) {
	t.Helper()
	if os.Getenv(EnableVariable) == "" {
		t.Skipf("needs root and minutes: the Makefile's e2e and image-test set %s", EnableVariable)
	}
	if os.Getenv(roleVariable) != rolePlane {
		t.Fatal("the test's package has no TestMain that calls realplane.Isolate")
	}
	return os.Getenv(cgroupVariable)
}

// runIsolated starts this binary again in new namespaces, waits for it, and
// removes what namespaces don't: the work folder and the cgroups.
func runIsolated() (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("the real plane needs root, for namespaces and containerd")
	}
	sweep()
	cgroups := cgroupName(os.Getpid())
	work := filepath.Join(os.TempDir(), cgroups)
	if err := os.Mkdir(work, 0o700); err != nil {
		return 1, err
	}
	defer func() {
		err = errors.Join(err, removeCgroups(cgroups), os.RemoveAll(work))
	}()

	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleVariable+"="+rolePlane, workVariable+"="+work, cgroupVariable+"="+cgroups,
		"TMPDIR="+work) // what tests leave when they are killed goes with it
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// PID 1 of a PID namespace takes everything in it along when it ends, and it
	// ends with this process, or rather with the thread that started it.
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("enter new namespaces: %w", err)
	}
	done := make(chan struct{})
	go func() {
		select {
		case s := <-signals:
			fmt.Fprintf(os.Stderr, "realplane: %v: ending all machines\n", s)
			if s == syscall.SIGQUIT { // a time limit of go test: first say where it hangs
				_ = cmd.Process.Signal(s)
				return
			}
			_ = cmd.Process.Kill()
		case <-done:
		}
	}()
	err = cmd.Wait()
	close(done)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if code := exit.ExitCode(); code > 0 {
			return code, nil
		}
		return 1, fmt.Errorf("the tests ended by %v", exit.ProcessState)
	}
	return 0, err
}

// settle makes the new namespaces a place to live in.
func settle() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to this namespace: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", bridge, "type", "bridge"},
		{"addr", "add", Gateway + "/24", "dev", bridge},
		{"link", "set", bridge, "up"},
	} {
		if err := ip(args...); err != nil {
			return err
		}
	}
	return nil
}

// ip runs iproute2's command.
func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// repository is the top folder of the source tree, where bin is.
func repository() string {
	_, self, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(self), "..", "..")
}

// Source is a path in the source tree.
func Source(path string) string { return filepath.Join(repository(), path) }

// Tool is a program that `make tools` and `make e2e` build.
func Tool(name string) string { return filepath.Join(repository(), "bin", "tools", name) }

// Lifeboat is the binary that `make build` builds.
func Lifeboat() string { return filepath.Join(repository(), "bin", "lifeboat") }
