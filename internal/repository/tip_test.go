package repository

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

func TestASegmentOfAnotherHistoryIsRefused(t *testing.T) {
	for _, fast := range []bool{false, true} {
		w := newWorld(t, nil)
		r := w.open()
		w.full(r, at(100))
		a := w.open().Appender(etcdMain)
		if fast {
			w.append(a, 101, 101)
		}
		inOne := func(m *manifest.Manifest) { m.Epoch = 1 }
		w.append(a, 102, 102, inOne)
		other := func(m *manifest.Manifest) { m.Span.ClusterID = 8 }
		if _, err := w.tryAppend(a, 103, 103, other); !errors.Is(err, ErrReplaced) {
			t.Errorf("of another cluster: %v", err)
		}
		w.clock.forward(time.Hour)
		w.full(r, at(50)) // history went back
		if _, err := w.tryAppend(a, 103, 103, inOne); !errors.Is(err, ErrReplaced) {
			t.Errorf("of the epoch before: %v", err)
		}
		if _, err := w.tryAppend(a, 51, 51, func(m *manifest.Manifest) { m.Epoch = 3 }); !errors.Is(err, ErrReplaced) {
			t.Errorf("of an epoch to come: %v", err)
		}
		if done := w.append(a, 51, 51, func(m *manifest.Manifest) { m.Epoch = 2 }); done.Manifest.Epoch != 2 {
			t.Errorf("epoch %d", done.Manifest.Epoch)
		}
		w.clean(w.open())
	}
}

func TestWhatSegmentsHoldAlreadyIsNotCommittedAgain(t *testing.T) {
	for _, fresh := range []bool{false, true} { // each commit by a new process
		w := newWorld(t, nil)
		w.full(w.open(), at(100))
		now := w.clock.now()
		a := w.open().Appender(etcdMain)
		until := func(seconds int) func(*manifest.Manifest) {
			return func(m *manifest.Manifest) {
				m.Span.LastTime = whole(now.Add(time.Duration(seconds) * time.Second))
				m.Span.FirstTime = m.Span.LastTime
			}
		}
		for i, c := range []struct {
			first, last manifest.Revision
			seconds     int
			rollUp      bool
			covered     bool
		}{
			{101, 110, 10, false, false},
			{101, 110, 10, false, true},  // the same
			{103, 108, 9, false, true},   // a part
			{103, 108, 11, false, false}, // a part that was complete later
			{111, 110, 11, false, true},  // nothing new
			{111, 110, 12, false, false}, // only the time
			{108, 115, 12, false, false}, // goes further
			{101, 115, 12, true, false},  // a roll-up never is
			{101, 115, 12, true, false},
			{130, 140, 20, false, false}, // behind a gap
			{131, 132, 20, false, true},
			{114, 131, 20, false, false}, // fills it
			{101, 140, 20, false, true},
			{90, 101, 5, false, false}, // before the full: only segments give back the revisions between
		} {
			if fresh {
				a = w.open().Appender(etcdMain)
			}
			change := []func(*manifest.Manifest){until(c.seconds)}
			if c.rollUp {
				change = append(change, rollUp)
			}
			if _, err := w.tryAppend(a, c.first, c.last, change...); errors.Is(err, ErrCovered) != c.covered || err != nil && !c.covered {
				t.Errorf("fresh %v, segment %d: %v", fresh, i, err)
			}
		}
		w.clean(w.open())
	}
}

