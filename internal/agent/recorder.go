package agent

import (
	"cmp"
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

// Recording is what a recorder asks of the agent and tells it. Its functions may
// be called at any time and by several goroutines; each returns at once.
type Recording struct {
	// Rank is this agent's place in the order of turns, as last asked: 0 records
	// first. The others take over when the chain stands still.
	Rank func() int

	// AskFull asks for a full backup as soon as one can be taken. It is to be
	// called again every minute for as long as one is needed.
	AskFull func(reason string)

	// Report replaces what is told of the recorder. The agent fills in Chain,
	// Interval, Running and Gaps.
	Report func(status.Recorder)
}

// Times of recording.
const (
	// standingAge is how old the place in the order of turns may be.
	standingAge = time.Minute

	// askedLasts is how long a full is wanted after the last time that a recorder
	// asked for it.
	askedLasts = 3 * time.Minute

	// askedPause is the least time from one full that a recorder asked for to
	// the next: what makes it ask again and again, such as a disk that stays
	// full, must not stream etcd's database without an end.
	askedPause = 10 * time.Minute

	// A recorder that ended is started again, later each time, and at once
	// again when it ran for steadyAfter.
	firstRestart = 5 * time.Second
	lateRestart  = 2 * time.Minute
	steadyAfter  = 10 * time.Minute

	// recorderSlack is how far a recovery point may stay behind before that is a
	// problem: the changes of a minute without any, and a store's short illness.
	recorderSlack = 5 * time.Minute

	// gapNews is for how long a gap in the history is a problem on the page.
	gapNews = 24 * time.Hour
)

// recorder is the standing job of one etcd cluster. Its fields but chain and
// settings are guarded by Agent.mu.
type recorder struct {
	chain    manifest.Chain
	settings recorderSettings
	stop     context.CancelFunc // while it runs

	gone     bool
	state    status.Recorder
	began    time.Duration // when it first ran, monotonic; 0: not yet
	standing *Standing
	stood    time.Duration // when standing was asked for; 0: never
	standGo  bool          // it is being asked for
}

// recorderSettings are what makes another recorder necessary when it changes.
type recorderSettings struct {
	etcd       config.Etcd
	stores     []config.Store
	recipients []string
	segments   config.Segments
	signing    config.Signing
	node       string
}

// asked is a full that a recorder asked for.
type asked struct {
	reason string        // empty: none
	at     time.Duration // since when it is wanted
	last   time.Duration // when it was last asked for
}

// recordersOf makes the settings of a configuration's recorders.
func recordersOf(c *config.Config) map[manifest.Chain]recorderSettings {
	if c.Segments.Interval <= 0 {
		return nil
	}
	list := map[manifest.Chain]recorderSettings{}
	for _, e := range c.Etcd {
		list[manifest.Chain(etcdPrefix+e.Name)] = recorderSettings{
			etcd: e, stores: c.Stores, recipients: c.Recipients, segments: c.Segments, signing: c.Signing, node: c.Node,
		}
	}
	return list
}

// setRecorders makes the recorders be those of a configuration. One whose
// settings changed ends, and another one resumes where it was. The caller holds
// a.mu, or nobody else knows the agent yet.
func (a *Agent) setRecorders(c *config.Config) {
	wanted := recordersOf(c)
	for chain, r := range a.recorders {
		if s, stays := wanted[chain]; stays && reflect.DeepEqual(s, r.settings) {
			delete(wanted, chain)
			continue
		}
		r.gone = true
		if r.stop != nil {
			r.stop()
		}
		delete(a.recorders, chain)
	}
	for chain, s := range wanted {
		r := &recorder{chain: chain, settings: s, state: status.Recorder{Chain: string(chain), Interval: time.Duration(s.segments.Interval)}}
		a.recorders[chain] = r
		if a.startRecorder != nil {
			a.startRecorder(r)
		}
	}
}

// keepRecording runs a recorder until ctx ends or the configuration drops it.
func (a *Agent) keepRecording(ctx context.Context, r *recorder) {
	// An earlier recorder of the chain may still be at its end: two would be in
	// each other's spool.
	lane := a.recordLane(r.chain)
	select {
	case lane <- struct{}{}:
	case <-ctx.Done():
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.mu.Lock()
	if r.gone {
		cancel()
	}
	r.stop = cancel
	a.mu.Unlock()
	wait := firstRestart
	for ctx.Err() == nil {
		began := a.mono()
		err, back := a.recordOnce(ctx, r)
		if !back {
			return // and the lane is never free again
		}
		if ctx.Err() != nil {
			break
		}
		if a.mono()-began > steadyAfter {
			wait = firstRestart
		}
		a.events.Emit(events.Warning{Chain: string(r.chain), Subject: "recorder", Message: line(err.Error())})
		sleep(ctx, wait, nil)
		wait = min(2*wait, lateRestart)
	}
	<-lane
}

// recordOnce runs a recorder once. back is false if it did not stop when told.
func (a *Agent) recordOnce(ctx context.Context, r *recorder) (err error, back bool) {
	a.mu.Lock()
	r.state.Running = true
	if r.began == 0 {
		r.began = a.mono()
	}
	a.mu.Unlock()
	cluster := strings.TrimPrefix(string(r.chain), etcdPrefix)
	hooks := Recording{
		Rank:    func() int { return a.rank(ctx, r, cluster) },
		AskFull: func(reason string) { a.askFull(r, reason) },
		Report:  func(s status.Recorder) { a.reported(r, s) },
	}
	done := begin(ctx, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, a.works.Record(ctx, cluster, hooks)
	})
	o, back := await(ctx, done, a.bye)
	if p := (*panicError)(nil); errors.As(o.err, &p) {
		a.events.Emit(events.Warning{Chain: string(r.chain), Subject: "recorder", Message: p.Error() + "\n" + string(p.stack)})
	}
	err = o.err
	if err == nil && ctx.Err() == nil {
		err = errors.New("it ended")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	r.state.Running, r.state.Active = !back, false
	if err != nil && ctx.Err() == nil {
		r.state.Error = line(err.Error())
	}
	return err, back
}

// recordLane lets one recorder of a chain run at a time.
func (a *Agent) recordLane(chain manifest.Chain) chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.recordLanes[chain] == nil {
		a.recordLanes[chain] = make(chan struct{}, 1)
	}
	return a.recordLanes[chain]
}

// rank is this agent's place as last asked, and has it asked again if that is
// long ago. Until the first answer it is the first: two that begin at once do
// no harm.
func (a *Agent) rank(ctx context.Context, r *recorder, cluster string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !r.standGo && (r.stood == 0 || a.mono()-r.stood > standingAge) {
		r.standGo = true
		go func() {
			limited, cancel := context.WithTimeout(ctx, standingLimit)
			defer cancel()
			standing, err := guarded(limited, func(ctx context.Context) (*Standing, error) { return a.works.Standing(ctx, cluster) })
			a.mu.Lock()
			defer a.mu.Unlock()
			r.standGo, r.stood = false, a.mono()
			if err == nil {
				r.standing = standing
			}
		}()
	}
	if r.standing == nil {
		return 0
	}
	return r.standing.Rank
}

// askFull makes the chain's full due. While one runs it may be the one that is
// needed; a recorder that it does not help asks again.
func (a *Agent) askFull(r *recorder, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	j := a.jobs[target{status.Full, r.chain}]
	if j == nil || j.gone || j.running {
		return // where none is scheduled, the page says so
	}
	fresh := !a.wanted(j)
	if fresh {
		j.asked = asked{reason: line(reason), at: a.mono()}
	}
	j.asked.last = a.mono()
	if fresh {
		a.wake()
	}
}

// wanted reports whether a full that was asked for is still to be taken: the
// recorder has not stopped asking, and none that began later is known. The
// caller holds a.mu.
func (a *Agent) wanted(j *job) bool {
	if j.asked.reason == "" || a.mono()-j.asked.last > askedLasts {
		return false
	}
	return (j.last == nil || j.last.began < j.asked.at) && a.board.arrived(j.chain, a.enough()) <= j.asked.at
}

// wantedFrom is when a full that was asked for may be taken.
func (j *job) wantedFrom() time.Duration {
	if j.last != nil {
		return max(j.asked.at, j.last.ended+askedPause)
	}
	return j.asked.at
}

// reported takes what a recorder tells.
func (a *Agent) reported(r *recorder, s status.Recorder) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Chain, s.Interval, s.Running, s.Gaps = r.state.Chain, r.state.Interval, r.state.Running, r.state.Gaps
	s.Why, s.Error, s.Wanted = line(s.Why), line(s.Error), line(s.Wanted)
	s.Stores = slices.Clone(s.Stores)
	for i := range s.Stores {
		in := &s.Stores[i]
		in.Waiting, in.Error, in.GapWhy = line(in.Waiting), line(in.Error), line(in.GapWhy)
		known := time.Time{}
		if at := slices.IndexFunc(r.state.Stores, func(o status.RecorderStore) bool { return o.Store == in.Store }); at >= 0 {
			known = r.state.Stores[at].LastGap
		}
		switch {
		case in.LastGap.After(known):
			s.Gaps++
		case in.LastGap.IsZero() && !known.IsZero(): // another run of the recorder: what was is not undone
			in.LastGap, in.GapWhy = known, "see the log"
		}
	}
	r.state = s
}

