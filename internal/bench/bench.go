// Package bench measures whole operations against their peers, side by side in
// one run. It holds benchmarks only; docs/performance.md has their commands
// and what they said.
package bench
