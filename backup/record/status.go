package record

import (
	"fmt"
	"slices"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
)

// Status is what a recorder does and how far it is. It is plain data.
type Status struct {
	Chain  manifest.Chain
	Active bool   // it records; else it stands by, because another does or because it can't
	Doing  string // in words: "recording", "standing by: cp2 records", "no member answers: ..."

	ClusterID manifest.EtcdID // of the etcd that is watched; 0 before the first watch
	Member    manifest.EtcdID // whose watch it is; 0 while there is none

	Revision manifest.Revision // all changes up to here are in the spool
	Time     time.Time         // as of when that was all that etcd had acknowledged; zero if unknown

	// RecoveryPoint is the earliest of the stores that work: a restore from any
	// of them loses nothing that was acknowledged before it. Zero if unknown.
	RecoveryPoint time.Time

	SpoolBytes int64
	SpoolLimit int64
	Stores     []StoreStatus // as configured
	Gaps       []Gap         // newest last; the last few that this process saw
	FullWanted string        // why a full backup is being asked for; empty: none is

	LastError   string // of the watch or the spool; stores have their own
	LastErrorAt time.Time
}

// StoreStatus is how far one store is.
type StoreStatus struct {
	URL           string
	Epoch         uint64            // of its chain; 0 if unknown
	Revision      manifest.Revision // covered in the store without a gap, from a full on; 0 if unknown
	RecoveryPoint time.Time         // all that was acknowledged before it is durable in this store; zero if unknown
	Behind        int64             // bytes of the spool that it does not hold yet
	Waiting       string            // why nothing is committed to it: it waits for a full; empty: it is up to its work
	Err           string            // of the last request; empty after one that succeeded
	Since         time.Time         // of Err: when the first of a row of failures was
	Segments      int64             // committed by this process
	RollUps       int64
	LastCommit    time.Time
}

// Gap is a span of revisions that no segment of a store holds: between its ends
// nothing can be restored but fulls.
type Gap struct {
	Store    string
	From, To manifest.Revision // To is 0 while it is not known where recording goes on
	At       time.Time         // when it was found
	Why      string
}

// state is what the recorder itself does.
type state struct {
	active      bool
	doing       string
	cluster     manifest.EtcdID
	member      manifest.EtcdID
	stop        func(error) // ends the watch; nil while there is none
	lastError   string
	lastErrorAt time.Time
}

// Status tells how the recorder is at this moment. It may be called at any time.
func (r *Recorder) Status() Status {
	s := Status{Chain: r.chain, SpoolLimit: r.opts.SpoolBytes}
	r.mu.Lock()
	s.Active, s.Doing, s.ClusterID, s.Member = r.state.active, r.state.doing, r.state.cluster, r.state.member
	s.LastError, s.LastErrorAt = r.state.lastError, r.state.lastErrorAt
	s.Gaps = slices.Clone(r.gaps)
	tape := r.tape
	r.mu.Unlock()
	if tape == nil {
		return s
	}
	s.SpoolBytes = tape.bytes()
	newest, ok := tape.now()
	if ok {
		s.Revision, s.Time = manifest.Revision(newest.last), proved(newest, r.opts.Now())
	}
	for _, c := range r.committers {
		store := c.tell(newest)
		s.Stores = append(s.Stores, store)
		if store.Err == "" && !store.RecoveryPoint.IsZero() && (s.RecoveryPoint.IsZero() || store.RecoveryPoint.Before(s.RecoveryPoint)) {
			s.RecoveryPoint = store.RecoveryPoint
		}
	}
	if want, ok := r.fulls.wanted(); ok && s.Active {
		s.FullWanted = want.why
	}
	return s
}

func (c *committer) tell(newest section) StoreStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.r.opts.Now()
	c.lower(now)
	s := c.status
	if s.RecoveryPoint.After(now) {
		s.RecoveryPoint = whole(now)
	}
	switch {
	case c.chain == nil || c.lost:
	case c.at != nil:
		s.Behind = max(0, int64(newest.end-c.at.pos))
	default:
		s.Behind = int64(newest.end - newest.start)
	}
	return s
}

func (r *Recorder) doing(active bool, what string) {
	r.active.Store(active)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.active, r.state.doing = active, what
}

// failed keeps an error for people.
func (r *Recorder) failed(err error) {
	if err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.lastError, r.state.lastErrorAt = err.Error(), r.opts.Now()
}

// watching says whose watch is read, and how to end it.
func (r *Recorder) watching(cluster, member manifest.EtcdID, stop func(error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.cluster, r.state.member, r.state.stop = cluster, member, stop
}

// mostGaps are kept.
const mostGaps = 32

// addGap notes a gap, unless it is known.
func (r *Recorder) addGap(g Gap) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.gaps {
		if known := &r.gaps[i]; known.Store == g.Store && known.From == g.From {
			known.To = max(known.To, g.To)
			return
		}
	}
	g.At = r.opts.Now()
	r.gaps = append(r.gaps, g)
	r.gaps = r.gaps[max(0, len(r.gaps)-mostGaps):]
	r.opts.Events.Emit(events.Warning{Chain: string(r.chain), Subject: g.Store, Message: fmt.Sprintf("no restore can aim at a point behind revision %d: %s", g.From-1, g.Why)})
}

// closeGap notes at which revision a store's segments go on.
func (r *Recorder) closeGap(store string, next manifest.Revision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.gaps {
		if g := &r.gaps[i]; g.Store == store && g.To < next-1 && g.From < next {
			g.To = next - 1
		}
	}
}
