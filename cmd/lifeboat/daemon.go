package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"lifeboat/internal/agent"
	"lifeboat/internal/agent/work"
	"lifeboat/internal/config"
	"lifeboat/internal/events"
	"lifeboat/internal/metrics"
	"lifeboat/internal/session"
	"lifeboat/internal/status"
	"lifeboat/storage"
)

// daemon wires an agent to what shows it: log, metrics and page.
type daemon struct {
	app     *app
	log     *slog.Logger
	node    string // instead of the configuration's
	cluster string // full name
	metrics *metrics.Metrics
	agent   *agent.Agent
	rest    *time.Timer                   // gives memory back
	again   time.Duration                 // between two looks for etcd clusters
	config  atomic.Pointer[config.Config] // as in use: with what was discovered
	away    sync.Map                      // awayStore: those that the log has as taking no part

	// Of attend alone, once run has begun.
	file    *config.Config // as read
	server  *server
	deadMan *deadMan
}

// newDaemon reads the configuration and the keys that it names, and makes the
// agent. Nothing runs yet: etcd and the stores may be down.
func (a *app) newDaemon(log *slog.Logger, node string) (*daemon, error) {
	d := &daemon{app: a, log: log, node: node, rest: time.AfterFunc(restAfter, debug.FreeOSMemory), again: rediscover}
	file, c, err := d.read()
	if err != nil {
		return nil, err
	}
	trust, _, err := session.Keys(c)
	if err != nil {
		return nil, err
	}
	d.cluster, d.file = trust.Cluster, file
	d.config.Store(c)
	d.metrics = metrics.New(metrics.Options{Status: d.status})
	listener := d.metrics.Listener().Both(d.event)
	works := work.New(work.Options{
		Config: c, Now: a.now, Rand: a.rand, Version: version(), Events: listener,
		Wrap: func(url string, s storage.Store) storage.Store {
			return storage.Metered(s, func(op, code string) { d.metrics.OnRequest(url, op, code) })
		},
	})
	d.agent, err = agent.New(agent.Options{
		Config: c, Works: works, Cluster: d.cluster, Version: version(), Wall: a.now, Events: listener, OnRun: d.ran,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	d.metrics.OnReload(a.now(), nil)
	return d, nil
}

// read reads the configuration and adds the etcd clusters that it asks to
// discover. One that can't look for them goes on with those that it has, and
// with those discovered before: an API server whose manifest is away for a
// repair is no reason to stop its etcd's backups.
func (d *daemon) read() (file, c *config.Config, err error) {
	file, err = d.app.readConfig()
	if err != nil {
		return nil, nil, err
	}
	if d.node != "" {
		file.Node = d.node
		if err := hostsChain(file.Node).Check(); err != nil {
			return nil, nil, fmt.Errorf("%w: --node: %w", errUsage, err)
		}
	}
	return file, d.discovered(file), nil
}

// discovered adds the etcd clusters that the API server uses, and as long as it
// can't be asked for all, those that it used before.
func (d *daemon) discovered(file *config.Config) *config.Config {
	c, complete, err := session.Discovered(file)
	if err != nil {
		d.log.Warn("etcd clusters can't be discovered", "error", err)
	}
	if !complete {
		c = d.withKnown(c)
	}
	return c
}

// withKnown adds the etcd clusters that were discovered earlier.
func (d *daemon) withKnown(c *config.Config) *config.Config {
	old := d.config.Load()
	if old == nil {
		return c
	}
	has := func(list []config.Etcd, name string) bool {
		return slices.ContainsFunc(list, func(e config.Etcd) bool { return e.Name == name })
	}
	more := *c
	more.Etcd = slices.Clone(c.Etcd)
	for _, e := range old.Etcd {
		if !has(d.file.Etcd, e.Name) && !has(more.Etcd, e.Name) {
			more.Etcd = append(more.Etcd, e)
		}
	}
	return &more
}

func (d *daemon) status() *status.Status {
	if d.agent == nil {
		return nil
	}
	return d.agent.Status()
}

// once serves what is due.
func (d *daemon) once(ctx context.Context) error {
	if err := d.agent.Once(ctx); err != nil {
		return fmt.Errorf("serve what is due: %w", err)
	}
	return nil
}

// rediscover is how often etcd clusters are looked for, and tellEvery how often
// the log hears of what changed.
const (
	rediscover = 5 * time.Minute
	tellEvery  = 10 * time.Second
)

// run works until ctx ends. Only a server that can't listen at the start, or
// work that does not stop at the end, is an error.
func (d *daemon) run(ctx context.Context, hup <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := d.config.Load()
	var err error
	if d.server, err = d.serve(ctx, c.HTTP); err != nil {
		return err
	}
	d.log.Info("the agent starts", "cluster", d.cluster, "node", c.Node, "version", version(), "listen", d.server.at, "etcd", names(c))
	d.deadMan = d.watch(ctx, c.DeadMan)
	var running sync.WaitGroup
	running.Go(func() { d.attend(ctx, hup) })
	running.Go(func() { d.tell(ctx) })
	err = d.agent.Run(ctx)
	cancel()
	running.Wait()
	d.server.stop()
	d.deadMan.stop()
	d.log.Info("the agent has ended")
	return err
}

// attend hears signals, and looks for etcd clusters now and then.
func (d *daemon) attend(ctx context.Context, hup <-chan os.Signal) {
	again := time.NewTicker(d.again)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			if err := d.reload(ctx); err != nil {
				d.log.Error("the configuration was refused, the old one goes on", "error", err)
			} else {
				d.log.Info("the configuration was read again")
			}
		case <-again.C:
			d.discover(ctx)
		}
	}
}

