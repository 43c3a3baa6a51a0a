package repository

import (
	"errors"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

func degraded(m *manifest.Manifest) { m.Degraded = []string{"no quorum"} }

func unproved(m *manifest.Manifest) {
	m.Etcd.HashKV, m.Etcd.ComparedWith, m.Unproved = 0, nil, []string{"no scratch"}
}

func TestARouteBeginsFromTheBestFullNotTheNewest(t *testing.T) {
	proved := func(*manifest.Manifest) {}
	type full struct {
		rev  manifest.Revision
		make func(*manifest.Manifest)
	}
	for name, c := range map[string]struct {
		fulls []full
		point manifest.Revision
		want  int // of the fulls
	}{
		"the newer of two proved":                       {[]full{{100, proved}, {110, proved}}, 120, 1},
		"the one that goes further, not the later":      {[]full{{110, proved}, {100, proved}}, 120, 0},
		"none above the point":                          {[]full{{100, proved}, {110, proved}}, 109, 0},
		"a proved one before a newer unproved":          {[]full{{100, proved}, {110, unproved}}, 120, 0},
		"a proved one before a newer degraded":          {[]full{{100, proved}, {110, degraded}}, 120, 0},
		"an unproved one before a newer degraded":       {[]full{{100, unproved}, {110, degraded}}, 120, 0},
		"the newer of two unproved":                     {[]full{{100, unproved}, {110, unproved}}, 120, 1},
		"the newer of two degraded":                     {[]full{{100, degraded}, {110, degraded}}, 120, 1},
		"one of the revision though it is unproved":     {[]full{{100, proved}, {120, unproved}}, 120, 1},
		"none of the revision that is degraded":         {[]full{{100, unproved}, {120, degraded}}, 120, 0},
		"the whole one of the revision":                 {[]full{{120, degraded}, {120, unproved}, {120, degraded}}, 120, 1},
		"a whole one that is older than a degraded one": {[]full{{100, unproved}, {100, degraded}}, 120, 0},
		"the proved one of two of the revision":         {[]full{{120, proved}, {120, unproved}}, 120, 0},
		"the later of two alike":                        {[]full{{100, proved}, {100, proved}}, 120, 1},
	} {
		w := newWorld(t, nil)
		r := w.open()
		var made []*Committed
		for _, f := range c.fulls {
			made = append(made, w.full(r, at(f.rev), f.make))
		}
		w.segment(r, 100, 130)
		route, err := w.open().Route(t.Context(), etcdMain, Point{Revision: c.point})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if want := made[c.want]; route.Base.ID != want.Manifest.ID || route.Revision != c.point {
			t.Errorf("%s: %s from manifest %d, want %d", name, way(route), route.Base.Sequence, want.Sequence)
		}
	}
}

func TestAFullThatWasProvedLaterIsABetterBase(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(100), unproved)
	first := w.full(r, at(105), unproved)
	w.full(r, at(110), unproved)
	w.segment(r, 111, 130)
	w.segment(r, 101, 120, rollUp)
	w.wantWay(r, Point{}, "1/110: 111-130 = 130")
	w.backup(r, etcdMain, manifest.KindProof, func(m *manifest.Manifest) {
		m.Proof = &manifest.Proof{Of: first.Manifest.ID, Revision: 105, HashKV: 77, How: "drill"}
	})
	w.wantWay(w.open(), Point{}, "1/105: 101-120r 111-130 = 130")
}

func TestTheFirstPointOfALineIsAWholeFullAsOfTheFirstCapture(t *testing.T) {
	for name, order := range map[string][3]func(*manifest.Manifest){
		"the degraded one is first in the chain": {degraded, unproved, degraded},
		"the whole one is":                       {unproved, degraded, degraded},
		"it is the last":                         {degraded, degraded, unproved},
	} {
		w := newWorld(t, nil)
		r := w.open()
		w.clock.forward(10 * time.Minute)
		base := whole(w.clock.now())
		var good manifest.ID
		for i, minute := range []int{1, 0, 2} { // they overlap, and commit in another order
			done := w.full(r, at(100), order[i], func(m *manifest.Manifest) { m.Created = base.Add(time.Duration(minute) * time.Minute) })
			if len(done.Manifest.Degraded) == 0 {
				good = done.Manifest.ID
			}
		}
		// One that goes further and whose capture took long begins no line.
		w.full(r, at(110), func(m *manifest.Manifest) { m.Created = base.Add(-time.Minute) })
		w.segment(r, 101, 120, func(m *manifest.Manifest) {
			m.Span.FirstTime = base.Add(10 * time.Second)
			m.Span.SetMoments([]manifest.Moment{{At: m.Span.FirstTime, AtLeast: 100, AtMost: 100}, {At: m.Span.LastTime, AtLeast: 120, AtMost: 120}})
		})
		line, err := r.Timeline(t.Context(), etcdMain)
		if err != nil || len(line.Spans) != 1 {
			t.Fatalf("%s: %+v, %v", name, line, err)
		}
		if first := line.Spans[0].First; first.Backup != good || !first.Time.Equal(base) || first.Revision != 100 {
			t.Errorf("%s: the first point is %s, want backup %s as of %s", name, first, good, base)
		}
		w.wantUnreachable(r, Point{Revision: 99}, "", "1/100")
		var u *UnreachableError
		if _, err := r.Route(t.Context(), etcdMain, Point{Time: base.Add(-time.Second)}); !errors.As(err, &u) || u.After == nil || u.After.Backup != good {
			t.Errorf("%s: %v", name, err)
		}
		// Of the time between the captures the segment tells.
		if route := w.wantWay(r, Point{Time: base.Add(30 * time.Second)}, "1/100: = 100"); route.Base.ID != good {
			t.Errorf("%s: from %s, want %s", name, route.Base.ID, good)
		}
	}
}

