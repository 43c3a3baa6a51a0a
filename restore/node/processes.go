package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a running process, as it was when it was looked at.
type Process struct {
	PID         int
	Program     string    // the base of Args[0]
	Args        []string  // argv
	Start       time.Time // to 10 ms, by the clock of now: it moves when the clock is set
	Container   string    // the id of the container that its control group is of; empty: none
	HostNetwork bool      // it is in the machine's own network; true also if that can't be seen
	ticks       uint64    // since boot, at its start: with PID it is one process only
}

func (p Process) String() string {
	return fmt.Sprintf("process %d (%s)", p.PID, p.Program)
}

// ofMachine says whether the process is one of the machine itself, and not of a
// container or of a machine in one.
func (p Process) ofMachine() bool { return p.Container == "" && p.HostNetwork }

// Processes implements Machine. A process that ends meanwhile is left out, as is
// one that has ended and waits for its parent.
func (l *Local) Processes(ctx context.Context, programs ...string) ([]Process, error) {
	pids, err := l.pids()
	if err != nil {
		return nil, err
	}
	boot, err := l.bootTime()
	if err != nil {
		return nil, err
	}
	own, _ := os.Readlink(l.path("proc/1/ns/net"))
	container := l.container(1)
	var out []Process
	for _, pid := range pids {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		args, err := l.args(pid)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the arguments of process %d: %w", pid, err)
		}
		if len(args) == 0 || len(programs) > 0 && !slices.Contains(programs, path.Base(args[0])) {
			continue
		}
		ticks, err := l.started(pid)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		p := Process{PID: pid, Program: path.Base(args[0]), Args: args, Start: boot.Add(time.Duration(ticks) * time.Second / userHZ), ticks: ticks}
		// Where this machine is a container itself, its id is in every group's name.
		if p.Container = l.container(pid); p.Container == container {
			p.Container = ""
		}
		network, err := os.Readlink(l.path("proc", strconv.Itoa(pid), "ns/net"))
		p.HostNetwork = err != nil || own == "" || network == own
		out = append(out, p)
	}
	return out, nil
}

// userHZ is the unit of times in /proc on every architecture that Go knows
// (proc_pid_stat(5), sysconf(_SC_CLK_TCK)).
const userHZ = 100

// WaitGone implements Machine.
func (l *Local) WaitGone(ctx context.Context, processes []Process) error {
	for {
		var alive []string
		for _, p := range processes {
			ticks, err := l.started(p.PID)
			switch {
			case gone(err):
			case err != nil:
				return err
			case ticks == p.ticks:
				alive = append(alive, p.String())
			}
		}
		if len(alive) == 0 {
			return nil
		}
		if err := l.sleep(ctx, lookAgain); err != nil {
			return fmt.Errorf("wait for the end of processes: %w: %s: %w", ErrAlive, strings.Join(alive, ", "), err)
		}
	}
}

// pids returns the numbers of all processes, in order.
func (l *Local) pids() ([]int, error) {
	entries, err := os.ReadDir(l.path("proc"))
	if err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// gone says whether an error means that a process has ended.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// args returns a process's argv; none for the kernel's own and for one that has
// ended.
func (l *Local) args(pid int) ([]string, error) {
	data, err := os.ReadFile(l.path("proc", strconv.Itoa(pid), "cmdline"))
	if err != nil || len(data) == 0 {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00"), nil
}

// started returns when a process began, in ticks since boot. fs.ErrNotExist if
// it has ended, whether or not its parent has noticed.
func (l *Local) started(pid int) (uint64, error) {
	file := l.path("proc", strconv.Itoa(pid), "stat")
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	// The name stands in parentheses and may hold any character.
	_, rest, ok := cutLast(string(data), ")")
	fields := strings.Fields(rest)
	const state, starttime = 0, 19 // fields 3 and 22 of proc_pid_stat(5)
	if !ok || len(fields) <= starttime {
		return 0, fmt.Errorf("read %s: it has not the form of proc_pid_stat(5)", file)
	}
	if fields[state] == "Z" || fields[state] == "X" {
		return 0, fmt.Errorf("process %d has ended: %w", pid, fs.ErrNotExist)
	}
	ticks, err := strconv.ParseUint(fields[starttime], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: the start time: %w", file, err)
	}
	return ticks, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// bootTime returns when the machine booted, by the clock of now.
func (l *Local) bootTime() (time.Time, error) {
	file := l.path("proc/stat")
	data, err := os.ReadFile(file)
	if err != nil {
		return time.Time{}, fmt.Errorf("when this machine booted: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "btime "); ok {
			seconds, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			if err != nil {
				return time.Time{}, fmt.Errorf("when this machine booted: %s: %w", file, err)
			}
			return time.Unix(seconds, 0).UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("when this machine booted: %s has no btime", file)
}

// containerID is in the names of control groups, whichever runtime and driver.
var containerID = regexp.MustCompile(`[0-9a-f]{64}`)

// container returns the innermost container that a process's control groups name.
func (l *Local) container(pid int) string {
	data, err := os.ReadFile(filepath.Join(l.path("proc"), strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return "" // it has ended, or the kernel has no control groups
	}
	for line := range strings.Lines(string(data)) {
		if ids := containerID.FindAllString(line, -1); len(ids) > 0 {
			return ids[len(ids)-1]
		}
	}
	return ""
}
