// Package record keeps a chain up to date between fulls: it watches one etcd
// cluster, spools every change on disk, and commits the spool to each store
// every few seconds as segments, which it seals again as one large segment each
// hour.
//
//	etcd --watch--> sink --> spool --> one committer a store --> segments, roll-ups
//
// The way of one change from etcd to a commit can be read in flow.go, from its
// top down. Where a recorder begins, and what makes it give up a history, is in
// resume.go; which of several recorders records, in turns.go; what the spool
// holds besides changes, in tape.go; what becomes a segment, in cut.go.
//
// Nothing here deletes or changes anything in etcd. A recorder that is killed
// leaves chains that are right as they are: what it reported as the recovery
// point is committed, and the next one goes on from what the chain says.
package record

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"filippo.io/age"

	"lifeboat/backup"
	"lifeboat/backup/etcd"
	"lifeboat/backup/watch"
	"lifeboat/internal/durable"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
)

// Options are what a recorder of one etcd cluster needs. Etcd, Stores, Signer,
// Recipients, RecipientNames, Writer and SpoolDir are required; zero values of
// the others take the defaults.
type Options struct {
	Etcd   etcd.Config
	Limits etcd.Limits

	Stores         []backup.Store
	Signer         *manifest.Signer // makes the marks by which revisions are known again
	Recipients     []age.Recipient
	RecipientNames []string // their public text, for the manifests
	Writer         manifest.Writer
	NextExpectedBy func(manifest.Chain) *time.Time // of segments; nil: they don't say

	Interval   time.Duration // between segments while anything changes; default 2 s
	MaxBytes   int64         // plain bytes after which one is cut earlier; default 4 MiB
	Heartbeat  time.Duration // between segments while nothing changes, which move the recovery point; default 1 min
	RollUp     time.Duration // between roll-ups; default 1 h, or half of the spool
	SpoolDir   string        // this recorder's own folder; one process at a time. For a moment it may hold a copy of etcd's database, too
	SpoolBytes int64         // the most that it may hold; default 1 GiB
	StoreStall time.Duration // longest that one request of a store may take, and a roll-up ten times that; default 1 min
	Prune      bool          // have the small segments pruned that a roll-up has replaced

	// FullBytes and FullRevisions bound what a restore has to replay: when so
	// much was recorded since the newest full, another is asked for; earlier
	// where that full and the changes may exceed etcd's quota. Defaults 1 GiB and
	// 2,000,000.
	FullBytes     int64
	FullRevisions int64

	// Rank is this recorder's place in the turns; 0 is first, and the default.
	Rank func() int

	// AskFull asks for a full backup: there is none, or changes were lost, or
	// something changed that leaves no event. It is called again every minute for
	// as long as one is needed. The full's draft must carry the epoch, which is a
	// new one when etcd's history is another; 0 means that the chain decides. It
	// must return at once and may be called by several goroutines.
	AskFull func(reason string, epoch uint64)

	Now    func() time.Time // the wall clock; default time.Now
	Rand   io.Reader        // default crypto/rand
	Events events.Listener
}

