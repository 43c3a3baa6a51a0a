package record

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"lifeboat/internal/manifest"
)

// askAgain is how often a full is asked for while it is needed.
const askAgain = time.Minute

// fulls are the reasons for which full backups are needed, and asks for them.
type fulls struct {
	mu       sync.Mutex
	standing map[string]reason // by store: until its chain can go on
	passing  map[string]need   // by reason
	recorded func() manifest.Revision
	now      func() time.Time
	wake     chan struct{}
}

// need is of a full above a revision, or begun after a time: either shows that
// it holds what it is wanted for.
type need struct {
	above manifest.Revision
	after time.Time
}

type reason struct {
	why   string
	epoch uint64
}

func newFulls(recorded func() manifest.Revision, now func() time.Time) *fulls {
	return &fulls{
		standing: map[string]reason{}, passing: map[string]need{}, recorded: recorded, now: now,
		wake: make(chan struct{}, 1),
	}
}

// want asks until settled is called for the store.
func (f *fulls) want(store, why string, epoch uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := false // of another store, perhaps
	for _, r := range f.standing {
		known = known || r == reason{why, epoch}
	}
	f.standing[store] = reason{why, epoch}
	if !known {
		f.ring()
	}
}

func (f *fulls) settled(store string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.standing, store)
}

// once asks until there is a full that was begun after this.
func (f *fulls) once(why string, now time.Time) {
	recorded := f.recorded()
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.passing[why]; !known {
		f.ring()
	}
	f.passing[why] = need{above: recorded, after: now}
}

// onceFor is once, unless it is asked for already.
func (f *fulls) onceFor(why string, now time.Time) {
	f.mu.Lock()
	_, known := f.passing[why]
	f.mu.Unlock()
	if !known {
		f.once(why, now)
	}
}

// seen says that a chain holds a full of a revision, begun at a time.
func (f *fulls) seen(full manifest.Revision, begun time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for why, n := range f.passing {
		if full > n.above || full > 0 && begun.After(n.after) {
			delete(f.passing, why)
		}
	}
}

// pending says whether a full is waited for that shows by what it holds.
func (f *fulls) pending() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.passing) > 0
}

// early is how long to wait before a full is asked for. A manifest tells only the
// second in which its capture began: one of the second in which the need came up
// could not be seen to hold what it is wanted for.
func (f *fulls) early() (wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.standing) > 0 {
		return 0
	}
	now := f.now()
	for _, n := range f.passing {
		if next := n.after.Truncate(time.Second).Add(time.Second).Sub(now); next <= time.Second { // else the clock was set back
			wait = max(wait, next)
		}
	}
	return wait
}

func (f *fulls) ring() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// wanted is the strongest reason there is: of the highest epoch, else all that
// came up.
func (f *fulls) wanted() (reason, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	best, found := reason{}, false
	for _, r := range f.standing {
		if !found || r.epoch > best.epoch || r.epoch == best.epoch && r.why < best.why {
			best, found = r, true
		}
	}
	if !found && len(f.passing) > 0 {
		best, found = reason{why: strings.Join(slices.Sorted(maps.Keys(f.passing)), "; ")}, true
	}
	return best, found
}

// run asks, whenever there is a new reason and again while one stands, for as
// long as the recorder is the one who records.
func (f *fulls) run(ctx context.Context, active func() bool, ask func(string, uint64)) {
	pause := askAgain
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		case <-time.After(pause):
		}
		pause = askAgain
		r, ok := f.wanted()
		if wait := f.early(); ok && wait > 0 {
			pause = wait
			continue
		}
		if ok && active() {
			ask(r.why, r.epoch)
		} else if ok { // it may be about to become the one
			pause = time.Second
		}
	}
}
