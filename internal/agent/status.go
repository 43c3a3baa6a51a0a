package agent

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

// Status is a copy of what the agent knows. It waits for no store, no disk and
// no run.
func (a *Agent) Status() *status.Status {
	now := a.wall()
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &status.Status{
		Cluster: cmp.Or(a.cluster, a.config.Cluster), Node: a.config.Node, Version: a.version,
		Now: now, Started: a.started,
		Loaded:       a.board.looked && a.board.asked,
		Chains:       a.chainStatus(),
		Stores:       []status.Store{},
		Jobs:         a.jobStatus(now),
		Recorders:    a.recorderStatus(),
		Runs:         slices.Clone(a.journal.runs()),
		Certificates: slices.SortedFunc(slices.Values(a.certificates), sooner),
	}
	for _, b := range a.board.stores {
		s.Stores = append(s.Stores, b.Store)
	}
	if s.Runs == nil {
		s.Runs = []status.Run{}
	}
	if s.Certificates == nil {
		s.Certificates = []status.Certificate{}
	}
	s.Problems = a.problems(s)
	a.tweaks.status(s)
	return s
}

func sooner(x, y status.Certificate) int {
	return cmp.Or(x.NotAfter.Compare(y.NotAfter), strings.Compare(x.Name, y.Name))
}

// chainStatus lists our chains and all that a store holds, by name.
func (a *Agent) chainStatus() []status.Chain {
	ours := map[manifest.Chain]time.Duration{}
	for _, j := range a.jobs {
		if j.chain != "" && !j.gone {
			ours[j.chain] = j.open.interval
		}
	}
	names := slices.Clone(a.board.chains())
	for name := range ours {
		names = append(names, name)
	}
	slices.Sort(names)
	chains := []status.Chain{}
	for _, name := range slices.Compact(names) {
		interval, own := ours[name]
		c := status.Chain{Name: string(name), Ours: own, Interval: interval, InStores: []status.InStore{}}
		for _, s := range a.board.stores {
			in := status.InStore{Store: s.URL, Read: s.Answered, Valid: true}
			if held := s.chains[name]; held != nil {
				in = held.InStore
			}
			in.Failures = append([]string{}, in.Failures...)
			if in.RecoveryPoint.After(c.RecoveryPoint) {
				c.RecoveryPoint = in.RecoveryPoint
			}
			c.InStores = append(c.InStores, in)
		}
		chains = append(chains, c)
	}
	return chains
}

func (a *Agent) jobStatus(now time.Time) []status.Job {
	jobs := []status.Job{}
	for _, j := range a.sorted() {
		if j.gone {
			continue
		}
		s := status.Job{
			Kind: j.kind, Target: string(j.chain), Schedule: j.schedule.String(), Running: j.running,
			Why: "the first look at the stores",
		}
		if a.board.looked {
			answer := decide(a.question(j, now))
			s.Due, s.Why = answer.at, answer.why
		}
		s.Interval = j.open.interval
		if j.running {
			s.Why = "it runs"
		}
		if j.stuck {
			s.Why = "it did not stop at its deadline"
		}
		for _, r := range a.journal.runs() {
			if r.Kind != j.kind || r.Target != string(j.chain) {
				continue
			}
			if s.LastAttempt.IsZero() {
				s.LastAttempt = r.Started
			}
			if r.Result == status.Succeeded || r.Result == status.Overtaken {
				s.LastSuccess = r.Started
				break
			}
		}
		if s.LastSuccess.IsZero() && j.chain == "" {
			s.LastSuccess = a.journal.lastSuccess(j.kind)
		}
		jobs = append(jobs, s)
	}
	return jobs
}
