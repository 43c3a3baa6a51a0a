package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"time"

	"lifeboat/internal/agent/turns"
	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

// simAgent is one node's agent over all its lives.
type simAgent struct {
	world  *world
	index  int
	node   string
	config *config.Config
	offset time.Duration // of its clock from the true time
	slow   int           // reasons for slow backups
	hangs  int           // reasons for backups that hang
	full   int           // reasons for a full disk

	alive  bool
	origin time.Time     // of the world
	since  time.Time     // of this life, or of the last pause's end
	paused chan struct{} // closed when it goes on; nil: it runs
	killed chan struct{}
	agent  *Agent
	cancel context.CancelFunc
	done   chan error
	life   int

	able       time.Time // since when it could take a full that counts
	hopeful    time.Time // since when it could take one to at least one store
	spells     []spell   // earlier times during which it could
	reach      []bool    // per store
	reachSince []time.Time
	saved      *record
	ran        map[string]int // runs that began in this life and did not end
	attempts   []time.Time    // of fulls
	results    []string       // of this life's fulls as the world saw them, and as OnRun told
	told       []string
	verified   int
}

func (a *simAgent) chain() manifest.Chain { return manifest.Chain(hostsPrefix + a.node) }

// simWorks is one life's Works.
type simWorks struct {
	a      *simAgent
	life   int
	killed chan struct{}
}

// memoryShelf keeps a journal over the lives of an agent.
type memoryShelf struct {
	a    *simAgent
	life int
}

var errDisk = errors.New("no space left on device")

func (m memoryShelf) load() (record, error) {
	if m.a.saved == nil {
		return record{}, fs.ErrNotExist
	}
	if m.a.saved.Format != 0 {
		return record{}, errors.New("damaged")
	}
	r := *m.a.saved
	r.LastSuccess = maps.Clone(r.LastSuccess)
	return r, nil
}

func (m memoryShelf) save(r record) error {
	w := m.a.world
	w.mu.Lock()
	defer w.mu.Unlock()
	if m.life != m.a.life || !m.a.alive {
		return errDisk // a dead process writes nothing
	}
	if m.a.full > 0 {
		return errDisk
	}
	if len(r.Runs) > status.MaxRuns {
		w.violate("%s: the journal grows: %d runs", m.a.node, len(r.Runs))
	}
	m.a.saved = &r
	return nil
}

func (m memoryShelf) setAside() error { m.a.saved = nil; return nil }

// gate holds up an agent that is stopped, as SIGSTOP would.
func (s simWorks) gate() {
	for {
		s.a.world.mu.Lock()
		paused := s.a.paused
		s.a.world.mu.Unlock()
		if paused == nil {
			return
		}
		select {
		case <-paused:
		case <-s.killed:
			return
		}
	}
}

func (s simWorks) wall() time.Time {
	s.gate()
	s.a.world.mu.Lock()
	defer s.a.world.mu.Unlock()
	return time.Now().Add(s.a.offset).Round(0)
}

// step lets time pass in an agent.
func (s simWorks) step(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	s.gate()
	return ctx.Err()
}

// latency is that of one request, a different one for every agent and moment.
func (s simWorks) latency(what string) time.Duration {
	return 20*time.Millisecond + time.Duration(s.a.world.draw(300_000, s.a.node+what))*time.Microsecond
}

func (s simWorks) Look(ctx context.Context) (*Picture, error) {
	if err := s.step(ctx, s.latency("look")); err != nil {
		return nil, err
	}
	now := s.wall()
	w := s.a.world
	w.mu.Lock()
	defer w.mu.Unlock()
	p := &Picture{Stores: make([]StorePicture, 0, len(w.stores))}
	for _, store := range w.stores {
		if !w.reachesStore(s.a.index, store) {
			p.Stores = append(p.Stores, StorePicture{URL: store.url, Err: errors.New("connection refused")})
			continue
		}
		chains := make(map[manifest.Chain]status.InStore, len(store.chains))
		for name, list := range store.chains {
			chains[name] = w.inStore(list, now)
		}
		p.Stores = append(p.Stores, StorePicture{URL: store.url, Skew: -s.a.offset, SkewKnown: true, Chains: chains})
	}
	return p, nil
}

