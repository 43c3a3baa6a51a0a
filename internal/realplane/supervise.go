package realplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// How the supervisor treats its services.
const (
	restartAfter = time.Second      // between the end of a service and its next start; the packages' units have 5 and 10 s
	stopLimit    = 90 * time.Second // from SIGTERM to SIGKILL: systemd's DefaultTimeoutStopSec
	offLimit     = 10 * time.Second // from SIGTERM to the power's end, when the machine is switched off
	tick         = 50 * time.Millisecond
)

// supervisor is what a machine has instead of systemd: it keeps containerd and
// kubelet running, reaps what ends, and does what systemctl.go asks.
type supervisor struct {
	services []*service
	asked    chan question
}

// service is a program that the supervisor keeps running.
type service struct {
	name     string
	disabled string      // a file; while it is there the service does not start at boot
	unit     string      // a file without which there is no such unit; empty: the unit is always there
	able     func() bool // false: a start would fail at once
	command  func() []string
	log      string

	wanted  bool      // it is to run, and to be started again when it ends
	pid     int       // 0: not running
	started time.Time // the last try
	told    time.Time // when it got SIGTERM
}

// unitState is a service as systemd's properties tell it.
type unitState struct {
	LoadState, ActiveState, SubState, UnitFileState string
	MainPID                                         int
}

// question is what systemctl sends: a verb and a unit's name without ".service".
type question struct {
	Verb, Unit string
	answer     chan unitState
}

// newSupervisor has the services of a kubeadm machine. The cgroup is given to
// kubelet as the root of all that it makes: it belongs to the machine, whatever
// files a restore brings.
func newSupervisor(cgroup string) *supervisor {
	return &supervisor{asked: make(chan question), services: []*service{
		{
			name: "containerd", disabled: "/var/lib/machine/containerd-off", log: "/var/log/containerd.log",
			able:    func() bool { return true },
			command: func() []string { return []string{"containerd", "-c", "/etc/containerd/config.toml"} },
		},
		{
			name: "kubelet", disabled: kubeletSwitch, log: "/var/log/kubelet.log",
			able:    kubeletAble,
			command: func() []string { return kubeletCommand(cgroup) },
		},
		etcdService(),
	}}
}

// kubeletSwitch is a file that keeps kubelet off, across power cuts too.
const kubeletSwitch = "/var/lib/machine/kubelet-off"

// kubeletAble stands for the kubelet package's unit, which restarts for ever
// where kubelet's configuration, which kubeadm writes, is missing.
func kubeletAble() bool {
	info, err := os.Stat("/var/lib/kubelet/config.yaml")
	return err == nil && info.Size() > 0
}

// kubeletCommand is that of kubeadm's unit file, by a shell because of the
// environment file.
func kubeletCommand(cgroup string) []string {
	return []string{"/bin/sh", "-c", `[ ! -e /var/lib/kubelet/kubeadm-flags.env ] || . /var/lib/kubelet/kubeadm-flags.env
exec kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf \
	--config=/var/lib/kubelet/config.yaml $KUBELET_KUBEADM_ARGS --cgroup-root="$0"`, cgroup}
}

// run starts what is enabled and supervises until the machine is switched off
// by SIGTERM. A power cut kills it.
func (s *supervisor) run(socket string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listen for systemctl: %w", err)
	}
	defer l.Close()
	go s.listen(l)
	off := make(chan os.Signal, 1)
	signal.Notify(off, syscall.SIGTERM)
	for _, v := range s.services {
		v.wanted = v.enabled() && v.loaded()
	}
	beat := time.NewTicker(tick)
	defer beat.Stop()
	for {
		for _, v := range s.services {
			if err := v.tend(); err != nil {
				return err
			}
		}
		select {
		case <-beat.C:
		case q := <-s.asked:
			q.answer <- s.do(q)
		case <-off:
			return s.off()
		}
		s.reap()
	}
}