// reload takes the configuration as it is now in its file, whole or not at all.
func (d *daemon) reload(ctx context.Context) (err error) {
	defer func() { d.metrics.OnReload(d.app.now(), err) }()
	file, c, err := d.read()
	if err != nil {
		d.agent.Refused(err)
		return err
	}
	if err = d.fits(c); err != nil {
		d.agent.Refused(err)
		return err
	}
	old := d.config.Load()
	listen := c.HTTP != old.HTTP
	next := d.server
	if listen {
		// Before the agent takes it, so that an address which can't be had is a
		// reason to refuse.
		if next, err = d.server.replaced(ctx, d, c.HTTP); err != nil {
			d.agent.Refused(err)
			return err
		}
	}
	if err = d.agent.Reload(ctx, c); err != nil {
		if listen {
			d.server = next.backTo(ctx, d, old.HTTP)
		}
		return err
	}
	d.server, d.deadMan, d.file = next, d.deadMan.again(ctx, d, c.DeadMan), file
	d.config.Store(c)
	return nil
}

// fits refuses what only a new process can change.
func (d *daemon) fits(c *config.Config) error {
	trust, _, err := session.Keys(c)
	if err != nil {
		return err
	}
	if trust.Cluster != d.cluster {
		return fmt.Errorf("%w: the trust file is of cluster %s, and this agent is of %s; restart it to change that", config.ErrInvalid, trust.Cluster, d.cluster)
	}
	if c.StateDir != d.config.Load().StateDir {
		return fmt.Errorf("%w: stateDir can't change while the agent runs; restart it", config.ErrInvalid)
	}
	return nil
}

// discover takes etcd clusters that have come, gone or moved. What can't be
// read leaves those that are known.
func (d *daemon) discover(ctx context.Context) {
	c := d.discovered(d.file)
	if reflect.DeepEqual(c.Etcd, d.config.Load().Etcd) {
		return
	}
	if err := d.agent.Reload(ctx, c); err != nil {
		d.log.Error("the etcd clusters that were discovered can't be used", "error", err)
		return
	}
	d.log.Info("the etcd clusters have changed", "etcd", names(c))
	d.config.Store(c)
}

func names(c *config.Config) []string {
	var list []string
	for _, e := range c.Etcd {
		list = append(list, e.Name)
	}
	return list
}

// restAfter is how long after a run its memory is given back to the system: what
// follows a run, such as a look at what it left, is over by then, and the next
// run is hours away.
const restAfter = 20 * time.Second

// ran logs and counts a run that is over.
func (d *daemon) ran(r status.Run) {
	d.metrics.OnRun(r)
	attrs := []any{"kind", r.Kind, "target", r.Target, "took", r.Duration.Round(time.Millisecond), "message", r.Message}
	if r.ID != "" {
		attrs = append(attrs, "id", r.ID, "stored", r.StoredBytes)
	}
	switch r.Result {
	case status.Failed:
		d.log.Error("a run failed", append(attrs, "reason", r.Reason)...)
	default:
		d.log.Info("a run is over", append(attrs, "result", r.Result)...)
	}
	for _, why := range r.Degraded {
		d.log.Warn("the backup is degraded", "target", r.Target, "id", r.ID, "why", why)
	}
	d.rest.Reset(restAfter)
}