func (s simWorks) Standing(ctx context.Context, cluster string) (*Standing, error) {
	if err := s.step(ctx, s.latency("standing")); err != nil {
		return nil, err
	}
	w := s.a.world
	w.mu.Lock()
	defer w.mu.Unlock()
	member, quorum := w.source(s.a.index)
	if member < 0 {
		return nil, errors.New("no member answers")
	}
	var members []turns.Member
	for i := range w.members {
		answers := w.reachesMember(s.a.index, i)
		members = append(members, turns.Member{
			ID: uint64(i + 1), Name: fmt.Sprintf("cp%d", i+1), Local: i == s.a.index && !w.external,
			Answers: answers, Leader: answers && w.leads(i), Healthy: answers && w.leads(i),
		})
	}
	place, ok := turns.Among(members)
	if !ok {
		var nodes []string
		for _, a := range w.agents {
			for _, store := range w.stores {
				if list := store.chains[a.chain()]; len(list) > 0 && !time.Now().Add(s.a.offset).After(list[len(list)-1].expected) {
					nodes = append(nodes, a.node)
				}
			}
		}
		place = turns.Beside(s.a.node, nodes)
	}
	return &Standing{Rank: place.Rank, Quorum: quorum, First: place.First}, nil
}

// enter notes that a run began, and the function it returns that it ended.
func (s simWorks) enter(kind status.Kind) func() {
	w := s.a.world
	w.mu.Lock()
	defer w.mu.Unlock()
	began := time.Now()
	key := fmt.Sprint(s.life, " ", kind)
	s.a.ran[key]++
	if s.a.ran[key] > 1 {
		w.violate("%s: two runs of %s at once", s.a.node, kind)
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		s.a.ran[key]--
		limit := deadlines[kind] + time.Minute
		if took := time.Since(began); took > limit && s.a.since.Before(time.Now().Add(-limit)) && s.life == s.a.life {
			w.violate("%s: %s ran for %s", s.a.node, kind, took)
		}
	}
}

func (s simWorks) Full(ctx context.Context, cluster string) (*Outcome, error) {
	defer s.enter(status.Full)()
	w := s.a.world
	w.mu.Lock()
	s.a.attempts = append(s.a.attempts, time.Now())
	slow, hangs := s.a.slow > 0, s.a.hangs > 0
	w.mu.Unlock()
	did, err := s.full(ctx, cluster, slow, hangs)
	w.mu.Lock()
	defer w.mu.Unlock()
	result := status.Succeeded
	if err != nil {
		result = status.Failed
	} else if did.Overtaken {
		result = status.Overtaken
	}
	if s.life == s.a.life && s.a.alive {
		s.a.results = append(s.a.results, string(result))
		w.say("%s: full: %s %v", s.a.node, result, err)
	}
	return did, err
}

func (s simWorks) full(ctx context.Context, cluster string, slow, hangs bool) (*Outcome, error) {
	w := s.a.world
	if err := s.step(ctx, s.latency("ask stores")); err != nil {
		return nil, err
	}
	created := s.wall()
	at := time.Now()
	w.mu.Lock()
	answering := 0
	for _, store := range w.stores {
		if w.reachesStore(s.a.index, store) {
			answering++
		}
	}
	member, quorum := w.source(s.a.index)
	revision := w.revision()
	if member >= 0 && w.members[member].frozen > 0 {
		revision = w.members[member].frozen
	}
	w.mu.Unlock()
	if answering == 0 {
		return nil, Because(status.StoreDown, errors.New("no store answers"))
	}
	if member < 0 {
		return nil, Because(status.EtcdDown, errors.New("no member answers"))
	}
	if err := s.stream(ctx, slow, hangs); err != nil {
		return nil, err
	}
	id := fmt.Sprintf("%s-%d-%d", s.a.node, s.life, at.UnixNano())
	e := entry{id: id, at: at, created: created, revision: revision, degraded: !quorum, expected: w.full.Next(w.full.Next(created))}
	return s.commit(ctx, manifest.Chain(etcdPrefix+cluster), e)
}

// stream is the time that a snapshot takes. It ends when no store takes it.
func (s simWorks) stream(ctx context.Context, slow, hangs bool) error {
	w := s.a.world
	w.mu.Lock()
	w.streams++
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.streams--
		w.mu.Unlock()
	}()
	left := 5*time.Second + time.Duration(w.draw(60_000, s.a.node+"stream"))*time.Millisecond
	if slow {
		left *= time.Duration(1 + w.draw(120, s.a.node+"slow"))
	}
	if hangs {
		left = 1000 * time.Hour
	}
	for left > 0 {
		part := min(left, 5*time.Minute)
		left -= part
		if err := s.step(ctx, part); err != nil {
			return err
		}
		w.mu.Lock()
		answering := 0
		for _, store := range w.stores {
			if w.reachesStore(s.a.index, store) {
				answering++
			}
		}
		w.mu.Unlock()
		if answering == 0 {
			return Because(status.StoreDown, errors.New("no store answers any more"))
		}
	}
	return nil
}

