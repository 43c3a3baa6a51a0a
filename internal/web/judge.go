package web

import (
	"slices"
	"strings"
	"time"

	"lifeboat/internal/status"
)

// level is how bad something is. Its text is a CSS class; the page always says
// it with a word too.
type level string

const (
	unknown level = "none"
	good    level = "good"
	warn    level = "warn"
	bad     level = "bad"
)

// worse returns the worse of two levels. Unknown is better than warn: it is
// shown where there is nothing to act on yet.
func worse(a, b level) level {
	order := []level{good, unknown, warn, bad}
	return order[max(slices.Index(order, a), slices.Index(order, b))]
}

// verdict is a level and its word.
type verdict struct {
	Level level
	Word  string
}

// clockSlack is how far ahead of this node's clock a time may lie and still be
// taken for now.
const clockSlack = 5 * time.Minute

// judgeStoreOf says how one chain stands in one store.
func judgeStoreOf(c *status.Chain, in *status.InStore, now time.Time, down bool) verdict {
	switch {
	case in.Read.IsZero() && down:
		return verdict{warn, "No answer"}
	case in.Read.IsZero():
		return verdict{unknown, "Not read yet"}
	case in.Regressed:
		return verdict{bad, "Rolled back"}
	case isBroken(in):
		return verdict{bad, "Broken"}
	case down:
		return verdict{warn, "No answer"}
	case in.Newest.IsZero() && c.Interval == 0:
		return verdict{unknown, "Empty"}
	case in.Newest.IsZero():
		return verdict{bad, "No backup"}
	case isLate(c, in, now):
		return lateness(c, now)
	case in.NewestWhole.Before(in.Newest):
		return verdict{warn, "Degraded"}
	default:
		return verdict{good, "Valid"}
	}
}

// lateSlack is how long after its time a backup is not yet called late: the
// agent too waits so long for the one whose turn it is.
func lateSlack(c *status.Chain) time.Duration {
	const least, most = 30 * time.Second, 5 * time.Minute
	if c.Interval == 0 {
		return most
	}
	return min(max(c.Interval/20, least), most)
}

// A chain of others that has been late for so long belongs to a node that is
// gone. The agent stops naming it then, and the page stops being alarmed.
const forgetLate = 30 * day

func isLate(c *status.Chain, in *status.InStore, now time.Time) bool {
	return !in.Late.IsZero() && now.Sub(in.Late) > lateSlack(c)
}

// lateness is how bad it is that a chain is late: another agent's says so
// itself, on its own page.
func lateness(c *status.Chain, now time.Time) verdict {
	latest := time.Time{}
	for _, in := range c.InStores {
		if in.Late.After(latest) {
			latest = in.Late
		}
	}
	switch {
	case c.Ours:
		return verdict{bad, "Late"}
	case now.Sub(latest) > forgetLate:
		return verdict{unknown, "Ended"}
	default:
		return verdict{warn, "Late"}
	}
}

// isBroken reports whether what the store holds can't be believed.
func isBroken(in *status.InStore) bool {
	return !in.Read.IsZero() && (!in.Valid || in.Regressed || len(in.Failures) > 0)
}

// judgePoint says how old a chain's recovery point is against what was planned.
func judgePoint(c *status.Chain, now time.Time) verdict {
	late, broken, kept, held := 0, 0, 0, 0
	for i := range c.InStores {
		in := &c.InStores[i]
		if in.Newest.IsZero() {
			continue
		}
		kept++
		if isLate(c, in, now) {
			late++
		}
		if in.RecoveryPoint.Equal(c.RecoveryPoint) {
			held++
			if isBroken(in) {
				broken++
			}
		}
	}
	age := now.Sub(c.RecoveryPoint)
	switch {
	case c.RecoveryPoint.IsZero() && !anyRead(c):
		return verdict{unknown, "Not read yet"}
	case c.RecoveryPoint.IsZero():
		return verdict{bad, "No backup"}
	case held > 0 && broken == held:
		return verdict{bad, "In doubt: the chain is broken"}
	case age < -clockSlack:
		return verdict{warn, "In the future: clocks differ"}
	case kept > 0 && late == kept:
		return lateness(c, now)
	case c.Interval == 0 && c.Ours:
		return verdict{unknown, "Not scheduled"}
	case c.Interval == 0:
		return verdict{good, "In time"} // as far as its own agent promised
	case age > 2*c.Interval+lateSlack(c):
		return verdict{bad, "Late"} // whatever a store that stopped answering said
	default:
		return verdict{good, "In time"}
	}
}

