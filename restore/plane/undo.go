package plane

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"lifeboat/internal/events"
	"lifeboat/restore"
	"lifeboat/restore/datadir"
	"lifeboat/restore/files"
	"lifeboat/restore/journal"
	"lifeboat/restore/node"
)

// undoing takes a step back. It knows the step's note and the machine, nothing
// of the plan.
type undoing func(ctx context.Context, m node.Machine, note json.RawMessage) error

// undo says how. A step that is not here needs none: it changed nothing but what
// the steps before it have put there.
var undo = map[string]undoing{
	stepStop: func(ctx context.Context, m node.Machine, note json.RawMessage) error {
		n, err := read[stopNote](note)
		if err != nil || !n.Running {
			return err
		}
		return m.Start(ctx, node.Kubelet)
	},
	stepFence: func(ctx context.Context, _ node.Machine, note json.RawMessage) error {
		n, err := read[fenceNote](note)
		if err != nil {
			return err
		}
		_, err = node.Unfence(ctx, node.UnfenceOptions{Manifests: n.Manifests, Aside: n.Aside})
		return err
	},
	stepFiles: func(ctx context.Context, _ node.Machine, note json.RawMessage) error {
		n, err := read[filesNote](note)
		if err != nil {
			return err
		}
		_, err = files.Undo(ctx, n.Root, n.AsideDir, n.ID, n.Before)
		return err
	},
	stepEtcd: func(_ context.Context, _ node.Machine, note json.RawMessage) error {
		n, err := read[etcdNote](note)
		if err != nil {
			return err
		}
		_, err = datadir.PutBack(n.DataDir, n.AsideDir, n.ID)
		return err
	},
	stepEvents: func(_ context.Context, _ node.Machine, note json.RawMessage) error {
		n, err := read[etcdNote](note)
		if err != nil {
			return err
		}
		_, err = datadir.PutBack(n.DataDir, n.AsideDir, n.ID)
		return err
	},
	stepStopEtcd:    startAgain,
	stepStopEvents:  startAgain,
	stepStartEtcd:   stopAgain,
	stepStartEvents: stopAgain,
	stepStart: func(ctx context.Context, m node.Machine, _ json.RawMessage) error {
		return m.Stop(ctx, node.Kubelet)
	},
	stepPods: func(ctx context.Context, m node.Machine, note json.RawMessage) error {
		n, err := read[podsNote](note)
		if err != nil {
			return err
		}
		_, err = node.Fence(ctx, m, node.FenceOptions{Manifests: n.Manifests, Aside: n.Undone, Node: n.Node})
		return err
	},
}

// startAgain starts an etcd outside of Kubernetes that a restore has stopped. One
// that a person had stopped for the restore a person starts.
func startAgain(ctx context.Context, m node.Machine, note json.RawMessage) error {
	n, err := read[serverNote](note)
	if err != nil || !n.Running {
		return err
	}
	return m.Start(ctx, n.Unit)
}

// stopAgain stops one that a restore has started.
func stopAgain(ctx context.Context, m node.Machine, note json.RawMessage) error {
	n, err := read[serverNote](note)
	if err != nil {
		return err
	}
	return n.stop(ctx, m)
}

func read[T any](note json.RawMessage) (n T, err error) {
	if err := json.Unmarshal(note, &n); err != nil {
		return n, fmt.Errorf("%w: %w", journal.ErrDamaged, err)
	}
	return n, nil
}

// undone says what undoing a step does.
var undone = map[string]string{
	stepPods:     "Stop the restored static pods; their manifests are kept",
	stepStart:    "Stop kubelet",
	stepEtcd:     "Put etcd's old member back; the restored one is kept",
	stepEvents:   "Put the old member of the etcd for events back; the new one is kept",
	stepStopEtcd: "Start etcd, if its unit ran before", stepStopEvents: "Start the etcd for events, if its unit ran before",
	stepStartEtcd: "Stop etcd", stepStartEvents: "Stop the etcd for events",
	stepFiles: "Put the node's old files back; those that the restore made are kept",
	stepFence: "Put the old static pods' manifests back",
	stepStop:  "Start kubelet, if it ran before",
}

// AbortPlan says what Abort will do.
func AbortPlan(r journal.Record) *restore.Plan {
	p := &restore.Plan{Summary: fmt.Sprintf("Abort restore %s, which was begun at %s: put back what was here before, the newest change first.", r.ID, r.Created.Format(time.RFC3339))}
	for _, s := range slices.Backward(r.Steps) {
		if _, known := undo[s.Name]; known && s.Undone == nil {
			p.Steps = append(p.Steps, restore.Step{Stage: "undo " + s.Name, Title: undone[s.Name]})
		}
		if s.Name == stepTidy {
			p.Warnings = append(p.Warnings, "what the restored API server has done since it started is in the restored etcd alone, and goes aside with it")
		}
	}
	return p
}

// Abort puts back what a restore has replaced, the newest change first. It can
// be called again after any failure, and must be: a restore whose abort was begun
// can't be gone on with. What the restore had put in place is kept aside.
func Abort(ctx context.Context, j *journal.Journal, m node.Machine, listen events.Listener) error {
	if err := j.BeginAbort(); err != nil {
		return err
	}
	for _, s := range slices.Backward(j.Record().Steps) {
		back, known := undo[s.Name]
		if s.Undone != nil || !known {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		listen.Emit(events.StageStarted{Stage: "undo " + s.Name})
		err := back(ctx, m, s.Note)
		listen.Emit(events.StageDone{Stage: "undo " + s.Name, Err: err})
		if err != nil {
			return fmt.Errorf("undo step %s of restore %s: %w", s.Name, j.Record().ID, err)
		}
		if err := j.Undone(s.Name); err != nil {
			return err
		}
	}
	if err := dropMembers(j); err != nil {
		return fmt.Errorf("undo restore %s: %w", j.Record().ID, err)
	}
	if err := j.End(journal.Aborted); err != nil {
		return err
	}
	return removeStaged(j)
}
