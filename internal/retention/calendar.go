package retention

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// calendar keeps the newest backup of each of the newest count periods.
type calendar struct {
	unit   string
	count  int
	period func(time.Time) string // names the period that a time lies in; a later period sorts behind
}

// calendars are those of a policy that keep anything, shortest periods first.
func (p Policy) calendars() []calendar {
	all := []calendar{
		{"hour", p.Hourly, func(t time.Time) string { return t.UTC().Format("2006-01-02T15") }},
		{"day", p.Daily, func(t time.Time) string { return t.UTC().Format("2006-01-02") }},
		{"week", p.Weekly, func(t time.Time) string {
			year, week := t.UTC().ISOWeek() // of the year that the week's Thursday lies in
			return fmt.Sprintf("%04d-W%02d", year, week)
		}},
		{"month", p.Monthly, func(t time.Time) string { return t.UTC().Format("2006-01") }},
	}
	return slices.DeleteFunc(all, func(c calendar) bool { return c.count <= 0 })
}

// newest picks from a list that is newest first. As it is, the first that is
// met of a period is the period's newest.
func (c calendar) newest(list []*judgement) []*judgement {
	var kept []*judgement
	last := ""
	for _, j := range list {
		if len(kept) == c.count {
			break
		}
		if period := c.period(j.Created); period != last {
			kept, last = append(kept, j), period
		}
	}
	return kept
}

// sayWhyNot gives reasons to the items that no rule keeps. The list is all that
// were judged, newest first.
func (p Policy) sayWhyNot(list []*judgement) {
	calendars := p.calendars()
	oldest := make([]time.Time, len(calendars)) // what is kept by each
	for i, c := range calendars {
		if kept := c.newest(list); len(kept) > 0 {
			oldest[i] = kept[len(kept)-1].Created
		}
	}
	for _, j := range list {
		if j.Keep {
			continue
		}
		var newer, older []string
		for i, c := range calendars {
			if !j.Created.Before(oldest[i]) || c.period(j.Created) == c.period(oldest[i]) {
				newer = append(newer, c.unit)
			} else {
				older = append(older, fmt.Sprintf("%d %ss", c.count, c.unit))
			}
		}
		if len(newer) > 0 {
			j.Reasons = append(j.Reasons, "a newer one stays for its "+and(newer))
		}
		if len(older) > 0 {
			j.Reasons = append(j.Reasons, "older than the newest "+and(older)+" with backups")
		}
		if len(calendars) == 0 {
			j.Reasons = append(j.Reasons, fmt.Sprintf("not of the newest %d", max(1, p.Minimum)))
		}
	}
}

// and joins words as people do: a, b and c.
func and(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}

// spaced moves a class's space to its front.
func spaced(name string) string {
	if name == "" {
		return ""
	}
	return " " + strings.TrimSpace(name)
}

// short is a duration without the zeros behind: 72h.
func short(d time.Duration) string {
	text := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if n := len(text) - len(zero); n > 0 && text[n:] == zero {
			text = text[:n+1]
		}
	}
	return text
}
