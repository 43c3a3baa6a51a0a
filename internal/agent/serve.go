package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

// errDeadline ends a run that takes too long.
var errDeadline = fmt.Errorf("it took too long: %w", context.DeadlineExceeded)

// serve runs a job once, within its deadline, remembers how it ended, and looks
// at the stores again. It returns the run's error, and what will tell the end of
// work that did not stop.
func (a *Agent) serve(ctx context.Context, j *job) (left <-chan outcome[*Outcome], err error) {
	started := a.wall()
	a.mu.Lock()
	chains := a.toVerify()
	j.running = true
	began := a.mono()
	a.mu.Unlock()
	limited, cancel := context.WithTimeoutCause(ctx, deadlines[j.kind], errDeadline)
	defer cancel()
	if a.tweaks.endless {
		limited = ctx
	}
	done := begin(limited, func(ctx context.Context) (*Outcome, error) { return a.work(ctx, j, chains) })
	o, back := await(limited, done, a.bye)
	run := newRun(j.target, started, a.mono()-began, o, ctx, limited)
	a.report(j, o.err)
	a.finish(j, run, o.value, began, back)
	if ctx.Err() == nil {
		a.lookNow(ctx)
	}
	if back {
		return nil, o.err
	}
	return done, o.err
}

// work is the one place where a kind becomes a call.
func (a *Agent) work(ctx context.Context, j *job, chains []manifest.Chain) (*Outcome, error) {
	switch j.kind {
	case status.Full:
		return a.works.Full(ctx, strings.TrimPrefix(string(j.chain), etcdPrefix))
	case status.Files:
		return a.works.Files(ctx)
	case status.Verify:
		return a.works.Verify(ctx, chains)
	case status.Prune:
		return a.works.Prune(ctx)
	}
	return nil, fmt.Errorf("no such job: %s", j.kind)
}

// newRun says how a run ended.
func newRun(t target, started time.Time, took time.Duration, o outcome[*Outcome], ctx, limited context.Context) status.Run {
	run := status.Run{
		Kind: t.kind, Target: string(t.chain), Started: started, Duration: took,
		Result: status.Succeeded, Degraded: []string{}, Unproved: []string{},
	}
	if did := o.value; did != nil {
		run.Message, run.ID, run.Revision = line(did.Message), string(did.ID), int64(did.Revision)
		run.PlainBytes, run.StoredBytes, run.Mismatches = did.PlainBytes, did.StoredBytes, did.Mismatches
		run.Degraded, run.Unproved = reasons(did.Degraded), reasons(did.Unproved)
		if did.Overtaken {
			run.Result = status.Overtaken
		}
	}
	if o.err == nil {
		return run
	}
	run.Result, run.Reason, run.Message = status.Failed, ReasonOf(o.err), line(o.err.Error())
	switch {
	case ctx.Err() != nil:
		run.Reason = status.Interrupted
	case limited.Err() != nil:
		run.Reason = status.Timeout
	}
	return run
}

// mostReasons bounds what a run keeps of why its backup is less than it should
// be: one line for each file that can't be read may be thousands, the journal
// holds many runs, and all of it is in the manifest.
const mostReasons = 5

// reasons is a copy, bounded and never nil.
func reasons(all []string) []string {
	list := make([]string, 0, min(len(all), mostReasons))
	for i, reason := range all {
		if i == mostReasons-1 && len(all) > mostReasons {
			return append(list, fmt.Sprintf("%d more reasons: `lifeboat show` lists all", len(all)-i))
		}
		list = append(list, line(reason))
	}
	return list
}

// finish takes a run's end into the job's state, the journal and the ears of
// OnRun.
func (a *Agent) finish(j *job, run status.Run, did *Outcome, began time.Duration, back bool) {
	a.mu.Lock()
	j.running, j.stuck = !back, !back
	j.standing = nil
	switch {
	case run.Reason == status.Interrupted:
	case run.Result == status.Failed && !(j.kind == status.Verify && run.Reason == status.Verification):
		j.failures++
		j.failed = a.mono()
	default: // findings too: the same bytes need no second look before the next slot
		j.failures = 0
		j.last = &success{
			created: run.Started, began: began, ended: a.mono(),
			degraded: len(run.Degraded) > 0 && run.Result != status.Overtaken,
		}
		if did != nil {
			if !did.Created.IsZero() {
				j.last.created = did.Created
			}
			j.differ = did.Mismatches
		}
	}
	a.mu.Unlock()
	a.journal.add(run, j.chain == "")
	if a.onRun != nil {
		a.onRun(run)
	}
}

// leave waits for work that did not stop, so that no second run joins it.
func (a *Agent) leave(ctx context.Context, j *job, done <-chan outcome[*Outcome]) {
	a.events.Emit(events.Warning{Chain: string(j.chain), Subject: string(j.kind), Message: "it did not stop at its deadline; the next run waits for it"})
	select {
	case <-done:
		a.mu.Lock()
		j.running, j.stuck, j.failed = false, false, a.mono()
		a.mu.Unlock()
	case <-ctx.Done():
	}
}

// report tells the stack of a panic, which no run has room for.
func (a *Agent) report(j *job, err error) {
	if p := (*panicError)(nil); errors.As(err, &p) {
		a.events.Emit(events.Warning{Chain: string(j.chain), Subject: string(j.kind), Message: p.Error() + "\n" + string(p.stack)})
	}
}
