package watch

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"lifeboat/internal/segment"
)

const (
	// leaseAskers bounds the questions at once.
	leaseAskers = 4

	// syntheticTTL in seconds is given to a lease that was gone before it could
	// be asked: its keys go soon, as they did.
	syntheticTTL = 60

	// maxLeases bounds those that wait to be asked for; what is beyond is
	// treated as gone. It takes as many events within moments, each with a
	// lease of its own.
	maxLeases = 1 << 20

	// leaseHolds is how long an answer is believed: an id that was revoked may be
	// granted again, with another time to live. It bounds the questions to one a
	// lease in this time.
	leaseHolds = 10 * time.Second

	// leaseRetry is the pause after a question that was not answered.
	leaseRetry = 200 * time.Millisecond
)

// Leases knows which leases were asked for, and which are still to be. A grant
// leaves no event, but etcd answers for each lease what it was granted. It may
// outlive a drain: what one could not ask, the next one does (Options.Leases).
type Leases struct {
	wake chan struct{} // holds one when somebody should look at queue

	mu    sync.Mutex
	known map[int64]answer
	queue []question         // in the order of their revisions
	asked map[int64]question // those being asked
	sweep int                // when known has so many, those that ran out are dropped
}

// answer is what is known of a lease.
type answer struct {
	asking bool      // it waits for its answer
	holds  time.Time // when an event that names the lease makes it be asked for again
	until  time.Time // it lives at least until then
	ttl    int64     // as granted; 0: not known
}

// question asks for a lease. again says that an answer was recorded before, or
// may have been: what was learned then is not made worse.
type question struct {
	id, revision int64
	again        bool
}

// NewLeases knows nothing yet.
func NewLeases() *Leases {
	return &Leases{
		wake: make(chan struct{}, 1), known: map[int64]answer{}, asked: map[int64]question{}, sweep: 1024,
	}
}

// Missed has the next drain ask for a lease that an event of the revision hangs
// on, where it is not known whether it was asked for.
func (l *Leases) Missed(id, revision int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.known[id]; !known {
		l.ask(question{id, revision, true})
	}
}

// Pending says whether leases that events up to a revision hang on are still to
// be asked for, or being asked.
func (l *Leases) Pending(upTo int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) > 0 && l.queue[0].revision <= upTo {
		return true
	}
	for _, q := range l.asked {
		if q.revision <= upTo {
			return true
		}
	}
	return false
}

// Forget drops all, for another history of etcd.
func (l *Leases) Forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.known)
	clear(l.asked)
	l.queue = nil
}

// resume has a new drain ask what the one before was asking when it ended.
func (l *Leases) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, q := range l.asked {
		l.queue = append(l.queue, q)
		l.known[id] = answer{asking: true} // what it may have learned was not recorded
	}
	clear(l.asked)
	slices.SortStableFunc(l.queue, func(a, b question) int { return cmp.Compare(a.revision, b.revision) })
	if len(l.queue) > 0 {
		l.notify()
	}
}

// seen takes note of a lease that an event hangs on.
func (l *Leases) seen(id, revision int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, known := l.known[id]
	if known && (a.asking || time.Now().Before(a.holds)) {
		return
	}
	l.ask(question{id, revision, a.ttl > 0})
}

// ask queues a question. l.mu is held.
func (l *Leases) ask(q question) {
	a := l.known[q.id]
	a.asking = true
	l.known[q.id] = a
	l.queue = append(l.queue, q)
	l.notify()
}

func (l *Leases) notify() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// next takes the next question. enough says that too many wait for this one to
// be asked.
func (l *Leases) next() (q question, enough, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		l.queue = nil
		return question{}, false, false
	}
	q = l.queue[0]
	l.queue = l.queue[1:]
	l.asked[q.id] = q
	if len(l.queue) > 0 {
		l.notify()
	}
	return q, len(l.queue) > maxLeases, true
}

// alive notes what etcd answered, and reports whether that must be recorded.
func (l *Leases) alive(q question, ttl int64, remaining time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	before := l.known[q.id]
	l.known[q.id] = answer{holds: now.Add(min(remaining, leaseHolds)), until: now.Add(remaining), ttl: ttl}
	if len(l.known) >= l.sweep {
		for id, a := range l.known {
			if !a.asking && now.After(a.until) {
				delete(l.known, id)
			}
		}
		l.sweep = max(1024, 2*len(l.known))
	}
	return before.ttl != ttl
}

// gone notes that etcd no longer knows a lease, and reports whether one must be
// made up: nothing was known of it.
func (l *Leases) gone(q question) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.known, q.id)
	return !q.again
}

// answered notes that what there was to record of a lease has been given.
func (l *Leases) answered(id int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.asked, id)
}

// askLeases asks for what is queued, one lease after the other.
func (d *Drain) askLeases(ctx context.Context) {
	for {
		q, enough, ok := d.leases.next()
		if !ok {
			select {
			case <-d.leases.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		f := finding{lease: q.id}
		if enough {
			if d.leases.gone(q) {
				f.record = gone(q)
			}
		} else if f.record, ok = d.askLease(ctx, q); !ok {
			return
		}
		d.tell(ctx, f)
	}
}

// gone is recorded of a lease of which nothing is known.
func gone(q question) segment.Record {
	return segment.Record{Kind: segment.KindLease, Lease: segment.Lease{ID: q.id, TTL: syntheticTTL, Synthetic: true, Revision: q.revision}}
}

// askLease asks until it is answered; false when the context ended before. The
// question is answered by the leader, from its memory. The record has no kind
// where there is nothing new to record.
//
// A leader that was just elected may not have applied the grant yet and answers
// that there is no such lease. Once it has served a linearizable read it has
// applied all that the watch has given, so only what it says then is believed.
func (d *Drain) askLease(ctx context.Context, q question) (r segment.Record, ok bool) {
	client := pb.NewLeaseClient(d.source.Conn)
	for sure := false; ; {
		call, cancel := context.WithTimeout(ctx, d.options.Call)
		response, err := client.LeaseTimeToLive(call, &pb.LeaseTimeToLiveRequest{ID: q.id})
		if err == nil && response.GrantedTTL <= 0 && !sure {
			if _, err = d.source.Head(call); err == nil {
				sure = true
				cancel()
				continue
			}
		}
		cancel()
		switch {
		case err == nil && response.GrantedTTL > 0:
			remaining := time.Duration(max(0, response.TTL)) * time.Second // below 0: it ran out, and nobody can revoke it yet
			if d.leases.alive(q, response.GrantedTTL, remaining) {
				r = segment.Record{Kind: segment.KindLease, Lease: segment.Lease{ID: q.id, TTL: response.GrantedTTL, Revision: q.revision}}
			}
			return r, true
		case err == nil:
			if d.leases.gone(q) {
				r = gone(q)
			}
			return r, true
		}
		sure = false
		select {
		case <-time.After(leaseRetry):
		case <-ctx.Done():
			return segment.Record{}, false
		}
	}
}
