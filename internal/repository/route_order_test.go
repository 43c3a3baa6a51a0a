package repository

import (
	"errors"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

// eachSecond is a segment, small or a roll-up, that made one revision each second.
func eachSecond(from time.Time, rollUp bool) func(*manifest.Manifest) {
	return func(m *manifest.Manifest) {
		var moments []manifest.Moment
		for rev := m.Span.First; rev <= m.Span.Last; rev++ {
			moments = append(moments, manifest.Moment{At: from.Add(time.Duration(rev-m.Span.First) * time.Second), AtLeast: rev, AtMost: rev})
		}
		m.Span.RollUp, m.Span.FirstTime, m.Span.LastTime = rollUp, from.Add(-time.Second), moments[len(moments)-1].At
		m.Span.SetMoments(moments)
	}
}

func TestARollUpTellsOfATimeThoughSmallSegmentsEndBeforeIt(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	start := whole(w.clock.now())
	after := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	w.full(r, at(100))
	for i := range 10 { // those before were pruned, and these are not yet
		first := manifest.Revision(161 + 5*i)
		w.segment(r, first, first+4, eachSecond(after(61+5*i), false))
	}
	w.segment(r, 101, 110, eachSecond(after(1), true))
	w.segment(r, 111, 210, eachSecond(after(11), true))
	for _, seconds := range []int{5, 50, 60, 61, 100} {
		route, err := r.Route(t.Context(), etcdMain, Point{Time: after(seconds)})
		if err != nil {
			t.Fatal(err)
		}
		if want := manifest.Revision(100 + seconds); route.Revision != want || !route.At.Equal(after(seconds)) {
			t.Errorf("after %d seconds: revision %d as of %s, want %d", seconds, route.Revision, route.At.Sub(start), want)
		}
	}
}

func TestALostSegmentHidesTheLatestThoughARollUpOrAFullIsBehindIt(t *testing.T) {
	wants := map[string]string{"a roll-up of another recorder": "1/100: 101-110r = 110", "a full that was being captured": "1/110: = 110"}
	for name, behind := range map[string]func(*world, *Repository, time.Time){
		"a roll-up of another recorder": func(w *world, r *Repository, _ time.Time) { w.segment(r, 101, 110, rollUp) },
		"a full that was being captured": func(w *world, r *Repository, began time.Time) {
			w.full(r, at(110), func(m *manifest.Manifest) { m.Created = began })
		},
	} {
		w := newWorld(t, nil)
		r := w.open()
		w.full(r, at(100))
		began := w.clock.now()
		spare := w.segment(r, 101, 105)
		w.segment(r, 101, 110)
		lost := w.segment(r, 111, 120)
		remove(t, w.store, w.stored(r, etcdMain, spare.Sequence)) // so that a full lists nothing
		behind(w, w.open(), began)
		w.wantWay(w.open(), Point{Revision: 110}, wants[name])
		if _, err := w.open().Route(t.Context(), etcdMain, Point{Revision: 120}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		remove(t, w.store, w.stored(r, etcdMain, lost.Sequence))
		if route, err := w.open().Route(t.Context(), etcdMain, Point{}); !errors.Is(err, ErrVerification) {
			t.Errorf("%s: %+v, %v", name, route, err)
		}
	}
}

func TestATimeBeforeAFullWasMadeIsToldByTheLineBefore(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(100))
	began := w.clock.now()
	w.clock.forward(time.Minute)
	recorded := whole(w.clock.now())
	w.segment(r, 101, 110)
	w.clock.forward(time.Minute)
	w.full(r, at(150), func(m *manifest.Manifest) { m.Created = began })
	w.segment(r, 151, 160)
	w.wantWay(r, Point{Time: recorded}, "1/100: 101-110 = 110")
	w.wantUnreachable(r, Point{Time: recorded.Add(30 * time.Second)}, "1/110", "1/150")
}