// off ends every process of the machine, in an orderly way if they let it.
func (s *supervisor) off() error {
	for _, v := range s.services {
		v.wanted = false
	}
	if os.Getpid() != 1 { // in a test it has no machine of its own
		for _, v := range s.services {
			v.kill(syscall.SIGTERM)
		}
		return nil
	}
	_ = syscall.Kill(-1, syscall.SIGTERM) // all but this one
	for deadline := time.Now().Add(offLimit); time.Now().Before(deadline); time.Sleep(tick) {
		if !s.reap() {
			break
		}
	}
	syscall.Sync()
	return nil
}

// reap takes note of what has ended, and says whether anything is left.
func (s *supervisor) reap() (left bool) {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err != nil || pid <= 0 {
			return err == nil || errors.Is(err, syscall.EINTR)
		}
		for _, v := range s.services {
			if v.pid == pid {
				v.pid, v.told = 0, time.Time{}
			}
		}
	}
}

func (v *service) enabled() bool {
	_, err := os.Stat(v.disabled)
	return err != nil
}

func (v *service) loaded() bool {
	if v.unit == "" {
		return true
	}
	_, err := os.Stat(v.unit)
	return err == nil
}

func (v *service) kill(s syscall.Signal) {
	if v.pid != 0 {
		_ = syscall.Kill(v.pid, s) // it may have ended by itself
	}
}

// tend starts a service that is to run and doesn't, and ends one that is not to.
func (v *service) tend() error {
	switch {
	case v.pid != 0 && !v.wanted && v.told.IsZero():
		v.told = time.Now()
		v.kill(syscall.SIGTERM)
	case v.pid != 0 && !v.told.IsZero() && time.Since(v.told) > stopLimit:
		v.kill(syscall.SIGKILL)
	case v.pid == 0 && v.wanted && time.Since(v.started) > restartAfter && v.able():
		return v.start()
	}
	return nil
}

func (v *service) start() error {
	v.started = time.Now()
	log, err := os.OpenFile(v.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	if err := os.Setenv("PATH", Path); err != nil {
		return err
	}
	args := v.command()
	program, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("start %s: %w", v.name, err)
	}
	process, err := os.StartProcess(program, args, &os.ProcAttr{
		Env: []string{"PATH=" + Path, "HOME=/root"}, Files: []*os.File{nil, log, log}, Dir: "/",
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", v.name, err)
	}
	v.pid = process.Pid
	return process.Release() // reap waits for it
}

// listen passes systemctl's questions to run, one a connection.
func (s *supervisor) listen(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			q := question{answer: make(chan unitState, 1)}
			if json.NewDecoder(conn).Decode(&q) != nil {
				return
			}
			s.asked <- q
			_ = json.NewEncoder(conn).Encode(<-q.answer) // whoever asked may be gone
		}()
	}
}

// do carries out a verb, without waiting for its end, and tells the state then.
func (s *supervisor) do(q question) unitState {
	i := slices.IndexFunc(s.services, func(v *service) bool { return v.name == strings.TrimSuffix(q.Unit, ".service") })
	if i < 0 {
		return unitState{LoadState: "not-found", ActiveState: "inactive", SubState: "dead"}
	}
	v := s.services[i]
	if !v.loaded() && q.Verb != "stop" {
		return v.state() // a lost unit's service runs on, and can be stopped
	}
	switch q.Verb {
	case "start":
		v.wanted, v.started = true, time.Time{}
	case "stop":
		v.wanted = false
	case "enable":
		_ = os.Remove(v.disabled) // the state tells whether it worked
	case "disable":
		_ = os.WriteFile(v.disabled, nil, 0o644)
	}
	_ = v.tend() // what fails here fails again, in run
	return v.state()
}

func (v *service) state() unitState {
	u := unitState{LoadState: "loaded", UnitFileState: "enabled", MainPID: v.pid}
	if !v.loaded() {
		u.LoadState = "not-found"
	}
	if u.LoadState == "not-found" {
		u.UnitFileState = ""
	} else if !v.enabled() {
		u.UnitFileState = "disabled"
	}
	switch {
	case v.wanted && v.pid != 0:
		u.ActiveState, u.SubState = "active", "running"
	case v.wanted:
		u.ActiveState, u.SubState = "activating", "auto-restart"
	case v.pid != 0:
		u.ActiveState, u.SubState = "deactivating", "stop-sigterm"
	default:
		u.ActiveState, u.SubState = "inactive", "dead"
	}
	return u
}
