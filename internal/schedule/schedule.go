// Package schedule says when a job is due: cron expressions in UTC, read and
// stepped through by robfig/cron. It waits for nothing and knows no present;
// internal/agent does that
// (docs/decisions/0006-one-loop-of-our-own-on-cron-schedules.md).
package schedule

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/robfig/cron/v3"
)

// Schedule is a parsed expression. A nil Schedule never comes.
type Schedule struct {
	expression string
	next       cron.Schedule
	remembered atomic.Pointer[interval]
}

// interval is what Interval found for a week.
type interval struct {
	week    time.Time // its beginning
	longest time.Duration
}

// Parse reads minute, hour, day of month, month and weekday, or a descriptor
// such as @daily or @every 6h. The empty expression is the nil Schedule.
func Parse(expression string) (*Schedule, error) {
	if expression == "" {
		return nil, nil
	}
	text := strings.TrimSpace(expression)
	if strings.Contains(text, "TZ=") { // cron panics on some of them
		return nil, fmt.Errorf("schedules are in UTC and take no time zone")
	}
	next, err := cron.ParseStandard(text)
	if err != nil {
		return nil, err
	}
	if every, ok := strings.CutPrefix(text, "@every "); ok {
		// Cron takes whatever is shorter for a second, negative ones too.
		if d, err := time.ParseDuration(every); err != nil || d < time.Second {
			return nil, fmt.Errorf("%q is shorter than a second", every)
		}
	}
	if spec, ok := next.(*cron.SpecSchedule); ok {
		spec.Location = time.UTC
	}
	return &Schedule{expression: expression, next: next}, nil
}

// String is the expression as it was written.
func (s *Schedule) String() string {
	if s == nil {
		return ""
	}
	return s.expression
}

// Next is the first scheduled time after a time, in UTC; zero if none comes
// within five years, as on the 30th of February.
func (s *Schedule) Next(after time.Time) time.Time {
	if s == nil {
		return time.Time{}
	}
	next := s.next.Next(after.Round(0).UTC())
	if next.IsZero() {
		return time.Time{}
	}
	return next
}

// Bounds of what Interval looks at: a week with its end, however often the
// schedule comes on a working day.
const (
	leastRuns = 12
	mostRuns  = 1000
	leastSpan = 8 * 24 * time.Hour
)

// Interval is the longest time between two runs among those that follow the
// beginning of a time's week: at least the next dozen, and of frequent ones those of a
// week. It is 0 if there are no two.
func (s *Schedule) Interval(at time.Time) time.Duration {
	if s == nil {
		return 0
	}
	if every, ok := s.next.(cron.ConstantDelaySchedule); ok {
		return every.Delay
	}
	week := at.Round(0).UTC().Truncate(7 * 24 * time.Hour)
	if r := s.remembered.Load(); r != nil && r.week.Equal(week) {
		return r.longest
	}
	r := &interval{week, s.longest(week.Add(-time.Second))}
	s.remembered.Store(r)
	return r.longest
}

func (s *Schedule) longest(after time.Time) time.Duration {
	first := s.Next(after)
	if first.IsZero() {
		return 0
	}
	longest, previous := time.Duration(0), first
	for n := 1; n < mostRuns && (n <= leastRuns || previous.Sub(first) < leastSpan); n++ {
		next := s.Next(previous)
		if next.IsZero() {
			break
		}
		longest = max(longest, next.Sub(previous))
		previous = next
	}
	return longest
}

// Jitter is how long after a slot a run starts, so that many do not start at
// once: at least 0 and less than percent of the interval, always the same for
// the same seed and slot.
func (s *Schedule) Jitter(percent int, seed string, slot time.Time) time.Duration {
	if s == nil || percent <= 0 {
		return 0
	}
	width := s.Interval(slot) / 100 * time.Duration(min(percent, 100))
	if width <= 0 {
		return 0
	}
	h := fnv.New64a()
	h.Write([]byte(seed))
	h.Write(binary.BigEndian.AppendUint64([]byte{0}, uint64(slot.Unix())))
	return time.Duration(mix(h.Sum64()) % uint64(width))
}

// mix spreads similar hashes over all bits (the finalizer of SplitMix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
