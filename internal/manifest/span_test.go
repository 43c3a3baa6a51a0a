package manifest

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMomentsAreReadAsTheyWereSet(t *testing.T) {
	s := &Span{First: 11, FirstTime: noon}
	set := []Moment{
		{noon, 10, 10}, {noon.Add(time.Second), 10, 12}, {noon.Add(time.Second), 12, 12}, {noon.Add(24 * time.Hour), 1 << 40, 1 << 40},
	}
	s.SetMoments(set)
	if diff := cmp.Diff(set, s.Moments()); diff != "" {
		t.Error(diff)
	}
	s.SetMoments([]Moment{{noon.Add(1999 * time.Microsecond), 10, 10}})
	if got := s.Moments()[0].At; !got.Equal(noon.Add(time.Millisecond)) {
		t.Errorf("a moment of microseconds is read as %s", got)
	}
	s.SetMoments(nil)
	if len(s.Times) != 0 || len(s.Moments()) != 0 {
		t.Error("no moments leave some")
	}
}

func TestASegmentSaysItsReach(t *testing.T) {
	m := listing()
	want := &Reach{Epoch: 2, First: 5, Last: 9, LastTime: noon.Add(time.Minute), RollUp: true}
	if diff := cmp.Diff(want, m.Reach()); diff != "" {
		t.Error(diff)
	}
	if full().Reach() != nil {
		t.Error("a full has a segment's reach")
	}
}

// FuzzMoments: whatever deltas a manifest holds, a span that is well formed has
// ascending moments within its bounds, and writes them as it read them.
func FuzzMoments(f *testing.F) {
	add := func(numbers ...int64) {
		var data []byte
		for _, n := range numbers {
			data = binary.LittleEndian.AppendUint64(data, uint64(n))
		}
		f.Add(data, int64(5), int64(9))
	}
	add()
	add(1000, 1, 1, 1000, 0, 2)
	add(-1, 0, 0)
	add(maxDelta, maxDelta, maxDelta, maxDelta, maxDelta, maxDelta)
	f.Fuzz(func(t *testing.T, data []byte, first, last int64) {
		s := &Span{First: Revision(first), Last: Revision(last), FirstTime: noon, LastTime: noon, Events: last}
		for ; len(data) >= 24; data = data[24:] {
			var d TimeDelta
			for i := range d {
				d[i] = int64(binary.LittleEndian.Uint64(data[8*i:]))
			}
			s.Times = append(s.Times, d)
		}
		if s.check() != nil {
			return
		}
		before := s.origin()
		moments := s.Moments()
		for _, m := range moments {
			if m.At.Before(before.At) || m.AtLeast < before.AtLeast || m.AtMost < before.AtMost || m.At.Year() > 9999 || m.AtMost > maxRevision {
				t.Fatalf("%+v after %+v", m, before)
			}
			before = m
		}
		again := *s
		again.SetMoments(moments)
		if diff := cmp.Diff(s.Times, again.Times); diff != "" {
			t.Fatal(diff)
		}
	})
}