func (o Options) withDefaults() Options {
	for _, d := range []struct {
		value *time.Duration
		or    time.Duration
	}{{&o.Interval, 2 * time.Second}, {&o.Heartbeat, time.Minute}, {&o.RollUp, time.Hour}, {&o.StoreStall, time.Minute}} {
		if *d.value <= 0 {
			*d.value = d.or
		}
	}
	for _, n := range []struct {
		value *int64
		or    int64
	}{{&o.MaxBytes, 4 << 20}, {&o.SpoolBytes, 1 << 30}, {&o.FullBytes, 1 << 30}, {&o.FullRevisions, 2_000_000}} {
		if *n.value <= 0 {
			*n.value = n.or
		}
	}
	if o.Rank == nil {
		o.Rank = func() int { return 0 }
	}
	if o.AskFull == nil {
		o.AskFull = func(string, uint64) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	return o
}

// Recorder records one etcd cluster. It runs once.
type Recorder struct {
	opts       Options
	chain      manifest.Chain
	marker     *segment.Marker
	members    func(context.Context) ([]member, error)
	committers []*committer
	fulls      *fulls
	tape       *tape // set by Run

	active    atomic.Bool   // it is this recorder that records
	compacted atomic.Int64  // the highest compact revision that was seen
	leases    *watch.Leases // of all watches, and of what a killed recorder left
	facts     *watch.Facts  // of all watches

	// Of Run's goroutine.
	lost, fork string    // for the next watch: see question
	headAt     time.Time // when etcd's revision was asked for by one who stands by
	headWas    int64     // and what it was

	mu    sync.Mutex
	state state
	turn  time.Time // when this recorder's turn began, or its last
	gaps  []Gap
}

// New prepares a recorder; nothing is opened or asked before Run.
func New(opts Options) *Recorder {
	r := &Recorder{opts: opts.withDefaults(), chain: opts.Etcd.Chain(), marker: segment.NewMarker(opts.Signer.MarkKey()), leases: watch.NewLeases(), facts: watch.NewFacts()}
	r.fulls = newFulls(func() manifest.Revision { return r.Status().Revision }, r.opts.Now)
	for _, store := range opts.Stores {
		c := &committer{r: r, url: store.URL, err: store.Err, retainDays: store.RetainDays, alarm: alarm{ring: make(chan struct{}, 1)}, other: map[int64]bool{}, broken: map[int64]bool{}}
		c.status.URL = store.URL
		if store.Err == nil {
			c.chain = openChain(store, r.chain)
		}
		r.committers = append(r.committers, c)
	}
	return r
}

// Run records until the context ends, and then returns nil after a last commit
// where a store takes it quickly. It fails only when it can't begin: the
// configuration of etcd or the spool's folder can't be used. All else that goes
// wrong is in Status, in events, and is tried again.
func (r *Recorder) Run(ctx context.Context) error {
	if r.members == nil {
		cluster, err := etcd.Open(r.opts.Etcd, r.opts.Limits, r.opts.Events)
		if err != nil {
			return err
		}
		defer cluster.Close()
		r.members = membersOf(cluster)
	}
	t, err := openTape(r.opts.SpoolDir, r.opts.SpoolBytes)
	if err != nil {
		return err
	}
	defer t.close()
	if err := durable.SweepScratch(r.opts.SpoolDir); err != nil { // copies of the database, of who was killed
		r.opts.Events.Emit(events.Warning{Chain: string(r.chain), Subject: "recorder", Message: err.Error()})
	}
	if t.gaveUp != nil {
		r.opts.Events.Emit(events.Warning{Chain: string(r.chain), Subject: "recorder", Message: "the spool is emptied, what no store had yet is asked for again: " + t.gaveUp.Error()})
	}
	t.missed.tell(r.leases.Missed)
	t.missed = missed{}
	for _, c := range r.committers {
		t.alarms = append(t.alarms, &c.alarm)
	}
	r.mu.Lock()
	r.tape = t
	r.mu.Unlock()

	var running sync.WaitGroup
	defer running.Wait()
	last := make(chan struct{}) // closed when nothing more comes onto the tape
	defer close(last)
	for _, c := range r.committers {
		running.Go(func() { c.run(ctx, last) })
	}
	running.Go(func() { r.fulls.run(ctx, r.active.Load, r.opts.AskFull) })
	r.takeTurns(ctx)
	return nil
}

// takeTurns records when it is this recorder's turn, and stands by else.
func (r *Recorder) takeTurns(ctx context.Context) {
	began, pause, stoodBy := r.opts.Now(), time.Duration(0), true
	for ctx.Err() == nil {
		if ok, why := r.sight(ctx, began).turn(); !ok {
			r.doing(false, why)
			r.sleep(ctx, standByLook)
			stoodBy = true
			continue
		}
		if stoodBy {
			r.takeTurn()
			stoodBy = false
		}
		r.doing(true, "recording")
		err := r.record(ctx)
		switch {
		case ctx.Err() != nil:
			r.doing(false, "stopped")
			return
		case errors.Is(err, errStoodDown):
			began, stoodBy = r.opts.Now(), true
			continue
		case errors.Is(err, errNoRoom):
			r.fulls.once("the spool is full", r.opts.Now())
			pause = roomLook
		default:
			pause = min(max(firstPause, 2*pause), mostRest)
		}
		r.failed(err)
		r.doing(true, "not recording: "+err.Error())
		r.sleep(ctx, pause)
		if errors.Is(err, errNoRoom) {
			r.awaitRoom(ctx)
		}
	}
}

// takeTurn notes that a turn begins. What others have committed before it is no
// sign that they live: it is what the turn was taken in spite of.
func (r *Recorder) takeTurn() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turn = r.opts.Now()
}

func (r *Recorder) turnBegan() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.turn
}

// The pauses of a recorder that can't record.
const (
	standByLook = 500 * time.Millisecond
	roomLook    = time.Second
	mostRest    = 5 * time.Second // etcd may compact what is missed meanwhile
)

// awaitRoom waits until a quarter of the spool is free, but not for long: a new
// watch makes room itself by voiding what the last one left half.
func (r *Recorder) awaitRoom(ctx context.Context) {
	for waited := time.Duration(0); ctx.Err() == nil && waited < mostPause && r.tape.bytes() > r.opts.SpoolBytes/4*3; waited += roomLook {
		r.sleep(ctx, roomLook)
	}
}

func (r *Recorder) sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// sight is what the turn is decided by.
func (r *Recorder) sight(ctx context.Context, began time.Time) sight {
	s := sight{
		now: r.opts.Now(), began: began, rank: max(0, r.opts.Rank()), writer: r.opts.Writer,
		patience: max(10*time.Second, 5*r.opts.Interval), heartbeat: r.opts.Heartbeat,
		head: func() int64 { return r.head(ctx) },
	}
	for _, c := range r.committers {
		if c.chain == nil {
			continue
		}
		s.stores++
		c.mu.Lock()
		if c.tip != nil && c.status.Err == "" { // what a dead store said last tells nothing of the living
			still := c.looked.Sub(c.moved) // not until now: nobody knows what it did since it was looked at
			s.tips = append(s.tips, tip{url: c.url, last: int64(c.tip.Last), writer: c.tip.Writer, moved: s.now.Add(-still), ahead: c.doubting})
		}
		c.mu.Unlock()
	}
	return s
}

// head is etcd's revision, 0 if it can't be had. It is not asked for more often
// than a chain is looked at.
func (r *Recorder) head(ctx context.Context) int64 {
	if idle := r.opts.Now().Sub(r.headAt); idle < 0 || idle >= lookEvery {
		r.headAt, r.headWas = r.opts.Now(), r.askHead(ctx)
	}
	return r.headWas
}

func (r *Recorder) askHead(ctx context.Context) int64 {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	members, err := r.members(ctx)
	if err != nil {
		return 0
	}
	for _, m := range members {
		if head, err := m.Head(ctx); err == nil {
			return head
		}
	}
	return 0
}
