package repository

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

// segmentDraft is a segment as a recorder would make it: what changed since the
// clock's last second, with one moment at its end.
func (w *world) segmentDraft(first, last manifest.Revision, change ...func(*manifest.Manifest)) (*manifest.Manifest, map[string][]byte) {
	id, now := w.id(), whole(w.clock.now())
	m := &manifest.Manifest{
		Chain: etcdMain, Kind: manifest.KindSegment, ID: id, Created: now, Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"},
		Span: &manifest.Span{
			ClusterID: 7, MemberID: 1, First: first, Last: last, FirstTime: now.Add(-time.Second), LastTime: now, Events: int64(last - first + 1),
		},
	}
	m.Span.SetMoments([]manifest.Moment{{At: now, AtLeast: last, AtMost: last}})
	for _, f := range change {
		f(m)
	}
	data := []byte(fmt.Sprintf("sealed events %d to %d in %s", m.Span.First, m.Span.Last, id))
	name := ObjectName(etcdMain, id, "events.zst.age")
	m.Objects = []manifest.Object{{Name: name, Role: manifest.RoleEvents, Size: int64(len(data)), SHA256: sha256.Sum256(data), PlainSize: int64(len(data))}}
	return m, map[string][]byte{name: data}
}

// segment commits one and moves the clock a second on.
func (w *world) segment(r *Repository, first, last manifest.Revision, change ...func(*manifest.Manifest)) *Committed {
	w.t.Helper()
	m, data := w.segmentDraft(first, last, change...)
	if err := put(w.t.Context(), r, m, data); err != nil {
		w.t.Fatal(err)
	}
	done, err := r.Commit(w.t.Context(), m)
	if err != nil {
		w.t.Fatal(err)
	}
	w.clock.forward(time.Second)
	return done
}

// rollUp makes a segment one of the last hour.
func rollUp(m *manifest.Manifest) {
	s := m.Span
	s.RollUp, s.FirstTime = true, s.LastTime.Add(-time.Hour)
	s.SetMoments([]manifest.Moment{{At: s.FirstTime, AtLeast: s.First - 1, AtMost: s.First - 1}, {At: s.LastTime, AtLeast: s.Last, AtMost: s.Last}})
}

func at(rev manifest.Revision) func(*manifest.Manifest) {
	return func(m *manifest.Manifest) { m.Etcd.Revision = rev }
}

func inEpoch(cluster manifest.EtcdID) func(*manifest.Manifest) {
	return func(m *manifest.Manifest) {
		if m.Etcd != nil {
			m.Etcd.ClusterID = cluster
		} else {
			m.Span.ClusterID = cluster
		}
	}
}

// way writes a route as text: its base and segments, and where it ends.
func way(r *Route) string {
	s := fmt.Sprintf("%d/%d:", r.Epoch, r.Base.Etcd.Revision)
	for _, m := range r.Segments {
		s += fmt.Sprintf(" %d-%d", m.Span.First, m.Span.Last)
		if m.Span.RollUp {
			s += "r"
		}
	}
	return s + fmt.Sprintf(" = %d", r.Revision)
}

func (w *world) wantWay(r *Repository, point Point, want string) *Route {
	w.t.Helper()
	route, err := r.Route(w.t.Context(), etcdMain, point)
	if err != nil {
		w.t.Fatalf("%s: %v", point, err)
	}
	if got := way(route); got != want {
		w.t.Errorf("%s: %s, want %s", point, got, want)
	}
	return route
}

// wantUnreachable checks the points on both sides: epoch/revision, "" for none.
func (w *world) wantUnreachable(r *Repository, point Point, before, after string) {
	w.t.Helper()
	_, err := r.Route(w.t.Context(), etcdMain, point)
	var u *UnreachableError
	if !errors.As(err, &u) {
		w.t.Errorf("%s: %v", point, err)
		return
	}
	text := func(p *NearPoint) string {
		if p == nil {
			return ""
		}
		return fmt.Sprintf("%d/%d", p.Epoch, p.Revision)
	}
	if text(u.Before) != before || text(u.After) != after {
		w.t.Errorf("%s: before %q, after %q, want %q and %q", point, text(u.Before), text(u.After), before, after)
	}
	gap := before != "" && after != ""
	if errors.Is(err, ErrVerification) != gap || errors.Is(err, ErrNothing) == gap || !errors.Is(err, ErrUnreachable) {
		w.t.Errorf("%s: %v is of the wrong kind", point, err)
	}
	for _, p := range []*NearPoint{u.Before, u.After} { // what it names can be had
		if p == nil {
			continue
		}
		if !strings.Contains(err.Error(), p.Flags()) {
			w.t.Errorf("%v does not say %s", err, p.Flags())
		}
		near := Point{Backup: p.Backup}
		if p.Backup == "" {
			near = Point{Revision: p.Revision, Epoch: p.Epoch}
		}
		if route, err := r.Route(w.t.Context(), etcdMain, near); err != nil || route.Revision != p.Revision || route.Epoch != p.Epoch {
			w.t.Errorf("%s: the near point %s is %+v, %v", point, p, route, err)
		}
	}
}

