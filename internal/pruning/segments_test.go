package pruning

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/retention"
	"lifeboat/storage/memory"
)

// point is a revision of an epoch.
type point struct {
	epoch uint64
	rev   manifest.Revision
}

// moment is where etcd was at a time.
type moment struct {
	at time.Time
	point
}

// recording is a cluster with a recorder, as a simple model knows it: what was
// ever recorded, revision by revision.
type recording struct {
	*world
	rnd  *mathrand.Rand
	repo *repository.Repository

	now      point // etcd's
	cluster  manifest.EtcdID
	recorded manifest.Revision // of the present epoch
	history  []moment          // every time that etcd was looked at
	cuts     []moment          // those that segments end with
	covered  map[point]bool
	fulls    map[point]bool
}

func (s *recording) look() { s.history = append(s.history, moment{s.now_(), s.now}) }

func (s *recording) now_() time.Time { return s.world.now().Truncate(time.Millisecond) }

// restorable is the model's answer: a full, and every revision after it.
func (s *recording) restorable(p point) bool {
	for ; p.rev > 0; p.rev-- {
		if s.fulls[p] {
			return true
		}
		if !s.covered[p] {
			return false
		}
	}
	return false
}

func (s *recording) segment(first, last manifest.Revision, until time.Time, moments []manifest.Moment, rollUp bool) {
	s.t.Helper()
	id, err := manifest.NewID(rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	body := fmt.Sprintf("sealed events %d to %d", first, last)
	m := &manifest.Manifest{
		Chain: etcdMain, Kind: manifest.KindSegment, ID: id, Created: s.now_(), Epoch: s.now.epoch, Writer: manifest.Writer{Node: "cp1", Version: "test"},
		Span: &manifest.Span{
			ClusterID: s.cluster, MemberID: 1, First: first, Last: last, FirstTime: until, LastTime: until, Events: int64(last - first + 1), RollUp: rollUp,
		},
		Objects: []manifest.Object{{
			Name: repository.ObjectName(etcdMain, id, "events.zst.age"), Role: manifest.RoleEvents,
			Size: int64(len(body)), PlainSize: int64(len(body)), SHA256: sha256.Sum256([]byte(body)),
		}},
	}
	if len(moments) > 0 {
		m.Span.FirstTime = moments[0].At
	}
	m.Span.SetMoments(moments)
	if err := commit(s.t.Context(), s.repo, m, body); err != nil {
		s.t.Fatal(err)
	}
	for rev := first; rev <= last; rev++ {
		s.covered[point{s.now.epoch, rev}] = true
	}
}

// cut commits what was made since first.
func (s *recording) cut(first manifest.Revision) {
	now := s.now_()
	s.segment(first, s.now.rev, now, []manifest.Moment{{At: now, AtLeast: s.now.rev, AtMost: s.now.rev}}, false)
	s.recorded = s.now.rev
	s.cuts = append(s.cuts, moment{now, s.now})
}

// rollUp seals again what was recorded last without a gap, up to a dozen cuts.
func (s *recording) rollUp() {
	var moments []manifest.Moment
	first, last := manifest.Revision(0), manifest.Revision(0)
	for i := len(s.cuts) - 1; i >= 0 && len(moments) < 12; i-- {
		c := s.cuts[i]
		if c.epoch != s.now.epoch || last != 0 && !s.allCovered(c.rev+1, last) {
			break
		}
		if last == 0 {
			last = c.rev
		}
		moments = append([]manifest.Moment{{At: c.at, AtLeast: c.rev, AtMost: c.rev}}, moments...)
		first = c.rev + 1
	}
	for first > 1 && s.covered[point{s.now.epoch, first - 1}] && last-first < 40 {
		first--
	}
	if len(moments) > 1 {
		s.segment(first, last, moments[len(moments)-1].At, moments, true)
	}
}

func (s *recording) allCovered(first, last manifest.Revision) bool {
	for rev := first; rev <= last; rev++ {
		if !s.covered[point{s.now.epoch, rev}] {
			return false
		}
	}
	return true
}

func (s *recording) full(rev manifest.Revision, degraded bool) {
	s.t.Helper()
	m, body := s.draft(etcdMain)
	m.Etcd.Revision, m.Etcd.ClusterID = rev, s.cluster
	m.Etcd.ComparedWith = []manifest.EtcdID{2}
	if degraded {
		m.Degraded = []string{"it lags"}
	}
	if err := commit(s.t.Context(), s.repo, m, body); err != nil {
		s.t.Fatal(err)
	}
	s.fulls[point{s.now.epoch, rev}] = true
}

// step lets something happen.
func (s *recording) step() {
	s.forward(time.Duration(1+s.rnd.IntN(1200)) * time.Second)
	s.now.rev += manifest.Revision(s.rnd.IntN(4))
	s.look()
	switch n := s.rnd.IntN(100); {
	case n < 55:
		s.cut(s.recorded + 1)
	case n < 62: // a second recorder
		s.cut(max(1, min(s.recorded+1, s.now.rev-manifest.Revision(s.rnd.IntN(6)))))
	case n < 70:
		s.rollUp()
	case n < 85:
		s.full(s.now.rev, false)
	case n < 89:
		s.full(max(1, s.now.rev-manifest.Revision(s.rnd.IntN(4))), true)
	case n < 93: // the recorder loses its place
		s.now.rev += manifest.Revision(s.rnd.IntN(3))
		s.recorded = s.now.rev
		s.look()
	case n < 95: // etcd's history is another one
		s.forward(time.Hour)
		s.cluster++
		s.now = point{s.now.epoch + 1, max(1, s.now.rev-manifest.Revision(s.rnd.IntN(20)))}
		s.recorded = s.now.rev
		s.look()
		s.full(s.now.rev, false)
	}
}

// timeline is what the repository says can be restored.
func (s *recording) timeline() map[point]bool {
	s.t.Helper()
	line, err := s.open().Timeline(s.t.Context(), etcdMain)
	if err != nil || len(repository.Failures(line.Problems)) > 0 {
		s.t.Fatalf("%v, %v", line, err)
	}
	all := map[point]bool{}
	for _, span := range line.Spans {
		for rev := span.First.Revision; rev <= span.Last.Revision; rev++ {
			all[point{span.Epoch, rev}] = true
		}
	}
	return all
}

// route goes to a point and looks whether the way holds: every revision behind
// the base's is in a segment.
func (s *recording) route(at repository.Point) (*repository.Route, error) {
	s.t.Helper()
	route, err := s.open().Route(s.t.Context(), etcdMain, at)
	if err != nil {
		if !errors.Is(err, repository.ErrUnreachable) {
			s.t.Fatalf("%s: %v", at, err)
		}
		return nil, err
	}
	reached := route.Base.Etcd.Revision
	for _, m := range route.Segments {
		if m.Span.First > reached+1 || m.Span.Last <= reached || m.Epoch != route.Epoch {
			s.t.Fatalf("%s: the segments do not follow each other: %d-%d behind %d", at, m.Span.First, m.Span.Last, reached)
		}
		reached = m.Span.Last
	}
	if reached < route.Revision || route.Base.Epoch != route.Epoch || !s.restorable(point{route.Epoch, route.Revision}) {
		s.t.Fatalf("%s: to revision %d of epoch %d, and it reaches %d", at, route.Revision, route.Epoch, reached)
	}
	return route, nil
}

// at is where etcd was at a time.
func (s *recording) at(t time.Time) (p point) {
	for _, m := range s.history {
		if !m.at.After(t) {
			p = m.point
		}
	}
	return p
}

func TestWhatCanBeRestoredIsWhatAModelSaysAndPruningKeepsTheWindow(t *testing.T) {
	seeds := uint64(5)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := newWorld(t, memory.New())
			s := &recording{
				world: w, rnd: mathrand.New(mathrand.NewPCG(seed, 4)), repo: w.open(), now: point{1, 10}, cluster: 7, recorded: 10,
				covered: map[point]bool{}, fulls: map[point]bool{},
			}
			s.look()
			s.full(10, false)
			for round := range 3 {
				for range 30 {
					s.step()
				}
				s.prune(round > 0)
			}
		})
	}
}

