package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

// Options makes an agent. Config and Works are required.
type Options struct {
	Config  *config.Config // the agent keeps it and never changes it
	Works   Works
	Cluster string // full name, for people; empty: Config.Cluster
	Version string // of lifeboat

	StateDir string           // where the journal lies; empty: Config.StateDir
	Wall     func() time.Time // may jump; nil: time.Now
	Refresh  time.Duration    // between two Looks; 0: 5 minutes
	Farewell time.Duration    // how long work that was told to stop may take for it; 0: 30 seconds
	Events   events.Listener  // warnings; may be nil

	// OnRun hears of each run that is over. It must return quickly. May be nil.
	OnRun func(status.Run)
}

// Limits of what Works is asked beside runs.
const (
	lookLimit        = 2 * time.Minute
	standingLimit    = time.Minute
	certificateLimit = time.Minute

	defaultRefresh  = 5 * time.Minute
	defaultFarewell = 30 * time.Second
)

// Agent is one node's agent. Its methods may be called at once.
type Agent struct {
	works   Works
	cluster string // as given; empty: the configuration's
	version string
	wall    func() time.Time
	refresh time.Duration
	bye     time.Duration
	events  events.Listener
	onRun   func(status.Run)
	tweaks  tweaks // for tests

	origin  time.Time // what the monotonic clock counts from
	started time.Time // wall clock
	journal *journal
	look    *gate // of Look
	certs   *gate // of Certificates

	lanes map[status.Kind]chan struct{} // one run of a kind at a time

	mu           sync.Mutex
	config       *config.Config
	board        *board
	jobs         map[target]*job
	recorders    map[manifest.Chain]*recorder
	recordLanes  map[manifest.Chain]chan struct{}
	certificates []status.Certificate
	certificate  string        // why they could not be read
	refused      string        // why the last configuration offered was not taken
	changed      chan struct{} // closed and replaced when a decision may be another one
	start        func(*job)    // while Run runs

	startRecorder func(*recorder) // while Run runs
	once          bool
}

// New makes an agent and reads its journal. It starts nothing.
func New(o Options) (*Agent, error) {
	return newAgent(o, nil)
}

func newAgent(o Options, s shelf) (*Agent, error) {
	if o.Config == nil || o.Works == nil {
		return nil, errors.New("an agent needs a configuration and its works")
	}
	if o.Wall == nil {
		o.Wall = time.Now
	}
	if o.StateDir == "" {
		o.StateDir = o.Config.StateDir
	}
	if s == nil {
		s = journalIn(o.StateDir)
	}
	a := &Agent{
		works: o.Works, cluster: o.Cluster, version: o.Version, wall: o.Wall, events: o.Events, onRun: o.OnRun,
		refresh: orDefault(o.Refresh, defaultRefresh), bye: orDefault(o.Farewell, defaultFarewell),
		origin: time.Now(), started: o.Wall(), journal: openJournal(s), look: newGate(), certs: newGate(),
		config: o.Config, board: newBoard(storeURLs(o.Config)), jobs: map[target]*job{},
		recorders: map[manifest.Chain]*recorder{}, recordLanes: map[manifest.Chain]chan struct{}{}, changed: make(chan struct{}),
		lanes: map[status.Kind]chan struct{}{},
	}
	for _, kind := range order {
		a.lanes[kind] = make(chan struct{}, 1)
	}
	jobs, err := jobsOf(o.Config)
	if err != nil {
		return nil, err
	}
	a.setJobs(jobs)
	a.setRecorders(o.Config)
	return a, nil
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}

func storeURLs(c *config.Config) []string {
	var urls []string
	for _, s := range c.Stores {
		urls = append(urls, s.URL)
	}
	return urls
}

// mono is the monotonic time since the agent was made. No clock that is set
// moves it.
func (a *Agent) mono() time.Duration { return time.Since(a.origin) }

// Run works until ctx ends. Then it cancels what runs, waits for it a bounded
// time, and says what did not stop; otherwise the error is nil. It may be called
// once.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	written := make(chan struct{})
	quiet := make(chan struct{}) // no more runs
	go func() { defer close(written); a.journal.keep(quiet) }()

	a.mu.Lock()
	a.start = func(j *job) { group.Go(func() { a.attend(ctx, j) }) }
	for _, j := range a.jobs {
		a.start(j)
	}
	a.startRecorder = func(r *recorder) { group.Go(func() { a.keepRecording(ctx, r) }) }
	for _, r := range a.recorders {
		a.startRecorder(r)
	}
	a.mu.Unlock()
	group.Go(func() { a.keepLooking(ctx) })

	<-ctx.Done()
	a.mu.Lock()
	a.start, a.startRecorder = nil, nil
	a.mu.Unlock()
	group.Wait() // each of them waits for its work for a.bye and no longer
	close(quiet)
	var err error
	select {
	case <-written:
	case <-time.After(a.bye):
		err = errors.New("the journal can't be written: its disk hangs")
	}
	return errors.Join(err, a.stuck())
}