func TestARouteIsABaseAndTheFewestSegments(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	start := whole(w.clock.now())
	w.full(r, at(100)) // at 0
	w.segment(r, 96, 110)
	w.segment(r, 111, 120)
	w.segment(r, 119, 125) // another recorder's
	w.segment(r, 121, 130)
	w.segment(r, 131, 130) // nothing changed
	w.segment(r, 101, 125, rollUp)
	latest := w.wantWay(w.open(), Point{}, "1/100: 101-125r 121-130 = 130")
	if latest.At != start.Add(65*time.Second) || latest.After.Revisions != 0 || latest.After.Until != latest.At {
		t.Errorf("as of %s, behind it %+v", latest.At.Sub(start), latest.After)
	}
	w.wantWay(r, Point{Revision: 100}, "1/100: = 100")
	w.wantWay(r, Point{Revision: 105, Epoch: 1}, "1/100: 101-125r = 105")
	if route := w.wantWay(r, Point{Revision: 126}, "1/100: 101-125r 121-130 = 126"); route.After.Revisions != 4 || route.After.Revision != 130 {
		t.Errorf("behind it: %+v", route.After)
	}
	w.wantUnreachable(r, Point{Revision: 99}, "", "1/100")
	w.wantUnreachable(r, Point{Revision: 131}, "1/130", "")
	w.wantUnreachable(r, Point{Revision: 100, Epoch: 2}, "1/130", "")

	w.wantWay(r, Point{Time: start}, "1/100: = 100")
	w.wantUnreachable(r, Point{Time: start.Add(-time.Second)}, "", "1/100")
	w.wantUnreachable(r, Point{Time: w.clock.now()}, "1/130", "")
	w.wantWay(r, Point{Time: start.Add(61 * time.Second)}, "1/100: 101-125r = 120")
	if route := w.wantWay(r, Point{Time: start.Add(64500 * time.Millisecond)}, "1/100: 101-125r 121-130 = 130"); route.At != start.Add(64500*time.Millisecond) {
		t.Errorf("as of %s", route.At.Sub(start))
	}
	w.clock.forward(10 * time.Second)
	full := w.full(r, at(140)) // behind a gap
	w.wantUnreachable(r, Point{Revision: 135}, "1/130", "1/140")
	w.wantUnreachable(r, Point{Time: full.Manifest.Created.Add(-1500 * time.Millisecond)}, "1/130", "1/140")
	w.wantWay(r, Point{}, "1/140: = 140")
	w.wantWay(r, Point{Time: full.Manifest.Created}, "1/140: = 140")
	w.wantWay(r, Point{Backup: full.Manifest.ID}, "1/140: = 140")
	w.segment(r, 141, 150)
	w.wantWay(r, Point{}, "1/140: 141-150 = 150")
	w.wantWay(r, Point{Revision: 130}, "1/100: 101-125r 121-130 = 130")

	line, err := r.Timeline(t.Context(), etcdMain)
	if err != nil || len(line.Spans) != 2 || len(line.Gaps) != 1 {
		t.Fatalf("%+v, %v", line, err)
	}
	s, g := line.Spans[0], line.Gaps[0]
	if s.First.Revision != 100 || s.Last.Revision != 130 || s.Segments != 5 || s.RollUps != 1 || len(s.Fulls) != 1 || g.From != s.Last || g.To.Revision != 140 || g.Why == "" {
		t.Errorf("%+v\n%+v", s, g)
	}
	rep, err := r.Verify(t.Context(), VerifyOptions{})
	if err != nil || rep.Err() != nil || slices.IndexFunc(rep.Problems, func(p Problem) bool { return p.Kind == Unrecorded }) < 0 {
		t.Errorf("%v, %v", rep.Problems, err)
	}
}

