package agent

import (
	"slices"
	"strings"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/schedule"
	"lifeboat/internal/status"
)

const simChain = manifest.Chain("etcd/main")

// simFiles is when every node's files are due, in every world.
var simFiles = func() *schedule.Schedule {
	s, err := schedule.Parse("15 */6 * * *")
	if err != nil {
		panic(err)
	}
	return s
}()

// patience is how long an agent that is able may take to a full, whatever the
// clocks say: a slot, what it may not have seen for, everybody's turn before it,
// the longest pause between two attempts, and the run.
func (w *world) patience() time.Duration { return w.interval + w.refresh + w.delay(w.interval) }

// delay is the part of it that follows the slot's time.
func (w *world) delay(interval time.Duration) time.Duration {
	return 7*grace(interval) + backoff(100, interval) + interval/100*time.Duration(w.jitter) + 10*time.Minute
}

// check looks at the world while it lives.
func (w *world) check() {
	w.mu.Lock()
	recovery, any := w.recovery(w.minStores), w.recovery(1)
	agents := slices.Clone(w.agents)
	now := time.Now()
	for _, a := range agents {
		if !a.hopeful.IsZero() && w.tooLong(now, any, a.hopeful) {
			w.violate("lost: no store has a full since %s, although %s was able to give one to some since %s", any.UTC(), a.node, a.hopeful.UTC())
		}
		if !a.able.IsZero() && w.tooLong(now, recovery, a.able) {
			w.violate("lost: the newest full is of %s, although %s was able to take one since %s", recovery.UTC(), a.node, a.able.UTC())
			w.fulls = append(w.fulls, now) // once is enough
			for _, s := range w.stores {
				s.lastAt = now
			}
		}
		// Clocks that jump too: the agent's own files, and nobody else takes them.
		interval := simFiles.Interval(now)
		if files := w.newest(a.chain()); !a.able.IsZero() && now.Sub(later(files, a.able)) > interval+w.refresh+w.delay(interval) {
			w.violate("lost: the newest files of %s are of %s, although it was able to take them since %s", a.node, files.UTC(), a.able.UTC())
		}
		w.countAttempts(a, now)
	}
	w.mu.Unlock()
	for _, a := range agents {
		w.mu.Lock()
		skip := !a.alive || a.paused != nil
		since, offset := a.since, a.offset
		w.mu.Unlock()
		if skip {
			continue
		}
		s := a.agent.Status()
		w.mu.Lock()
		w.checkStatus(a, s, now, since, offset)
		if !recovery.IsZero() {
			w.checkAlarm(a, s, now, since, recovery)
		}
		w.mu.Unlock()
	}
}

