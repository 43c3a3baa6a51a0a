package agent

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

// board is the central picture: what each store held when it last answered.
type board struct {
	looked bool          // a Look came back, well or badly
	asked  bool          // one came back well: every store was asked
	taken  time.Duration // when the last good one began
	err    error         // of the last one
	stores []*storeBoard // in the configured order

	// What every job asks of it, from take to take.
	names   []manifest.Chain
	keeper  string
	current bool
}

type storeBoard struct {
	status.Store
	chains map[manifest.Chain]*chainBoard
}

type chainBoard struct {
	status.InStore
	arrived time.Duration // when this process first saw the newest backup here; 0: it was there before
}

// newBoard knows the stores' names and nothing else.
func newBoard(urls []string) *board {
	b := &board{}
	for _, url := range urls {
		b.stores = append(b.stores, &storeBoard{Store: status.Store{URL: url}, chains: map[manifest.Chain]*chainBoard{}})
	}
	return b
}

// take puts what a Look saw on the board. began is when the Look began.
func (b *board) take(p *Picture, now time.Time, began time.Duration) {
	old := map[string]*storeBoard{}
	for _, s := range b.stores {
		old[s.URL] = s
	}
	b.looked, b.asked, b.taken, b.err, b.current = true, true, began, nil, false
	b.stores = b.stores[:0:0]
	for _, seen := range p.Stores {
		s := old[seen.URL]
		if s == nil {
			s = &storeBoard{Store: status.Store{URL: seen.URL}, chains: map[manifest.Chain]*chainBoard{}}
		}
		b.stores = append(b.stores, s)
		if seen.SkewKnown {
			s.Skew, s.SkewKnown = seen.Skew, true
		}
		if seen.Err != nil {
			s.Error = line(seen.Err.Error())
			continue
		}
		s.take(seen.Chains, now, began)
	}
}

// take replaces what a store held by what it holds.
func (s *storeBoard) take(chains map[manifest.Chain]status.InStore, now time.Time, began time.Duration) {
	first := s.Answered.IsZero()
	s.Answered, s.Error = now, ""
	for name, c := range s.chains {
		if _, there := chains[name]; !there && c.Head > 0 {
			c.InStore = status.InStore{Regressed: true, Failures: []string{fmt.Sprintf("the whole chain is gone; manifest %d was there", c.Head)}}
		}
	}
	for name, seen := range chains {
		c := s.chains[name]
		switch {
		case c == nil:
			c = &chainBoard{}
			s.chains[name] = c
			if !first {
				c.arrived = began
			}
		case seen.Head > c.Head && (!seen.Newest.Equal(c.Newest) || seen.Backups > c.Backups):
			// More backups and the same newest: one of a clock behind another's.
			c.arrived = began
		}
		c.InStore = seen
	}
	for _, c := range s.chains {
		c.Store, c.Read = s.URL, now
	}
}

// fail notes that the stores could not be looked at.
func (b *board) fail(err error) {
	b.looked, b.err, b.current = true, err, false
}

// answering is how many stores answered the last Look.
func (b *board) answering() int {
	n := 0
	for _, s := range b.stores {
		if s.Error == "" && !s.Answered.IsZero() {
			n++
		}
	}
	if b.err != nil {
		return 0
	}
	return n
}

// held is the largest of the values that at least least stores have, of those
// that answer. While too few answer, what the others held last counts too:
// whoever is silent has most likely lost nothing.
func held[T any](b *board, chain manifest.Chain, least int, value func(*chainBoard) T, compare func(T, T) int) T {
	all := b.answering() < least
	var values []T
	for _, s := range b.stores {
		if c := s.chains[chain]; c != nil && (all || s.Error == "") {
			values = append(values, value(c))
		}
	}
	var none T
	if least < 1 || len(values) < least {
		return none
	}
	slices.SortFunc(values, func(a, b T) int { return compare(b, a) })
	return values[least-1]
}

func (b *board) newest(chain manifest.Chain, least int) time.Time {
	return held(b, chain, least, func(c *chainBoard) time.Time { return c.Newest }, time.Time.Compare)
}

func (b *board) newestWhole(chain manifest.Chain, least int) time.Time {
	return held(b, chain, least, func(c *chainBoard) time.Time { return c.NewestWhole }, time.Time.Compare)
}

// arrived is when this process saw the newest backup of a chain arrive.
func (b *board) arrived(chain manifest.Chain, least int) time.Duration {
	return held(b, chain, least, func(c *chainBoard) time.Duration { return c.arrived },
		func(a, b time.Duration) int { return int(min(max(a-b, -1), 1)) })
}

// chains lists all that any store holds or held, by name. Nobody changes it.
func (b *board) chains() []manifest.Chain {
	b.derive()
	return b.names
}

// steward is the node whose agent verifies and prunes for all: the first by name
// whose own chain is in time for a backup that was promised. Files that were
// backed up by hand promise none. Empty: nobody is known to work, so everybody is.
func (b *board) steward() string {
	b.derive()
	return b.keeper
}

func (b *board) derive() {
	if !b.current {
		b.names, b.keeper, b.current = b.listChains(), b.findSteward(), true
	}
}

func (b *board) listChains() []manifest.Chain {
	var names []manifest.Chain
	for _, s := range b.stores {
		for name, c := range s.chains {
			if c.Head > 0 || len(c.Failures) > 0 {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Prefixes of the chains' names (docs/format.md).
const (
	etcdPrefix  = "etcd/"
	hostsPrefix = "hosts/"
)

func (b *board) findSteward() string {
	var nodes []string
	some := b.answering() > 0
	for _, s := range b.stores {
		for name, c := range s.chains {
			node, host := strings.CutPrefix(string(name), hostsPrefix)
			if host && !c.Expected.IsZero() && c.Late.IsZero() && (s.Error == "" || !some) {
				nodes = append(nodes, node)
			}
		}
	}
	if len(nodes) == 0 {
		return ""
	}
	return slices.Min(nodes)
}
