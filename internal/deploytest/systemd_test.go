//go:build deploy

package deploytest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
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