func TestATipSaysHowFarAChainReaches(t *testing.T) {
	type step struct {
		full        manifest.Revision // or
		first, last manifest.Revision
		degraded    bool
		later       bool // so that its revision says whether history went back
	}
	for name, c := range map[string]struct {
		steps                []step
		base, last, recorded manifest.Revision
	}{
		"an empty chain":                {nil, 0, 0, 0},
		"a full":                        {[]step{{full: 100}}, 100, 100, 0},
		"segments and no full":          {[]step{{first: 5, last: 9}}, 0, 0, 0},
		"segments behind a full":        {[]step{{full: 100}, {first: 101, last: 105}, {first: 106, last: 110}}, 100, 110, 110},
		"resumed at the last":           {[]step{{full: 100}, {first: 100, last: 105}, {first: 105, last: 110}}, 100, 110, 110},
		"a gap":                         {[]step{{full: 100}, {first: 101, last: 105}, {first: 107, last: 110}}, 100, 105, 105},
		"a gap that is filled":          {[]step{{full: 100}, {first: 101, last: 105}, {first: 107, last: 110}, {first: 106, last: 106}}, 100, 110, 110},
		"a full over a gap":             {[]step{{full: 100}, {first: 101, last: 105}, {first: 107, last: 110}, {full: 108}}, 108, 110, 110},
		"a full ahead of the segments":  {[]step{{full: 100}, {first: 101, last: 105}, {full: 200}}, 200, 200, 105},
		"a full within the segments":    {[]step{{full: 100}, {first: 101, last: 105}, {full: 103}, {first: 106, last: 109}}, 103, 109, 109},
		"segments before the full":      {[]step{{first: 90, last: 100}, {full: 100}}, 100, 100, 100},
		"nothing changed":               {[]step{{full: 100}, {first: 101, last: 100}}, 100, 100, 0},
		"out of order":                  {[]step{{first: 106, last: 110}, {first: 101, last: 105}, {full: 100}}, 100, 110, 110},
		"a degraded one that lags":      {[]step{{full: 100}, {first: 101, last: 120}, {full: 90, degraded: true}}, 100, 120, 120},
		"another history":               {[]step{{full: 100}, {first: 101, last: 120}, {full: 50, later: true}}, 50, 50, 0},
		"another history with segments": {[]step{{full: 100}, {first: 101, last: 120}, {full: 50, later: true}, {first: 51, last: 60}}, 50, 60, 60},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			r.listEvery = 2
			a := r.Appender(etcdMain)
			var last *Committed
			for _, s := range c.steps {
				if s.full == 0 {
					last = w.append(a, s.first, s.last, func(m *manifest.Manifest) {
						m.Writer.Node, m.Span.Mark = fmt.Sprint("n", s.first), fmt.Sprint("mark of ", s.last)
					})
					continue
				}
				if s.later {
					w.clock.forward(time.Hour)
				}
				w.full(r, at(s.full), func(m *manifest.Manifest) {
					m.Etcd.Mark = fmt.Sprint("mark of ", s.full)
					if s.degraded {
						m.Degraded = []string{"no quorum"}
					}
				})
			}
			tips := map[string]*Tip{"known": w.head(a), "known for long": w.head(a), "opened": w.head(w.open().Appender(etcdMain))}
			for how, tip := range tips {
				if tip.Base != c.base || tip.Last != c.last || tip.Recorded != c.recorded {
					t.Errorf("%s: %+v", how, tip)
				}
				if c.last != 0 && tip.Mark != fmt.Sprint("mark of ", c.last) || c.recorded != 0 && tip.RecordedMark != fmt.Sprint("mark of ", c.recorded) {
					t.Errorf("%s: marks %q, %q", how, tip.Mark, tip.RecordedMark)
				}
				if tip.Sequence != manifest.Sequence(len(c.steps)) || (tip.Hash == manifest.Hash{}) != (len(c.steps) == 0) {
					t.Errorf("%s: head %d %s", how, tip.Sequence, tip.Hash)
				}
				if c.last != 0 && (tip.LastTime.IsZero() || tip.ClusterID != 7) {
					t.Errorf("%s: as of %s, cluster %s", how, tip.LastTime, tip.ClusterID)
				}
				if last != nil && last.Manifest.Epoch == tip.Epoch && tip.Writer != last.Manifest.Writer {
					t.Errorf("%s: writer %+v, want %+v", how, tip.Writer, last.Manifest.Writer)
				}
				if last != nil && last.Manifest.Epoch != tip.Epoch && tip.Writer != (manifest.Writer{}) {
					t.Errorf("%s: writer %+v of an earlier epoch", how, tip.Writer)
				}
			}
		})
	}
}

func TestAFullMayAskForANewEpoch(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	for i, c := range []struct {
		revision manifest.Revision
		least    uint64
		want     uint64
	}{{100, 0, 1}, {110, 1, 1}, {120, 2, 2}, {130, 2, 2}, {140, 0, 2}, {150, 1, 2}, {160, 5, 5}, {170, 5, 5}, {30, 5, 6}, {20, 0, 7}} {
		w.clock.forward(time.Hour)
		done := w.full(r, at(c.revision), func(m *manifest.Manifest) { m.Epoch = c.least })
		if done.Manifest.Epoch != c.want {
			t.Errorf("full %d, asking for %d: epoch %d, want %d", i, c.least, done.Manifest.Epoch, c.want)
		}
	}
	w2 := newWorld(t, nil)
	if done := w2.full(w2.open(), at(100), func(m *manifest.Manifest) { m.Epoch = 4 }); done.Manifest.Epoch != 4 {
		t.Errorf("the first of a chain: epoch %d", done.Manifest.Epoch)
	}
	w.clean(r)
}

func TestSegmentsTellThatHistoryWentBack(t *testing.T) {
	for name, c := range map[string]struct {
		last     manifest.Revision
		after    time.Duration // from the segment to the full
		full     manifest.Revision
		more     int // segments afterwards, so that lists and indexes name the first
		degraded bool
		epoch    uint64
	}{
		"a full that shows less":          {200, time.Hour, 150, 0, false, 2},
		"that is not surely later":        {200, time.Minute, 150, 0, false, 1},
		"that shows as much":              {200, time.Hour, 200, 0, false, 1},
		"of a member that lags":           {200, time.Hour, 150, 0, true, 1},
		"with the segment in a list only": {900, 3 * time.Hour, 150, 30, false, 2},
	} {
		w := newWorld(t, nil)
		r := w.open()
		r.listEvery = 4
		w.full(r, at(100))
		a := r.Appender(etcdMain)
		w.append(a, 101, c.last)
		for range c.more {
			w.append(a, 101, 101, func(m *manifest.Manifest) { m.Span.LastTime = w.clock.now().UTC().Truncate(time.Millisecond) })
		}
		w.clock.forward(c.after)
		done := w.full(w.open(), at(c.full), func(m *manifest.Manifest) {
			if c.degraded {
				m.Degraded = []string{"no quorum"}
			}
		})
		if done.Manifest.Epoch != c.epoch {
			t.Errorf("%s: epoch %d, want %d", name, done.Manifest.Epoch, c.epoch)
		}
	}
}
