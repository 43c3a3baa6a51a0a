package realplane

import (
	"net"
	"testing"
)

func TestTheBalancerPrefersWhatIsUpAndCutsWhatWentDown(t *testing.T) {
	targets := []*target{{address: "a"}, {address: "b"}, {address: "c"}}
	for _, x := range targets {
		x.sessions = map[net.Conn]bool{}
	}
	b := &balancer{targets: targets}
	first := func() string { return b.order()[0].address }
	if got := len(b.order()); got != 3 {
		t.Errorf("while none is up it tries %d, want all", got)
	}
	b.judge(targets[0], true)
	b.judge(targets[2], true)
	seen := map[string]int{}
	for range 6 {
		seen[first()]++
	}
	if seen["a"] == 0 || seen["c"] == 0 || seen["b"] != 0 {
		t.Errorf("with a and c up the first were %v", seen)
	}

	near, far := net.Pipe()
	defer far.Close()
	targets[2].sessions[near] = true
	b.judge(targets[2], false)
	if !targets[2].up {
		t.Error("one failure took it out")
	}
	b.judge(targets[2], false)
	if _, err := near.Write([]byte("x")); err == nil || targets[2].up {
		t.Error("after two failures it is still used")
	}
	if got := first(); got != "a" {
		t.Errorf("the first is %s, want a", got)
	}
}
