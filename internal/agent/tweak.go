package agent

// tweak breaks a decision on purpose, for the tests of the simulation.
func (a *Agent) tweak(q *question) {
	t := a.tweaks
	if t == (tweaks{}) {
		return
	}
	if t.noWatchdog {
		q.seen = forever
	}
	if t.noTurns {
		q.rank = 0
	}
	if t.noRetry && q.failures > 0 {
		q.failed = forever / 2
	}
}
