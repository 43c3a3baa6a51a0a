//go:build deploy

package deploytest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/kubefixture"
)

// units copies the units to a folder, with a program that exists here.
func units(t *testing.T) (dir string, names []string) {
	t.Helper()
	dir = t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(deploy("systemd"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		text, err := os.ReadFile(deploy("systemd", entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		text = []byte(strings.ReplaceAll(string(text), "/usr/local/bin/lifeboat", program))
		if err := os.WriteFile(filepath.Join(dir, entry.Name()), text, 0o644); err != nil {
			t.Fatal(err)
		}
		names = append(names, entry.Name())
	}
	if len(names) != 3 {
		t.Fatalf("units: %v", names)
	}
	return dir, names
}

// analyze is systemd-analyze, which needs no running systemd for this.
func analyze(dir string, args ...string) (string, error) {
	cmd := exec.Command("systemd-analyze", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestSystemdFindsNothingWrongWithTheUnits(t *testing.T) {
	dir, names := units(t)
	for _, name := range names {
		if out, err := analyze(dir, "verify", "--man=no", "./"+name); err != nil || strings.Contains(out, name) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	// The check sees mistakes.
	bad := filepath.Join(dir, "bad.service")
	if err := os.WriteFile(bad, []byte("[Service]\nExecStart=/bin/true\nProtectSystm=strict\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, _ := analyze(dir, "verify", "--man=no", "./bad.service"); !strings.Contains(out, "ProtectSystm") {
		t.Errorf("a misspelt key is not found:\n%s", out)
	}
}

func TestTheServicesAreExposedToLittle(t *testing.T) {
	dir, names := units(t)
	for _, name := range names {
		if !strings.HasSuffix(name, ".service") {
			continue
		}
		// The limit is in tenths: 2.5 of 10.
		if out, err := analyze(dir, "security", "--offline=true", "--threshold=25", "./"+name); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func TestTheUnitRunsWhatTheProgramHas(t *testing.T) {
	_, lifeboat := build(t)
	for unit, args := range map[string][]string{
		"lifeboat.service":      {"agent", "--config", "/nonexistent/config.yaml"},
		"lifeboat-once.service": {"agent", "--once", "--config", "/nonexistent/config.yaml"},
	} {
		text, err := os.ReadFile(deploy("systemd", unit))
		if err != nil {
			t.Fatal(err)
		}
		want := "ExecStart=/usr/local/bin/lifeboat " + strings.Join(args[:len(args)-1], " ") + " /etc/lifeboat/config.yaml\n"
		if !strings.Contains(string(text), want) {
			t.Errorf("%s does not run %s", unit, want)
		}
		lifeboat("read configuration", args...) // and not: unknown flag
	}
	// The pods' flags.
	lifeboat("read configuration", "agent", "--config=/nonexistent/config.yaml", "--node=cp1")
	lifeboat("read configuration", "prune", "--config=/nonexistent/config.yaml", "--yes")
}

// An agent that is killed at the moment when it would give up on what hangs
// never says what that was, and loses its journal's last lines.
func TestTheAgentHasTheTimeToEndByItself(t *testing.T) {
	const farewell, rest = 30, 10 // seconds: agent.Options.Farewell's default; the server, the journal
	if got, _ := pod(t, rendered(t))["terminationGracePeriodSeconds"].(float64); got < farewell+rest {
		t.Errorf("the pods are killed after %v s", got)
	}
	for _, unit := range []string{"lifeboat.service", "lifeboat-once.service"} {
		text, err := os.ReadFile(deploy("systemd", unit))
		if err != nil {
			t.Fatal(err)
		}
		var got int
		_, after, _ := strings.Cut(string(text), "\nTimeoutStopSec=")
		if _, err := fmt.Sscan(after, &got); err != nil || got < farewell+rest {
			t.Errorf("%s is killed after %d s (%v)", unit, got, err)
		}
	}
}

// expand resolves systemd's groups of system calls.
func expand(t *testing.T, group string) map[string]bool {
	t.Helper()
	out, err := analyze(".", "syscall-filter", group)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	calls := map[string]bool{}
	for _, line := range strings.Split(out, "\n")[1:] {
		switch line = strings.TrimSpace(line); {
		case line == "" || line[0] == '#':
		case line[0] == '@':
			for call := range expand(t, line) {
				calls[call] = true
			}
		default:
			calls[line] = true
		}
	}
	return calls
}

func TestTheUnitsFilterLetsEverySystemCallOfTheAgentPass(t *testing.T) {
	unit, err := os.ReadFile(deploy("systemd", "lifeboat.service"))
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{}
	for _, filter := range regexp.MustCompile(`(?m)^SystemCallFilter=(~?)(.+)$`).FindAllStringSubmatch(string(unit), -1) {
		for _, group := range strings.Fields(filter[2]) {
			for call := range expand(t, group) {
				allowed[call] = filter[1] == ""
			}
		}
	}
	dir := t.TempDir()
	member, err := etcdtest.StartEmbedded(filepath.Join(dir, "etcd"), etcdtest.EmbeddedOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = member.Close() })
	root := filepath.Join(dir, "host")
	if err := kubefixture.Build(root, kubefixture.Options{}); err != nil {
		t.Fatal(err)
	}
	program, lifeboat := build(t)
	keys := filepath.Join(dir, "keys")
	lifeboat("", "init", "--cluster", "prod", "--store", "file://"+filepath.Join(dir, "store"), "--out", keys, "--host-root", root, "--node", "cp1", "--etcd", member.Endpoint)
	config := filepath.Join(keys, "config.yaml")
	edit(t, config, "stateDir", filepath.Join(dir, "state"))
	counts := filepath.Join(dir, "counts")
	out, err := exec.Command("strace", "-f", "-c", "-o", counts, program, "agent", "--once", "--config", config).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "chain=etcd/main") {
		t.Fatalf("the agent took no backup:\n%s", out)
	}
	text, err := os.ReadFile(counts)
	if err != nil {
		t.Fatal(err)
	}
	used := 0
	for line := range strings.Lines(string(text)) {
		var share, seconds float64
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[len(fields)-1] == "total" {
			continue
		}
		if n, _ := fmt.Sscan(line, &share, &seconds); n != 2 {
			continue // the heading
		}
		used++
		if call := fields[len(fields)-1]; !allowed[call] {
			t.Errorf("the unit forbids %s, which the agent uses", call)
		}
	}
	if used < 30 || allowed["setuid"] || allowed["mount"] {
		t.Errorf("%d system calls were seen; the filter allows %d", used, len(allowed))
	}
}