// commit appends an entry to its chain in every store, as the repository would.
func (s simWorks) commit(ctx context.Context, chain manifest.Chain, e entry) (*Outcome, error) {
	did := &Outcome{Chain: chain, Created: e.created, Revision: manifest.Revision(e.revision)}
	if e.degraded {
		did.Degraded = []string{"no quorum"}
	}
	served, committed := 0, 0
	var last error
	for _, store := range s.a.world.stores {
		overtaken, err := s.commitTo(ctx, store, chain, e)
		switch {
		case ctx.Err() != nil:
			return did, ctx.Err()
		case err != nil:
			last = err
		case overtaken:
			served++
		default:
			served++
			committed++
		}
	}
	if committed > 0 {
		did.ID = manifest.ID(e.id)
	}
	if served < s.a.world.minStores {
		return did, Because(status.StoreDown, fmt.Errorf("%d stores took it: %w", served, last))
	}
	did.Overtaken = committed == 0
	return did, nil
}

func (s simWorks) commitTo(ctx context.Context, store *simStore, chain manifest.Chain, e entry) (overtaken bool, err error) {
	w := s.a.world
	refused := errors.New("connection refused")
	for range 8 {
		if err := s.step(ctx, s.latency("read head")); err != nil {
			return false, err
		}
		w.mu.Lock()
		reach := w.reachesStore(s.a.index, store)
		list := store.chains[chain]
		seq, prev := len(list)+1, ""
		mine := false
		if len(list) > 0 {
			newest := list[len(list)-1]
			prev = newest.id
			mine = newest.id == e.id
			overtaken = e.revision > 0 && !mine && newest.created.After(e.created) && newest.revision >= e.revision
		}
		for _, other := range list {
			mine = mine || other.id == e.id
		}
		w.mu.Unlock()
		if !reach {
			return false, refused
		}
		if mine || overtaken {
			return overtaken && !mine, nil
		}
		if err := s.step(ctx, s.latency("create")); err != nil {
			return false, err
		}
		e.prev = prev
		w.mu.Lock()
		vague := 0
		if store.vague > 0 {
			vague = 1 + w.draw(3, s.a.node+"vague") // 1: lost before, 2: lost after it took effect
		}
		done := false
		reach = w.reachesStore(s.a.index, store)
		if reach && vague != 1 {
			done = w.create(store, chain, seq, e)
		}
		w.mu.Unlock()
		switch {
		case !reach:
			return false, refused
		case done && vague != 2:
			return false, nil
		}
		// Refused or unanswered: the next round reads it back.
	}
	return false, errors.New("the chain did not hold still")
}

func (s simWorks) Files(ctx context.Context) (*Outcome, error) {
	defer s.enter(status.Files)()
	if err := s.step(ctx, 10*s.latency("files")); err != nil {
		return nil, err
	}
	created := s.wall()
	id := fmt.Sprintf("%s-%d-f%d", s.a.node, s.life, time.Now().UnixNano())
	return s.commit(ctx, s.a.chain(), entry{id: id, at: time.Now(), created: created, expected: created.Add(2 * s.a.world.interval)})
}

func (s simWorks) Verify(ctx context.Context, chains []manifest.Chain) (*Outcome, error) {
	defer s.enter(status.Verify)()
	if err := s.step(ctx, time.Minute+s.latency("verify")); err != nil {
		return nil, err
	}
	s.a.world.mu.Lock()
	defer s.a.world.mu.Unlock()
	s.a.verified++
	return &Outcome{}, nil
}

func (s simWorks) Prune(ctx context.Context) (*Outcome, error) {
	defer s.enter(status.Prune)()
	if err := s.step(ctx, time.Minute+s.latency("prune")); err != nil {
		return nil, err
	}
	s.a.world.mu.Lock()
	defer s.a.world.mu.Unlock()
	s.a.world.prunes++
	return &Outcome{}, nil
}

func (s simWorks) Record(ctx context.Context, _ string, _ Recording) error {
	<-ctx.Done()
	return ctx.Err()
}

func (s simWorks) Certificates(context.Context) ([]status.Certificate, error) { return nil, nil }
func (s simWorks) Reload(context.Context, *config.Config) error               { return nil }
