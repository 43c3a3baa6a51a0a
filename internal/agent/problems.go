package agent

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/status"
)

// What is said when.
const (
	certificateWarning  = 30 * 24 * time.Hour
	certificateCritical = 7 * 24 * time.Hour

	// A foreign chain that is late for longer than this belongs to a node that
	// is gone, which nobody wants to hear of for ever.
	forgetLate = 30 * 24 * time.Hour
)

// findings collects problems.
type findings []status.Problem

func (f *findings) add(severity status.Severity, subject, format string, args ...any) {
	*f = append(*f, status.Problem{Severity: severity, Subject: subject, Message: line(fmt.Sprintf(format, args...))})
}

// problems lists what a person should act on, worst first. The caller holds
// a.mu; s is filled in but for them.
func (a *Agent) problems(s *status.Status) []status.Problem {
	f := findings{}
	a.aboutItself(&f)
	if a.board.looked {
		a.aboutStores(&f, s)
		for _, c := range s.Chains {
			if j := a.chainJob(c.Name); j != nil {
				a.aboutOurs(&f, s, c, j)
			} else {
				aboutForeign(&f, s.Now, c)
			}
			aboutTruth(&f, c)
		}
	}
	a.aboutRecorders(&f, s)
	a.aboutRuns(&f, s)
	aboutCertificates(&f, s)
	slices.SortStableFunc(f, func(x, y status.Problem) int {
		return strings.Compare(string(x.Severity), string(y.Severity)) // "critical" < "warning"
	})
	return f
}

func (a *Agent) chainJob(chain string) *job {
	for _, j := range a.jobs {
		if string(j.chain) == chain && !j.gone {
			return j
		}
	}
	return nil
}

func (a *Agent) aboutItself(f *findings) {
	if a.refused != "" {
		f.add(status.Warning, "configuration", "the new one was refused and the old one goes on: %s", a.refused)
	}
	if a.board.err != nil {
		f.add(status.Critical, "stores", "they can't be looked at: %s", a.board.err)
	}
	if a.certificate != "" {
		f.add(status.Warning, "certificates", "they can't be read: %s", a.certificate)
	}
	if a.journal.damaged != "" {
		f.add(status.Warning, "journal", "the list of runs was damaged and set aside as %s.damaged: %s", journalName, a.journal.damaged)
	}
	if err := a.journal.trouble(); err != "" {
		f.add(status.Warning, "journal", "the list of runs can't be saved; look at the state folder's disk: %s", err)
	}
}

func (a *Agent) aboutStores(f *findings, s *status.Status) {
	silent := status.Warning
	if a.board.answering() < a.least() {
		silent = status.Critical // no backup reaches enough stores
	}
	for _, store := range s.Stores {
		if store.Error != "" {
			last := "it never did since the start"
			if !store.Answered.IsZero() {
				last = "it last did at " + store.Answered.UTC().Format(time.RFC3339)
			}
			f.add(silent, store.URL, "does not answer (%s): %s", last, store.Error)
		}
		if store.SkewKnown && store.Skew.Abs() > maxSkew {
			f.add(status.Warning, store.URL, "its clock and this node's differ by %s: correct the wrong one, nothing is pruned until then", store.Skew.Abs().Round(time.Second))
		}
	}
}

// aboutOurs is about whether our backups come in time and are good.
func (a *Agent) aboutOurs(f *findings, s *status.Status, c status.Chain, j *job) {
	newest := a.board.newest(j.chain, a.least())
	switch {
	case !slices.ContainsFunc(c.InStores, func(in status.InStore) bool { return !in.Read.IsZero() }):
		f.add(status.Critical, c.Name, "no store has told yet what it holds")
		return
	case c.RecoveryPoint.IsZero():
		f.add(status.Critical, c.Name, "there is no backup at all")
		return
	case a.overdue(j, c.RecoveryPoint, s.Now) && !newest.IsZero() && !a.overdue(j, newest, s.Now):
		f.add(status.Critical, c.Name, "a restore gives back the state of %s: the backups since are of a member that lags behind it", c.RecoveryPoint.UTC().Format(time.RFC3339))
	case a.overdue(j, c.RecoveryPoint, s.Now):
		f.add(status.Critical, c.Name, "the newest backup is of %s and a later one is overdue: see the last runs", c.RecoveryPoint.UTC().Format(time.RFC3339))
	case newest.IsZero() || !newest.Equal(c.RecoveryPoint) && a.overdue(j, newest, s.Now):
		f.add(status.Critical, c.Name, "fewer than %d stores hold a backup that is in time", a.least())
	}
	if c.RecoveryPoint.Sub(s.Now) > maxSkew {
		f.add(status.Warning, c.Name, "the newest backup is of %s, which is in the future: a clock is or was wrong", c.RecoveryPoint.UTC().Format(time.RFC3339))
	}
	if j.lost > 0 {
		f.add(status.Critical, c.Name, "the backup that this agent took last is not in the stores")
	}
	if j.differ > 0 {
		f.add(status.Critical, c.Name, "%d members hold data that differ from the majority's: compare their HashKV and replace them", j.differ)
	}
	best := status.InStore{}
	for _, in := range c.InStores {
		if in.Newest.After(best.Newest) {
			best = in
		}
		lags := in.Head > 0 && in.Newest.Before(c.RecoveryPoint)
		if lags && a.overdue(j, in.Newest, s.Now) && !a.overdue(j, c.RecoveryPoint, s.Now) {
			f.add(status.Warning, c.Name, "%s lags: the newest that it holds is of %s", in.Store, in.Newest.UTC().Format(time.RFC3339))
		}
	}
	if best.NewestWhole.Before(best.Newest) {
		f.add(status.Warning, c.Name, "the newest backup is degraded: `lifeboat show` says why")
	} else if j.kind == status.Full && best.NewestProved.Before(best.Newest) {
		f.add(status.Warning, c.Name, "the newest backup is not proved: no other member confirmed its hash")
	}
}

