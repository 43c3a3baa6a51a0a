package repository

import (
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

func TestARouteAndATimeLineSayWhyAndWhatLiesBehind(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(100))
	old := w.segment(r, 101, 110)
	w.segment(r, 111, 120, func(m *manifest.Manifest) {
		m.Span.Hashes = []manifest.HashKV{{Revision: 105, CompactRevision: 90, HashKV: 5, Members: []manifest.EtcdID{1}}}
	})
	between := w.clock.now()
	why := func(point Point, want string) {
		t.Helper()
		if _, err := r.Route(t.Context(), etcdMain, point); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", point, err, want)
		}
	}
	why(Point{Time: between.Add(time.Hour)}, "it lies in the future")
	why(Point{Revision: 50}, "it lies before the oldest full that is kept")

	// A hash is known, and recorded, only later than the revision that it is of.
	if route := w.wantWay(r, Point{Revision: 110}, "1/100: 101-110 = 110"); len(route.Hashes) != 1 || route.Hashes[0].Revision != 105 {
		t.Errorf("hashes %+v", route.Hashes)
	}
	// What is not known to be all by then is not said to be.
	if route := w.wantWay(r, Point{Revision: 109}, "1/100: 101-110 = 109"); !route.At.Before(old.Manifest.Span.LastTime) {
		t.Errorf("revision 109 as of %s, when 110 was there", route.At)
	}

	w.segment(r, 151, 160) // behind a gap
	if route := w.wantWay(r, Point{}, "1/100: 101-110 111-120 = 120"); !slices.ContainsFunc(route.Problems, func(p Problem) bool { return strings.Contains(p.Message, "wait for the next one") }) {
		t.Errorf("nothing is said of revisions 151 to 160: %v", route.Problems)
	}
	w.clock.forward(time.Minute)
	w.full(r, at(200))
	w.clock.forward(time.Minute)
	w.full(r, at(50), inEpoch(8))
	line, err := r.Timeline(t.Context(), etcdMain)
	if err != nil || len(line.Gaps) != 2 || !strings.Contains(line.Gaps[0].Why, "151 to 160 have no full to begin from") || !strings.Contains(line.Gaps[1].Why, "a new history") {
		t.Errorf("%+v, %v", line, err)
	}
	why(Point{Revision: 300, Epoch: 1}, "it lies between two histories of etcd")
	if route := w.wantWay(r, Point{Revision: 120}, "1/100: 101-110 111-120 = 120"); route.After.Epoch != 2 {
		t.Errorf("behind it: %+v", route.After)
	}
}
