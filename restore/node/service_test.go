package node_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/restore/node"
)

// fakeSystemctl is a systemctl whose one unit's state is in a folder.
const fakeSystemctl = `#!/bin/sh
cd "$SYSTEMCTL_STATE" || exit 9
echo "$*" >> calls
[ "$1 $2" = "--no-pager --no-ask-password" ] || exit 9
shift 2
case "$1" in
show) cat show ;;
stop|start|daemon-reload|reset-failed)
	if [ -e hang ]; then exec sleep 60; fi
	verb=$1; [ "$2" != --no-block ] || shift
	if [ -e fail ]; then echo "Failed to $verb $2: Unit is masked." >&2; exit 1; fi
	if [ -e "after-$verb" ]; then cp "after-$verb" show; fi ;;
*) exit 9 ;;
esac
`

// systemd makes the tree one that systemd runs and returns systemd's folder.
func (tr *tree) systemd(show string) (state string) {
	tr.t.Helper()
	state = tr.t.TempDir()
	tr.write("run/systemd/system/x", "")
	bin := tr.t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "systemctl"), []byte(fakeSystemctl), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	tr.t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	tr.t.Setenv("SYSTEMCTL_STATE", state)
	put(tr.t, state, "show", show)
	return state
}

func put(t *testing.T, folder, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func calls(t *testing.T, state string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(state, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	var verbs []string
	for line := range strings.Lines(string(text)) {
		verbs = append(verbs, strings.Fields(line)[2])
	}
	return verbs
}

const (
	runs  = "LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nMainPID=77\n"
	rests = "LoadState=loaded\nActiveState=inactive\nUnitFileState=enabled\nMainPID=0\n"
)

func TestKubeletBySystemd(t *testing.T) {
	tr := newTree(t)
	state := tr.systemd(runs)
	put(t, state, "after-stop", rests)
	put(t, state, "after-start", runs)
	m := node.New(node.Options{Root: tr.root})
	for range 2 { // what is so already is left
		got, err := m.Service(t.Context(), node.Kubelet)
		want := node.Service{Name: "kubelet", Unit: "kubelet.service", Active: "active", Enabled: "enabled", PID: 77}
		if err != nil || got != want || got.Stopped() {
			t.Fatalf("got %+v, %v", got, err)
		}
		for range 2 {
			if err := m.Stop(t.Context(), node.Kubelet); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := m.Service(t.Context(), node.Kubelet); err != nil || !got.Stopped() {
			t.Fatalf("after stopping %+v, %v", got, err)
		}
		for range 2 {
			if err := m.Start(t.Context(), node.Kubelet); err != nil {
				t.Fatal(err)
			}
		}
	}
	var orders []string
	for _, verb := range calls(t, state) {
		if verb != "show" {
			orders = append(orders, verb)
		}
	}
	want := strings.Fields("stop daemon-reload start daemon-reload stop daemon-reload start daemon-reload")
	if diff := cmp.Diff(want, orders); diff != "" {
		t.Error(diff)
	}
}

func TestStates(t *testing.T) {
	for _, c := range []struct {
		name, show string
		stopped    bool
		unit       string
	}{
		{"restarted again and again", "LoadState=loaded\nActiveState=activating\nMainPID=0\n", false, "kubelet.service"},
		{"failed", "LoadState=loaded\nActiveState=failed\nMainPID=0\n", true, "kubelet.service"},
		{"masked", "LoadState=masked\nActiveState=inactive\nUnitFileState=masked\nMainPID=0\n", true, "kubelet.service"},
		{"no unit", "LoadState=not-found\nActiveState=inactive\nMainPID=0\n", true, ""},
		{"its unit was removed while it runs", "LoadState=not-found\nActiveState=active\nMainPID=5\n", false, "kubelet.service"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := newTree(t)
			tr.systemd(c.show)
			got, err := node.New(node.Options{Root: tr.root}).Service(t.Context(), node.Kubelet)
			if err != nil || got.Stopped() != c.stopped || got.Unit != c.unit {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestSystemdFails(t *testing.T) {
	for _, c := range []struct {
		name, file, text, says string
	}{
		{"an order fails", "fail", "", "systemctl stop kubelet.service: exit status 1"},
		{"its words are in the error", "fail", "", "Unit is masked."},
		{"it says done and is not", "after-stop", runs, "still running after systemctl stop: it is active, pid 77"},
		{"it tells nothing", "show", "\n", "did not tell the state"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := newTree(t)
			state := tr.systemd(runs)
			put(t, state, c.file, c.text)
			err := node.New(node.Options{Root: tr.root}).Stop(t.Context(), node.Kubelet)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v should say %q", err, c.says)
			}
		})
	}
	t.Run("the context ends it", func(t *testing.T) {
		tr := newTree(t)
		put(t, tr.systemd(runs), "hang", "")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, errors.New("the operator has left"))
		defer cancel()
		began := time.Now()
		err := node.New(node.Options{Root: tr.root}).Stop(ctx, node.Kubelet)
		if err == nil || !strings.Contains(err.Error(), "the operator has left") || time.Since(began) > 20*time.Second {
			t.Errorf("error %v after %v", err, time.Since(began))
		}
	})
}

func TestWithoutSystemdAPersonMustDoIt(t *testing.T) {
	tr := newTree(t)
	m := node.New(node.Options{Root: tr.root})
	if err := m.Stop(t.Context(), node.Kubelet); err != nil {
		t.Errorf("stop what does not run: %v", err)
	}
	if err := m.Start(t.Context(), node.Kubelet); !errors.Is(err, node.ErrByHand) {
		t.Errorf("start: %v", err)
	}
	tr.process(9, 3, "", "kubelet")
	tr.network(9, "net:[2]") // of another machine, in a container of this one
	if got, err := m.Service(t.Context(), node.Kubelet); err != nil || !got.Stopped() {
		t.Errorf("with another's kubelet: %+v, %v", got, err)
	}
	tr.process(10, 3, "", "kubelet")
	if got, err := m.Service(t.Context(), node.Kubelet); err != nil || got.PID != 10 || got.Stopped() {
		t.Errorf("with a kubelet: %+v, %v", got, err)
	}
	if err := m.Stop(t.Context(), node.Kubelet); !errors.Is(err, node.ErrByHand) || !strings.Contains(err.Error(), "process 10") {
		t.Errorf("stop: %v", err)
	}
	if err := m.Start(t.Context(), node.Kubelet); err != nil {
		t.Errorf("start what runs: %v", err)
	}
}

func TestAProcessBesideAStoppedUnitIsTold(t *testing.T) {
	tr := newTree(t)
	tr.systemd(rests)
	tr.process(10, 3, "", "kubelet")
	m := node.New(node.Options{Root: tr.root})
	if err := m.Stop(t.Context(), node.Kubelet); !errors.Is(err, node.ErrByHand) || !strings.Contains(err.Error(), "beside") {
		t.Errorf("stop: %v", err)
	}
}

// An etcd of Type=notify has started, for systemd, once most of its members have.
func TestAStartDoesNotWaitForOtherHosts(t *testing.T) {
	tr := newTree(t)
	state := tr.systemd(rests)
	m := node.New(node.Options{Root: tr.root})
	put(t, state, "after-start", "LoadState=loaded\nActiveState=activating\nUnitFileState=enabled\nMainPID=77\n")
	if err := m.Start(t.Context(), node.Etcd); err != nil {
		t.Errorf("activating: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(state, "calls"))
	if err != nil || !strings.Contains(string(text), "start --no-block etcd.service") {
		t.Errorf("%v; called:\n%s", err, text)
	}
	put(t, state, "show", "LoadState=loaded\nActiveState=failed\nUnitFileState=enabled\nResult=exit-code\nMainPID=0\n") // since its data is lost
	put(t, state, "after-reset-failed", rests)
	put(t, state, "after-start", runs)
	if err := m.Start(t.Context(), node.Etcd); err != nil {
		t.Errorf("it had failed before: %v", err)
	}
	put(t, state, "show", rests)
	put(t, state, "after-start", "LoadState=loaded\nActiveState=failed\nUnitFileState=enabled\nResult=exit-code\nMainPID=0\n")
	if err := m.Start(t.Context(), node.Etcd); err == nil || !strings.Contains(err.Error(), "it has failed (exit-code); see journalctl -u etcd") {
		t.Errorf("failed: %v", err)
	}
}