// checkAll compares the time line and some routes with the model, which knows of
// no pruning. It returns all that can be restored.
func (s *recording) checkAll(pruned bool) map[point]bool {
	s.t.Helper()
	line := s.timeline()
	for epoch := uint64(1); epoch <= s.now.epoch; epoch++ {
		for rev := manifest.Revision(1); rev < 250; rev++ {
			p := point{epoch, rev}
			if line[p] && !s.restorable(p) || !line[p] && s.restorable(p) && !pruned {
				s.t.Fatalf("%v: the time line says %t, and the model %t", p, line[p], !line[p])
			}
		}
	}
	for range 6 {
		p := point{1 + s.rnd.Uint64N(s.now.epoch), 1 + manifest.Revision(s.rnd.IntN(int(s.now.rev)+5))}
		route, err := s.route(repository.Point{Revision: p.rev, Epoch: p.epoch})
		if (err == nil) != line[p] || err == nil && (route.Epoch != p.epoch || route.Revision != p.rev) {
			s.t.Fatalf("%v: the time line says %t, and the route %v, %v", p, line[p], route, err)
		}
	}
	return line
}

// times asks for every time at which something happened, and one in between.
func (s *recording) times(since time.Time) map[time.Time]point {
	s.t.Helper()
	found := map[time.Time]point{}
	for i, m := range s.history {
		t := m.at
		if s.rnd.IntN(2) == 0 && i+1 < len(s.history) {
			t = t.Add(s.history[i+1].at.Sub(t) / 2)
		}
		if t.Before(since) || s.rnd.IntN(6) > 0 {
			continue
		}
		route, err := s.route(repository.Point{Time: t})
		if err != nil {
			continue
		}
		found[t] = point{route.Epoch, route.Revision}
		if is := s.at(t); route.Epoch != is.epoch || route.Revision > is.rev {
			s.t.Fatalf("%s: etcd was at %v, and the route leads to revision %d of epoch %d", t, is, route.Revision, route.Epoch)
		}
	}
	return found
}

