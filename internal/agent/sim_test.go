package agent

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/schedule"
	"lifeboat/internal/status"
)

var (
	seedsFlag = flag.Int("seeds", 100, "how many seeds to simulate")
	daysFlag  = flag.Int("days", 30, "days of each of them")
	yearsFlag = flag.Int("years", 2, "how many seeds to simulate for a year")
	seedFlag  = flag.Uint64("seed", 0, "simulate this one only, and print what happens")
)

// TestSimulation lets agents live in worlds in which clocks jump, stores, members
// and agents die, and checks at every moment what an agent promises. A failure
// names its seed; -seed runs that one again and prints its trace.
func TestSimulation(t *testing.T) {
	if *seedFlag != 0 {
		w := simulate(t, *seedFlag, *daysFlag, tweaks{})
		t.Log(strings.Join(w.trace, "\n"))
		for _, v := range w.broken {
			t.Error(v)
		}
		return
	}
	seeds, years := *seedsFlag, *yearsFlag
	if testing.Short() { // for the race detector, which needs many worlds less than it needs time
		seeds, years = min(seeds, 10), 0
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // worlds are small and short
	type life struct {
		seed uint64
		days int
	}
	work := make(chan life)
	go func() {
		defer close(work)
		for i := range years { // the long ones first: no one waits for the last
			work <- life{uint64(1_000_000 + i), 365}
		}
		for i := range seeds {
			work <- life{uint64(i + 1), *daysFlag}
		}
	}()
	var mu sync.Mutex
	var worlds, slots, fulls, calm, lives, judged, files int
	t.Run("worlds", func(t *testing.T) {
		for i := range 2 {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				for l := range work {
					w := simulate(t, l.seed, l.days, tweaks{})
					if len(w.broken) > 0 {
						t.Errorf("seed %d, %d days: %s\nagain: go test ./internal/agent -run 'TestSimulation$' -seed %d -days %d\nthe end of the trace:\n%s",
							l.seed, l.days, strings.Join(w.broken, "\n"), l.seed, l.days, strings.Join(w.trace[max(0, len(w.trace)-30):], "\n"))
					}
					mu.Lock()
					worlds++
					slots += int(time.Duration(l.days) * 24 * time.Hour / w.interval)
					fulls += len(w.fulls)
					judged += w.slots
					files += w.fileSlots
					for _, a := range w.agents {
						lives += a.life
					}
					if w.calm {
						calm++
					}
					mu.Unlock()
				}
			})
		}
	})
	t.Logf("%d worlds, %d slots, %d fulls that served one, %d slots and %d of files looked at one by one, %d lives of agents, %d calm worlds", worlds, slots, fulls, judged, files, lives, calm)
	if worlds != seeds+years || worlds == 0 {
		t.Errorf("%d worlds, want %d and %d of a year", worlds, seeds, years)
	}
	// A world in which nothing happens proves nothing.
	if seeds >= 100 && (calm == 0 || fulls < slots/2 || judged < slots/10 || files < judged || lives < 5*seeds) {
		t.Error("the worlds are not what they should be")
	}
}

// TestTheSimulationNoticesBrokenAgents shows that the invariants can fail.
func TestTheSimulationNoticesBrokenAgents(t *testing.T) {
	if testing.Short() {
		t.Skip("many worlds, which the plain run goes through")
	}
	const most = 60 // seeds
	for name, c := range map[string]struct {
		tweaks tweaks
		want   string // in one of the violations
	}{
		"no watchdog":                              {tweaks{noWatchdog: true}, "lost"},
		"everybody at once":                        {tweaks{noTurns: true}, "calm"},
		"waiting for the dead":                     {tweaks{loyal: true}, "lost"},
		"no second look before a turn":             {tweaks{blind: true}, "calm"},
		"no second attempt":                        {tweaks{noRetry: true}, "lost"},
		"no deadlines":                             {tweaks{endless: true}, "ran for"},
		"silent about what is wrong":               {tweaks{mute: true}, "says nothing"},
		"forgetting which stores don't answer":     {tweaks{rosy: true}, "status"},
		"retries without longer and longer pauses": {tweaks{hasty: true}, "attempts"},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := uint64(1); seed <= most; seed++ {
				w := simulate(t, seed, 20, c.tweaks)
				if i := slices.IndexFunc(w.broken, func(v string) bool { return strings.Contains(v, c.want) }); i >= 0 {
					t.Logf("seed %d: %s", seed, w.broken[i])
					return
				}
			}
			t.Errorf("not noticed in %d worlds", most)
		})
	}
}

// simulate runs one world.
func simulate(t *testing.T, seed uint64, days int, broken tweaks) *world {
	t.Helper()
	var w *world
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(2*time.Hour + time.Duration(seed%3000)*time.Second) // not at midnight, when a slot begins
		w = newWorld(seed, broken)
		w.run(days)
	})
	return w
}

