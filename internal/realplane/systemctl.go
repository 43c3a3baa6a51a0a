package realplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// systemctl stands in for systemd's program of that name, which a real master
// has and a machine of a plane has not: no systemd runs there. In each machine
// this test binary lies under that name at the front of the search path, and asks
// the machine's PID 1 (supervise.go) for containerd and kubelet. So restore/node
// and kubeadm, which both call systemctl, take the same way as on a real master.
//
// It knows show, status, is-active, is-enabled, start, stop, restart, enable,
// disable (--now) and daemon-reload, and prints and exits as systemd 252 does.
// Stop and start wait; there are no unit files, so daemon-reload has nothing to
// do. Whatever it doesn't know it refuses: a test must not pass because an order
// was ignored.

// systemctlName is the name under which the test binary is systemctl.
const systemctlName = "systemctl"

// supervisorSocket is where the supervisor of a machine listens.
const supervisorSocket = "/run/machine/supervisor.sock"

// supervisorVariable names another socket, in tests without machines.
const supervisorVariable = "LIFEBOAT_REALPLANE_SUPERVISOR"

// Exit codes of systemctl(1), after LSB.
const (
	exitFailed     = 1
	exitNotRunning = 3
	exitUnknown    = 4
	exitNoUnit     = 5
)

// systemctlCall is a parsed command line.
type systemctlCall struct {
	verb       string
	units      []string
	properties []string // none: all
	value      bool     // print values only
	now        bool     // enable and disable: start or stop, too
	noBlock    bool
	quiet      bool
	ask        func(verb, unit string) (unitState, error)
	stdout     io.Writer
	stderr     io.Writer
}

func systemctl(args []string) (code int) {
	socket := os.Getenv(supervisorVariable)
	if socket == "" {
		socket = supervisorSocket
	}
	c := &systemctlCall{stdout: os.Stdout, stderr: os.Stderr, ask: func(verb, unit string) (unitState, error) { return askSupervisor(socket, verb, unit) }}
	if err := c.parse(args); err != nil {
		fmt.Fprintln(c.stderr, err)
		return exitFailed
	}
	return c.run()
}

// fail says why, in systemd's own words where it has any.
func (c *systemctlCall) fail(code int, format string, args ...any) int {
	fmt.Fprintf(c.stderr, format+"\n", args...)
	return code
}

