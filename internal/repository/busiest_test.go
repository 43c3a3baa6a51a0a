package repository

import (
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

func TestTheBusiestMinuteIsTheOneInWhichMostKeysChanged(t *testing.T) {
	start := time.Date(2026, 11, 21, 14, 0, 0, 0, time.UTC)
	segment := func(first, last manifest.Revision, events int64, from, to time.Duration, moments ...manifest.Moment) *manifest.Manifest {
		s := &manifest.Span{First: first, Last: last, Events: events, FirstTime: start.Add(from), LastTime: start.Add(to)}
		s.SetMoments(moments)
		return &manifest.Manifest{Epoch: 1, Span: s}
	}
	ms := minutes{}
	ms.add(segment(101, 110, 10, 0, 10*time.Second), 100)
	// An hour of 200 revisions and 2,000 keys, of which 150 fell into one minute.
	ms.add(segment(111, 310, 2000, 10*time.Second, time.Hour,
		manifest.Moment{At: start.Add(30 * time.Minute), AtLeast: 120}, manifest.Moment{At: start.Add(30*time.Minute + 50*time.Second), AtLeast: 270}), 110)
	ms.add(segment(300, 320, 21, time.Hour, time.Hour+time.Second), 310) // overlaps, and 10 are new
	ms.add(segment(315, 320, 6, time.Hour, time.Hour+2*time.Second), 320)
	got := ms.busiest(2)
	if len(got) != 2 {
		t.Fatalf("%+v", got)
	}
	if want := (Burst{Epoch: 1, Minute: start.Add(30 * time.Minute), First: 111, Last: 270, Changes: 1600}); got[0] != want {
		t.Errorf("%+v, want %+v", got[0], want)
	}
	if want := (Burst{Epoch: 1, Minute: start.Add(time.Hour), First: 271, Last: 320, Changes: 410}); got[1] != want {
		t.Errorf("%+v, want %+v", got[1], want)
	}
	if list := (minutes{}).busiest(5); list == nil || len(list) != 0 {
		t.Errorf("of nothing: %v", list)
	}
}