func TestARevisionAndATimeMeanOneEpoch(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	first := w.full(r, at(100))
	w.segment(r, 101, 200)
	old := w.clock.now().Add(-time.Second)
	w.clock.forward(time.Minute)
	second := w.full(r, at(50), inEpoch(8))
	w.segment(r, 51, 150, inEpoch(8))
	if second.Manifest.Epoch != 2 {
		t.Fatalf("epoch %d", second.Manifest.Epoch)
	}
	w.wantWay(r, Point{}, "2/50: 51-150 = 150")
	w.wantWay(r, Point{Epoch: 1}, "1/100: 101-200 = 200")
	w.wantWay(r, Point{Revision: 120}, "2/50: 51-150 = 120")
	w.wantWay(r, Point{Revision: 120, Epoch: 1}, "1/100: 101-200 = 120")
	w.wantWay(r, Point{Revision: 180}, "1/100: 101-200 = 180")
	w.wantWay(r, Point{Time: old}, "1/100: 101-200 = 200")
	w.wantUnreachable(r, Point{Time: old.Add(time.Second)}, "1/200", "2/50")
	w.wantUnreachable(r, Point{Revision: 201, Epoch: 1}, "1/200", "2/50")
	w.wantUnreachable(r, Point{Revision: 30}, "", "1/100")
	w.wantUnreachable(r, Point{Time: second.Manifest.Created, Epoch: 1}, "1/200", "")
	if first.Manifest.Epoch != 1 {
		t.Error(first.Manifest.Epoch)
	}
}

func TestASmallSegmentStandsInForARollUp(t *testing.T) {
	for name, harm := range map[string]func(w *world, r *Repository, c *Committed){
		"its manifest is gone": func(w *world, r *Repository, c *Committed) { remove(w.t, w.store, w.stored(r, etcdMain, c.Sequence)) },
		"its manifest is junk": func(w *world, r *Repository, c *Committed) {
			set(w.t, w.store, w.stored(r, etcdMain, c.Sequence), []byte("junk"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			w.full(r, at(100))
			small := w.segment(r, 101, 110)
			w.segment(r, 111, 120)
			roll := w.segment(r, 101, 120, rollUp)
			w.full(r, at(120)) // its index knows them
			last := w.segment(r, 121, 130)
			harm(w, r, roll)
			w.wantWay(w.open(), Point{Revision: 115}, "1/100: 101-110 111-120 = 115")
			w.wantWay(w.open(), Point{}, "1/120: 121-130 = 130")
			// Of that one alone nothing stands in.
			harm(w, r, small)
			_, err := w.open().Route(t.Context(), etcdMain, Point{Revision: 115})
			if !errors.Is(err, ErrVerification) || !strings.Contains(err.Error(), "before it revision 100 of epoch 1") || !strings.Contains(err.Error(), "after it revision 120 of epoch 1") {
				t.Errorf("%v", err)
			}
			w.wantWay(w.open(), Point{Revision: 125}, "1/120: 121-130 = 125")
			harm(w, r, last) // nobody knows what it held
			for _, point := range []Point{{}, {Time: last.Manifest.Created}} {
				if route, err := w.open(func(o *Options) { o.Seen = map[manifest.Chain]manifest.Head{etcdMain: last.Head("memory:")} }).Route(t.Context(), etcdMain, point); !errors.Is(err, ErrVerification) {
					t.Errorf("%s: %+v, %v", point, route, err)
				}
			}
		})
	}
}

func TestARouteDoesWithoutWhatItsReaderFoundLost(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(100))
	small := w.segment(r, 101, 120)
	roll := w.segment(r, 101, 120, rollUp)
	w.wantWay(r, Point{}, "1/100: 101-120r = 120")
	route, err := r.RouteWithout(t.Context(), etcdMain, Point{}, []manifest.ID{roll.Manifest.ID})
	if err != nil || way(route) != "1/100: 101-120 = 120" || len(route.Problems) != 1 {
		t.Errorf("%+v, %v", route, err)
	}
	_, err = r.RouteWithout(t.Context(), etcdMain, Point{}, []manifest.ID{roll.Manifest.ID, small.Manifest.ID})
	if !errors.Is(err, ErrVerification) {
		t.Error(err)
	}
	// What the roll-up says of times is true all the same.
	if route, err := r.RouteWithout(t.Context(), etcdMain, Point{Time: roll.Manifest.Span.LastTime}, []manifest.ID{roll.Manifest.ID}); err != nil || way(route) != "1/100: 101-120 = 120" {
		t.Errorf("%+v, %v", route, err)
	}
	full := w.full(r, at(120))
	w.wantWay(r, Point{}, "1/120: = 120")
	route, err = r.RouteWithout(t.Context(), etcdMain, Point{}, []manifest.ID{full.Manifest.ID})
	if err != nil || way(route) != "1/100: 101-120r = 120" || len(route.Problems) != 1 {
		t.Errorf("%+v, %v", route, err)
	}
}

