// Package watch drains etcd's watch of the whole keyspace: every event of every
// revision, in order, with what the events themselves don't say (the times that
// revisions belong to, the leases they hang on, compactions and the hashes that
// members keep of them).
//
// It never writes to etcd and makes no request that goes through its log. It
// reads at full speed and hands on at once: the only buffer is the one message
// that is being read while another is being handed on, so whoever takes the
// records must be quick (a file, not a network).
//
// Start reading at Drain.Run.
package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"lifeboat/internal/events"
	"lifeboat/internal/segment"
)

// Sink takes what a Drain finds. Its methods are called by one goroutine, that
// of Run; an error ends the drain and is returned by Run as it is.
type Sink interface {
	// Record takes one record: puts and deletes in the order of their
	// revisions, the others between two revisions, never inside one. The
	// record's KV is valid until Record returns.
	Record(segment.Record) error

	// Complete says that all events of the revisions up to revision have been
	// given. at is the wall clock when that was seen.
	Complete(revision int64, at time.Time) error

	// Changed says that something changed which leaves no events: alarms, a
	// version, the members. What is for people. Only a full backup holds it.
	Changed(what string)
}

// Options say where to begin and how often to ask. Zero values take the
// defaults.
type Options struct {
	From      int64 // the first revision wanted; at least 1, which is that of an empty etcd and has no event
	Compacted int64 // a compact revision that was recorded before; its hash is asked for when the next is seen. 0: none

	// MaxLag is how many revisions behind the cluster to begin at the most, and
	// half of where to give up once begun. For each look into its past etcd
	// reads all events since, about 3 microseconds each, while no write gets on;
	// and it holds them in memory. Default 120,000.
	MaxLag int64

	Tick  time.Duration // between times, while anything changes; default 1 s
	Idle  time.Duration // between times, while nothing changes; default 10 s
	Probe time.Duration // between looks for compactions, alarms and versions; default 5 s. Every twelfth reads the member's metrics
	Call  time.Duration // one unary request; default 5 s
	Stall time.Duration // longest that the member may give nothing, or not answer, while the cluster is ahead; default 30 s

	// Scratch is a folder for a copy of the member's database, from which a drain
	// that begins far behind takes what it missed, if there is no follower to ask
	// for it. The copy is removed after that, or by the next. Empty: the watch
	// gives it, and holds up etcd's writes meanwhile.
	Scratch string

	// Leases is what earlier drains of this cluster know and have not asked yet;
	// one drain uses it at a time. nil: nothing is known.
	Leases *Leases

	// Facts is what earlier drains of this cluster saw of what leaves no events;
	// one drain uses it at a time. nil: nothing is known.
	Facts *Facts

	Now    func() time.Time // the wall clock; default time.Now
	Events events.Listener  // warnings: members whose hashes differ
	Chain  string           // what the warnings name
}

