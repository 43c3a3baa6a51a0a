package agent

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/schedule"
	"lifeboat/internal/status"
)

// world is the truth of a simulation: stores, an etcd cluster and agents, and
// what is wrong with each at the moment. Time is the bubble's; agents have
// clocks of their own.
type world struct {
	seed      uint64
	calm      bool // nothing ever goes wrong
	minStores int
	jitter    int
	full      *schedule.Schedule
	interval  time.Duration
	refresh   time.Duration
	external  bool // no agent runs beside a member
	byTime    bool // the newest backup is the one with the latest time, not the last of the chain
	tweaks    tweaks

	mu      sync.Mutex
	stores  []*simStore
	members []*simMember
	agents  []*simAgent
	split   int         // partitions at the moment
	side    map[int]int // member or agent -> side of the partition
	cutOff  int         // side that reaches no store; -1: none
	fulls   []time.Time // capture, true time, of those that counted as served, rising
	trace   []string
	broken  []string // invariants that did not hold
	jumps   int      // of clocks, ever
	streams int      // open snapshot streams
	prunes  int
	slots   int // that judgeSlots looked at

	fileSlots int // of files, likewise
}

type simStore struct {
	url    string
	down   int // reasons for not answering
	vague  int // reasons for losing answers
	chains map[manifest.Chain][]entry
	lastAt time.Time // capture, true time, of the newest full
}

// entry is one backup in one store.
type entry struct {
	id, prev string
	at       time.Time // when it was captured, true time
	landed   time.Time // when the store took it, true time
	created  time.Time // when it was captured by its writer's clock
	expected time.Time // the next one, by its writer's clock
	revision int64
	degraded bool
	whole    time.Time // created of the last whole one up to here

	latest, latestWhole time.Time // the latest created up to here
}

// spell is a time during which an agent could take fulls.
type spell struct{ from, to time.Time }

type simMember struct {
	down   int
	frozen int64 // revision while it has no leader
}

// violate notes an invariant that does not hold. The caller holds w.mu.
func (w *world) violate(format string, args ...any) {
	if len(w.broken) < 20 {
		message := fmt.Sprintf(format, args...)
		w.broken = append(w.broken, message)
		w.say("VIOLATION: %s", message)
	}
}

// say adds a line to the trace. The caller holds w.mu.
func (w *world) say(format string, args ...any) {
	if len(w.trace) > 4000 {
		w.trace = slices.Delete(w.trace, 0, 2000)
	}
	w.trace = append(w.trace, time.Now().UTC().Format("01-02 15:04:05")+" "+fmt.Sprintf(format, args...))
}

// draw is a random number below n that depends on the seed, on who asks for
// what, and on the time: not on which goroutine comes first.
func (w *world) draw(n int, who string) int {
	x := w.seed*0x9e3779b97f4a7c15 ^ uint64(time.Now().UnixNano())
	for i := range len(who) {
		x = (x ^ uint64(who[i])) * 0x100000001b3
	}
	x ^= x >> 31
	x *= 0x94d049bb133111eb
	x ^= x >> 29
	return int(x % uint64(n))
}

func (w *world) reachesStore(agent int, s *simStore) bool {
	return s.down == 0 && (w.split == 0 || w.side[agent] != w.cutOff)
}

func (w *world) reachesMember(agent, member int) bool {
	return w.members[member].down == 0 && (w.split == 0 || w.side[agent] == w.side[100+member])
}

// leads reports whether a member is one of a majority.
func (w *world) leads(member int) bool {
	if w.members[member].down > 0 {
		return false
	}
	n := 0
	for i, m := range w.members {
		if m.down == 0 && (w.split == 0 || w.side[100+i] == w.side[100+member]) {
			n++
		}
	}
	return n > len(w.members)/2
}

func (w *world) revision() int64 { return time.Now().Unix() }

// source is the member that an agent would back up, and whether it has quorum.
func (w *world) source(agent int) (member int, quorum bool) {
	member = -1
	for i := range w.members {
		if !w.reachesMember(agent, i) {
			continue
		}
		if leads := w.leads(i); member < 0 || leads && !quorum || leads == quorum && i == agent && !w.external {
			member, quorum = i, leads
		}
	}
	return member, quorum
}

