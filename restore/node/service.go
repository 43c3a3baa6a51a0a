package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Services of a control-plane node. Each is a systemd unit of that name and the
// base of the program's argv[0].
const (
	Kubelet = "kubelet"
	Etcd    = "etcd"
)

// Service is the state of a service.
type Service struct {
	Name    string
	Unit    string // systemd's unit; empty if systemd doesn't run it
	Active  string // systemd's ActiveState: active, activating, inactive, failed, ...
	Enabled string // systemd's UnitFileState: enabled, disabled, masked, ...
	Result  string // systemd's Result of the last run: success, exit-code, timeout, ...
	PID     int    // of its main process; 0: none
}

// Stopped says whether no process of the service runs and systemd starts none,
// but at boot. A service that systemd restarts again and again has not stopped.
func (s Service) Stopped() bool {
	return s.PID == 0 && (s.Unit == "" || s.Active == "inactive" || s.Active == "failed")
}

// Limits of one systemctl. Stopping takes up to TimeoutStopSec, 90 s by default.
const (
	askLimit   = 20 * time.Second
	orderLimit = 3 * time.Minute
)

// startPause is between two looks at a service that was ordered to start.
const startPause = 100 * time.Millisecond

// Service implements Machine. Processes in containers and in other network
// namespaces are of other machines, not of this one's service.
func (l *Local) Service(ctx context.Context, name string) (Service, error) {
	s := Service{Name: name}
	if l.systemd() {
		unit := name + ".service"
		out, err := systemctl(ctx, askLimit, "show", "--property=LoadState,ActiveState,UnitFileState,Result,MainPID", unit)
		if err != nil {
			return s, fmt.Errorf("ask systemd for %s: %w", unit, err)
		}
		properties := map[string]string{}
		for line := range strings.Lines(out) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			properties[key] = value
		}
		if properties["ActiveState"] == "" {
			return s, fmt.Errorf("ask systemd for %s: it did not tell the state, but %q", unit, out)
		}
		if state := properties["LoadState"]; state != "not-found" || properties["ActiveState"] != "inactive" {
			s.Unit, s.Active, s.Enabled, s.Result = unit, properties["ActiveState"], properties["UnitFileState"], properties["Result"]
			s.PID, _ = strconv.Atoi(properties["MainPID"]) // absent: none
		}
	}
	if s.PID != 0 {
		return s, nil
	}
	processes, err := l.Processes(ctx, name)
	if err != nil {
		return s, fmt.Errorf("look for %s: %w", name, err)
	}
	for _, p := range processes {
		if p.ofMachine() {
			s.PID = p.PID
			break
		}
	}
	return s, nil
}

// Stop implements Machine.
func (l *Local) Stop(ctx context.Context, name string) error {
	s, err := l.Service(ctx, name)
	if err != nil || s.Stopped() {
		return err
	}
	if s.Unit == "" {
		return fmt.Errorf("stop %s: %w: process %d is not run by systemd; stop it with whatever started it, so that it does not come back, then go on", name, ErrByHand, s.PID)
	}
	if s.Active == "inactive" || s.Active == "failed" {
		return fmt.Errorf("stop %s: %w: process %d runs beside the unit %s, which is %s; end it, then go on", name, ErrByHand, s.PID, s.Unit, s.Active)
	}
	if _, err := systemctl(ctx, orderLimit, "stop", s.Unit); err != nil {
		return fmt.Errorf("stop %s: %w", s.Unit, err)
	}
	if s, err = l.Service(ctx, name); err != nil {
		return err
	}
	if !s.Stopped() {
		return fmt.Errorf("stop %s: %w after systemctl stop: it is %s, pid %d; see systemctl status %s", s.Unit, ErrAlive, s.Active, s.PID, s.Unit)
	}
	return nil
}

// Start implements Machine. systemd reads its units anew first, since a restore
// may have brought others. It does not wait for what the program itself says of
// its start: an etcd of Type=notify tells it when it has a quorum, for which
// other hosts may be needed.
func (l *Local) Start(ctx context.Context, name string) error {
	if l.systemd() {
		if _, err := systemctl(ctx, orderLimit, "daemon-reload"); err != nil {
			return fmt.Errorf("start %s: let systemd read its units: %w", name, err)
		}
	}
	s, err := l.Service(ctx, name)
	if err != nil {
		return err
	}
	if s.Unit == "" && s.PID != 0 {
		return nil
	}
	if s.Unit == "" {
		return fmt.Errorf("start %s: %w: systemd doesn't run it on this machine; start it with what runs it here", name, ErrByHand)
	}
	if s.Active == "active" {
		return nil
	}
	if s.Active == "failed" { // so that a failure that is seen from now on is not that of the run before
		if _, err := systemctl(ctx, askLimit, "reset-failed", s.Unit); err != nil {
			return fmt.Errorf("start %s: %w", s.Unit, err)
		}
	}
	if _, err := systemctl(ctx, orderLimit, "start", "--no-block", s.Unit); err != nil {
		return fmt.Errorf("start %s: %w; see journalctl -u %s", s.Unit, err, s.Unit)
	}
	if err := l.underWay(ctx, name); err != nil {
		return fmt.Errorf("start %s: %w; see journalctl -u %s", s.Unit, err, s.Unit)
	}
	return nil
}

// underWay waits until a service that was ordered to start has a process.
func (l *Local) underWay(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, orderLimit, fmt.Errorf("it has no process after %v", orderLimit))
	defer cancel()
	for {
		s, err := l.Service(ctx, name)
		switch {
		case err != nil:
			return err
		case s.Active == "active", s.Active == "activating" && s.PID != 0:
			return nil
		case s.Active == "failed":
			return fmt.Errorf("it has failed (%s)", s.Result)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it is %s: %w", s.Active, context.Cause(ctx))
		case <-time.After(startPause):
		}
	}
}

// systemd says whether systemd runs this machine (sd_booted(3)).
func (l *Local) systemd() bool {
	info, err := os.Lstat(l.path("run/systemd/system"))
	return err == nil && info.IsDir()
}

// systemctl runs one command. An error has what it printed.
func systemctl(ctx context.Context, limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no end after %v", limit))
	defer cancel()
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, "systemctl", append([]string{"--no-pager", "--no-ask-password"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_COLORS=0")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err == nil {
		return stdout.String(), nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	said := strings.TrimSpace(stderr.String() + stdout.String())
	if said != "" {
		said = ": " + said[:min(len(said), 2000)]
	}
	return "", fmt.Errorf("systemctl %s: %w%s", strings.Join(args, " "), err, said)
}