func newWorld(seed uint64, broken tweaks) *world {
	rng := rand.New(rand.NewPCG(seed, 1))
	w := &world{seed: seed, tweaks: broken, side: map[int]int{}, cutOff: -1}
	w.calm = rng.IntN(6) == 0
	every := []string{"0 */6 * * *", "0 */6 * * *", "0 */6 * * *", "0 */4 * * *", "30 3 * * *", "@every 6h"}[rng.IntN(6)]
	w.full, _ = schedule.Parse(every)
	w.interval = w.full.Interval(time.Now())
	w.jitter = []int{0, 0, 10}[rng.IntN(3)]
	for i := range 1 + rng.IntN(3) {
		w.stores = append(w.stores, &simStore{url: fmt.Sprintf("s3://b%d", i), chains: map[manifest.Chain][]entry{}})
	}
	w.minStores = 1 + rng.IntN(len(w.stores))
	w.refresh = time.Duration(1+rng.IntN(3)) * time.Hour
	w.external = rng.IntN(6) == 0
	w.byTime = rng.IntN(2) == 0
	members := []int{1, 3, 3, 5}[rng.IntN(4)]
	agents := members
	if w.external {
		agents = 1 + rng.IntN(3)
	}
	for range members {
		w.members = append(w.members, &simMember{})
	}
	c := config.Default()
	c.Cluster, c.MinStores = "sim", w.minStores
	c.Etcd = []config.Etcd{{Name: "main"}}
	c.Schedule = config.Schedule{Full: every, Files: simFiles.String(), Verify: "30 4 * * *", Prune: "45 4 * * *", Jitter: w.jitter}
	for _, s := range w.stores {
		c.Stores = append(c.Stores, config.DefaultStore(s.url))
	}
	for i := range agents {
		a := &simAgent{
			world: w, index: i, origin: time.Now(), node: fmt.Sprintf("cp%d", i+1), ran: map[string]int{},
			offset: time.Duration(rng.IntN(60_000)-30_000) * time.Millisecond,
			reach:  make([]bool, len(w.stores)), reachSince: make([]time.Time, len(w.stores)),
		}
		mine := *c
		mine.Node = a.node
		a.config = &mine
		w.agents = append(w.agents, a)
	}
	w.say("seed %d: %d agents, %d members, %d of %d stores, full %q, jitter %d, calm %v, external %v", seed, agents, members, w.minStores, len(w.stores), every, w.jitter, w.calm, w.external)
	return w
}

// born starts an agent's next life.
func (w *world) born(a *simAgent) {
	w.mu.Lock()
	if a.alive {
		w.mu.Unlock()
		return
	}
	a.life++
	a.alive, a.since, a.killed = true, time.Now(), make(chan struct{})
	a.results, a.told, a.ran = nil, nil, map[string]int{}
	works := simWorks{a, a.life, a.killed}
	w.mu.Unlock()
	var ctx context.Context
	ctx, a.cancel = context.WithCancel(context.Background())
	agent, err := newAgent(Options{
		Config: a.config, Works: works, Wall: works.wall, Refresh: w.refresh, StateDir: "/nowhere",
		OnRun: func(r status.Run) {
			if r.Kind == status.Full && r.Reason != status.Interrupted {
				w.mu.Lock()
				defer w.mu.Unlock()
				if works.life == a.life {
					a.told = append(a.told, string(r.Result))
				}
			}
		},
	}, memoryShelf{a, a.life})
	if err != nil {
		panic(err)
	}
	agent.tweaks = w.tweaks
	a.agent = agent
	done := make(chan error, 1)
	a.done = done
	go func() { done <- agent.Run(ctx) }()
}

// dies kills an agent as SIGKILL would, or if it is gentle, SIGTERM.
func (w *world) dies(a *simAgent, gentle bool) {
	w.mu.Lock()
	if !a.alive {
		w.mu.Unlock()
		return
	}
	if !gentle {
		a.alive = false // nothing it does from now on reaches the world
	}
	paused := a.paused
	w.mu.Unlock()
	if paused != nil && gentle {
		return
	}
	close(a.killed)
	a.cancel()
	if err := <-a.done; err != nil {
		w.mu.Lock()
		w.violate("%s: %v", a.node, err)
		w.mu.Unlock()
	}
	w.mu.Lock()
	a.alive, a.paused = false, nil
	w.mu.Unlock()
}

// run lets the world be for some days.
func (w *world) run(days int) {
	end := time.Now().Add(time.Duration(days) * 24 * time.Hour)
	faults := w.faults(end)
	for _, a := range w.agents {
		w.born(a)
	}
	w.change(func() {})
	check := time.Now().Add(4 * time.Hour)
	for time.Now().Before(end) {
		next := check
		if len(faults) > 0 && faults[0].at.Before(next) {
			next = faults[0].at
		}
		time.Sleep(time.Until(next))
		if len(faults) > 0 && !faults[0].at.After(next) {
			w.mu.Lock()
			w.say("%s", faults[0].what)
			w.mu.Unlock()
			faults[0].apply()
			faults = faults[1:]
			w.change(func() {})
		} else {
			synctest.Wait()
			w.check()
			check = check.Add(4 * time.Hour)
		}
	}
	for _, a := range w.agents {
		w.dies(a, false)
	}
	w.change(func() {})
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.streams != 0 {
		w.violate("%d snapshot streams were left open", w.streams)
	}
	w.judge(end)
}

func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	w.settle()
}
