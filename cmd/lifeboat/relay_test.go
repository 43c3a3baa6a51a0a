package main

import (
	"io"
	"net"
	"sync"
	"testing"
)

// relay stands before an etcd member and holds up whoever is sent much, such as
// a snapshot, until it is released.
type relay struct {
	address string

	held, released      chan struct{}
	holdOnce, letGoOnce sync.Once
}

// relayed is what every connection is given at once: more than any answer but a
// snapshot, and less than one.
const relayed = 256 << 10

func newRelay(t *testing.T, target string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{address: l.Addr().String(), held: make(chan struct{}), released: make(chan struct{})}
	t.Cleanup(func() {
		_ = l.Close()
		r.release()
	})
	go func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			go r.serve(down, target)
		}
	}()
	return r
}

func (r *relay) serve(down net.Conn, target string) {
	defer down.Close()
	up, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer up.Close()
	go func() {
		_, _ = io.Copy(up, down)
		_ = up.Close()
	}()
	if _, err := io.CopyN(down, up, relayed); err != nil {
		return
	}
	r.holdOnce.Do(func() { close(r.held) })
	<-r.released
	_, _ = io.Copy(down, up)
}

func (r *relay) release() { r.letGoOnce.Do(func() { close(r.released) }) }

// holds reports whether a connection is or was held up.
func (r *relay) holds() bool {
	select {
	case <-r.held:
		return true
	default:
		return false
	}
}
