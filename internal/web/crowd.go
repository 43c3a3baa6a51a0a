package web

import (
	"container/list"
	"net"
	"sync"
)

// crowd is a listener that keeps at most so many connections. One more ends the
// oldest: whoever opens them by the thousand can neither take the memory and
// the files that backups need, nor keep out a probe, which needs a moment only.
type crowd struct {
	net.Listener
	most int

	mu   sync.Mutex
	open *list.List // of *guest, the oldest first
}

func newCrowd(listener net.Listener, most int) *crowd {
	return &crowd{Listener: listener, most: most, open: list.New()}
}

// Accept implements net.Listener.
func (c *crowd) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	g := &guest{Conn: conn, crowd: c}
	c.mu.Lock()
	g.place = c.open.PushBack(g)
	var oldest *guest
	if c.open.Len() > c.most {
		oldest = c.open.Remove(c.open.Front()).(*guest)
	}
	c.mu.Unlock()
	if oldest != nil {
		oldest.Conn.Close() // its server finds out and closes the guest
	}
	return g, nil
}

// guest is one of a crowd's connections.
type guest struct {
	net.Conn
	crowd *crowd
	place *list.Element
}

// Close implements net.Conn.
func (g *guest) Close() error {
	g.crowd.mu.Lock()
	g.crowd.open.Remove(g.place) // nothing happens if it isn't there any more
	g.crowd.mu.Unlock()
	return g.Conn.Close()
}

// CloseWrite lets the server end a connection so that its last answer arrives.
func (g *guest) CloseWrite() error {
	if half, ok := g.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
