// Package freeport finds TCP ports for servers that tests and the demonstration
// start, stop for a while and start again.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
)

// Ports are taken from below the range that systems give to outgoing
// connections (32768 and up on Linux), so that nobody's connection sits on the
// port of a server that is about to start again.
const (
	lowest  = 10000
	highest = 32000
)

// Take returns a TCP port of loopback that was free a moment ago. Nobody else is
// given it by this function until this process ends, so that a server that is
// stopped for a while finds its port free.
func Take() (int, error) {
	var last error
	for range 100 {
		port := lowest + rand.IntN(highest-lowest)
		if !reserve(port) {
			last = fmt.Errorf("port %d is another's", port)
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			last = err
			continue
		}
		return port, l.Close()
	}
	return 0, fmt.Errorf("find a free port: %w", last)
}

// Failer is what of testing.TB is needed here.
type Failer interface {
	Helper()
	Fatal(args ...any)
}

// Address is that of a port that Take gives: 127.0.0.1:PORT.
func Address(t Failer) string {
	t.Helper()
	port, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// reserved keeps the marks of this process's ports.
var reserved sync.Map

// reserve marks a port as this process's, in the network namespace that it would
// be taken in: by an abstract socket, which leaves nothing behind. Where there are
// none, a port counts as free.
func reserve(port int) bool {
	if runtime.GOOS != "linux" {
		return true
	}
	mark, err := net.Listen("unix", fmt.Sprintf("@lifeboat-test-port-%d", port))
	if err != nil {
		return false
	}
	reserved.Store(port, mark)
	return true
}
