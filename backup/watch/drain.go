package watch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
)

// newProgress is that of a drain which has given all up to a revision.
func newProgress(last int64) *progress { return &progress{last: last, before: last} }

// receiver reads one message while another is being handed on.
type receiver struct {
	stream grpc.ClientStream
	full   chan *message
	empty  chan *message
	failed chan error
}

func newReceiver(stream grpc.ClientStream) *receiver {
	r := &receiver{stream: stream, full: make(chan *message), empty: make(chan *message, 2), failed: make(chan error, 1)}
	r.empty <- &message{}
	r.empty <- &message{}
	return r
}

func (r *receiver) run(ctx context.Context) {
	for {
		var m *message
		select {
		case m = <-r.empty:
		case <-ctx.Done():
			r.failed <- ctx.Err()
			return
		}
		if err := r.stream.RecvMsg(m); err != nil {
			r.failed <- err
			return
		}
		select {
		case r.full <- m:
		case <-ctx.Done():
			r.failed <- ctx.Err()
			return
		}
	}
}

// finding is what one of the askers found: a record, a change or the reason to
// end the drain.
type finding struct {
	record  segment.Record // its Kind 0: none
	lease   int64          // the record answers for this lease
	changed string
	err     error
}

// tell hands a finding to the goroutine of Run.
func (d *Drain) tell(ctx context.Context, f finding) {
	select {
	case d.found <- f:
	case <-ctx.Done():
	}
}

// sinkError is an error of the sink's own.
type sinkError struct{ error }

func (e *sinkError) Unwrap() error { return e.error }

func (d *Drain) record(r segment.Record) error {
	if err := d.sink.Record(r); err != nil {
		return &sinkError{err}
	}
	return nil
}

// progress is how far a drain has come. A revision is open while more of its
// events may come: only between the fragments of one response.
type progress struct {
	last int64 // the newest revision of which events were given
	open bool

	// before is the last revision before the watch that is being read. What
	// comes of it or of older ones was given already, or was never wanted: some
	// etcd versions send older ones where a watch begins above their revision.
	before int64

	held []segment.Record // compactions and hashes of revisions that are not complete yet
}

// drain is the loop that hands on. It is the one goroutine that calls the sink.
func (d *Drain) drain(ctx context.Context, r *receiver, p *progress) error {
	for {
		found, stalled := d.found, (<-chan time.Time)(nil)
		if p.open {
			// What is found stands between revisions, never inside one.
			found, stalled = nil, time.After(d.options.Stall)
		}
		var err error
		select {
		case m := <-r.full:
			err = d.take(m, p)
			r.empty <- m
		case f := <-found:
			err = d.takeFinding(f, p)
		case err = <-r.failed:
		case <-stalled:
			err = &Error{Why: ErrStalled, Cause: fmt.Errorf("no more of revision %d for %s", p.last, d.options.Stall)}
		}
		if err != nil {
			return err
		}
	}
}

// take hands on one response of the watch.
func (d *Drain) take(m *message, p *progress) error {
	if m.cluster != 0 && manifest.EtcdID(m.cluster) != d.source.ClusterID {
		return &Error{Why: ErrOtherCluster, Cause: fmt.Errorf("%s instead of %s", manifest.EtcdID(m.cluster), d.source.ClusterID)}
	}
	switch {
	case m.compact != 0:
		return &Error{Why: ErrCompacted, Compact: m.compact}
	case m.canceled:
		return canceled(m.reason)
	case m.created:
		return nil
	case len(m.events) == 0:
		return p.confirm(m.revision)
	}
	for _, b := range m.events {
		e, err := parseEvent(b)
		if err != nil {
			return err
		}
		if err := d.takeEvent(e, p); err != nil {
			return err
		}
	}
	// A response holds whole revisions; cut into fragments, all but the last
	// may end inside one.
	p.open = m.fragment
	complete := p.last
	if m.fragment {
		complete--
	}
	return d.completed(complete, p)
}

// takeEvent hands on one event. Every revision of etcd has one at least, and
// they come in order: that is how a lost one is seen.
func (d *Drain) takeEvent(e event, p *progress) error {
	switch complete := d.complete.Load(); {
	case e.main <= p.before:
		return nil
	case e.main == p.last+1:
	case e.main == p.last && e.main > complete:
	default:
		return &Error{Why: ErrHole, Head: e.main, Cause: fmt.Errorf("revision %d came after %d", e.main, p.last)}
	}
	p.last = e.main
	kind := segment.KindPut
	if e.deletion {
		kind = segment.KindDelete
	}
	if e.lease != 0 {
		d.leases.seen(e.lease, e.main)
	}
	return d.record(segment.Record{Kind: kind, Main: e.main, KV: e.kv})
}

// confirm takes a progress notification: all events up to the revision have
// been sent. It proves no more than the events did, but it may show a hole.
func (p *progress) confirm(revision int64) error {
	if revision > p.last {
		return &Error{Why: ErrHole, Head: revision, Cause: fmt.Errorf("the member says that it sent all up to revision %d, the last that came is %d", revision, p.last)}
	}
	return nil
}

// completed notes that all up to a revision has been given.
func (d *Drain) completed(revision int64, p *progress) error {
	if revision <= d.complete.Load() {
		return nil
	}
	d.complete.Store(revision)
	if err := d.sink.Complete(revision, d.options.Now()); err != nil {
		return &sinkError{err}
	}
	return d.release(p)
}

// takeFinding hands on what an asker found.
func (d *Drain) takeFinding(f finding, p *progress) error {
	if f.err != nil {
		return f.err
	}
	if f.changed != "" {
		d.sink.Changed(f.changed)
	}
	switch f.record.Kind {
	case 0:
		d.leases.answered(f.lease)
		return nil
	case segment.KindCompaction, segment.KindHash:
		p.held = append(p.held, f.record)
		return d.release(p)
	}
	err := d.record(f.record)
	if f.lease != 0 && err == nil {
		d.leases.answered(f.lease)
	}
	return err
}

// release hands on the compactions and hashes whose revisions are complete.
// They come in the order in which they were found.
func (d *Drain) release(p *progress) error {
	for len(p.held) > 0 && !p.open {
		r := p.held[0]
		if max(r.Compaction.Revision, r.Hash.Revision) > d.complete.Load() {
			return nil
		}
		p.held = p.held[1:]
		if err := d.record(r); err != nil {
			return err
		}
	}
	return nil
}

// canceled is the error of a watch that the member ended with a reason.
func canceled(reason string) error {
	if reason == "" {
		return errors.New("the member ended the watch")
	}
	return rpctypes.Error(errors.New(reason))
}
