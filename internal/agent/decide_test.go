package agent

import (
	"math"
	"testing"
	"time"

	"lifeboat/internal/schedule"
)

// TestADecision goes through what a decision rests on, one thing at a time.
func TestADecision(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	const h, m = time.Hour, time.Minute
	every6 := func(newest time.Duration) slot { // a full so long before the slot at 12:00
		return slot{at: now, gap: newest, interval: 6 * h}
	}
	base := question{now: now, mono: 10 * h, seen: 4 * h, slot: every6(6 * h)}
	with := func(change func(*question)) question { q := base; change(&q); return q }
	for name, c := range map[string]struct {
		q    question
		run  bool
		due  bool
		wait time.Duration
		why  string
	}{
		"at its time it runs":          {base, true, true, 0, "due"},
		"a minute before it waits":     {with(func(q *question) { q.now = now.Add(-m) }), false, false, m, "the next slot"},
		"long overdue it runs at once": {with(func(q *question) { q.now = now.Add(100 * h) }), true, true, 0, "due"},
		"without any backup it runs at once": {with(func(q *question) { q.slot = slot{interval: 6 * h} }),
			true, true, 0, "due: there is none yet"},
		"what is another's is left alone":    {with(func(q *question) { q.idle = "cp1 prunes" }), false, false, forever, "cp1 prunes"},
		"a date that never comes never does": {with(func(q *question) { q.slot = slot{never: true} }), false, false, forever, "its schedule never comes"},

		"a clock set back by days waits for the watchdog": {with(func(q *question) { q.now = now.Add(-72 * h); q.seen = 9 * h }),
			false, false, 5*h + 5*m, "the next slot"},
		"and no longer": {with(func(q *question) { q.now = now.Add(-72 * h); q.mono = 10*h + 5*m }),
			true, true, 0, "due by the watchdog: the newest is older than the wall clock says"},
		"a backup from the next millennium waits for the watchdog": {with(func(q *question) {
			q.slot = slot{at: now.AddDate(1000, 0, 0), gap: 6 * h, interval: 6 * h}
		}), false, false, 5 * m, "the next slot"},

		"after a failure it waits":            {with(func(q *question) { q.failures, q.failed = 1, 10*h }), false, true, 30 * time.Second, "retry after 1 failures"},
		"longer after more of them":           {with(func(q *question) { q.failures, q.failed = 4, 10*h }), false, true, 4 * m, "retry after 4 failures"},
		"never longer than an eighth":         {with(func(q *question) { q.failures, q.failed = 1000, 10*h }), false, true, 45 * m, "retry after 1000 failures"},
		"when the wait is over it runs again": {with(func(q *question) { q.failures, q.failed = 2, 9*h }), true, true, 0, "due"},
		"never later than the watchdog": {with(func(q *question) {
			q.slot = slot{at: now, gap: m, interval: m}
			q.failures, q.failed = 50, 10*h
		}), false, true, 90 * time.Second, "retry after 50 failures"},

		"the third in turn waits two graces": {with(func(q *question) { q.rank, q.first = 2, "cp1" }), false, true, 10 * m, "the turn of cp1"},
		"from the slot's time on":            {with(func(q *question) { q.rank, q.now = 2, now.Add(9*m+30*time.Second); q.due, q.noticed = true, 9*h }), false, true, 30 * time.Second, "the turn of "},
		"then it is its turn":                {with(func(q *question) { q.rank, q.now = 2, now.Add(10*m); q.due, q.noticed = true, 9*h }), true, true, 0, "due"},
		"where all wake up late they don't start at once": {with(func(q *question) { q.rank, q.now = 2, now.Add(3*h) }),
			false, true, m, "the turn of "},
		"without any backup the second waits too": {with(func(q *question) {
			q.slot, q.rank, q.due, q.noticed = slot{interval: 6 * h}, 1, true, 10*h-m
		}), false, true, 4 * m, "the turn of "},
	} {
		t.Run(name, func(t *testing.T) {
			got := decide(c.q)
			if got.run != c.run || got.due != c.due || got.wait != c.wait || got.why != c.why {
				t.Errorf("run %v, due %v, wait %s, %q; want run %v, due %v, wait %s, %q",
					got.run, got.due, got.wait, got.why, c.run, c.due, c.wait, c.why)
			}
			if !got.run && got.wait != forever && !got.at.Equal(c.q.now.Add(got.wait)) {
				t.Errorf("served at %s by the wall clock, in %s from %s", got.at, got.wait, c.q.now)
			}
		})
	}
}

func TestTheGraceHasBounds(t *testing.T) {
	for interval, want := range map[time.Duration]time.Duration{
		time.Minute: 30 * time.Second, time.Hour: 3 * time.Minute, 6 * time.Hour: 5 * time.Minute, 24 * time.Hour: 5 * time.Minute,
	} {
		if got := grace(interval); got != want {
			t.Errorf("%s: %s, want %s", interval, got, want)
		}
	}
}

func TestTheSlotAfterABackup(t *testing.T) {
	s, err := schedule.Parse("0 */6 * * *")
	if err != nil {
		t.Fatal(err)
	}
	newest := time.Date(2026, 3, 1, 6, 0, 3, 0, time.UTC)
	got := slotAfter(s, 0, "x", newest, newest)
	if want := newest.Truncate(time.Hour).Add(6 * time.Hour); !got.at.Equal(want) || got.gap != want.Sub(newest) || got.interval != 6*time.Hour {
		t.Errorf("%+v", got)
	}
	if exact := slotAfter(s, 0, "x", newest.Truncate(time.Hour), newest); !exact.at.Equal(got.at) {
		t.Errorf("a backup at the slot's very second does not fill it: %+v", exact)
	}
	if j := slotAfter(s, 10, "x", newest, newest); j.at.Before(got.at) || j.at.Sub(got.at) >= 36*time.Minute || j.gap-got.gap != j.at.Sub(got.at) {
		t.Errorf("with jitter %+v", j)
	}
	if none := slotAfter(s, 10, "x", time.Time{}, newest); !none.at.IsZero() || none.never {
		t.Errorf("without a backup %+v", none)
	}
	never, err := schedule.Parse("0 0 30 2 *")
	if err != nil {
		t.Fatal(err)
	}
	if !slotAfter(never, 0, "x", time.Time{}, newest).never || !slotAfter(nil, 0, "x", newest, newest).never {
		t.Error("what never comes came")
	}
}

func TestAddingDoesNotOverflow(t *testing.T) {
	if plus(math.MaxInt64, 1) != math.MaxInt64 || plus(math.MinInt64, -1) != math.MinInt64 || plus(1, 2) != 3 {
		t.Error("it does")
	}
}
