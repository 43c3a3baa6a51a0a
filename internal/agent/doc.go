// Package agent is the daemon as a library: New, then Run until its context
// ends. It decides when this node's agent does what; doing it is Works'
// business, showing it internal/status' readers'.
//
// Any number of agents may run at once, on any clocks: what keeps a chain whole
// is the conditional create of its next manifest, never an agreement between
// agents. Turns only save work.
//
// Each job has one goroutine: ask, wait, look again, serve (job.go, serve.go).
// Whether to run is decide's, a pure function of what the stores hold (board.go),
// two clocks and this agent's turn; start reading there.
package agent