// overdue reports whether the second slot after a backup has passed, by the
// wall clock or, should that be wrong, by the monotonic one.
func (a *Agent) overdue(j *job, newest, now time.Time) bool {
	second := j.schedule.Next(j.schedule.Next(newest))
	if second.IsZero() || newest.IsZero() {
		return false
	}
	slack := grace(j.open.interval)
	if now.After(second.Add(slack)) {
		return true
	}
	seen := max(j.added, a.board.arrived(j.chain, a.enough()))
	if j.last != nil {
		seen = max(seen, j.last.began)
	}
	return a.mono()-seen > 2*j.open.interval+2*slack
}

// aboutForeign is about chains that other agents keep.
func aboutForeign(f *findings, now time.Time, c status.Chain) {
	late := time.Time{}
	for _, in := range c.InStores {
		if in.Head == 0 || in.Read.IsZero() {
			continue
		}
		if in.Late.IsZero() {
			return // in time in one store is in time
		}
		if in.Late.After(late) {
			late = in.Late
		}
	}
	if !late.IsZero() && now.Sub(late) < forgetLate {
		f.add(status.Warning, c.Name, "its next backup was expected by %s: does its agent run?", late.UTC().Format(time.RFC3339))
	}
}

// aboutTruth is about chains that are not what they should be, whosoever.
func aboutTruth(f *findings, c status.Chain) {
	for _, in := range c.InStores {
		why := "see `lifeboat verify`"
		if len(in.Failures) > 0 {
			why = in.Failures[0]
		}
		if in.Regressed {
			f.add(status.Critical, c.Name, "%s was rolled back: %s", in.Store, why)
		} else if !in.Valid && !in.Read.IsZero() {
			f.add(status.Critical, c.Name, "the chain in %s does not verify: %s", in.Store, why)
		}
	}
}

// aboutRuns is about jobs whose last run failed. Where others serve the slots,
// that is said for two intervals and no longer.
func (a *Agent) aboutRuns(f *findings, s *status.Status) {
	for _, j := range a.sorted() {
		name := j.target.String()
		if j.stuck {
			f.add(status.Critical, name, "a run did not stop at its deadline, and no other can start: restart the agent")
		}
		i := slices.IndexFunc(s.Runs, func(r status.Run) bool {
			return r.Kind == j.kind && r.Target == string(j.chain) && r.Reason != status.Interrupted
		})
		if j.gone || i < 0 || s.Runs[i].Result != status.Failed {
			continue
		}
		if ago := s.Now.Sub(s.Runs[i].Started); j.failures > 0 || ago.Abs() <= 2*j.open.interval {
			severity := status.Warning
			if s.Runs[i].Reason == status.Verification {
				severity = status.Critical
			}
			f.add(severity, name, "the last run failed: %s", s.Runs[i].Message)
		}
	}
}

func aboutCertificates(f *findings, s *status.Status) {
	for _, c := range s.Certificates {
		left := c.NotAfter.Sub(s.Now)
		severity := status.Warning
		if left < certificateCritical {
			severity = status.Critical
		}
		switch {
		case left <= 0:
			f.add(severity, c.Name, "the certificate of %s expired at %s", c.Subject, c.NotAfter.UTC().Format(time.RFC3339))
		case left < certificateWarning:
			f.add(severity, c.Name, "the certificate of %s expires at %s", c.Subject, c.NotAfter.UTC().Format(time.RFC3339))
		}
	}
}
