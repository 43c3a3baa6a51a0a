package replay

import (
	"sync"
	"time"
)

// grant is one life of a lease. An id can live several times.
type grant struct {
	id, ttl  int64 // ttl as etcd granted it, in seconds
	at       int64 // etcd's revision then: keys that it holds came later
	attached time.Time
	gone     time.Time // when etcd said that it is revoked; zero: not known
}

// book is what the work itself knows of leases: grants leave no events.
type book struct {
	mu     sync.Mutex
	grants map[int64][]*grant
	maybe  map[int64]bool // whether these were granted, nobody knows; no key has them
	live   []*grant
	rough  []window // when members or the recorder were down
}

type window struct{ from, to time.Time }

func newBook() *book { return &book{grants: map[int64][]*grant{}, maybe: map[int64]bool{}} }

func (b *book) granted(id, ttl, at int64) *grant {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := &grant{id: id, ttl: ttl, at: at}
	b.grants[id] = append(b.grants[id], g)
	b.live = append(b.live, g)
	return g
}

// unanswered notes that a lease may have been granted.
func (b *book) unanswered(id int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.maybe[id] = true
}

// possible reports whether a lease may be there at a revision.
func (b *book) possible(id, rev int64) bool {
	b.mu.Lock()
	maybe := b.maybe[id]
	b.mu.Unlock()
	return maybe || b.of(id, rev+1) != nil
}

// attach notes that a key was given the lease.
func (b *book) attach(g *grant) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if g.attached.IsZero() {
		g.attached = time.Now()
	}
}

// drop takes a lease out of use; it may have ended, or will.
func (b *book) drop(g *grant, revoked bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, other := range b.live {
		if other == g {
			b.live = append(b.live[:i], b.live[i+1:]...)
			break
		}
	}
	if revoked {
		g.gone = time.Now()
	}
}

// any is the n-th of the live leases, modulo their number; nil if there is none.
func (b *book) any(n int) *grant {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.live) == 0 {
		return nil
	}
	return b.live[n%len(b.live)]
}

// disturbed notes a time in which a recorder could not ask.
func (b *book) disturbed(from, to time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rough = append(b.rough, window{from, to})
}

// of is the life of a lease that a key of the mod revision is attached to.
func (b *book) of(id, mod int64) *grant {
	b.mu.Lock()
	defer b.mu.Unlock()
	var found *grant
	for _, g := range b.grants[id] {
		if g.at < mod {
			found = g
		}
	}
	return found
}

// What a recorder does when a lease was gone before it could ask for it.
const (
	syntheticTTL = 60 // seconds; the work grants no lease of this length
	askedWithin  = 3 * time.Second
	askedAgain   = 25 * time.Second // an id that is granted again is known as another lease, also after some trouble
	settledAfter = 10 * time.Second
)

// unknowable reports whether a recorder may not know the lease's granted time at
// a moment: it ended before it could be asked for, or the moment lies in trouble
// in which nobody answered.
func (b *book) unknowable(g *grant, moment time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	begin, end := g.attached, g.gone
	if begin.IsZero() {
		return true // the answer to the put was lost in trouble
	}
	if end.IsZero() {
		end = begin.Add(time.Duration(g.ttl) * time.Second)
	}
	if end.Sub(begin) < askedWithin {
		return true
	}
	for _, w := range b.rough {
		from, to := w.from.Add(-askedWithin), w.to.Add(settledAfter)
		if begin.After(from) && begin.Before(to) && (moment.Before(to) || end.Before(to)) {
			return true
		}
	}
	return false
}
