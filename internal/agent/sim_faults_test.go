package agent

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// mishap is one change of the world, for worse or for better.
type mishap struct {
	at    time.Time
	what  string
	apply func()
}

// faults plans what goes wrong until the end, by the seed alone.
func (w *world) faults(end time.Time) []mishap {
	if w.calm {
		return nil
	}
	p := &planner{w: w, rng: rand.New(rand.NewPCG(w.seed, 2)), end: end}
	for i := range w.stores {
		s := w.stores[i]
		p.spells(8, 2*24*time.Hour, s.url+" does not answer", count(&s.down))
		p.spells(8, 24*time.Hour, s.url+" loses answers", count(&s.vague))
	}
	for i := range w.members {
		m := w.members[i]
		p.spells(15, 2*24*time.Hour, fmt.Sprintf("member %d is down", i+1), count(&m.down))
	}
	p.spells(20, 12*time.Hour, "most members are down", func(by int) {
		for i := range len(w.members)/2 + 1 {
			w.members[i].down += by
		}
	})
	p.spells(20, 24*time.Hour, "partition", func(by int) {
		w.split += by
		if by > 0 {
			w.cutOff = p.rng.IntN(3) - 1
			for i := range 5 {
				side := p.rng.IntN(2)
				w.side[i], w.side[100+i] = side, side
			}
		}
	})
	for _, a := range w.agents {
		p.spells(10, 8*time.Hour, a.node+": backups are slow", count(&a.slow))
		p.spells(20, 8*time.Hour, a.node+": backups hang", count(&a.hangs))
		p.spells(20, 48*time.Hour, a.node+": the disk is full", count(&a.full))
		p.deaths(a)
		p.pauses(a)
		p.clock(a)
	}
	if p.rng.IntN(3) == 0 {
		p.allClocks()
	}
	slices.SortStableFunc(p.all, func(x, y mishap) int { return x.at.Compare(y.at) })
	return p.all
}

func count(n *int) func(int) { return func(by int) { *n += by } }

// planner draws times.
type planner struct {
	w   *world
	rng *rand.Rand
	end time.Time
	all []mishap
}

func (p *planner) add(at time.Time, what string, apply func()) {
	if at.Before(p.end) {
		p.all = append(p.all, mishap{at, what, apply})
	}
}

// times calls f at random moments, so many days apart on average; about a third
// of the worlds go without.
func (p *planner) times(days float64, f func(time.Time)) {
	if p.rng.IntN(3) == 0 {
		return
	}
	for at := time.Now(); ; {
		at = at.Add(time.Duration(p.rng.ExpFloat64() * days * 24 * float64(time.Hour)))
		if !at.Before(p.end) {
			return
		}
		f(at)
	}
}

// span is a random length, mostly much shorter than most.
func (p *planner) span(most time.Duration) time.Duration {
	x := p.rng.Float64()
	return time.Minute + time.Duration(x*x*x*float64(most))
}

// spells plans times during which something is wrong.
func (p *planner) spells(days float64, most time.Duration, what string, by func(int)) {
	p.times(days, func(at time.Time) {
		p.add(at, what, func() { p.w.change(func() { by(1) }) })
		p.add(at.Add(p.span(most)), "no longer: "+what, func() { p.w.change(func() { by(-1) }) })
	})
}

func (p *planner) deaths(a *simAgent) {
	p.times(6, func(at time.Time) {
		gentle, damaged := p.rng.IntN(3) == 0, p.rng.IntN(10) == 0
		p.add(at, fmt.Sprintf("%s dies (gently %v)", a.node, gentle), func() {
			p.w.dies(a, gentle)
			if damaged && a.saved != nil {
				a.saved.Format = 99
			}
		})
		p.add(at.Add(p.span(24*time.Hour)), a.node+" lives", func() { p.w.born(a) })
	})
}

// pauses stops an agent as SIGSTOP or a stalled machine would.
func (p *planner) pauses(a *simAgent) {
	p.times(8, func(at time.Time) {
		life := 0
		p.add(at, a.node+" is stopped", func() {
			p.w.change(func() {
				life = 0
				if a.alive && a.paused == nil {
					a.paused, life = make(chan struct{}), a.life
				}
			})
		})
		p.add(at.Add(p.span(5*time.Hour)), a.node+" goes on", func() {
			p.w.change(func() {
				if a.paused != nil && life == a.life {
					close(a.paused)
					a.paused, a.since = nil, time.Now()
				}
			})
		})
	})
}

// clock sets one agent's clock wrong, and right again.
func (p *planner) clock(a *simAgent) {
	right := a.offset
	p.times(15, func(at time.Time) {
		wrong := p.wrong()
		p.add(at, fmt.Sprintf("%s: the clock is off by %s", a.node, wrong), func() { p.set(a, right+wrong) })
		p.add(at.Add(p.span(5*24*time.Hour)), a.node+": the clock is right", func() { p.set(a, right) })
	})
}

func (p *planner) allClocks() {
	p.times(15, func(at time.Time) {
		wrong := p.wrong()
		rights := map[*simAgent]time.Duration{}
		for _, a := range p.w.agents {
			rights[a] = a.offset
		}
		p.add(at, fmt.Sprintf("all clocks are off by %s", wrong), func() {
			for _, a := range p.w.agents {
				p.set(a, rights[a]+wrong)
			}
		})
		p.add(at.Add(p.span(5*24*time.Hour)), "all clocks are right", func() {
			for _, a := range p.w.agents {
				p.set(a, rights[a])
			}
		})
	})
}

func (p *planner) set(a *simAgent, offset time.Duration) {
	p.w.change(func() {
		a.offset = offset
		p.w.jumps++
	})
}

// wrong is minutes, hours or days, forward or back.
func (p *planner) wrong() time.Duration {
	d := time.Duration(1+p.rng.IntN(20)) * []time.Duration{time.Minute, time.Hour, 12 * time.Hour}[p.rng.IntN(3)]
	if p.rng.IntN(2) == 0 {
		return -d
	}
	return d
}