// event logs what the work reports.
func (d *daemon) event(e events.Event) {
	switch e := e.(type) {
	case events.StageStarted:
		d.log.Debug("begins", "stage", e.Stage, "chain", e.Chain)
	case events.StageDone:
		d.log.Debug("done", "stage", e.Stage, "chain", e.Chain, "took", e.Duration.Round(time.Millisecond), "bytes", e.Bytes, "error", e.Err)
	case events.Warning:
		d.log.Warn(e.Message, "subject", e.Subject, "chain", e.Chain)
	case events.Committed:
		d.back(e.Store, e.Chain)
		level := slog.LevelInfo
		if e.Segment { // one every few seconds
			level = slog.LevelDebug
		}
		d.log.Log(context.Background(), level, "committed", "store", e.Store, "chain", e.Chain, "sequence", e.Sequence, "id", e.ID, "bytes", e.Bytes)
	case events.StoreFailed:
		d.away.Store(awayStore{e.Store, e.Chain}, true)
		d.log.Warn("a store does not take part", "store", e.Store, "chain", e.Chain, "error", e.Err)
	}
}

// awayStore is a store that takes no part in a chain.
type awayStore struct{ store, chain string }

// back logs that a store takes part again, if the log has it that it did not.
func (d *daemon) back(store, chain string) {
	if _, was := d.away.LoadAndDelete(awayStore{store, chain}); was {
		d.log.Info("a store takes part again", "store", store, "chain", chain)
	}
}

// tell logs problems as they come and go, and who records.
func (d *daemon) tell(ctx context.Context) {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	told := map[string]status.Problem{}
	recording := map[string]status.Recorder{}
	for {
		s := d.agent.Status()
		told = d.tellOnce(told, s.Problems)
		recording = d.tellRecorders(recording, s.Recorders)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// tellRecorders logs which recorders began or ceased to record, and what stores
// answer them again. It returns those now told.
func (d *daemon) tellRecorders(told map[string]status.Recorder, recorders []status.Recorder) map[string]status.Recorder {
	current := map[string]status.Recorder{}
	for _, r := range recorders {
		before, known := told[r.Chain]
		if !known && !r.Active && r.Why == "" {
			continue // it does nothing yet
		}
		current[r.Chain] = r
		switch {
		case known && r.Active == before.Active:
		case r.Active:
			d.log.Info("recording", "chain", r.Chain, "revision", r.Revision)
		default:
			d.log.Info("not recording", "chain", r.Chain, "why", r.Why)
		}
		for _, in := range before.Stores {
			if in.Error != "" && slices.ContainsFunc(r.Stores, func(now status.RecorderStore) bool { return now.Store == in.Store && now.Error == "" }) {
				d.back(in.Store, r.Chain) // one that stands by commits nothing that would say so
			}
		}
	}
	return current
}

// tellMost is how many problems are logged one by one when they come or go at
// once: a store full of forged chains must not fill the disk with the log.
const tellMost = 50

// tellOnce logs what differs from the problems told, and returns those now told.
func (d *daemon) tellOnce(told map[string]status.Problem, problems []status.Problem) map[string]status.Problem {
	current := map[string]status.Problem{}
	came, gone := 0, 0
	for _, p := range problems { // the worst first
		key := problemKey(p)
		if _, twice := current[key]; twice {
			continue
		}
		current[key] = p
		if _, known := told[key]; known {
			continue
		}
		if came++; came <= tellMost {
			d.log.Warn("a problem", "severity", p.Severity, "subject", p.Subject, "message", p.Message)
		}
	}
	for key, p := range told {
		if _, still := current[key]; still {
			continue
		}
		if gone++; gone <= tellMost {
			d.log.Info("a problem is gone", "subject", p.Subject, "message", p.Message)
		}
	}
	if came > tellMost {
		d.log.Warn("more problems; status.json has them all", "more", came-tellMost)
	}
	if gone > tellMost {
		d.log.Info("more problems are gone", "more", gone-tellMost)
	}
	return current
}

// problemKey is what two tellings of one problem have in common: all but times
// and numbers, and the request ids that a store's every answer has anew. One
// subject may have several problems, such as one a store.
func problemKey(p status.Problem) string {
	var words []string
	for word := range strings.FieldsSeq(p.Message) {
		switch {
		case strings.Contains(word, "://") || !strings.ContainsFunc(word, unicode.IsDigit):
			words = append(words, word)
		case strings.Contains(word, "/"):
			words = append(words, strings.TrimRight(word, "0123456789:;,."))
		}
	}
	return p.Subject + "\x00" + string(p.Severity) + "\x00" + strings.Join(words, " ")
}
