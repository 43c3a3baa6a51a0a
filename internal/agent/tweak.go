package agent

import "lifeboat/internal/status"

// tweaks break an agent on purpose, to show that the simulation notices. They
// are all off outside of its tests.
type tweaks struct {
	noWatchdog bool // trusts the wall clock
	noTurns    bool // never waits for those before it
	loyal      bool // waits for those before it for ever
	blind      bool // does not look at the stores again before a run
	noRetry    bool // gives up after a failure
	hasty      bool // waits no longer after many failures than after one
	endless    bool // sets no deadlines
	mute       bool // has no problems
	rosy       bool // says that every store answers
}

// question breaks a decision.
func (t tweaks) question(q *question) {
	if t.noWatchdog {
		q.seen = forever
	}
	if t.noTurns {
		q.rank = 0
	}
	if t.loyal && q.rank > 0 {
		q.rank = 10_000
	}
	if t.noRetry && q.failures > 0 {
		q.failed = forever / 2
	}
	if t.hasty {
		q.failures = min(q.failures, 1)
	}
}

// status breaks what is told.
func (t tweaks) status(s *status.Status) {
	if t.mute {
		s.Problems = []status.Problem{}
	}
	for i := range s.Stores {
		if t.rosy {
			s.Stores[i].Error = ""
		}
	}
}