// stuck names the jobs whose work was left behind.
func (a *Agent) stuck() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, j := range a.sorted() {
		if j.stuck {
			errs = append(errs, fmt.Errorf("%s did not stop when told to", j.target))
		}
	}
	for _, r := range a.recorders {
		if r.state.Running {
			errs = append(errs, fmt.Errorf("the recorder of %s did not stop when told to", r.chain))
		}
	}
	return errors.Join(errs...)
}

// Once serves what is due, one job after the other, and returns. It waits for
// nobody's turn and retries nothing. The error says which jobs failed.
func (a *Agent) Once(ctx context.Context) error {
	a.mu.Lock()
	a.once = true
	jobs := a.sorted()
	a.mu.Unlock()
	a.lookNow(ctx)
	a.readCertificates(ctx)
	var errs []error
	for _, j := range jobs {
		if ctx.Err() != nil {
			break
		}
		if got, _ := a.ask(j); got.run && a.settled(ctx, j) {
			if _, err := a.serve(ctx, j); err != nil { // what it leaves ends with the process
				errs = append(errs, fmt.Errorf("%s: %w", j.target, err))
			}
		}
	}
	if err := a.journal.flush(a.bye); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// Reload takes another configuration. What runs finishes under the old one;
// jobs that the new one no longer has start no more. On an error the old one
// goes on, and Status says so until another one is taken.
func (a *Agent) Reload(ctx context.Context, c *config.Config) error {
	jobs, err := jobsOf(c)
	if err == nil {
		err = a.works.Reload(ctx, c)
	}
	if err != nil {
		a.Refused(err)
		return err
	}
	a.mu.Lock()
	a.config, a.refused = c, ""
	a.setJobs(jobs)
	a.setRecorders(c)
	a.wake()
	a.mu.Unlock()
	a.lookNow(ctx)
	return nil
}

// Refused notes a configuration that could not even be read, for Status.
func (a *Agent) Refused(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refused = line(err.Error())
}

// wake makes every job decide again. The caller holds a.mu.
func (a *Agent) wake() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// keepLooking keeps the picture fresh.
func (a *Agent) keepLooking(ctx context.Context) {
	for {
		a.lookNow(ctx)
		a.readCertificates(ctx)
		a.journal.retry()
		if !sleep(ctx, a.refresh, nil) {
			return
		}
	}
}

// lookNow returns when what a Look that began after the call saw is on the board,
// it has failed, or ctx has ended. Those who ask at the same time share one.
func (a *Agent) lookNow(ctx context.Context) {
	var began time.Duration
	look := func(ctx context.Context) (*Picture, error) {
		began = a.mono()
		return a.works.Look(ctx)
	}
	pass(ctx, a.look, lookLimit, a.bye, look, func(picture *Picture, err error) {
		if ctx.Err() != nil {
			return
		}
		if err == nil && picture == nil {
			err = errors.New("no picture")
		}
		now := a.wall()
		a.mu.Lock()
		defer a.mu.Unlock()
		if err != nil {
			a.board.fail(err)
		} else {
			a.board.take(picture, now, began)
			a.confirm()
		}
		a.wake()
	})
}

func (a *Agent) readCertificates(ctx context.Context) {
	pass(ctx, a.certs, certificateLimit, a.bye, a.works.Certificates, func(list []status.Certificate, err error) {
		if ctx.Err() != nil {
			return
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.certificate = ""
		if err != nil {
			a.certificate = line(err.Error())
			if len(list) == 0 {
				return // the last ones read are better than none
			}
		}
		a.certificates = list
	})
}

// sleep waits, and reports whether ctx goes on. A close of early ends it sooner.
func sleep(ctx context.Context, d time.Duration, early <-chan struct{}) bool {
	if d == forever {
		select {
		case <-ctx.Done():
			return false
		case <-early:
			return true
		}
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-early:
	case <-timer.C:
	}
	return true
}
