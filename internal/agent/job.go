package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/schedule"
	"lifeboat/internal/status"
)

// target names a job. There is never more than one job of a target, and never
// more than one run of a job.
type target struct {
	kind  status.Kind
	chain manifest.Chain // empty for what concerns the whole repository
}

func (t target) String() string {
	if t.chain == "" {
		return string(t.kind)
	}
	return string(t.kind) + " " + string(t.chain)
}

// deadlines are how long a run of each kind may take.
var deadlines = map[status.Kind]time.Duration{
	status.Full:   repository.GiveUpAfter, // a later commit would be refused
	status.Files:  10 * time.Minute,
	status.Verify: 6 * time.Hour,
	status.Prune:  time.Hour,
}

// order is the one in which jobs are listed, and served by Once.
var order = []status.Kind{status.Full, status.Files, status.Verify, status.Prune}

// plan is what a configuration says of one job.
type plan struct {
	schedule *schedule.Schedule
	jitter   int    // percent
	seed     string // of the jitter
}

// job is one job. Its fields but target are guarded by Agent.mu.
type job struct {
	target
	plan
	gone  bool // the configuration has it no more
	added time.Duration

	running bool
	stuck   bool // it was told to stop and did not

	failures int           // in a row
	failed   time.Duration // when the last of them ended
	due      bool
	noticed  time.Duration // when it came due
	standing *Standing     // as asked since then; nil: not yet
	stood    time.Duration // when
	last     *success      // of this process
	lost     int           // successes in a row that were not in the stores afterwards
	differ   int           // members whose data differ, at the last full
	asked    asked         // a full that a recorder asked for

	open struct { // slotAfter's last result
		slot
		newest, day time.Time
		schedule    *schedule.Schedule
	}
}

// success is a run that went well.
type success struct {
	created   time.Time     // by the wall clock
	began     time.Duration // monotonic
	ended     time.Duration
	degraded  bool
	confirmed bool // the stores were asked afterwards
}

// jobsOf makes the plans of a configuration.
func jobsOf(c *config.Config) (map[target]plan, error) {
	plans := map[target]plan{}
	add := func(expression string, t target, p plan) error {
		s, err := schedule.Parse(expression)
		if err != nil {
			return fmt.Errorf("schedule.%s: %q: %w", t.kind, expression, err)
		}
		if s != nil {
			p.schedule, p.jitter = s, c.Schedule.Jitter
			plans[t] = p
		}
		return nil
	}
	for _, e := range c.Etcd {
		// All agents share an etcd cluster's jitter, so that turns keep their order.
		chain := manifest.Chain(etcdPrefix + e.Name)
		if err := add(c.Schedule.Full, target{status.Full, chain}, plan{seed: c.Cluster + " " + string(chain)}); err != nil {
			return nil, err
		}
	}
	node := plan{seed: c.Cluster + " " + c.Node}
	for _, j := range []struct {
		expression string
		target     target
	}{
		{c.Schedule.Files, target{status.Files, ownChain(c)}},
		{c.Schedule.Verify, target{kind: status.Verify}},
		{c.Schedule.Prune, target{kind: status.Prune}},
	} {
		if err := add(j.expression, j.target, node); err != nil {
			return nil, err
		}
	}
	return plans, nil
}

func ownChain(c *config.Config) manifest.Chain { return manifest.Chain(hostsPrefix + c.Node) }

// setJobs makes the jobs be those of plans. The caller holds a.mu, or nobody
// else knows the agent yet.
func (a *Agent) setJobs(plans map[target]plan) {
	for t, j := range a.jobs {
		if _, stays := plans[t]; !stays {
			j.gone = true
			if a.start == nil {
				delete(a.jobs, t)
			}
		}
	}
	for t, p := range plans {
		if j := a.jobs[t]; j != nil {
			j.plan, j.gone = p, false
			continue
		}
		j := &job{target: t, plan: p, added: a.mono()}
		j.slot(p.jitter, time.Time{}, a.started)
		a.jobs[t] = j
		if a.start != nil {
			a.start(j)
		}
	}
}

