package agent

import (
	"fmt"
	"math"
	"time"

	"lifeboat/internal/schedule"
)

// Times of the loop.
const (
	// leastGrace and mostGrace bound the time that each agent has before the
	// next one takes its turn.
	leastGrace = 30 * time.Second
	mostGrace  = 5 * time.Minute

	// firstRetry is the wait after a first failure; it doubles with each.
	firstRetry = 30 * time.Second
	lateRetry  = 15 * time.Minute // as far as it doubles, where an eighth of the interval is not more

	// maxSkew is how far two clocks may differ before it is said aloud, and how
	// far ahead of ours a backup may lie before its time is not believed.
	maxSkew = 5 * time.Minute

	forever = time.Duration(math.MaxInt64)
)

// grace is how long an agent waits for the one before it, and the watchdog
// beyond the interval.
func grace(interval time.Duration) time.Duration {
	return min(max(interval/20, leastGrace), mostGrace)
}

// backoff is the wait after so many failures in a row. It never outlasts the
// watchdog, whose time is one interval and a grace.
func backoff(failures int, interval time.Duration) time.Duration {
	most := min(max(lateRetry, interval/8), interval+grace(interval))
	wait := firstRetry
	for range failures - 1 {
		if wait *= 2; wait >= most {
			break
		}
	}
	return min(wait, most)
}

// slot is the next time that a schedule asks for.
type slot struct {
	never    bool          // the schedule is empty or its date does not come
	at       time.Time     // by the wall clock, with jitter; zero: at once, since there was none yet
	gap      time.Duration // from the newest to at
	interval time.Duration // the longest between two runs
}

// slotAfter is the slot that a newest success leaves open. It is expensive
// compared with decide; its result holds until one of its arguments changes, and
// of now the day.
func slotAfter(s *schedule.Schedule, jitter int, seed string, newest, now time.Time) slot {
	from := newest
	if from.IsZero() {
		from = now
	}
	next := s.Next(from)
	if next.IsZero() {
		return slot{never: true}
	}
	interval := s.Interval(from)
	if newest.IsZero() {
		return slot{interval: interval}
	}
	at := next.Add(s.Jitter(jitter, seed, next))
	return slot{at: at, gap: at.Sub(newest), interval: interval}
}

// question is all that a decision about one job rests on. Times without a date
// are of the monotonic clock, since the agent's start.
type question struct {
	now  time.Time // wall clock, for comparing with slot.at
	mono time.Duration

	idle string // why this agent leaves the job alone; empty: it does not
	slot slot
	seen time.Duration // when a success was last seen, or the agent's start

	failures int           // in a row
	failed   time.Duration // when the last of them ended

	wanted     string        // why this agent's recorder asked for a full; empty: it did not
	wantedFrom time.Duration // when one may be taken

	due     bool          // it was due when last asked
	noticed time.Duration // since when
	rank    int           // in the order of turns; 0 goes first
	first   string        // who has rank 0
}

// answer is a decision.
type answer struct {
	run  bool
	due  bool          // its time has come, even if a retry or a turn is waited for
	wait time.Duration // ask again after this at the latest, if it is not to run
	at   time.Time     // when it is served next, by the wall clock; zero: not by this agent
	why  string
}

// decide says whether a job runs now, or how long to wait. The wall clock says
// when a slot begins; the watchdog goes by the monotonic clock and fires when
// the time of one slot has passed since the last success, so that a clock that
// was set back, or a backup from the future, holds up one run and no more.
func decide(q question) answer {
	switch {
	case q.idle != "":
		return answer{wait: forever, why: q.idle}
	case q.slot.never && q.wanted == "":
		return answer{wait: forever, why: "its schedule never comes"}
	}
	start, why := q.start()
	if q.wanted != "" {
		if q.wantedFrom < start {
			start, why = q.wantedFrom, "due: "+q.wanted
		}
		if q.wantedFrom <= q.mono {
			q.rank = 0 // nobody else knows of it, so there is no turn to wait for
		}
	}
	if start > q.mono {
		return q.later(start, why, false)
	}
	noticed := q.mono
	if q.due {
		noticed = q.noticed
	}
	if q.failures > 0 {
		if again := q.failed + backoff(q.failures, q.slot.interval); again > q.mono {
			return q.later(again, fmt.Sprintf("retry after %d failures", q.failures), true)
		}
	}
	if q.rank > 0 {
		// From the slot's time on, but those that all wake up late, as after a
		// power failure, don't all start at once either.
		turn := max(start+time.Duration(q.rank)*grace(q.slot.interval), noticed+time.Duration(q.rank)*leastGrace)
		if turn > q.mono {
			return q.later(turn, "the turn of "+q.first, true)
		}
	}
	return answer{run: true, due: true, at: q.now, why: why}
}

// start is when the job is due.
func (q question) start() (at time.Duration, why string) {
	if q.slot.never {
		return forever, ""
	}
	if q.slot.at.IsZero() {
		if q.due {
			return q.noticed, "due: there is none yet"
		}
		return q.mono, "due: there is none yet"
	}
	wall := plus(q.mono, q.slot.at.Sub(q.now))
	watchdog := plus(q.seen, plus(q.slot.gap, grace(q.slot.interval)))
	if watchdog < wall {
		return watchdog, "due by the watchdog: the newest is older than the wall clock says"
	}
	return wall, "due"
}

// later waits until a monotonic time.
func (q question) later(until time.Duration, why string, due bool) answer {
	wait := until - q.mono
	if !due {
		why = "the next slot"
	}
	return answer{due: due, wait: wait, at: q.now.Add(wait), why: why}
}

// plus adds without overflow, for dates that are centuries away.
func plus(a, b time.Duration) time.Duration {
	switch sum := a + b; {
	case b > 0 && sum < a:
		return math.MaxInt64
	case b < 0 && sum > a:
		return math.MinInt64
	default:
		return sum
	}
}