func anyRead(c *status.Chain) bool {
	return slices.ContainsFunc(c.InStores, func(in status.InStore) bool { return !in.Read.IsZero() })
}

// judgeChain is the worst of a chain, for its heading and the order of the
// list: what one store lacks is less than what all of them lack.
func judgeChain(c *status.Chain, now time.Time, down map[string]bool) verdict {
	point := judgePoint(c, now)
	worst := point
	if point.Level == good {
		worst.Word = "Well"
	} else if strings.HasPrefix(point.Word, "In doubt") {
		worst.Word = "Broken"
	}
	for i := range c.InStores {
		in := judgeStoreOf(c, &c.InStores[i], now, down[c.InStores[i].Store])
		if point.Level == good {
			switch in.Word {
			case "Late", "No backup":
				in = verdict{warn, in.Word + " in one store"}
			case "No answer":
				in = verdict{warn, "Not every store answers"}
			}
		}
		if worse(worst.Level, in.Level) != worst.Level {
			worst = in
		}
	}
	return worst
}

// headline chooses the chain whose recovery point stands for the cluster: the
// oldest of those that this agent backs up, etcd before files. Nil: none.
func headline(chains []status.Chain) (chosen *status.Chain, of int) {
	etcd := func(c *status.Chain) bool { return strings.HasPrefix(c.Name, "etcd/") }
	for _, wanted := range []func(*status.Chain) bool{
		func(c *status.Chain) bool { return c.Ours && etcd(c) },
		func(c *status.Chain) bool { return etcd(c) },
		func(c *status.Chain) bool { return c.Ours },
		func(*status.Chain) bool { return true },
	} {
		of = 0
		for i := range chains {
			if c := &chains[i]; wanted(c) {
				of++
				if chosen == nil || c.RecoveryPoint.Before(chosen.RecoveryPoint) {
					chosen = c
				}
			}
		}
		if chosen != nil {
			return chosen, of
		}
	}
	return nil, 0
}

// Before a certificate ends this many days ahead there is nothing to do:
// kubeadm renews them with every upgrade.
const renewalDays = 30

func judgeCertificate(c *status.Certificate, now time.Time) verdict {
	switch left := c.NotAfter.Sub(now); {
	case left <= 0:
		return verdict{bad, "Expired"}
	case left < 7*day:
		return verdict{bad, "Ends very soon"}
	case left < renewalDays*day:
		return verdict{warn, "Ends soon"}
	default:
		return verdict{good, "Valid"}
	}
}

// judgeJob says how a job stands. last is its newest run that was not told to
// stop; nil: none is remembered.
func judgeJob(j *status.Job, last *status.Run) verdict {
	failed := j.LastAttempt.After(j.LastSuccess)
	if last != nil {
		failed = last.Result == status.Failed
	}
	switch {
	case j.Running:
		return verdict{good, "Running"}
	case failed:
		return verdict{warn, "Last try failed"}
	case j.Schedule == "":
		return verdict{unknown, "Off"}
	case j.LastSuccess.IsZero():
		return verdict{unknown, "Not run here yet"}
	default:
		return verdict{good, "In order"}
	}
}

func judgeRun(r *status.Run) verdict {
	switch {
	case r.Result == status.Failed && r.Reason == status.Interrupted:
		return verdict{unknown, "Interrupted"}
	case r.Result == status.Failed:
		return verdict{bad, "Failed"}
	case r.Result == status.Overtaken:
		return verdict{unknown, "Overtaken"}
	case len(r.Degraded) > 0:
		return verdict{warn, "Degraded"}
	case r.Result == status.Succeeded:
		return verdict{good, "Done"}
	default:
		return verdict{unknown, clean(string(r.Result), 20)}
	}
}
