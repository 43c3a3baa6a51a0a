package web

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// A number and its unit stay on one line.
const nbsp = "\u00a0"

// span is a duration with at most two units, as people say it: 2 h 14 min.
func span(d time.Duration) string {
	if d < 0 {
		d = -d
	}
	two := func(n, m int64, big, small string) string {
		if m == 0 {
			return fmt.Sprintf("%d%s%s", n, nbsp, big)
		}
		return fmt.Sprintf("%d%s%s%s%d%s%s", n, nbsp, big, nbsp, m, nbsp, small)
	}
	switch {
	case d == 0:
		return "0" + nbsp + "s"
	case d < time.Second:
		return strconv.FormatInt(max(1, d.Milliseconds()), 10) + nbsp + "ms"
	case d < 10*time.Second:
		return strconv.FormatFloat(float64(d.Truncate(100*time.Millisecond))/float64(time.Second), 'f', -1, 64) + nbsp + "s"
	case d < time.Minute:
		return fmt.Sprintf("%d%ss", int64(d/time.Second), nbsp)
	case d < 10*time.Minute:
		return two(int64(d/time.Minute), int64(d%time.Minute/time.Second), "min", "s")
	case d < time.Hour:
		return fmt.Sprintf("%d%smin", int64(d/time.Minute), nbsp)
	case d < day:
		return two(int64(d/time.Hour), int64(d%time.Hour/time.Minute), "h", "min")
	case d < 14*day:
		return two(int64(d/day), int64(d%day/time.Hour), "d", "h")
	default:
		return fmt.Sprintf("%d%sd", int64(d/day), nbsp)
	}
}

const day = 24 * time.Hour

// age is a span for what lies some time back or ahead: nobody needs the
// seconds of it.
func age(d time.Duration) string {
	if d < 0 {
		d = -d
	}
	if d < time.Minute {
		return fmt.Sprintf("%d%ss", int64(d/time.Second), nbsp)
	}
	return span(d.Truncate(time.Minute))
}

// every is how often something with this interval happens.
func every(interval time.Duration) string {
	switch interval {
	case time.Hour:
		return "every hour"
	case day:
		return "every day"
	case 7 * day:
		return "every week"
	default:
		return "every " + span(interval)
	}
}

// relative places t as seen from now.
func relative(t, now time.Time) string {
	switch d := now.Sub(t); {
	case d >= time.Second:
		return age(d) + " ago"
	case d > -time.Second:
		return "now"
	default:
		return "in " + age(d)
	}
}

// size is a number of bytes with three digits: 1.46 GiB.
func size(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10) + nbsp + "B"
	}
	value, unit := float64(n), 0
	for value >= 1023.5 && unit < 6 {
		value /= 1024
		unit++
	}
	digits := 0
	switch {
	case value < 9.995:
		digits = 2
	case value < 99.95:
		digits = 1
	}
	return strconv.FormatFloat(value, 'f', digits, 64) + nbsp + string(" KMGTPE"[unit]) + "iB"
}

// count is a number with its thousands apart: 12 345 678.
func count(n int64) string {
	text := strconv.FormatInt(n, 10)
	sign, digits := "", text
	if n < 0 {
		sign, digits = "-", text[1:]
	}
	var b strings.Builder
	for i, c := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteString("\u202f")
		}
		b.WriteRune(c)
	}
	return sign + b.String()
}

// plural is a count with its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// clean makes a text that others wrote fit to be shown: at most limit
// characters, without those that hide or turn around what stands beside them.
func clean(text string, limit int) string {
	var b strings.Builder
	n := 0
	for _, c := range text {
		if n == limit {
			return strings.TrimRight(b.String(), " ") + "…"
		}
		switch {
		case unicode.IsPrint(c):
			b.WriteRune(c)
		case unicode.IsSpace(c):
			b.WriteByte(' ')
		default:
			b.WriteRune(unicode.ReplacementChar)
		}
		n++
	}
	return b.String()
}