func (o Options) withDefaults() Options {
	if o.MaxLag <= 0 {
		o.MaxLag = 120_000
	}
	for _, d := range []struct {
		value *time.Duration
		or    time.Duration
	}{{&o.Tick, time.Second}, {&o.Idle, 10 * time.Second}, {&o.Probe, 5 * time.Second}, {&o.Call, 5 * time.Second}, {&o.Stall, 30 * time.Second}} {
		if *d.value <= 0 {
			*d.value = d.or
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Why a drain ended. All but ErrHole, ErrCompacted, ErrBehind and the two of
// another history may be answered by another drain, from Error.Last+1, at the
// same member or at another; ErrDamaged at another.
var (
	ErrCompacted    = errors.New("etcd has compacted the revisions that are wanted")
	ErrHole         = errors.New("etcd's watch left out a revision")
	ErrBehind       = errors.New("too far behind the cluster to watch without harming it")
	ErrDamaged      = errors.New("the member's database is damaged where the revisions stand that are wanted")
	ErrOtherCluster = errors.New("the endpoint leads to another cluster")
	ErrLower        = errors.New("the cluster is at a lower revision than was recorded")
	ErrNoLeader     = errors.New("the member knows no leader")
	ErrStalled      = errors.New("the member gives nothing although the cluster goes on")
	ErrLost         = errors.New("the watch was lost") // the connection, the member, a restart
)

// Error is how Run ends but for its context's end and the sink's own errors.
type Error struct {
	Why     error // one of the above, which errors.Is finds
	Member  string
	Last    int64 // all revisions up to here have been given
	Compact int64 // ErrCompacted: etcd's compact revision; what is above can be watched
	Head    int64 // ErrBehind, ErrLower, ErrStalled: the cluster's revision; ErrHole: the revision that came
	Cause   error // more of it; may be nil
}

func (e *Error) Error() string {
	text := fmt.Sprintf("watch member %s after revision %d: %v", e.Member, e.Last, e.Why)
	if e.Compact != 0 {
		text += fmt.Sprintf(" (compacted at %d)", e.Compact)
	}
	if e.Head != 0 {
		text += fmt.Sprintf(" (revision %d)", e.Head)
	}
	if e.Cause != nil {
		text += ": " + e.Cause.Error()
	}
	return text
}

// Unwrap gives Why and Cause.
func (e *Error) Unwrap() []error { return []error{e.Why, e.Cause} }

// Drain is one watch of one member.
type Drain struct {
	source  Source
	options Options
	sink    Sink

	complete atomic.Int64 // all revisions up to here have been given
	copied   atomic.Int64 // bytes of a snapshot that came
	leases   *Leases
	facts    *Facts       // of the goroutine of lookAround
	found    chan finding // what the askers found, for the goroutine of Run
}

// firstEvent is the first revision that has events: a new etcd is at revision 1.
const firstEvent = 2

// New prepares a drain; nothing is asked before Run.
func New(source Source, options Options, sink Sink) *Drain {
	d := &Drain{source: source, options: options.withDefaults(), sink: sink, found: make(chan finding)}
	d.complete.Store(max(options.From, firstEvent) - 1)
	if d.leases = options.Leases; d.leases == nil {
		d.leases = NewLeases()
	}
	if d.facts = options.Facts; d.facts == nil {
		d.facts = NewFacts()
	}
	return d
}

// Run is New and Drain.Run in one.
func Run(ctx context.Context, source Source, options Options, sink Sink) error {
	return New(source, options, sink).Run(ctx)
}

// Run drains until the context ends (its cause is returned), the sink refuses
// (its error), or the watch can't go on (*Error). A drain runs once.
func (d *Drain) Run(ctx context.Context) error {
	if d.options.From < 1 {
		return fmt.Errorf("watch from revision %d: the first is 1", d.options.From)
	}
	d.options.From = max(d.options.From, firstEvent)
	if err := d.start(ctx); err != nil {
		return d.fail(ctx, err)
	}
	inner, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel() // before the wait
	running.Go(func() { d.keepTime(inner) })
	running.Go(func() { d.lookAround(inner) })
	for range leaseAskers {
		running.Go(func() { d.askLeases(inner) })
	}
	p := newProgress(d.complete.Load())
	if err := d.catchUp(inner, p); err != nil {
		return d.fail(ctx, err)
	}
	p.before = p.last
	stream, err := d.open(inner, d.source.Conn, p.last+1)
	if err != nil {
		return d.fail(ctx, err)
	}
	r := newReceiver(stream)
	running.Go(func() { r.run(inner) })
	return d.fail(ctx, d.drain(inner, r, p))
}

// LeasesPending says whether leases that events up to a revision hang on are
// still being asked for. Their records come later. It may be called from any
// goroutine.
func (d *Drain) LeasesPending(upTo int64) bool { return d.leases.Pending(upTo) }

// start looks whether the wanted revisions can be expected from this member.
func (d *Drain) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.options.Call)
	defer cancel()
	head, err := d.source.Head(ctx)
	switch {
	case errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.DeadlineExceeded:
		return &Error{Why: Unreadable(err), Cause: err}
	case err != nil:
		return err
	case head < d.options.From-1:
		return &Error{Why: ErrLower, Head: head}
	case head-d.options.From >= d.options.MaxLag:
		return &Error{Why: ErrBehind, Head: head}
	}
	return nil
}

// open begins a watch of the whole keyspace.
func (d *Drain) open(ctx context.Context, conn *grpc.ClientConn, from int64) (grpc.ClientStream, error) {
	stream, err := openStream(ctx, conn)
	if err != nil {
		return nil, err
	}
	return stream, watchFrom(stream, from)
}

// openStream makes a stream for watches, without any yet.
func openStream(ctx context.Context, conn *grpc.ClientConn) (grpc.ClientStream, error) {
	// With this a member that finds no leader ends the watch: it would go on
	// with what it has, for ever.
	ctx = metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	return conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, watchMethod,
		grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(math.MaxInt32))
}

// watchFrom begins the watch of a stream. The stream stays open for sending: an
// end of it would end the watch.
func watchFrom(stream grpc.ClientStream, from int64) error {
	err := stream.SendMsg(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: from, ProgressNotify: true, Fragment: true,
	}}})
	if err == io.EOF {
		err = stream.RecvMsg(&message{}) // why the stream ended
	}
	return err
}

// fail makes what Run returns of why it ended.
func (d *Drain) fail(ctx context.Context, err error) error {
	var refused *sinkError
	var e *Error
	switch {
	case errors.As(err, &refused):
		return refused.error
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !errors.As(err, &e):
		e = &Error{Why: ErrLost, Cause: rpctypes.Error(err)}
		switch {
		case errors.Is(e.Cause, rpctypes.ErrNoLeader):
			e.Why = ErrNoLeader
		case errors.Is(err, ErrOtherCluster):
			e.Why = ErrOtherCluster
		case refusal(e.Cause):
			d.sink.Changed("etcd refuses to be read: " + e.Cause.Error())
		}
	}
	e.Member, e.Last = d.source.Member.String(), d.complete.Load()
	return e
}

// refusal tells errors of authentication, which was not there or was passed
// before: its changes leave no events.
func refusal(err error) bool {
	for _, target := range []error{rpctypes.ErrUserEmpty, rpctypes.ErrPermissionDenied, rpctypes.ErrAuthFailed, rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}
