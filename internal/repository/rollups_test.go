package repository

import (
	"errors"
	"slices"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

// prunesRolledUp prunes as a recorder does, and reports how many segments go.
func (w *world) pruneRolledUp(r *Repository) *Pruned {
	w.t.Helper()
	p, err := r.Prune(w.t.Context(), etcdMain, nil, PruneOptions{RolledUp: true})
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) sweepRolledUp(r *Repository) *Swept {
	w.t.Helper()
	s, err := r.Sweep(w.t.Context(), SweepOptions{RolledUp: true, Chains: []manifest.Chain{etcdMain}})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func TestWhatARollUpReplacedGoesSoonAndNothingElse(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(100))
	w.segment(r, 101, 110)
	w.segment(r, 111, 120)
	w.segment(r, 121, 120)
	across := w.segment(r, 121, 135)
	w.segment(r, 101, 130, rollUp)
	idle := w.segment(r, 131, 130) // after it
	if p := w.pruneRolledUp(w.open()); p.Segments != 3 || p.Manifests != 3 || len(p.Objects) != 3 || len(p.Removed) != 0 || len(p.Dropped) != 0 {
		t.Fatalf("%+v", p)
	}
	w.clean(w.open())
	w.wantWay(w.open(), Point{}, "1/100: 101-130r 121-135 = 135")
	if p := w.pruneRolledUp(w.open()); p.Commit != nil {
		t.Errorf("again: %+v", p)
	}
	if s := w.sweepRolledUp(w.open()); s.Objects+s.Manifests != 0 || s.Waiting != 3 {
		t.Errorf("at once: %+v", s)
	}
	w.clock.forward(RolledUpGrace + skewMargin + time.Second)
	for _, sweep := range []func() *Swept{
		func() *Swept {
			s, err := w.open().Sweep(t.Context(), SweepOptions{DryRun: true})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		func() *Swept { return w.sweepRolledUp(w.open()) },
	} {
		if s := sweep(); s.Objects != 3 || s.Manifests != 3 || s.Waiting != 0 {
			t.Errorf("later: %+v", s)
		}
	}
	w.clean(w.open())
	w.wantWay(w.open(), Point{}, "1/100: 101-130r 121-135 = 135")
	// The prune is done. The next one takes it along, and is itself done soon.
	w.segment(r, 136, 140)
	w.segment(r, 131, 140, rollUp)
	p := w.pruneRolledUp(w.open())
	if p.Segments != 3 || p.Manifests != 4 || len(p.Objects) != 3 { // with the first prune
		t.Fatalf("%+v", p)
	}
	w.clock.forward(RolledUpGrace + skewMargin + time.Second)
	if s := w.sweepRolledUp(w.open()); s.Objects != 3 || s.Manifests != 4 {
		t.Errorf("%+v", s)
	}
	w.clean(w.open())
	w.wantWay(w.open(), Point{}, "1/100: 101-130r 131-140r = 140")
	if v, err := w.open().Load(t.Context(), etcdMain); err != nil || len(v.st.live) != 4 { // full, two roll-ups, prune
		t.Errorf("%+v, %v", v.st.live, err)
	}
	_, _ = across, idle
}

func TestASmallSegmentStaysUntilItsRollUpIsSound(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(100))
	w.segment(r, 101, 110)
	roll := w.segment(r, 101, 110, rollUp)
	name := r.stored(roll.Manifest.Objects[0].Name)
	data := get(t, w.store, name)
	for what, harm := range map[string]func(){
		"its data is gone":    func() { remove(t, w.store, name) },
		"its data is shorter": func() { set(t, w.store, name, data[1:]) },
	} {
		harm()
		if p := w.pruneRolledUp(w.open()); p.Commit != nil {
			t.Errorf("%s: %+v", what, p)
		}
		if p, err := w.open().Prune(t.Context(), etcdMain, nil, PruneOptions{}); err != nil || p.Commit != nil {
			t.Errorf("%s: %+v, %v", what, p, err)
		}
		set(t, w.store, name, data)
	}
	if p := w.pruneRolledUp(w.open()); p.Segments != 1 {
		t.Fatalf("%+v", p)
	}
	// When it is lost only now, the small one has the long grace.
	remove(t, w.store, name)
	w.clock.forward(RolledUpGrace + skewMargin + time.Second)
	if s := w.sweepRolledUp(w.open()); s.Objects+s.Manifests != 0 || s.Waiting != 2 {
		t.Errorf("%+v", s)
	}
	if s, err := w.open().Sweep(t.Context(), SweepOptions{}); err != nil || s.Objects+s.Manifests != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestSegmentsThatDifferFromARollUpStay(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	marked := func(mark string) func(*manifest.Manifest) { return func(m *manifest.Manifest) { m.Span.Mark = mark } }
	w.full(r, at(100))
	w.segment(r, 101, 110, marked("k1:aa"))
	w.segment(r, 103, 110, marked("k1:bb"))
	w.segment(r, 104, 110, marked("k2:cc")) // by another key: nobody can compare
	w.segment(r, 101, 110, marked("k1:aa"), rollUp)
	if p := w.pruneRolledUp(r); p.Segments != 2 {
		t.Errorf("%+v", p)
	}
}

func TestNoSegmentGoesThatThePointInTimeWindowNeeds(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	rev := manifest.Revision(100)
	w.full(r, at(rev))
	var fulls []*Committed
	for range 10 { // an hour each
		for range 6 {
			w.clock.forward(10*time.Minute - time.Second)
			w.segment(r, rev+1, rev+10)
			rev += 10
		}
		fulls = append(fulls, w.full(r, at(rev)))
		w.clock.forward(-time.Minute)
	}
	now := w.clock.now()
	start := now.Add(-150 * time.Minute)
	opts := PruneOptions{
		Window: func(at time.Time) time.Time { return at.Add(-150 * time.Minute) },
		Choose: func(backups []Backup, _ time.Time) []manifest.ID {
			var remove []manifest.ID
			for _, b := range backups {
				if !b.Base && b.Created.Before(start) && b.Sequence != 1 {
					remove = append(remove, b.ID)
				}
			}
			return remove
		},
	}
	before := map[int]string{}
	for m := range 151 {
		route, err := r.Route(t.Context(), etcdMain, Point{Time: start.Add(time.Duration(m) * time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		before[m] = way(route)
	}
	p, err := r.Prune(t.Context(), etcdMain, nil, opts)
	if err != nil || p.Segments == 0 || len(p.Removed) == 0 {
		t.Fatalf("%+v, %v", p, err)
	}
	w.clean(w.open())
	for m := range 151 {
		route, err := w.open().Route(t.Context(), etcdMain, Point{Time: start.Add(time.Duration(m) * time.Minute)})
		if err != nil || way(route) != before[m] {
			t.Fatalf("minute %d: %v, %v; was %s", m, route, err, before[m])
		}
	}
	w.wantUnreachable(w.open(), Point{Revision: 150}, "1/100", "1/520") // the first full stands alone
	again, err := r.Prune(t.Context(), etcdMain, nil, opts)
	if err != nil || again.Commit != nil {
		t.Errorf("again: %+v, %v", again, err)
	}
	// What a point is restored from is not removed, whatever was chosen.
	opts.Choose = func(backups []Backup, _ time.Time) (remove []manifest.ID) {
		i := slices.IndexFunc(backups, func(b Backup) bool { return b.Base })
		return []manifest.ID{backups[i].ID}
	}
	if _, err := r.Prune(t.Context(), etcdMain, nil, opts); !errors.Is(err, ErrRefused) {
		t.Error(err)
	}
	_ = fulls
}

func TestASegmentStaysThatKnowsTimesWhichItsRollUpDoesNot(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(100))
	early := whole(w.clock.now())
	w.segment(r, 101, 110)
	w.clock.forward(time.Minute)
	w.segment(r, 111, 120)
	w.segment(r, 101, 120, func(m *manifest.Manifest) { m.Span.RollUp = true }) // with one moment, its last
	if p := w.pruneRolledUp(r); p.Segments != 0 {
		t.Errorf("%+v", p)
	}
	w.segment(r, 101, 120, func(m *manifest.Manifest) {
		m.Span.FirstTime, m.Span.RollUp = early, true
		m.Span.SetMoments([]manifest.Moment{{At: early, AtLeast: 110, AtMost: 110}, {At: m.Span.LastTime, AtLeast: 120, AtMost: 120}})
	})
	if p := w.pruneRolledUp(r); p.Segments != 2 {
		t.Errorf("%+v", p)
	}
	w.wantWay(r, Point{Time: early.Add(30 * time.Second)}, "1/100: 101-120r = 110")
}

func TestSegmentsThatWaitForAFullAreNotPruned(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(100))
	w.segment(r, 101, 110)
	for first := manifest.Revision(151); first < 190; first += 10 { // behind a gap, while a full is captured
		w.segment(r, first, first+9)
	}
	noWindow := PruneOptions{Window: func(now time.Time) time.Time { return now }}
	if p, err := r.Prune(t.Context(), etcdMain, nil, noWindow); err != nil || p.Segments != 0 {
		t.Fatalf("%+v, %v", p, err)
	}
	w.full(r, at(165))
	w.wantWay(r, Point{}, "1/165: 161-170 171-180 181-190 = 190")

	w.segment(r, 251, 260) // and no full comes
	w.clock.forward(GiveUpAfter + 2*skewMargin)
	p, err := r.Prune(t.Context(), etcdMain, nil, noWindow)
	if err != nil {
		t.Fatal(err)
	}
	var gone []manifest.Revision
	for _, e := range p.Commit.Manifest.Prune.Manifests {
		gone = append(gone, e.Reach.First)
	}
	if !slices.Contains(gone, 251) || slices.Contains(gone, 161) {
		t.Errorf("segments from %v go", gone)
	}
	w.wantWay(r, Point{}, "1/165: 161-170 171-180 181-190 = 190")
}

// The format promises these to readers and to those who prune.
func TestTheTimesOfTheProtocolAreThoseOfTheFormat(t *testing.T) {
	if RolledUpGrace != 2*time.Hour || ObjectGrace != 24*time.Hour || ManifestGrace != 7*24*time.Hour || GiveUpAfter != time.Hour || skewMargin != 10*time.Minute || recentEvery != 1024 {
		t.Error("docs/format.md says otherwise")
	}
}

func TestAPruneIsLightThatNamesSmallSegmentsAndSuchPrunesOnly(t *testing.T) {
	entry := func(id manifest.ID, kind manifest.Kind, reach *manifest.Reach) manifest.Entry {
		return manifest.Entry{ID: id, Kind: kind, Reach: reach}
	}
	small, prune := entry("a", manifest.KindSegment, &manifest.Reach{}), entry("b", manifest.KindPrune, nil)
	for name, c := range map[string]struct {
		prune manifest.Prune
		want  bool
	}{
		"small segments":         {manifest.Prune{Manifests: []manifest.Entry{small}, Objects: []string{"etcd/main/data/a/events.zst.age"}}, true},
		"with a prune":           {manifest.Prune{Manifests: []manifest.Entry{small, prune}}, true},
		"with a writer's id":     {manifest.Prune{Manifests: []manifest.Entry{small}, Drop: []manifest.ID{"c"}}, false},
		"with a roll-up":         {manifest.Prune{Manifests: []manifest.Entry{small, entry("c", manifest.KindSegment, &manifest.Reach{RollUp: true})}}, false},
		"with an unknown one":    {manifest.Prune{Manifests: []manifest.Entry{small, entry("c", manifest.KindSegment, nil)}}, false},
		"with a full":            {manifest.Prune{Manifests: []manifest.Entry{small, entry("c", manifest.KindFull, nil)}}, false},
		"with another's object":  {manifest.Prune{Manifests: []manifest.Entry{small}, Objects: []string{"etcd/main/data/c/events.zst.age"}}, false},
		"with nothing it names":  {manifest.Prune{}, false},
		"with garbage of no one": {manifest.Prune{Objects: []string{"etcd/main/data/c/events.zst.age"}}, false},
	} {
		if got := light(&c.prune); got != c.want {
			t.Errorf("%s: light %v", name, got)
		}
	}
}

func TestTheFirstSecondOfAWindowIsToldByTheSegmentBefore(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(100))
	w.segment(r, 101, 110)
	w.full(r, at(110))
	w.clock.forward(time.Hour)
	start := whole(w.clock.now())
	w.clock.forward(time.Minute)
	w.segment(r, 111, 120)
	w.wantWay(r, Point{Time: start}, "1/110: = 110")
	if _, err := r.Prune(t.Context(), etcdMain, nil, PruneOptions{Window: func(time.Time) time.Time { return start }}); err != nil {
		t.Fatal(err)
	}
	w.wantWay(w.open(), Point{Time: start}, "1/110: = 110")
}

func TestTheClockOfARecorderTakesNoSegmentAwayEarly(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	late := func(m *manifest.Manifest) { // by a clock that is ten days behind
		m.Span.FirstTime, m.Span.LastTime = m.Span.FirstTime.AddDate(0, 0, -10), m.Span.LastTime.AddDate(0, 0, -10)
		m.Span.SetMoments([]manifest.Moment{{At: m.Span.LastTime, AtLeast: m.Span.Last, AtMost: m.Span.Last}})
	}
	w.full(r, at(100))
	w.segment(r, 101, 110, late)
	w.full(r, at(110))
	w.segment(r, 111, 120, late)
	w.full(r, at(120))
	w.segment(r, 121, 130)
	p, err := r.Prune(t.Context(), etcdMain, nil, PruneOptions{Window: func(now time.Time) time.Time { return now.Add(-time.Hour) }})
	if err != nil || p.Segments != 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestAWindowKeepsAWholeAndAProvedBaseToo(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(90))
	w.segment(r, 91, 120)
	w.full(r, at(100))
	w.full(r, at(110), func(m *manifest.Manifest) {
		m.Etcd.HashKV, m.Etcd.ComparedWith, m.Unproved = 0, nil, []string{"no scratch"}
	})
	w.full(r, at(120), func(m *manifest.Manifest) { m.Degraded = []string{"no quorum"} })
	w.clock.forward(time.Hour)
	start := w.clock.now()
	w.segment(r, 121, 130)
	w.clock.forward(time.Minute)
	w.segment(r, 131, 140)
	w.clock.forward(time.Minute)
	var bases []manifest.Revision
	_, err := r.Prune(t.Context(), etcdMain, nil, PruneOptions{
		DryRun: true, Window: func(time.Time) time.Time { return start.Add(30 * time.Second) },
		Choose: func(backups []Backup, _ time.Time) []manifest.ID {
			for _, b := range backups {
				if b.Base {
					bases = append(bases, b.Etcd.Revision)
				}
			}
			return nil
		},
	})
	if err != nil || !slices.Equal(bases, []manifest.Revision{100, 110, 120}) {
		t.Errorf("bases %v, %v", bases, err)
	}
}

func TestALockedSegmentIsNotPromisedForDeletion(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	until := w.clock.now().Add(24 * time.Hour)
	locked := func(m *manifest.Manifest) { m.RetainUntil = &until }
	w.full(r, at(100))
	w.segment(r, 101, 110, locked)
	w.segment(r, 101, 110, rollUp, locked)
	w.full(r, at(110))
	w.clock.forward(time.Hour)
	w.full(r, at(110))
	if p := w.pruneRolledUp(r); p.Segments != 0 {
		t.Errorf("by a recorder: %+v", p)
	}
	past := PruneOptions{Window: func(now time.Time) time.Time { return now }}
	if p, err := r.Prune(t.Context(), etcdMain, nil, past); err != nil || p.Segments != 0 {
		t.Errorf("by a policy: %+v, %v", p, err)
	}
	w.clock.forward(24 * time.Hour)
	if p := w.pruneRolledUp(r); p.Segments != 1 {
		t.Errorf("when the lock is over: %+v", p)
	}
}

func TestARollUpHasTheLongGraceThoughAnotherHoldsTheSame(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(110)) // the oldest that is left
	gone := w.segment(r, 101, 110, rollUp)
	w.segment(r, 111, 115)
	w.clock.forward(time.Hour)
	w.segment(r, 101, 120, rollUp)
	w.segment(r, 121, 130)
	p, err := r.Prune(t.Context(), etcdMain, nil, PruneOptions{Window: func(now time.Time) time.Time { return now.Add(-time.Minute) }})
	if err != nil || p.Commit == nil || !slices.ContainsFunc(p.Commit.Manifest.Prune.Manifests, func(e manifest.Entry) bool { return e.ID == gone.Manifest.ID }) {
		t.Fatalf("%+v, %v", p, err)
	}
	w.clock.forward(RolledUpGrace + skewMargin + time.Second)
	if _, err := r.Sweep(t.Context(), SweepOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{w.stored(r, etcdMain, gone.Sequence), r.stored(gone.Manifest.Objects[0].Name)} {
		get(t, w.store, name)
	}
}
