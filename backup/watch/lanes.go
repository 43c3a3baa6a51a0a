package watch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"lifeboat/backup/etcd"
)

// A watch that begins in the past costs etcd dearly. Under the lock that every
// write needs, it reads all events from the watch's revision up to its newest,
// gives the watch the first thousand revisions, throws the rest away, and
// begins again: a hundred times for a hundred thousand revisions.
//
// But one such pass serves all watches that are behind, each with a thousand
// revisions from its own. So what was missed is read by many watches side by
// side, a thousand revisions apart: lanes. One pass then gives what took as
// many as there are lanes.
const (
	// batch is how many revisions etcd gives a watch in one pass.
	batch = 1000

	// maxLanes bounds the lanes at once. It is what the default MaxLag needs, so
	// that one pass does: a pass takes much the same time for few lanes as for
	// many, and each one holds up etcd's writes.
	maxLanes = 120

	// fewBatches is up to where one watch alone is as good.
	fewBatches = 2

	// laneWindow bounds in bytes what a lane may buffer here while another is read.
	laneWindow = 128 << 10
)

// lane is one watch of a short span.
type lane struct {
	stream grpc.ClientStream
	to     int64 // the last revision wanted of it
	first  *message
}

// catchUp gives what was missed, until a watch alone can do the rest. A leader
// is spared: what holds up a follower holds up no write but those that come
// through it. Where none of them can be asked, a snapshot is asked for first, once.
func (d *Drain) catchUp(ctx context.Context, p *progress) error {
	var followers []etcd.Peer
	if d.source.Leader {
		followers = d.source.Others
	}
	for asked := false; ; {
		head, err := d.head(ctx)
		if err != nil {
			return err
		}
		missed := head - p.last
		if missed <= fewBatches*batch {
			return nil
		}
		if !asked && missed > worthSnapshot && d.source.Leader && len(followers) == 0 {
			asked = true
			if err := d.takeSnapshot(ctx, p); err == nil {
				continue
			} else if !errors.Is(err, errNoSnapshot) {
				return err
			} else {
				d.warn(fmt.Sprintf("the %d revisions that were missed are read in one pass, which holds up etcd's writes for a moment: %v", missed, err))
			}
		}
		before, endpoint := p.last, d.source.Endpoint
		if len(followers) > 0 {
			endpoint = followers[0].Endpoint
		}
		err = d.takeLanes(ctx, endpoint, p, min(int(missed/batch), maxLanes))
		var refused *sinkError
		switch {
		case err == nil:
		case ctx.Err() != nil, p.open, errors.As(err, &refused):
			return err
		case len(followers) > 0:
			followers = followers[1:]
		case !errors.Is(err, errLaneShort):
			return err
		case p.last == before:
			return nil // this etcd is different: one watch will do
		}
	}
}

// head is the cluster's revision.
func (d *Drain) head(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, d.options.Call)
	defer cancel()
	return d.source.Head(ctx)
}

// errLaneShort says that a lane ended before it gave all that was wanted.
var errLaneShort = errors.New("a lane ended early")

// takeLanes reads so many batches, each by a lane of its own. All streams are
// opened before the first watch is asked for, so that no pass comes between two
// watches, as far as that can be: it would be one more. And they are asked for from
// the youngest to the oldest: a pass that does come in between then reads only
// from the oldest of those that are there.
func (d *Drain) takeLanes(ctx context.Context, endpoint string, p *progress, count int) error {
	conn, hangUp, err := d.source.Dial(endpoint, laneWindow)
	if err != nil {
		return err
	}
	defer hangUp()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil) // before the hang-up
	silence := time.AfterFunc(d.options.Stall, func() {
		cancel(&Error{Why: ErrStalled, Cause: fmt.Errorf("nothing came for %s", d.options.Stall)})
	})
	defer silence.Stop()
	lanes := make([]*lane, count)
	for i := range lanes {
		stream, err := openStream(ctx, conn)
		if err != nil {
			return because(ctx, err)
		}
		lanes[i] = &lane{stream: stream, to: p.last + int64(i+1)*batch}
	}
	for _, l := range slices.Backward(lanes) {
		if err := watchFrom(l.stream, l.to-batch+1); err != nil {
			return because(ctx, err)
		}
	}
	// When the lane that was made last has its events, etcd has served all.
	// From then on they only cost.
	oldest := lanes[0]
	oldest.first = &message{created: true}
	for oldest.first.created && !oldest.first.canceled {
		if err := oldest.stream.RecvMsg(oldest.first); err != nil {
			return because(ctx, err)
		}
	}
	for _, l := range lanes {
		if err := l.stream.SendMsg(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{}}}); err != nil {
			return because(ctx, fmt.Errorf("end a watch: %w", err))
		}
	}
	m := &message{}
	for _, l := range lanes {
		if err := d.takeLane(ctx, l, m, p, silence); err != nil {
			return because(ctx, err)
		}
	}
	return nil
}

// because gives the cause of a context that ended, else the error.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// takeLane hands on what one lane gives.
func (d *Drain) takeLane(ctx context.Context, l *lane, m *message, p *progress, silence *time.Timer) error {
	p.before = p.last
	for d.complete.Load() < l.to {
		if l.first != nil {
			m, l.first = l.first, nil
		} else {
			silence.Reset(d.options.Stall)
			if err := l.stream.RecvMsg(m); err != nil {
				return err
			}
		}
		silence.Stop() // what follows takes our time, not the member's
		if m.canceled && m.compact == 0 && m.reason == "" {
			return errLaneShort
		}
		if err := d.take(m, p); err != nil {
			return err
		}
		if err := d.takeFindings(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// takeFindings hands on what the askers have found by now.
func (d *Drain) takeFindings(ctx context.Context, p *progress) error {
	for !p.open {
		select {
		case f := <-d.found:
			if err := d.takeFinding(f, p); err != nil {
				return err
			}
		default:
			return ctx.Err()
		}
	}
	return nil
}