// sorted lists the jobs that the configuration has. The caller holds a.mu.
func (a *Agent) sorted() []*job {
	return slices.SortedFunc(maps.Values(a.jobs), func(x, y *job) int {
		return cmp.Or(slices.Index(order, x.kind)-slices.Index(order, y.kind), cmp.Compare(x.chain, y.chain))
	})
}

// attend serves one job until ctx ends or the configuration drops it.
func (a *Agent) attend(ctx context.Context, j *job) {
	for ctx.Err() == nil {
		answer, changed := a.ask(j)
		switch {
		case changed == nil:
			return
		case !answer.run:
			sleep(ctx, answer.wait, changed)
		default:
			a.turn(ctx, j)
		}
	}
}

// turn runs a job if it is still to run once no other of its kind does: two
// snapshots at once would need twice the memory and scratch.
func (a *Agent) turn(ctx context.Context, j *job) {
	lane := a.lanes[j.kind]
	select {
	case lane <- struct{}{}:
	case <-ctx.Done():
		return
	}
	var left <-chan outcome[*Outcome]
	if a.settled(ctx, j) {
		left, _ = a.serve(ctx, j) // the error is in the list of runs
	}
	<-lane
	if left != nil && ctx.Err() == nil {
		a.leave(ctx, j, left)
	}
}

// settled looks at the stores again before a run, since another agent may have
// served the slot, and asks for this agent's turn. It reports whether to run.
func (a *Agent) settled(ctx context.Context, j *job) bool {
	if !a.tweaks.blind {
		a.lookNow(ctx)
	}
	answer, _ := a.ask(j)
	if !answer.run || ctx.Err() != nil {
		return false
	}
	if j.kind != status.Full {
		return true
	}
	cluster := strings.TrimPrefix(string(j.chain), etcdPrefix)
	limited, cancel := context.WithTimeout(ctx, standingLimit)
	defer cancel()
	o, _ := await(limited, begin(limited, func(ctx context.Context) (*Standing, error) {
		return a.works.Standing(ctx, cluster)
	}), a.bye)
	standing := o.value
	if o.err != nil || standing == nil {
		// No member answers: nobody goes first, and the run will say why.
		standing = &Standing{}
	}
	a.mu.Lock()
	j.standing, j.stood = standing, a.mono()
	a.mu.Unlock()
	answer, _ = a.ask(j)
	return answer.run && ctx.Err() == nil
}

// ask decides about a job. The channel is closed when it should be asked again
// sooner; nil: the job is over.
func (a *Agent) ask(j *job) (answer, <-chan struct{}) {
	now := a.wall()
	a.mu.Lock()
	defer a.mu.Unlock()
	if j.gone {
		delete(a.jobs, j.target)
		return answer{}, nil
	}
	if !a.board.looked {
		return answer{wait: forever, why: "the first look at the stores"}, a.changed
	}
	q := a.question(j, now)
	got := decide(q)
	switch {
	case !got.due: // served, by whomever
		j.due, j.failures = false, 0
		if !a.doubtful(j, q.mono) {
			j.standing = nil
		}
	case !j.due:
		j.due, j.noticed = true, q.mono
	}
	return got, a.changed
}

// doubtful says that a full's slot is open only for an agent with quorum, and
// that this one had none when last asked: it keeps that for a while.
func (a *Agent) doubtful(j *job, mono time.Duration) bool {
	return j.standing != nil && !j.standing.Quorum && mono-j.stood < a.refresh
}

