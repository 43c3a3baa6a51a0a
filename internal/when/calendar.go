package when

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// calendar reads a day and a time of day, either of which may be left to be
// understood where that leaves no doubt.
func calendar(s string, now time.Time, zone *time.Location) (time.Time, error) {
	day, clock, err := cut(s)
	if err != nil {
		return time.Time{}, err
	}
	clock, zone, fixed, err := suffix(clock, zone)
	if err != nil {
		return time.Time{}, err
	}
	date := now.In(zone)
	switch day {
	case "", "today":
	case "yesterday":
		// The noon before: a day that begins late by summer time has one, too.
		date = time.Date(date.Year(), date.Month(), date.Day()-1, 12, 0, 0, 0, time.UTC)
	default:
		if date, err = time.Parse("2006-1-2", day); err != nil {
			return time.Time{}, fmt.Errorf("%q is no day", day)
		}
	}
	if clock == "" {
		return time.Time{}, errors.New("the time of day is missing")
	}
	var at time.Time
	for _, layout := range []string{"15:4", "15:4:5"} { // a fraction of a second is read too
		if at, err = time.Parse(layout, strings.Replace(clock, ",", ".", 1)); err == nil {
			break
		}
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is no time of day from 00:00 to 23:59:59", clock)
	}
	t := time.Date(date.Year(), date.Month(), date.Day(), at.Hour(), at.Minute(), at.Second(), at.Nanosecond(), zone)
	if fixed {
		return t, nil
	}
	if t.Day() != date.Day() || t.Hour() != at.Hour() || t.Minute() != at.Minute() || t.Second() != at.Second() {
		return time.Time{}, fmt.Errorf("no clock in %s showed that: it was set forward over it", zone)
	}
	if first, second, twice := twins(t); twice {
		return time.Time{}, fmt.Errorf("the clock in %s showed that twice: give %s or %s", zone, first.Format(time.RFC3339), second.Format(time.RFC3339))
	}
	return t, nil
}

// cut divides a day from a time of day.
func cut(s string) (day, clock string, err error) {
	first, rest, _ := strings.Cut(s, " ")
	if len(first) > 0 && first[0] >= '0' && first[0] <= '9' {
		if date, clock, ok := strings.Cut(first, "t"); ok { // RFC 3339
			return date, strings.TrimSpace(clock + " " + rest), nil
		}
	}
	switch {
	case first == "today", first == "yesterday", strings.Count(first, "-") == 2 && !strings.Contains(first, ":"):
		return first, strings.TrimPrefix(rest, "at "), nil
	case strings.Contains(first, ":"):
		return "", s, nil
	case first == "at" && rest != "":
		return "", rest, nil
	case first == "tomorrow":
		return "", "", errors.New("it is in the future")
	}
	return "", "", fmt.Errorf("%q is neither a day nor a time of day", first)
}

// suffix takes what says the zone from a time of day. fixed: it said so.
func suffix(clock string, zone *time.Location) (string, *time.Location, bool, error) {
	for _, name := range []string{"z", "utc", "gmt"} {
		if before, ok := strings.CutSuffix(clock, name); ok {
			return strings.TrimSpace(before), time.UTC, true, nil
		}
	}
	i := strings.LastIndexAny(clock, "+-")
	if i < 0 {
		if name := strings.TrimLeft(clock, "0123456789:., "); name != "" {
			return "", nil, false, fmt.Errorf("%q is no zone that is the same everywhere: give UTC or an offset such as +01:00", name)
		}
		return clock, zone, false, nil
	}
	for _, layout := range []string{"-07:00", "-0700", "-07"} {
		if t, err := time.Parse(layout, clock[i:]); err == nil {
			_, seconds := t.Zone()
			return strings.TrimSpace(clock[:i]), time.FixedZone("", seconds), true, nil
		}
	}
	return "", nil, false, fmt.Errorf("%q is no offset such as +01:00", clock[i:])
}

// twins finds the other time at which the clock of t's zone showed the same,
// as it does where it was set back.
func twins(t time.Time) (first, second time.Time, twice bool) {
	start, end := t.ZoneBounds()
	_, offset := t.Zone()
	sameBy := func(other time.Time) time.Time {
		_, o := other.Zone()
		return t.Add(time.Duration(offset-o) * time.Second)
	}
	if !start.IsZero() {
		if u := sameBy(start.Add(-1)); u.Before(start) {
			return u, t, true
		}
	}
	if !end.IsZero() {
		if u := sameBy(end); !u.Before(end) {
			return t, u, true
		}
	}
	return t, t, false
}
