// Package metrics shows what an agent knows to Prometheus. State is read from
// the agent's status when Prometheus asks; runs and events are counted as they
// happen. It decides nothing: the alerts are in deploy/prometheus, and
// docs/alerts.md explains both.
//
// Start at New. families.go declares every metric, collect.go turns a status
// into them, and tally.go counts.
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"lifeboat/internal/events"
	"lifeboat/internal/status"
)

// Options say what is shown.
type Options struct {
	// Status gives the newest status, of which nothing is kept or changed. It
	// must return at once. Nil, or a nil status: nothing is known yet.
	Status func() *status.Status
}

// Metrics counts and collects. Its methods may be called at once.
type Metrics struct {
	options  Options
	registry *prometheus.Registry
	tally    *tally
}

// scrapes is how many may be answered at once. Prometheus asks every 15 s or
// more; a flood must not take the CPU from etcd.
const scrapes = 3

// New makes metrics of an agent, and of its process.
func New(o Options) *Metrics {
	m := &Metrics{options: o, registry: prometheus.NewRegistry(), tally: newTally()}
	m.registry.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler answers Prometheus.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		// What can be shown is shown: a scrape that fails would hide all of it.
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: scrapes,
		EnableOpenMetrics:   true,
	})
}

// Gatherer gives the metrics to other readers.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// Listener counts what backups and verifications report.
func (m *Metrics) Listener() events.Listener {
	return func(e events.Event) {
		switch e := e.(type) {
		case events.StageDone:
			m.tally.observe(bounded(e.Stage, stages), e.Duration)
		case events.Warning:
			m.tally.add(warnings, 1)
		case events.Committed:
			if !e.Segment { // those are counted by the recorder
				m.tally.add(commits, 1, e.Chain, e.Store, "success")
			}
		case events.StoreFailed:
			if e.Chain != "" { // else it was not ready for any, and each chain's failure follows
				m.tally.add(commits, 1, e.Chain, e.Store, "failure")
			}
		}
	}
}

// OnRun counts a run that is over.
func (m *Metrics) OnRun(r status.Run) {
	m.tally.add(attempts, 1, string(r.Kind), r.Target, string(r.Result), string(r.Reason))
	if r.Mismatches > 0 {
		m.tally.add(hashMismatches, float64(r.Mismatches), r.Target)
	}
}

// OnRequest counts an operation on a store, as storage.Metered reports it. The
// store is its URL without credentials, as in the status.
func (m *Metrics) OnRequest(store, op, code string) {
	m.tally.add(requests, 1, store, op, code)
}

// OnReload notes that a configuration was taken, at the start too, or refused.
func (m *Metrics) OnReload(at time.Time, err error) {
	if err == nil {
		m.tally.set(reloaded, seconds(at))
	}
	m.tally.set(reloadedWell, truth(err == nil))
}

// OnPing notes a request of the dead-man URL.
func (m *Metrics) OnPing(at time.Time, ok bool) {
	result := "failure"
	if ok {
		result = "success"
		m.tally.set(lastPing, seconds(at))
	}
	m.tally.add(pings, 1, result)
}

// WatchDeadMan shows the dead-man switch's zeros: call it if there is one.
func (m *Metrics) WatchDeadMan() {
	m.tally.add(pings, 0, "success")
	m.tally.add(pings, 0, "failure")
	m.tally.set(lastPing, 0)
}
