package realplane

import (
	"crypto/tls"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// apiPort is that of the API servers and of the load balancer before them.
const apiPort = "6443"

// How the load balancer looks at API servers, as HAProxy would.
const (
	checkEvery   = time.Second
	checkLimit   = time.Second
	failuresDown = 2 // in a row, then it is down
)

// balancer is a load balancer before the API servers: TCP, round robin, asking
// each for /readyz. Connections to one that went down are cut. While none is up
// it tries all.
type balancer struct {
	mu      sync.Mutex
	targets []*target
	turn    int
	closed  bool
}

// target is an API server.
type target struct {
	address  string
	up       bool
	failures int // in a row
	sessions map[net.Conn]bool
}

// Balance starts the load balancer of the plane's API servers and returns its
// address: the controlPlaneEndpoint. Machines that come later are added.
func (p *Plane) Balance() string {
	p.t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(Gateway, apiPort))
	if err != nil {
		p.t.Fatalf("load balancer: %v", err)
	}
	b := &balancer{}
	p.balancer = b
	p.t.Cleanup(func() {
		_ = l.Close()
		b.mu.Lock()
		b.closed = true
		b.mu.Unlock()
	})
	for _, m := range p.Machines {
		b.add(m.Address)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go b.serve(conn)
		}
	}()
	return l.Addr().String()
}

// add makes an API server known and looks at it from now on.
func (b *balancer) add(host string) {
	t := &target{address: net.JoinHostPort(host, apiPort), sessions: map[net.Conn]bool{}}
	b.mu.Lock()
	b.targets = append(b.targets, t)
	b.mu.Unlock()
	client := &http.Client{Timeout: checkLimit, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // it only asks for health
	}}
	go func() {
		for beat := time.NewTicker(checkEvery); ; <-beat.C {
			resp, err := client.Get("https://" + t.address + "/readyz")
			if err == nil {
				_ = resp.Body.Close()
			}
			if !b.judge(t, err == nil && resp.StatusCode == http.StatusOK) {
				beat.Stop()
				return
			}
		}
	}()
}

// judge takes note of a look at a target; false: no more looks.
func (b *balancer) judge(t *target, well bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case well:
		t.up, t.failures = true, 0
	default:
		t.failures++
	}
	if t.failures >= failuresDown && t.up {
		t.up = false
		for conn := range t.sessions {
			_ = conn.Close()
		}
	}
	return !b.closed
}

// order returns the targets to try for a connection, the best first.
func (b *balancer) order() []*target {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn++
	var up, down []*target
	for i := range b.targets {
		if t := b.targets[(b.turn+i)%len(b.targets)]; t.up {
			up = append(up, t)
		} else {
			down = append(down, t)
		}
	}
	return slices.Concat(up, down)
}

func (b *balancer) serve(client net.Conn) {
	defer client.Close()
	for _, t := range b.order() {
		server, err := net.DialTimeout("tcp", t.address, time.Second)
		if err != nil {
			continue
		}
		b.mu.Lock()
		t.sessions[server] = true
		b.mu.Unlock()
		splice(client, server)
		b.mu.Lock()
		delete(t.sessions, server)
		b.mu.Unlock()
		return
	}
}
