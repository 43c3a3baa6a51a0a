package realplane

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The plane's network. Machine cpN has the address 10.77.0.1N; the tests
// themselves are at the Gateway, where the machines reach them.
const (
	Gateway = "10.77.0.1"
	bridge  = "plane0"
)

// Backups is a folder that all machines of a plane share and that outlives them.
// Plane.Backups is where the tests find it.
const Backups = "/backups"

// Path is the search path in a machine.
const Path = "/opt/machine:/opt/kube:/opt/etcd:/opt/lifeboat:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Plane is a set of machines on one network. It ends with the test.
type Plane struct {
	Machines []*Machine // also those that are off or were replaced
	Backups  string     // the machines' folder of that name

	t        testing.TB
	work     string // folder on the host's disk
	cgroup   string
	balancer *balancer
	cluster  *cluster // nil before InitControlPlane
	began    time.Time
}

// Start switches on as many machines, each with an empty disk, an own kubelet
// waiting for its configuration, and the control plane's images imported. The
// test is skipped unless EnableVariable is set.
func Start(t testing.TB, machines int) *Plane {
	t.Helper()
	cgroup := Require(t)
	work, err := os.MkdirTemp(os.Getenv(workVariable), "plane-")
	if err != nil {
		t.Fatal(err)
	}
	p := &Plane{t: t, work: work, cgroup: cgroup, began: time.Now(), Backups: filepath.Join(work, "backups")}
	t.Cleanup(p.down)
	for _, folder := range []string{p.Backups, p.tools()} {
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := copyProgram("/proc/self/exe", filepath.Join(p.tools(), systemctlName)); err != nil {
		t.Fatal(err)
	}
	p.fillStore()
	for range machines {
		p.NewMachine(KeepImages)
	}
	p.Logf("%d machines on", machines)
	return p
}

// NewMachine adds and boots a machine that nobody has seen before: the next name
// and address, an empty disk. The load balancer knows it at once.
func (p *Plane) NewMachine(images Images) *Machine {
	p.t.Helper()
	m := p.machine(len(p.Machines) + 1)
	p.Machines = append(p.Machines, m)
	m.Format(images)
	m.PowerOn()
	if p.balancer != nil {
		p.balancer.add(m.Address)
	}
	return m
}

func (p *Plane) machine(number int) *Machine {
	name := fmt.Sprintf("cp%d", number)
	return &Machine{
		Name: name, Address: fmt.Sprintf("10.77.0.%d", 10+number), Root: filepath.Join(p.work, name),
		plane: p, number: number,
	}
}

// tools is the folder with the machines' systemctl.
func (p *Plane) tools() string { return filepath.Join(p.work, "tools") }

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// down cuts the power of every machine, and says what they last wrote if the
// test failed.
func (p *Plane) down() {
	for _, m := range p.Machines {
		if p.t.Failed() {
			m.lastWords()
		}
		m.PowerCut()
	}
}

// Logf logs with the time since the plane's start.
func (p *Plane) Logf(format string, args ...any) {
	p.t.Helper()
	p.t.Logf("[%6.1f s] %s", time.Since(p.began).Seconds(), fmt.Sprintf(format, args...))
}

// Expose makes an address of the tests' own loopback, such as a server's, known
// to the machines, and returns where they find it. With several targets each
// connection goes to the next one that answers, as a load balancer does it.
func (p *Plane) Expose(port int, targets ...string) string {
	p.t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(Gateway, fmt.Sprint(port)))
	if err != nil {
		p.t.Fatalf("expose %v: %v", targets, err)
	}
	p.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for turn := 0; ; turn++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go relay(conn, turn, targets)
		}
	}()
	return l.Addr().String()
}

// relay connects a client to the first target that answers, counting from turn.
func relay(client net.Conn, turn int, targets []string) {
	defer client.Close()
	for i := range targets {
		server, err := net.DialTimeout("tcp", targets[(turn+i)%len(targets)], time.Second)
		if err != nil {
			continue
		}
		splice(client, server)
		return
	}
}

// splice passes bytes both ways until both sides have ended.
func splice(client, server net.Conn) {
	defer server.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(server, client)
		_ = server.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(client, server)
	_ = client.(*net.TCPConn).CloseWrite()
	<-done
}

// Stage is a step of a test: it logs how long it took.
func (p *Plane) Stage(name string, step func()) time.Duration {
	p.t.Helper()
	began := time.Now()
	step()
	took := time.Since(began)
	p.Logf("STAGE %s: %.1f s", name, took.Seconds())
	return took
}

// Wait asks again until the condition holds, and ends the test if it doesn't
// within the limit. The condition says what is missing.
func (p *Plane) Wait(what string, limit time.Duration, condition func() (missing string)) {
	p.t.Helper()
	began := time.Now()
	for {
		missing := condition()
		if missing == "" {
			p.Logf("%s (after %.1f s)", what, time.Since(began).Seconds())
			return
		}
		if time.Since(began) > limit {
			p.t.Fatalf("%s: not within %v: %s", what, limit, missing)
		}
		time.Sleep(300 * time.Millisecond)
	}
}
