package agent

import (
	"slices"
	"testing"
)

// TestASeedRepeatsItsSimulation lives the same worlds several times over: what one
// seed found once it finds again. Goroutines that wake at the same moment run
// in any order, and no world may depend on it.
func TestASeedRepeatsItsSimulation(t *testing.T) {
	seeds := []uint64{1, 2, 4, 5, 77, 123}
	if testing.Short() {
		seeds = seeds[:2]
	}
	for _, seed := range seeds {
		first := simulate(t, seed, 10, tweaks{}).trace
		if len(first) < 10 {
			t.Errorf("seed %d: next to nothing happens: %q", seed, first)
		}
		for range 3 {
			again := simulate(t, seed, 10, tweaks{}).trace
			if slices.Equal(first, again) {
				continue
			}
			at := 0
			for at < min(len(first), len(again)) && first[at] == again[at] {
				at++
			}
			t.Errorf("seed %d: after %d lines\n%q and then\n%q", seed, at, first[at:min(at+3, len(first))], again[at:min(at+3, len(again))])
		}
	}
}
