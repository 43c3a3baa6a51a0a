// Package when reads times as people write them at three in the morning:
// "10 minutes ago", "yesterday 14:00", "14:05", or a time stamp pasted from a
// log. What can be read in two ways is refused and not guessed: a restore that
// aims at the wrong time looks like one that worked.
package when

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Examples are forms that Parse reads, for help and for errors.
const Examples = `"10 minutes ago", "1h30m ago", "yesterday 14:00", "today 09:30", "14:05", "2026-11-21 14:05:03" or 2026-11-21T14:05:03Z`

// Error says what is wrong with a time and how to write it.
type Error struct {
	Text string
	Why  string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%q is no time: %s; write one like %s", e.Text, e.Why, Examples)
}

// maxText bounds what is looked at, and what an error repeats.
const maxText = 100

// Parse reads a time. now is what "ago" counts back from; zone is the one of
// the person who asks, in which times without a zone are meant and days begin
// (nil: time.Local). All forms that it reads:
//
//	now
//	10 minutes ago, 2h ago, 1h30m ago, 1 hour 30 minutes ago, an hour ago
//	today 09:30, yesterday 14:00:05, yesterday at 14:00
//	14:05, 14:05:03.250                        today
//	2026-11-21 14:05, 2026-11-21T14:05:03
//	2026-11-21T14:05:03Z, 2026-11-21 14:05:03+01:00, and every RFC 3339
//	@1763733903                                seconds since 1970
//
// UTC, Z or an offset may stand behind every time of day. A day is 24 hours and
// a week seven days. A time of day that the zone's clock shows twice or never, as
// where summer time ends or begins, is refused: with an offset it is one time.
// A time in the future is none of Parse's business. The error is an *Error.
func Parse(text string, now time.Time, zone *time.Location) (time.Time, error) {
	if zone == nil {
		zone = time.Local
	}
	if len(text) > maxText {
		return time.Time{}, &Error{text[:maxText] + "...", "it is too long"}
	}
	t, err := parse(strings.ToLower(strings.Join(strings.Fields(text), " ")), now, zone)
	if err == nil && (t.Before(time.Unix(0, 0)) || t.UTC().Year() > 9999) {
		err = errors.New("nothing was ever recorded then")
	}
	if err != nil {
		return time.Time{}, &Error{text, err.Error()}
	}
	return t, nil
}

func parse(s string, now time.Time, zone *time.Location) (time.Time, error) {
	switch {
	case s == "":
		return time.Time{}, errors.New("it is empty")
	case s == "now":
		return now, nil
	case s[0] == '@':
		return unix(s[1:])
	case strings.HasSuffix(s, " ago"):
		d, err := duration(strings.TrimSuffix(s, " ago"))
		return now.Add(-d), err
	case strings.HasPrefix(s, "in "):
		return time.Time{}, errors.New("it is in the future")
	}
	if _, err := duration(strings.TrimPrefix(s, "-")); err == nil {
		return time.Time{}, fmt.Errorf("a duration is not a time: say %q", strings.TrimPrefix(s, "-")+" ago")
	}
	if _, err := strconv.ParseUint(s, 10, 64); err == nil {
		return time.Time{}, fmt.Errorf("a number alone is not one: @%s means seconds since 1970, --revision %s a revision", s, s)
	}
	return calendar(s, now, zone)
}

func unix(s string) (time.Time, error) {
	seconds, err := strconv.ParseInt(s, 10, 64)
	if err != nil || seconds < 0 || seconds > 1<<40 {
		return time.Time{}, errors.New("behind @ stand whole seconds since 1970")
	}
	return time.Unix(seconds, 0), nil
}

// units are the names of what durations are counted in.
var units = map[string]time.Duration{}

func init() {
	for unit, names := range map[time.Duration]string{
		time.Second:        "s sec secs second seconds",
		time.Minute:        "m min mins minute minutes",
		time.Hour:          "h hr hrs hour hours",
		24 * time.Hour:     "d day days",
		7 * 24 * time.Hour: "w week weeks",
	} {
		for _, name := range strings.Fields(names) {
			units[name] = unit
		}
	}
}

// duration reads "10 minutes", "1h30m", "1.5 hours", "an hour and 5 minutes".
func duration(s string) (time.Duration, error) {
	var sum float64
	last := time.Duration(math.MaxInt64)
	s = strings.TrimSpace(s)
	for rest := s; rest != ""; {
		number, after := leading(rest, func(c byte) bool { return c >= '0' && c <= '9' || c == '.' })
		if number == "" {
			for _, article := range []string{"an ", "a "} {
				if strings.HasPrefix(rest, article) {
					number, after = "1", rest[len(article):]
					break
				}
			}
		}
		n, err := strconv.ParseFloat(number, 64)
		if err != nil {
			return 0, fmt.Errorf("how long %q is can't be told", s)
		}
		name, after := leading(strings.TrimPrefix(after, " "), func(c byte) bool { return c >= 'a' && c <= 'z' })
		unit, ok := units[name]
		switch {
		case strings.HasPrefix(name, "month") || strings.HasPrefix(name, "year"):
			return 0, fmt.Errorf("a %s has no fixed length: count days, or give the date", strings.TrimSuffix(name, "s"))
		case !ok:
			return 0, fmt.Errorf("%q is none of seconds, minutes, hours, days and weeks", name)
		case unit >= last:
			return 0, fmt.Errorf("in %q the larger unit must come first", s)
		}
		sum, last = sum+n*float64(unit), unit
		if sum > math.MaxInt64/2 {
			return 0, fmt.Errorf("%q is too long ago", s)
		}
		rest = strings.TrimLeft(after, " ,")
		rest = strings.TrimPrefix(rest, "and ")
	}
	if last == math.MaxInt64 {
		return 0, errors.New("how long ago it was is missing")
	}
	return time.Duration(sum), nil
}

func leading(s string, is func(byte) bool) (head, rest string) {
	i := 0
	for i < len(s) && is(s[i]) {
		i++
	}
	return s[:i], s[i:]
}
