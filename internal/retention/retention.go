// Package retention decides which backups of one chain stay, and says why. It
// is a pure function of the backups, the policy and the time: it reads and
// deletes nothing. internal/pruning asks it, internal/repository does what it
// decides.
//
// The rules, which docs/retention.md explains to people:
//
//   - Calendars. Of each of the newest N hours, days, weeks (ISO 8601) and
//     months in UTC that have a backup at all, the newest backup stays. Periods
//     without one are not counted, so a chain that nobody writes to any more
//     keeps what it has.
//   - The newest Minimum stay, and at least the newest: by time, and by place in
//     the chain.
//   - The point-in-time window: all fulls in it stay, and the newest one before
//     it, from which its first second is restored.
//   - Every rule is applied three times: to all backups, to those that are not
//     degraded, and to those that are proved. What any of the three keeps stays.
//     So a hundred degraded backups of a cluster without quorum push out not one
//     that is whole.
//   - What the rules can't judge stays, and takes no other's place: a backup
//     from the future, and one that a person imported.
//   - A full stays that segments continue to a point of the window. By time that
//     is the newest before the window; clocks and members that lag may differ.
//   - What a restore of the latest gives back stays, though it need not be the
//     newest: what was captured since may be of a member that lags.
//   - What the store has locked stays until the lock ends.
//
// What is kept is kept whatever else is removed, so applying a policy to what
// it left removes nothing more.
package retention

import (
	"cmp"
	"slices"
	"strconv"
	"time"
)

// Policy says how many backups stay. The zero value keeps the newest of all,
// the newest whole one and the newest proved one.
type Policy struct {
	Hourly, Daily, Weekly, Monthly int // periods that keep their newest backup; 0 or less: the rule is off

	Minimum     int           // the newest so many stay; less than 1 counts as 1
	PointInTime time.Duration // every second of this long until now keeps a full to start from; 0: off

	// Imported applies the policy to imported backups as well. Without it they
	// stay: nobody takes them on a schedule, so no schedule removes them.
	Imported bool
}

// Item is one backup. Calendars are UTC's, whatever the location of its times.
type Item struct {
	ID          string
	Kind        string // Full takes part in the point-in-time window
	Created     time.Time
	Proved      bool // never together with Degraded
	Degraded    bool
	Imported    bool
	Latest      bool      // a restore of the latest gives it back, though it need not be the newest
	Base        bool      // segments continue it to points of the window, or to the latest
	RetainUntil time.Time // the store refuses to delete it before; zero: it does not
}

// Full is the kind of item that a point in time is restored from.
const Full = "full"

// Decision is what becomes of one item, and why. Reasons is never empty.
type Decision struct {
	Item
	Keep    bool
	Reasons []string
}

// Ahead is how far a backup's time may lie ahead of now and still be believed:
// clocks of machines differ. What is further ahead is from the future.
const Ahead = 5 * time.Minute

// captureTakes is the longest that a capture may go on after its Created. Only
// a full that began so much earlier surely shows the window's first second.
const captureTakes = time.Hour

// Apply decides about all backups of one chain, which the caller gives in the
// chain's order. The decisions are sorted newest first; of backups made at the
// same instant the later in the chain is the newer.
func Apply(items []Item, p Policy, now time.Time) []Decision {
	order := make([]int, len(items)) // of places in the chain: newest first
	for i := range order {
		order[i] = len(items) - 1 - i
	}
	slices.SortStableFunc(order, func(a, b int) int { return items[b].Created.Compare(items[a].Created) })

	decisions := make([]Decision, len(items))
	var judged []*judgement
	for i, place := range order {
		d := &decisions[i]
		d.Item = items[place]
		switch {
		case d.Imported && !p.Imported:
			d.keep("imported")
		case d.Created.After(now.Add(Ahead)):
			d.keep("from the future")
		default:
			judged = append(judged, &judgement{Decision: d, place: place})
		}
	}
	for _, class := range classes {
		p.apply(class, now, slices.DeleteFunc(slices.Clone(judged), func(j *judgement) bool { return !class.has(j.Item) }))
	}
	for i := range decisions {
		if d := &decisions[i]; d.RetainUntil.After(now) {
			d.keep("locked until " + d.RetainUntil.UTC().Format(time.RFC3339))
		}
	}
	for i := range decisions {
		d := &decisions[i]
		if d.Latest && !d.Keep {
			d.keep("a restore of the latest gives it back")
		}
		if d.Base && !d.Keep {
			d.keep("point in time: segments continue it")
		}
	}
	p.sayWhyNot(judged)
	return decisions
}

func (d *Decision) keep(reason string) {
	d.Keep = true
	d.Reasons = append(d.Reasons, reason)
}

// class is one of the sets that every rule is applied to. Each lies within the
// one before it.
type class struct {
	name string
	has  func(Item) bool
}

var classes = []class{
	{"", func(Item) bool { return true }},
	{"whole ", func(i Item) bool { return !i.Degraded }},
	{"proved ", func(i Item) bool { return i.Proved && !i.Degraded }},
}

// judgement is a decision on its way. A rule that keeps an item in one class
// says so once, and not again for the classes within.
type judgement struct {
	*Decision
	place int // in the chain
	said  []string
}

func (j *judgement) keepBy(rule, reason string) {
	if slices.Contains(j.said, rule) {
		return
	}
	j.said = append(j.said, rule)
	j.keep(reason)
}

// apply keeps what the rules want of one class. The list is newest first.
func (p Policy) apply(c class, now time.Time, list []*judgement) {
	if len(list) == 0 {
		return
	}
	list[0].keepBy("newest", "newest "+c.name+"of all")
	// By time and by place differ after a clock was set back. A restore of the
	// latest goes by place.
	last := slices.MaxFunc(list, func(a, b *judgement) int { return cmp.Compare(a.place, b.place) })
	last.keepBy("newest", "last "+c.name+"of the chain")
	if p.Minimum > 1 {
		for _, j := range list[:min(p.Minimum, len(list))] {
			j.keepBy("minimum", "of the newest "+strconv.Itoa(p.Minimum)+spaced(c.name))
		}
	}
	for _, cal := range p.calendars() {
		for _, j := range cal.newest(list) {
			j.keepBy(cal.unit, "newest "+c.name+"of "+cal.unit+" "+cal.period(j.Created))
		}
	}
	if p.PointInTime > 0 {
		p.keepWindow(c, now, list)
	}
}

// keepWindow keeps all fulls of the point-in-time window, and the newest one
// from before it.
func (p Policy) keepWindow(c class, now time.Time, list []*judgement) {
	start := now.Add(-p.PointInTime)
	for _, j := range list {
		switch {
		case j.Kind != Full:
		case j.Created.After(start.Add(-captureTakes)):
			j.keepBy("point in time", "point in time: within "+short(p.PointInTime))
		default:
			j.keepBy("point in time", "point in time: the "+c.name+"base of the window's start")
			return
		}
	}
}