func (w *world) tooLong(now, recovery, able time.Time) bool {
	return now.Sub(later(recovery, able)) > w.patience()
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// newest is when the last backup of a chain that enough stores hold was captured.
func (w *world) newest(chain manifest.Chain) time.Time {
	var all []time.Time
	for _, s := range w.stores {
		var at time.Time
		if list := s.chains[chain]; len(list) > 0 {
			at = list[len(list)-1].at
		}
		all = append(all, at)
	}
	slices.SortFunc(all, func(a, b time.Time) int { return b.Compare(a) })
	return all[w.minStores-1]
}

// countAttempts bounds the attempts of an agent within one interval. Doubling
// pauses up to an eighth of it make about sixteen; coming back to life or a slot
// served in between start them anew.
func (w *world) countAttempts(a *simAgent, now time.Time) {
	recent := 0
	for _, at := range slices.Backward(a.attempts) {
		if now.Sub(at) > w.interval {
			break
		}
		recent++
	}
	if recent > 60 {
		w.violate("%s: %d attempts within %s", a.node, recent, w.interval)
	}
	if len(a.attempts) > 10_000 {
		a.attempts = a.attempts[5000:]
	}
}

// checkStatus compares what an agent says with the truth, as far as a refresh
// ago at most.
func (w *world) checkStatus(a *simAgent, s *status.Status, now, since time.Time, offset time.Duration) {
	stale := w.refresh + 2*time.Minute
	if now.Sub(since) < stale {
		return
	}
	if !s.Loaded {
		w.violate("status: %s has not loaded after %s", a.node, now.Sub(since))
		return
	}
	for i, store := range w.stores {
		if now.Sub(a.reachSince[i]) < stale {
			continue
		}
		if answers := s.Stores[i].Error == ""; answers != a.reach[i] {
			w.violate("status: %s says that %s answers: %v, truth: %v since %s", a.node, store.url, answers, a.reach[i], a.reachSince[i].UTC())
		}
		for _, c := range s.Chains {
			in, list := c.InStores[i], store.chains[manifest.Chain(c.Name)]
			if in.Head > uint64(len(list)) {
				w.violate("status: %s knows manifest %d of %s in %s, which has %d", a.node, in.Head, c.Name, store.url, len(list))
				continue
			}
			if truth := w.inStore(list[:in.Head], now); !in.Newest.Equal(truth.Newest) || !in.NewestWhole.Equal(truth.NewestWhole) {
				w.violate("status: %s says that the newest of %s at manifest %d is of %s, truth: %s", a.node, c.Name, in.Head, in.Newest, truth.Newest)
			}
			if next := int(in.Head); a.reach[i] && next < len(list) && now.Sub(list[next].landed) > stale {
				w.violate("status: %s has not seen manifest %d of %s in %s, there since %s", a.node, next+1, c.Name, store.url, list[next].landed.UTC())
			}
		}
	}
	if !slices.Equal(a.told, a.results) && len(a.ran) > 0 && w.quiet(a) {
		w.violate("status: %s told of full runs %v, truth: %v", a.node, last(a.told), last(a.results))
	}
	for _, j := range s.Jobs {
		if j.Kind == status.Full && !j.Running && !j.Due.IsZero() && j.Due.Sub(s.Now) > w.patience()+48*time.Hour && offset.Abs() < time.Minute {
			w.violate("status: %s says that the next full is due in %s", a.node, j.Due.Sub(s.Now))
		}
	}
}

// quiet reports whether no run is on its way.
func (w *world) quiet(a *simAgent) bool {
	for _, n := range a.ran {
		if n > 0 {
			return false
		}
	}
	return true
}

func last(list []string) []string { return list[max(0, len(list)-5):] }

// checkAlarm wants a loud agent when there was no full for two slots and more.
func (w *world) checkAlarm(a *simAgent, s *status.Status, now, since, recovery time.Time) {
	long := 2*w.interval + 3*grace(w.interval) + w.refresh + w.interval/100*time.Duration(w.jitter) + time.Hour
	if now.Sub(recovery) < long || now.Sub(since) < long {
		return
	}
	loud := slices.ContainsFunc(s.Problems, func(p status.Problem) bool {
		return p.Severity == status.Critical && (p.Subject == string(simChain) || strings.HasPrefix(p.Subject, "s3://"))
	})
	if !loud {
		w.violate("%s says nothing critical although the newest full is of %s: %v", a.node, recovery.UTC(), s.Problems)
	}
}

// judge looks at the whole of a life. The caller holds w.mu.
func (w *world) judge(end time.Time) {
	total := map[string]bool{}
	for _, s := range w.stores {
		for _, e := range s.chains[simChain] {
			total[e.id] = true
		}
	}
	slots := int(end.Sub(w.born0()) / w.interval)
	// Everybody once a slot is the worst of turns; each jump of a clock and each
	// new life may add one.
	lives := 0
	for _, a := range w.agents {
		lives += a.life
	}
	if most := (slots + 2 + w.jumps + lives) * (len(w.agents) + 1); len(total) > most {
		w.violate("%d fulls in %d slots", len(total), slots)
	}
	if w.calm {
		w.judgeCalm(end)
	}
	if w.jumps == 0 && !strings.HasPrefix(w.full.String(), "@every") {
		w.judgeSlots(end)
	}
}

// judgeSlots wants a full in every single slot in which one agent was able to
// take it for long enough, where no clock was ever wrong, and the files of each
// node from its own agent.
func (w *world) judgeSlots(end time.Time) {
	w.slots = w.judgeChain(simChain, w.full, w.agents, end)
	for _, a := range w.agents {
		w.fileSlots += w.judgeChain(a.chain(), simFiles, []*simAgent{a}, end)
	}
}

// judgeChain returns how many slots it looked at.
func (w *world) judgeChain(chain manifest.Chain, s *schedule.Schedule, agents []*simAgent, end time.Time) (looked int) {
	interval := s.Interval(w.born0())
	enough := w.delay(interval)
	var stores []map[time.Time]bool
	for _, store := range w.stores {
		slots := map[time.Time]bool{}
		for _, e := range store.chains[chain] {
			slots[slotOf(s, interval, e.created)] = true
		}
		stores = append(stores, slots)
	}
	able := func(slot time.Time) bool {
		return slices.ContainsFunc(agents, func(a *simAgent) bool {
			return slices.ContainsFunc(a.spells, func(s spell) bool {
				return s.from.Before(slot) && s.to.After(slot.Add(enough))
			})
		})
	}
	for slot := s.Next(w.born0()); slot.Before(end); slot = s.Next(slot) {
		held := 0
		for _, slots := range stores {
			if slots[slot.UTC()] {
				held++
			}
		}
		looked++
		if held < w.minStores && able(slot) {
			w.violate("lost: the slot of %s of %s is in %d stores, although an agent was able to serve it", slot.UTC(), chain, held)
		}
	}
	return looked
}

func (w *world) born0() time.Time { return w.agents[0].origin }

// judgeCalm wants exactly one full a slot and one prune a day where nothing
// happens.
func (w *world) judgeCalm(end time.Time) {
	list := w.stores[0].chains[simChain]
	perSlot := map[time.Time]int{}
	for _, e := range list {
		perSlot[slotOf(w.full, w.interval, e.created)]++
	}
	first := slotOf(w.full, w.interval, list[0].created)
	for slot, n := range perSlot {
		// Beside an external etcd nobody knows of the others before their first
		// host files are stored.
		if n != 1 && !(w.external && slot.Equal(first)) {
			w.violate("calm: %d fulls in the slot of %s", n, slot)
		}
	}
	if strings.HasPrefix(w.full.String(), "@every") {
		if want := int(end.Sub(w.born0()) / (w.interval + w.interval/100*time.Duration(w.jitter) + 3*time.Minute)); len(list) < want {
			w.violate("calm: %d fulls, want at least %d", len(list), want)
		}
	} else {
		for slot := w.full.Next(w.born0()); slot.Add(w.interval / 5).Before(end); slot = w.full.Next(slot) {
			if perSlot[slot] == 0 {
				w.violate("calm: no full in the slot of %s", slot)
			}
		}
	}
	days := int(end.Sub(w.born0()) / (24 * time.Hour))
	if w.prunes < days || w.prunes > days+len(w.agents)+1 {
		w.violate("calm: %d prunes in %d days", w.prunes, days)
	}
	for _, a := range w.agents {
		if a.verified < days || a.verified > days+2 {
			w.violate("calm: %s verified %d times in %d days", a.node, a.verified, days)
		}
	}
}

// slotOf is the slot that a backup fills: the last scheduled time up to then.
func slotOf(s *schedule.Schedule, interval time.Duration, created time.Time) time.Time {
	if strings.HasPrefix(s.String(), "@every") {
		return created
	}
	at := created.Add(-interval)
	for next := s.Next(at); !next.After(created); next = s.Next(at) {
		at = next
	}
	return at.UTC()
}