// prune applies a policy and sweeps, and looks for what has to be there still.
func (s *recording) prune(pruned bool) {
	s.t.Helper()
	before := s.checkAll(pruned)
	policy := retention.Policy{Hourly: s.rnd.IntN(4), Daily: s.rnd.IntN(2), PointInTime: time.Duration(s.rnd.IntN(4*60)) * time.Minute}
	start := s.world.now().Add(-policy.PointInTime)
	times := s.times(start)
	if route, err := s.route(repository.Point{Time: start}); err == nil {
		times[start] = point{route.Epoch, route.Revision}
	}
	latest, latestErr := s.route(repository.Point{})
	if s.rnd.IntN(2) == 0 {
		if _, err := s.open().Prune(s.t.Context(), etcdMain, nil, repository.PruneOptions{RolledUp: true}); err != nil {
			s.t.Fatal(err)
		}
	}
	report, err := Run(s.t.Context(), s.open(), Options{Policy: policy})
	if err != nil {
		s.t.Fatal(err)
	}
	after := s.checkAll(true)
	from := s.at(start)
	for p := range before {
		// (The revision of the window's first second itself is among the times, if it is known.)
		if in := p.epoch > from.epoch || p.epoch == from.epoch && p.rev > from.rev; in && !after[p] {
			s.t.Fatalf("%v is in the window of %s, which begins at %v, and can't be restored any more: %+v", p, policy.PointInTime, from, report)
		}
	}
	for t, p := range times {
		if route, err := s.route(repository.Point{Time: t}); err != nil || route.Epoch != p.epoch || route.Revision != p.rev {
			s.t.Fatalf("%s was %v, and is %+v, %v", t, p, route, err)
		}
	}
	if route, err := s.route(repository.Point{}); err != nil || latestErr != nil || route.Revision != latest.Revision || route.Epoch != latest.Epoch {
		s.t.Fatalf("the latest was %+v, %v, and is %+v, %v", latest, latestErr, route, err)
	}
	if s.rnd.IntN(2) == 0 { // what a sweep deletes is no loss either
		s.forward(repository.RolledUpGrace + 15*time.Minute)
		if s.rnd.IntN(2) == 0 {
			s.forward(repository.ManifestGrace)
		}
		if _, err := s.open().Sweep(s.t.Context(), repository.SweepOptions{}); err != nil {
			s.t.Fatal(err)
		}
		if _, err := s.open().Sweep(s.t.Context(), repository.SweepOptions{RolledUp: true, Chains: []manifest.Chain{etcdMain}}); err != nil {
			s.t.Fatal(err)
		}
		rep, err := s.open().Verify(s.t.Context(), repository.VerifyOptions{})
		if err = errors.Join(err, rep.Err()); err != nil {
			s.t.Fatal(err)
		}
		swept := s.checkAll(true)
		for p := range after {
			if !swept[p] {
				s.t.Fatalf("%v was swept away", p)
			}
		}
		s.recorded = s.now.rev // nothing recorded meanwhile
		s.now.rev++
		s.look()
		s.recorded = s.now.rev
	}
}