// recorderStatus lists the recorders, by chain. The caller holds a.mu.
func (a *Agent) recorderStatus() []status.Recorder {
	list := []status.Recorder{}
	for _, r := range a.recorders {
		s := r.state
		if s.Stores = slices.Clone(s.Stores); s.Stores == nil {
			s.Stores = []status.RecorderStore{}
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(x, y status.Recorder) int { return strings.Compare(x.Chain, y.Chain) })
	return list
}

// aboutRecorders is about changes that are not recorded. The caller holds a.mu.
func (a *Agent) aboutRecorders(f *findings, s *status.Status) {
	for _, r := range s.Recorders {
		own := a.recorders[manifest.Chain(r.Chain)]
		if own == nil || !r.Running && r.Error == "" { // it was not begun, as by Once
			continue
		}
		subject := "recorder " + r.Chain
		point := r.RecoveryPoint()
		late := s.Now.Sub(point) > recorderSlack && a.mono()-own.began > recorderSlack
		switch {
		case !r.Running:
			f.add(status.Warning, subject, "it failed and is started again: %s", r.Error)
		case late && r.Error != "":
			f.add(status.Warning, subject, "the last that went wrong: %s", r.Error)
		}
		if late && point.IsZero() {
			f.add(status.Critical, subject, "nothing is recorded: a restore gives back no more than the newest full")
		} else if late {
			f.add(status.Critical, subject, "the changes since %s are in no store: a restore loses them", point.UTC().Format(time.RFC3339))
		}
		for _, in := range r.Stores {
			if !late && s.Now.Sub(in.RecoveryPoint) > recorderSlack {
				f.add(status.Warning, subject, "%s lags: it has the changes until %s, the others have later ones. %s",
					in.Store, in.RecoveryPoint.UTC().Format(time.RFC3339), cmp.Or(in.Error, in.Waiting))
			}
			if !in.LastGap.IsZero() && s.Now.Sub(in.LastGap).Abs() < gapNews {
				f.add(status.Warning, subject, "the history in %s has a gap, found at %s; no time in it can be restored: %s",
					in.Store, in.LastGap.UTC().Format(time.RFC3339), in.GapWhy)
			}
		}
		if r.Wanted != "" && a.jobs[target{status.Full, own.chain}] == nil {
			f.add(status.Critical, subject, "it needs a full and schedule.full is empty; run `lifeboat backup`: %s", r.Wanted)
		}
		if r.SpoolLimit > 0 && r.SpoolBytes > r.SpoolLimit/10*8 {
			f.add(status.Warning, subject, "its spool is almost full: %d of %d bytes; beyond that the oldest changes are given up", r.SpoolBytes, r.SpoolLimit)
		}
	}
}