func TestATimeBesideALostSegmentIsNotAnsweredByAnOlderOne(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	start := whole(w.clock.now())
	w.full(r, at(100))                                          // at 0
	w.segment(r, 101, 110)                                      // at 60 s
	lost := w.segment(r, 111, 110, func(m *manifest.Manifest) { // at 61 s: changes, in the last half second
		m.Span.Last, m.Span.Events = 120, 10
		m.Span.SetMoments([]manifest.Moment{{At: m.Span.LastTime.Add(-500 * time.Millisecond), AtLeast: 110, AtMost: 110}, {At: m.Span.LastTime, AtLeast: 120, AtMost: 120}})
	})
	w.segment(r, 111, 130, func(m *manifest.Manifest) { m.Span.FirstTime = start.Add(61 * time.Second) }) // at 62 s, and it overlaps
	w.full(r, at(130))                                                                                    // its index knows them
	point := Point{Time: start.Add(61500 * time.Millisecond)}
	w.wantWay(w.open(), point, "1/100: 101-110 111-130 = 120")
	remove(t, w.store, w.stored(r, etcdMain, lost.Sequence))
	if route, err := w.open().Route(t.Context(), etcdMain, point); !errors.Is(err, ErrVerification) {
		t.Errorf("%+v, %v", route, err)
	}
	w.wantWay(w.open(), Point{Time: start.Add(62 * time.Second)}, "1/130: = 130")
	w.wantWay(w.open(), Point{Revision: 120}, "1/100: 101-110 111-130 = 120")
}

func TestASegmentByARevokedKeyIsNotApplied(t *testing.T) {
	w := newWorld(t, nil)
	other := w.newSigner("cp2")
	good := w.trust
	w.trust = w.trusting(testCluster, w.signer, other)
	r := w.open()
	theirs := w.open(func(o *Options) { o.Signer = other })
	w.full(r, at(100))
	w.segment(r, 101, 110)
	w.segment(theirs, 111, 500)
	w.full(r, at(90)) // lists them, and does not go as far
	w.trust = good
	_, err := w.open().Route(t.Context(), etcdMain, Point{})
	if !errors.Is(err, ErrVerification) || !strings.Contains(err.Error(), "revision 110 of epoch 1") {
		t.Errorf("%v", err)
	}
	w.wantWay(w.open(), Point{Revision: 110}, "1/100: 101-110 = 110")
	w.trust = w.trusting(testCluster, w.signer, other)
	w.wantWay(w.open(), Point{}, "1/100: 101-110 111-500 = 500")
}

func TestBackupsAndLatestTakeNoNoticeOfSegments(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	full := w.full(r, at(100))
	for rev := manifest.Revision(101); rev < 200; rev += 10 {
		w.segment(r, rev, rev+9)
	}
	backups, problems, err := r.Backups(t.Context())
	if err != nil || len(problems) > 0 || len(backups) != 1 {
		t.Fatalf("%d backups, %v, %v", len(backups), problems, err)
	}
	if b, asOf := Latest(backups); b.ID != full.Manifest.ID || asOf != full.Manifest.Created {
		t.Errorf("%+v as of %s", b, asOf)
	}
	if m, err := r.Resolve(t.Context(), etcdMain, Point{}); err != nil || m.ID != full.Manifest.ID {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestARefusedTimeIsSaidOnceAndInTheZoneOfWhoAsked(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(100))
	asked := whole(w.clock.now()).Add(-time.Hour).In(time.FixedZone("", 3600))
	_, err := r.Route(t.Context(), etcdMain, Point{Time: asked})
	if !errors.Is(err, ErrUnreachable) {
		t.Fatal(err)
	}
	text := err.Error()
	if said := asked.Format(time.RFC3339Nano); strings.Count(text, said) != 1 || strings.Contains(text, "Z") {
		t.Errorf("%q says %s %d times, or another in UTC", text, said, strings.Count(text, said))
	}
}
