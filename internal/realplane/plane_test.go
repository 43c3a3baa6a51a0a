package realplane

import (
	"io"
	"net"
	"testing"
	"time"
)

// TestARelayGoesRoundItsTargetsAndSkipsDeadOnes is the load balancer of several
// control-plane nodes.
func TestARelayGoesRoundItsTargetsAndSkipsDeadOnes(t *testing.T) {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	server := func(name string) string {
		l := listen()
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				asked, _ := io.ReadAll(conn) // until the client's end comes through
				_, _ = conn.Write([]byte(name + " heard " + string(asked)))
				_ = conn.Close()
			}
		}()
		return l.Addr().String()
	}
	gone := listen()
	_ = gone.Close()
	targets := []string{server("a"), gone.Addr().String(), server("b")}

	ask := func(turn int) string {
		front := listen()
		defer front.Close()
		go func() {
			if conn, err := front.Accept(); err == nil {
				relay(conn, turn, targets)
			}
		}()
		conn, err := net.Dial("tcp", front.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = conn.Write([]byte("x"))
		_ = conn.(*net.TCPConn).CloseWrite()
		answer, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		return string(answer)
	}
	for turn, want := range []string{"a heard x", "b heard x", "b heard x", "a heard x"} {
		if got := ask(turn); got != want {
			t.Errorf("turn %d: %q, want %q", turn, got, want)
		}
	}
}
