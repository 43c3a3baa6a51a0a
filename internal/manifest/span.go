package manifest

import (
	"fmt"
	"time"
)

// SetMoments fills in Times. FirstTime and First are set before. Moments are in
// ascending order; their times are cut to whole milliseconds.
func (s *Span) SetMoments(moments []Moment) {
	s.Times = nil
	before := s.origin()
	for _, m := range moments {
		s.Times = append(s.Times, TimeDelta{
			m.At.UnixMilli() - before.At.UnixMilli(), int64(m.AtLeast - before.AtLeast), int64(m.AtMost - before.AtMost),
		})
		before = m
	}
}

// Moments are the times that the span knows a revision for, ascending.
func (s *Span) Moments() []Moment {
	moments := make([]Moment, 0, len(s.Times))
	m := s.origin()
	for _, d := range s.Times {
		m = m.plus(d)
		moments = append(moments, m)
	}
	return moments
}

func (s *Span) origin() Moment {
	return Moment{At: s.FirstTime, AtLeast: s.First - 1, AtMost: s.First - 1}
}

// Reach is what an entry says of a segment.
func (m *Manifest) Reach() *Reach {
	if m.Span == nil {
		return nil
	}
	return &Reach{Epoch: m.Epoch, First: m.Span.First, Last: m.Span.Last, LastTime: m.Span.LastTime, RollUp: m.Span.RollUp}
}

// Bounds that keep every sum and difference of these numbers from overflowing.
const (
	maxDelta    = 1 << 40 // of a TimeDelta
	maxRevision = 1 << 62
)

func (s *Span) check() error {
	if s.First < 1 || s.Last < s.First-1 || s.Last > maxRevision {
		return fmt.Errorf("span of revisions %d to %d", s.First, s.Last)
	}
	if s.LastTime.Before(s.FirstTime) {
		return fmt.Errorf("span ends before it begins")
	}
	if s.Events < int64(s.Last-s.First+1) || s.Last < s.First && s.Events != 0 {
		return fmt.Errorf("span of revisions %d to %d with %d events: every revision has one at least", s.First, s.Last, s.Events)
	}
	if err := s.checkTimes(); err != nil {
		return err
	}
	last := Revision(0)
	for _, c := range s.Compactions {
		if c <= last {
			return fmt.Errorf("span.compactions: %d after %d", c, last)
		}
		last = c
	}
	for _, h := range s.Hashes {
		if h.Revision < 1 || h.CompactRevision < 0 || h.CompactRevision > h.Revision || len(h.Members) == 0 {
			return fmt.Errorf("span.hashes: revision %d as of compact revision %d by %d members", h.Revision, h.CompactRevision, len(h.Members))
		}
	}
	return nil
}

// checkTimes: moments ascend, and none is out of the range of its type, however
// many there are.
func (s *Span) checkTimes() error {
	at := s.origin()
	for i, d := range s.Times {
		for _, n := range d {
			if n < 0 || n > maxDelta {
				return fmt.Errorf("span.times: entry %d is out of order", i)
			}
		}
		at = at.plus(d)
		if err := checkTime(at.At); err != nil || at.AtLeast > maxRevision || at.AtMost > maxRevision {
			return fmt.Errorf("span.times: entry %d is out of range", i)
		}
	}
	return nil
}

func (m Moment) plus(d TimeDelta) Moment {
	return Moment{
		At:      m.At.Add(time.Duration(d[0]) * time.Millisecond),
		AtLeast: m.AtLeast + Revision(d[1]), AtMost: m.AtMost + Revision(d[2]),
	}
}

// check: an index or a list says of a segment what a span may hold.
func (r *Reach) check(epoch uint64) error {
	switch {
	case r.Epoch < 1 || r.Epoch > epoch:
		return fmt.Errorf("reach.epoch %d in epoch %d", r.Epoch, epoch)
	case r.First < 1 || r.Last < r.First-1 || r.Last > maxRevision:
		return fmt.Errorf("reach of revisions %d to %d", r.First, r.Last)
	}
	return nil
}

// checkRecent: what a segment lists are segments, and each says what it holds.
func (m *Manifest) checkRecent() error {
	if len(m.Recent) > 0 && m.Kind != KindSegment {
		return fmt.Errorf("recent: kind %s has none", m.Kind)
	}
	for _, e := range m.Recent {
		if e.Kind != KindSegment || e.Reach == nil {
			return fmt.Errorf("recent: sequence %d is a %s or says not what it holds", uint64(e.Sequence), e.Kind)
		}
	}
	return m.checkEntries("recent", m.Recent)
}