// askSupervisor sends one question.
func askSupervisor(socket, verb, unit string) (state unitState, err error) {
	conn, err := net.DialTimeout("unix", socket, 5*time.Second)
	if err != nil {
		return state, fmt.Errorf("reach the machine's supervisor: %w", err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if err := json.NewEncoder(conn).Encode(question{Verb: verb, Unit: unit}); err != nil {
		return state, err
	}
	return state, json.NewDecoder(conn).Decode(&state)
}

func (c *systemctlCall) parse(args []string) error {
	var words []string
	for i := 0; i < len(args); i++ {
		name, value, has := strings.Cut(args[i], "=")
		switch name {
		case "--no-pager", "--no-ask-password", "--full", "-l":
		case "--quiet", "-q":
			c.quiet = true
		case "--now":
			c.now = true
		case "--no-block":
			c.noBlock = true
		case "--value":
			c.value = true
		case "--property", "-p":
			if !has && i+1 < len(args) {
				i++
				value = args[i]
			}
			c.properties = append(c.properties, strings.Split(value, ",")...)
		default:
			if strings.HasPrefix(name, "-") {
				return fmt.Errorf("systemctl: the stand-in of a test machine does not know option %s", args[i])
			}
			words = append(words, args[i])
		}
	}
	if len(words) == 0 {
		return errors.New("systemctl: the stand-in of a test machine wants a verb")
	}
	c.verb, c.units = words[0], words[1:]
	if c.verb != "daemon-reload" && len(c.units) == 0 {
		return fmt.Errorf("systemctl: the stand-in of a test machine wants a unit for %s", c.verb)
	}
	for i, u := range c.units {
		if !strings.HasSuffix(u, ".service") {
			c.units[i] = u + ".service"
		}
	}
	return nil
}

func (c *systemctlCall) run() (code int) {
	each := map[string]func(unit string, s unitState) int{
		"show": c.show, "status": c.status, "is-active": c.isActive, "is-enabled": c.isEnabled,
		"start": c.start, "stop": c.stop, "restart": c.restart, "enable": c.enable, "disable": c.enable,
	}[c.verb]
	if c.verb == "reset-failed" { // nothing fails for good here: what ends is started again
		return 0
	}
	if c.verb == "daemon-reload" {
		c.units, each = []string{""}, func(string, unitState) int { return 0 } // fails where there is nobody to reload
	}
	if each == nil {
		return c.fail(exitFailed, "systemctl: the stand-in of a test machine does not know verb %s", c.verb)
	}
	for _, unit := range c.units {
		s, err := c.ask("show", unit)
		if err != nil {
			return c.fail(exitFailed, "Failed to connect to bus: %v", err)
		}
		if code := each(unit, s); code != 0 {
			return code
		}
	}
	return 0
}

func (c *systemctlCall) show(unit string, s unitState) int {
	for _, p := range [][2]string{
		{"MainPID", strconv.Itoa(s.MainPID)}, {"Id", unit}, {"LoadState", s.LoadState}, {"ActiveState", s.ActiveState},
		{"SubState", s.SubState}, {"UnitFileState", s.UnitFileState},
	} {
		if len(c.properties) > 0 && !slices.Contains(c.properties, p[0]) {
			continue
		}
		if c.value {
			fmt.Fprintln(c.stdout, p[1])
		} else {
			fmt.Fprintf(c.stdout, "%s=%s\n", p[0], p[1])
		}
	}
	return 0
}

func (c *systemctlCall) status(unit string, s unitState) int {
	if s.LoadState == "not-found" {
		return c.fail(exitUnknown, "Unit %s could not be found.", unit)
	}
	fmt.Fprintf(c.stdout, "* %s\n     Loaded: %s (%s)\n     Active: %s (%s)\n   Main PID: %d\n", unit, s.LoadState, s.UnitFileState, s.ActiveState, s.SubState, s.MainPID)
	if s.ActiveState != "active" {
		return exitNotRunning
	}
	return 0
}

func (c *systemctlCall) isActive(_ string, s unitState) int {
	if !c.quiet {
		fmt.Fprintln(c.stdout, s.ActiveState)
	}
	if s.ActiveState != "active" {
		return exitNotRunning
	}
	return 0
}

func (c *systemctlCall) isEnabled(unit string, s unitState) int {
	if s.LoadState == "not-found" {
		return c.fail(exitFailed, "Failed to get unit file state for %s: No such file or directory", unit)
	}
	if !c.quiet {
		fmt.Fprintln(c.stdout, s.UnitFileState)
	}
	if s.UnitFileState != "enabled" {
		return exitFailed
	}
	return 0
}

// order sends a verb and waits until the state is one of those; none: not at all.
func (c *systemctlCall) order(verb, unit string, until ...string) int {
	s, err := c.ask(verb, unit)
	if err == nil && s.LoadState == "not-found" {
		return c.fail(exitNoUnit, "Failed to %s %s: Unit %s not found.", verb, unit, unit)
	}
	for deadline := time.Now().Add(stopLimit + 10*time.Second); err == nil && !c.noBlock && len(until) > 0 && !slices.Contains(until, s.ActiveState); time.Sleep(tick) {
		if time.Now().After(deadline) {
			return c.fail(exitFailed, "Job for %s failed: it is still %s", unit, s.ActiveState)
		}
		s, err = c.ask("show", unit)
	}
	if err != nil {
		return c.fail(exitFailed, "Failed to %s %s: %v", verb, unit, err)
	}
	return 0
}

// A start is done once the program was begun, or can't be and is tried again.
func (c *systemctlCall) start(unit string, _ unitState) int {
	return c.order("start", unit, "active", "activating")
}

func (c *systemctlCall) stop(unit string, _ unitState) int {
	return c.order("stop", unit, "inactive")
}

func (c *systemctlCall) restart(unit string, s unitState) int {
	if code := c.stop(unit, s); code != 0 {
		return code
	}
	return c.start(unit, s)
}

// enable does disable, too.
func (c *systemctlCall) enable(unit string, s unitState) int {
	if code := c.order(c.verb, unit); code != 0 || !c.now {
		return code
	}
	if c.verb == "enable" {
		return c.start(unit, s)
	}
	return c.stop(unit, s)
}