// settle follows a change of anything: revisions freeze without a leader, and
// each agent's time of being able to back up begins or ends.
func (w *world) settle() {
	for i, m := range w.members {
		switch {
		case w.leads(i):
			m.frozen = 0
		case m.frozen == 0:
			m.frozen = w.revision()
		}
	}
	for _, a := range w.agents {
		if able := w.able(a, 1); !able {
			a.hopeful = time.Time{}
		} else if a.hopeful.IsZero() {
			a.hopeful = time.Now()
		}
		able := w.able(a, w.minStores)
		if !able {
			if !a.able.IsZero() {
				a.spells = append(a.spells, spell{a.able, time.Now()})
			}
			a.able = time.Time{}
		} else if a.able.IsZero() {
			a.able = time.Now()
		}
		for i, s := range w.stores {
			if reach := w.reachesStore(a.index, s); reach != a.reach[i] || a.reachSince[i].IsZero() {
				a.reach[i], a.reachSince[i] = reach, time.Now()
			}
		}
	}
}

// able reports whether an agent could take a full to so many stores.
func (w *world) able(a *simAgent, least int) bool {
	if !a.alive || a.paused != nil || a.slow > 0 || a.hangs > 0 {
		return false
	}
	stores := 0
	for _, s := range w.stores {
		if w.reachesStore(a.index, s) && s.vague == 0 {
			stores++
		}
	}
	member, _ := w.source(a.index)
	return stores >= least && member >= 0
}

// create is the conditional create of a chain's next manifest.
func (w *world) create(s *simStore, chain manifest.Chain, seq int, e entry) bool {
	list := s.chains[chain]
	if seq != len(list)+1 {
		return false
	}
	if len(list) > 0 && list[len(list)-1].id != e.prev || len(list) == 0 && e.prev != "" {
		w.violate("fork: manifest %d of %s in %s does not follow the one before", seq, chain, s.url)
	}
	for _, other := range list {
		if other.id == e.id {
			w.violate("backup %s is in %s twice", e.id, chain)
		}
	}
	e.landed = time.Now()
	e.latest = e.created
	if n := len(list); n > 0 {
		e.whole, e.latestWhole = list[n-1].whole, list[n-1].latestWhole
		if list[n-1].latest.After(e.latest) {
			e.latest = list[n-1].latest
		}
	}
	if !e.degraded {
		e.whole = e.created
		if e.created.After(e.latestWhole) {
			e.latestWhole = e.created
		}
	}
	s.chains[chain] = append(list, e)
	if strings.HasPrefix(string(chain), etcdPrefix) {
		if e.at.After(s.lastAt) {
			s.lastAt = e.at
		}
		w.count()
	}
	return true
}

// count notes the newest full that enough stores hold.
func (w *world) count() {
	if at := w.recovery(w.minStores); len(w.fulls) == 0 && !at.IsZero() || len(w.fulls) > 0 && at.After(w.fulls[len(w.fulls)-1]) {
		w.fulls = append(w.fulls, at)
	}
}

// recovery is when the newest full that so many stores hold was captured.
func (w *world) recovery(least int) time.Time {
	var all []time.Time
	for _, s := range w.stores {
		all = append(all, s.lastAt)
	}
	slices.SortFunc(all, func(a, b time.Time) int { return b.Compare(a) })
	return all[least-1]
}

// inStore is what a chain looks like to who reads it at a time of his clock.
func (w *world) inStore(list []entry, now time.Time) status.InStore {
	in := status.InStore{Head: uint64(len(list)), Valid: true, Failures: []string{}, Backups: len(list)}
	if len(list) == 0 {
		return in
	}
	last := list[len(list)-1]
	in.Newest, in.NewestWhole, in.NewestProved, in.Revision = last.created, last.whole, last.whole, last.revision
	if w.byTime {
		in.Newest, in.NewestWhole, in.NewestProved = last.latest, last.latestWhole, last.latestWhole
	}
	in.RecoveryPoint = in.Newest
	in.Expected = last.expected
	if now.After(last.expected) {
		in.Late = last.expected
	}
	return in
}