func TestADegradedFullDoesNotSayThatNothingMoreWasMade(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	until := func(rev manifest.Revision, want time.Time) {
		t.Helper()
		line, err := w.open().Timeline(t.Context(), etcdMain)
		if err != nil {
			t.Fatal(err)
		}
		if last := line.Spans[len(line.Spans)-1].Last; last.Revision != rev || !last.Time.Equal(want) {
			t.Errorf("the line ends at %s, want %d as of %s", last, rev, want)
		}
		route, err := w.open().Route(t.Context(), etcdMain, Point{})
		if err != nil || route.Revision != rev || !route.At.Equal(want) || !route.After.Until.Equal(want) {
			t.Errorf("%+v, %v, want %d as of %s", route, err, rev, want)
		}
	}
	alone := w.full(r, at(100), degraded) // nothing else tells of the line
	until(100, alone.Manifest.Created)
	w.wantWay(r, Point{Time: alone.Manifest.Created}, "1/100: = 100")

	w.full(r, at(100))
	if route := w.wantWay(r, Point{Backup: alone.Manifest.ID}, "1/100: = 100"); !route.At.Equal(alone.Manifest.Created) {
		t.Errorf("as of %s, want %s", route.At, alone.Manifest.Created)
	}
	w.segment(r, 101, 110)
	last := w.segment(r, 111, 120)
	until(120, last.Manifest.Span.LastTime)
	lags := w.full(r, at(120), degraded)
	until(120, last.Manifest.Span.LastTime)
	w.wantUnreachable(r, Point{Time: lags.Manifest.Created.Add(5 * time.Second)}, "1/120", "")
	w.wantWay(r, Point{Time: lags.Manifest.Created}, "1/100: 101-110 111-120 = 120") // it is a point of its own all the same
	w.full(r, at(110), degraded)
	until(120, last.Manifest.Span.LastTime)
	good := w.full(r, at(120))
	until(120, good.Manifest.Created)
	w.wantWay(r, Point{Time: lags.Manifest.Created.Add(5 * time.Second)}, "1/120: = 120")
}

func TestALineThatBeginsWithADegradedFullIsNotSaidToBeginLater(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	first := w.full(r, at(100), degraded)
	w.full(r, at(110))
	w.segment(r, 101, 110)
	line, err := r.Timeline(t.Context(), etcdMain)
	if err != nil || len(line.Spans) != 1 || line.Spans[0].First.Backup != first.Manifest.ID || line.Spans[0].First.Revision != 100 {
		t.Errorf("%+v, %v", line, err)
	}
	w.wantUnreachable(r, Point{Revision: 99}, "", "1/100")
}

func TestEveryWholeFullOfARevisionTellsHowLongItWasTheLast(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	began := whole(w.clock.now())
	w.clock.forward(time.Minute)
	late := w.full(r, at(100)).Manifest.Created
	base := w.full(r, at(100), func(m *manifest.Manifest) { m.Created = began }) // began first, and commits last
	if route := w.wantWay(r, Point{}, "1/100: = 100"); route.Base.ID != base.Manifest.ID || !route.At.Equal(late) || !route.After.Until.Equal(late) {
		t.Errorf("from %s as of %s, %+v; want %s", route.Base.ID, route.At, route.After, late)
	}
	// One below the line's end says nothing of that, whatever its clock.
	last := w.segment(r, 101, 110).Manifest.Span.LastTime
	w.full(r, at(105), func(m *manifest.Manifest) { m.Created = last.Add(3 * time.Minute) })
	line, err := r.Timeline(t.Context(), etcdMain)
	if err != nil || len(line.Spans) != 1 || !line.Spans[0].Last.Time.Equal(last) {
		t.Errorf("%+v, %v; want until %s", line, err, last)
	}
}

func TestAFullIsThePointOfTheWholeSecondInWhichItsCaptureBegan(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.clock.forward(time.Minute)
	second := w.clock.now().Truncate(time.Second)
	after := func(ms int) time.Time { return second.Add(time.Duration(ms) * time.Millisecond) }
	w.full(r, at(100), func(m *manifest.Manifest) { m.Created = after(700) })
	for _, ms := range []int{0, 300, 700, 999} {
		if route := w.wantWay(r, Point{Time: after(ms)}, "1/100: = 100"); !route.At.Equal(after(700)) {
			t.Errorf("after %d ms: as of %s", ms, route.At)
		}
	}
	w.wantUnreachable(r, Point{Time: after(-1)}, "", "1/100")
	w.wantUnreachable(r, Point{Time: after(1000)}, "1/100", "")
	// With a segment that tells of that second it is told by the moment.
	w.segment(r, 99, 105, func(m *manifest.Manifest) {
		m.Span.FirstTime, m.Span.LastTime = after(100), after(2000)
		m.Span.SetMoments([]manifest.Moment{{At: after(500), AtLeast: 100, AtMost: 100}, {At: after(2000), AtLeast: 105, AtMost: 105}})
	})
	for _, ms := range []int{500, 600, 800} {
		if route := w.wantWay(r, Point{Time: after(ms)}, "1/100: = 100"); !route.At.Equal(after(ms)) && ms < 700 {
			t.Errorf("after %d ms: as of %s", ms, route.At)
		}
	}
	w.wantWay(r, Point{Time: after(300)}, "1/100: = 100")
}