// question gathers what a decision rests on. The caller holds a.mu.
func (a *Agent) question(j *job, now time.Time) question {
	q := question{
		now: now, mono: a.mono(), seen: j.added,
		failures: j.failures, failed: j.failed, due: j.due, noticed: j.noticed,
	}
	var newest time.Time
	switch j.kind {
	case status.Full, status.Files:
		newest = a.newest(j, q.mono)
		q.seen = max(q.seen, a.board.arrived(j.chain, a.enough()))
	default:
		newest = a.journal.lastSuccess(j.kind)
		if j.last != nil {
			newest = j.last.created
		}
		q.idle = a.idle(j)
	}
	if j.last != nil {
		q.seen = max(q.seen, j.last.began)
	}
	jitter := j.jitter
	if a.once {
		jitter = 0
	} else if j.standing != nil {
		q.rank, q.first = j.standing.Rank, j.standing.First
	}
	if a.once && newest.Sub(now) > maxSkew {
		newest = time.Time{} // no watchdog lives long enough to tell that the time is wrong
	}
	q.slot = j.slot(jitter, newest, now)
	if j.kind == status.Full && a.wanted(j) {
		q.wanted, q.wantedFrom = j.asked.reason, j.wantedFrom()
	}
	a.tweaks.question(&q)
	return q
}

// slot is slotAfter, remembered.
func (j *job) slot(jitter int, newest, now time.Time) slot {
	day := time.Time{}
	if newest.IsZero() {
		day = now.Truncate(24 * time.Hour)
	}
	o := &j.open
	if o.schedule != j.schedule || !o.newest.Equal(newest) || !o.day.Equal(day) || o.interval == 0 {
		o.slot = slotAfter(j.schedule, jitter, j.seed, newest, now)
		o.newest, o.day, o.schedule = newest, day, j.schedule
	}
	return o.slot
}

// least is how many stores must hold a backup for it to count.
func (a *Agent) least() int { return max(a.config.MinStores, 1) }

// enough is how many stores must hold a backup for its slot to need no more
// work now: as many as must, or all that answer. Where a store is dead, a run
// fills the others and has failed for it; once the dead one is back, the slot is
// open again.
func (a *Agent) enough() int { return min(a.least(), max(a.board.answering(), 1)) }

// newest is the capture time of the backup that the slots are counted from.
func (a *Agent) newest(j *job, mono time.Duration) time.Time {
	if j.last != nil && !j.last.confirmed {
		return j.last.created
	}
	if j.kind != status.Full || a.doubtful(j, mono) {
		return a.board.newest(j.chain, a.enough())
	}
	// A degraded full does not fill the slot for an agent that can do better,
	// and whether it can it must ask; unless its own best was degraded too.
	newest := a.board.newestWhole(j.chain, a.enough())
	if j.last != nil && j.last.degraded && j.last.created.After(newest) {
		newest = j.last.created
	}
	return newest
}

// idle says why this agent leaves a job to others; empty: it does not.
func (a *Agent) idle(j *job) string {
	switch {
	case j.kind == status.Prune && !a.isSteward():
		return a.board.steward() + " prunes"
	case len(a.board.chains()) == 0, j.kind == status.Verify && len(a.toVerify()) == 0:
		return "nothing is stored yet"
	}
	return ""
}

func (a *Agent) isSteward() bool {
	s := a.board.steward()
	return s == "" || s == a.config.Node
}

// toVerify lists the chains that this agent verifies: all, or its own node's.
func (a *Agent) toVerify() []manifest.Chain {
	chains := a.board.chains()
	if a.isSteward() {
		return slices.Clone(chains)
	}
	if own := ownChain(a.config); slices.Contains(chains, own) {
		return []manifest.Chain{own}
	}
	return nil
}

// confirm looks for each last success in the new picture. One that is not there
// counts as a failure, so that the next attempt comes by and by and not at once.
func (a *Agent) confirm() {
	for _, j := range a.jobs {
		if j.last == nil || j.last.confirmed || a.board.taken < j.last.ended || a.board.answering() == 0 {
			continue
		}
		j.last.confirmed = true
		if j.kind != status.Full && j.kind != status.Files {
			continue
		}
		// At the same instant is before: time need not pass in a look.
		missing := a.board.newest(j.chain, a.enough()).Before(j.last.created) && a.board.arrived(j.chain, a.enough()) <= j.last.began
		if !missing {
			j.lost = 0
			continue
		}
		j.lost++
		j.failures, j.failed = j.lost, a.mono()
	}
}
