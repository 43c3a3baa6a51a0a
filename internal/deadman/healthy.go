package deadman

import (
	"time"

	"lifeboat/internal/status"
)

// future is how far ahead of our clock a backup may lie and still tell that
// backups are in time.
const future = 5 * time.Minute

// Healthy says that every scheduled chain of this agent has a backup in time,
// valid, in at least minStores stores, and that as many stores answer. In time
// means: not older than two intervals and the time that the last run took, as
// the alert LifeboatBackupTooOld has it. Nothing scheduled is not healthy.
func Healthy(s *status.Status, minStores int) bool {
	if s == nil || !s.Loaded {
		return false
	}
	minStores = max(minStores, 1)
	answering := 0
	for i := range s.Stores {
		if s.Stores[i].Error == "" && !s.Stores[i].Answered.IsZero() {
			answering++
		}
	}
	scheduled := 0
	for i := range s.Chains {
		c := &s.Chains[i]
		if !c.Ours || c.Interval <= 0 {
			continue
		}
		scheduled++
		oldest := s.Now.Add(-2*c.Interval - lastRun(s, c.Name))
		if inTime(c, oldest, s.Now.Add(future)) < minStores {
			return false
		}
	}
	return scheduled > 0 && answering >= minStores
}

// inTime counts the stores whose newest backup lies in the window.
func inTime(c *status.Chain, oldest, newest time.Time) int {
	n := 0
	for i := range c.InStores {
		in := &c.InStores[i]
		if in.Valid && !in.Regressed && !in.Newest.Before(oldest) && !in.Newest.After(newest) {
			n++
		}
	}
	return n
}

// lastRun is how long the newest successful backup of a chain took.
func lastRun(s *status.Status, chain string) time.Duration {
	for i := range s.Runs {
		if r := &s.Runs[i]; r.Target == chain && r.Result == status.Succeeded && (r.Kind == status.Full || r.Kind == status.Files) {
			return r.Duration
		}
	}
	return 0
}
