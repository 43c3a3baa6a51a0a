package record

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lifeboat/backup/etcd"
	"lifeboat/backup/watch"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
)

// member is one etcd member that can be watched.
type member interface {
	IDs() (cluster, member manifest.EtcdID)
	Head(ctx context.Context) (int64, error)
	Compacted(ctx context.Context, known int64) (int64, error)
	Watch(ctx context.Context, options watch.Options, to watch.Sink) error
}

type watched struct{ watch.Source }

func (w watched) IDs() (cluster, member manifest.EtcdID) { return w.ClusterID, w.Member }

func (w watched) Watch(ctx context.Context, options watch.Options, to watch.Sink) error {
	return watch.Run(ctx, w.Source, options, to)
}

// membersOf lists the members of a cluster, best first.
func membersOf(cluster *etcd.Cluster) func(context.Context) ([]member, error) {
	return func(ctx context.Context) ([]member, error) {
		sources, err := watch.Sources(ctx, cluster)
		if err != nil {
			return nil, err
		}
		list := make([]member, len(sources))
		for i, s := range sources {
			list[i] = watched{s}
		}
		return list, nil
	}
}

// Why a watch was ended from here.
var (
	errStoodDown = errors.New("another recorder records")
	errSpoiled   = errors.New("the spool is damaged")
	errElsewhere = errors.New("the history was found to be another")
)

// worked is how long a watch must have lasted to count as one that worked.
const worked = 10 * time.Second

// record watches one member after the other until the recorder's turn is over,
// or the context; or no member can be watched, which is the error.
func (r *Recorder) record(ctx context.Context) error {
	for {
		members, err := r.members(ctx)
		if err != nil {
			return err
		}
		again, damaged, errs := false, error(nil), []error{}
		for _, m := range members {
			began := time.Now()
			err := r.watch(ctx, m)
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case errors.Is(err, errNoRoom), errors.Is(err, errStoodDown):
				return err
			}
			r.failed(err)
			errs = append(errs, err)
			if errors.Is(err, watch.ErrDamaged) {
				damaged = err
			}
			if again = r.learn(err) || time.Since(began) > worked; again {
				break
			}
		}
		switch {
		case again:
		case damaged != nil: // and no other member can give those revisions
			r.lost = damaged.Error()
		default:
			err := errors.Join(errs...)
			if errors.Is(err, watch.ErrNoLeader) {
				r.fulls.once("no member of etcd knows a leader", r.opts.Now())
			}
			if len(errs) == 0 {
				err = errors.New("no member of etcd can be watched")
			}
			return err
		}
	}
}

// watch begins at one member where plan says, and drains it onto the tape.
func (r *Recorder) watch(ctx context.Context, m member) error {
	cluster, id := m.IDs()
	chains := r.links() // before etcd's revision is asked for: a chain that goes on meanwhile is no fork
	at := r.opts.Now()
	call, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	head, err := m.Head(call)
	if err != nil {
		return &watch.Error{Why: watch.Unreadable(err), Member: id.String(), Cause: err}
	}
	compacted, err := m.Compacted(call, r.compacted.Load())
	if err != nil {
		return fmt.Errorf("ask member %s what it has compacted: %w", id, err)
	}
	q := question{cluster: uint64(cluster), head: head, compacted: compacted, chains: chains, lost: r.lost, forked: r.fork}
	if s, ok := r.tape.now(); ok {
		q.tape = &s
	}
	b := q.begin()
	if b.forked { // another history is compacted elsewhere
		r.compacted.Store(0)
		if compacted, err = m.Compacted(call, 0); err != nil {
			return fmt.Errorf("ask member %s what it has compacted: %w", id, err)
		}
	}
	cancel()
	to, err := r.start(b, section{id: at.UnixNano(), clusterID: uint64(cluster), memberID: uint64(id), epoch: b.epoch, why: b.why}, at, head)
	if err != nil {
		return err
	}
	r.noteCompaction(compacted)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	r.watching(cluster, id, stop)
	defer r.watching(cluster, 0, nil)
	err = m.Watch(ctx, watch.Options{
		From: b.from, Compacted: compacted, Now: r.opts.Now, Events: r.opts.Events, Chain: string(r.chain), Call: r.opts.Limits.Call,
		Scratch: r.opts.SpoolDir, Leases: r.leases, Facts: r.facts,
	}, to)
	return errors.Join(err, r.tape.settle())
}

// callLimit bounds the requests before a watch.
const callLimit = 10 * time.Second

// start writes on the tape that a watch begins.
func (r *Recorder) start(b beginning, s section, at time.Time, head int64) (*sink, error) {
	to := &sink{r: r, skip: b.whole}
	if before, ok := r.tape.now(); ok && !b.fresh {
		if b.compare {
			mark, err := r.tape.mark(before, b.whole, r.marker)
			if err != nil {
				r.lost = "the spool is damaged"
				return nil, fmt.Errorf("read the spool: %w", err)
			}
			to.expect = mark
		}
		s.id, s.epoch, s.clusterID = before.id, before.epoch, before.clusterID
	} else if ok && s.id <= before.id {
		s.id = before.id + 1 // the clock was set back
	}
	err := r.withRoom(func() error { return r.tape.begin(s, b.whole) })
	if err == nil {
		// Before at, etcd had acknowledged nothing above head. What had been made by
		// then is known only where it was recorded: head was asked for later.
		made := b.whole
		if b.fresh {
			made = 0
		}
		err = r.withRoom(func() error {
			return r.tape.record(segment.Record{Kind: segment.KindTime, Time: segment.Moment{At: at.UnixMilli(), AtLeast: made, AtMost: max(head, b.whole)}})
		})
	}
	if err != nil {
		return nil, err
	}
	if b.forked { // what is known was another history's
		r.leases.Forget()
		r.facts.Forget()
	} else {
		r.facts.Seed(r.newestFull(s.clusterID))
	}
	r.lost, r.fork = "", ""
	if b.fresh && b.why != "" {
		r.opts.Events.Emit(events.Warning{Chain: string(r.chain), Subject: "recorder", Message: "recording begins anew behind revision " + fmt.Sprint(b.whole) + ": " + b.why})
	}
	return to, nil
}

// learn takes from the end of a watch what the next one must know. It reports
// whether to begin the next at once.
func (r *Recorder) learn(err error) bool {
	var e *watch.Error
	switch {
	case errors.Is(err, errForked), errors.Is(err, errElsewhere):
		r.fork = err.Error()
	case errors.Is(err, errSpoiled):
		r.lost = errSpoiled.Error()
	case !errors.As(err, &e):
		return false
	case errors.Is(e, watch.ErrCompacted):
		r.noteCompaction(e.Compact) // the next question tells whether the tape still fits
		r.lost = fmt.Sprintf("etcd compacted revision %d, revision %d is the last recorded", e.Compact, e.Last)
	case errors.Is(e, watch.ErrHole), errors.Is(e, watch.ErrBehind):
		r.lost = e.Error()
	case errors.Is(e, watch.ErrOtherCluster), errors.Is(e, watch.ErrLower):
		r.fork = e.Error()
	default:
		return false
	}
	return true
}
