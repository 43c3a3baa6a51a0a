package realplane

import (
	"context"
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

// Path is the search path in a machine.
const Path = "/opt/kube:/opt/etcd:/opt/lifeboat:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Plane is a set of machines on one network. It ends with the test.
type Plane struct {
	Machines []*Machine

	t       testing.TB
	work    string // folder on the host's disk
	cgroup  string
	archive []string // image archives
	began   time.Time
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
	p := &Plane{t: t, work: work, cgroup: cgroup, began: time.Now()}
	t.Cleanup(p.down)
	p.archive = p.writeImages()
	p.Logf("image archives written")
	for i := range machines {
		m := &Machine{Name: fmt.Sprintf("cp%d", i+1), Address: fmt.Sprintf("10.77.0.%d", 11+i), plane: p, number: i + 1}
		m.Root = filepath.Join(work, m.Name)
		p.Machines = append(p.Machines, m)
	}
	for _, m := range p.Machines {
		m.Format()
		m.PowerOn()
	}
	for _, m := range p.Machines {
		m.ImportImages(p.archive...)
	}
	p.Logf("%d machines on, images imported", machines)
	return p
}

// down cuts the power of every machine, and says what they last wrote if the
// test failed.
func (p *Plane) down() {
	for _, m := range p.Machines {
		if p.t.Failed() {
			m.lastWords()
		}
		m.PowerOff()
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
		defer server.Close()
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			defer cancel()
			_, _ = io.Copy(server, client)
			_ = server.(*net.TCPConn).CloseWrite()
		}()
		_, _ = io.Copy(client, server)
		_ = client.(*net.TCPConn).CloseWrite()
		<-ctx.Done()
		return
	}
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
