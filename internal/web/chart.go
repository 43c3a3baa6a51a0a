package web

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"lifeboat/internal/status"
)

// strip is the chart of one job: a mark a run, the oldest on the left. Bars
// upwards are durations, bars downwards bytes stored or read, each against the largest
// of the strip. Jobs have strips of their own: beside a verification that reads
// every byte a backup's seconds would not be seen.
type strip struct {
	Name, Target string
	Summary      string // the chart in words
	Longest      string // what the tallest bars stand for
	Largest      string // empty: no run moved any bytes
	Oldest       moment // of the leftmost mark
	Width        int    // of the drawing, in its own units
	Height       int
	Bar          string // how wide a bar is
	Middle       string // the line that the bars start from, as a path
	Marks        []mark
}

// mark is one run.
type mark struct {
	Level level
	Title string
	Up    string // path of the duration's bar
	Down  string // path of the size's bar; empty: nothing was stored
	Cross string // path of the sign that says failed without a colour
}

// A strip's drawing: bars of up to barUp units above the middle line and
// barDown below it.
const (
	stripWidth = 600
	barUp      = 40
	barDown    = 24
	middle     = barUp + 4
	maxMarks   = 60 // a strip; more can't be told apart on a telephone
	minSlots   = 30 // so that few runs don't become walls
)

// strips groups the runs by job, the one that ran last first.
func (b *builder) strips() []strip {
	type key struct {
		kind   status.Kind
		target string
	}
	var order []key
	groups := map[key][]*status.Run{}
	n, _ := shown(len(b.s.Runs), b.l.marks)
	for i := range b.s.Runs[:n] {
		r := &b.s.Runs[i]
		k := key{r.Kind, r.Target}
		if groups[k] == nil {
			if len(order) == b.l.strips {
				continue
			}
			order = append(order, k)
		}
		if len(groups[k]) < maxMarks {
			groups[k] = append(groups[k], r)
		}
	}
	var strips []strip
	for _, k := range order {
		strips = append(strips, b.strip(groups[k]))
	}
	return strips
}

// strip draws the runs of one job, which come newest first.
func (b *builder) strip(runs []*status.Run) strip {
	var longest time.Duration
	var largest int64
	failed := 0
	for _, r := range runs {
		longest, largest = max(longest, r.Duration), max(largest, r.StoredBytes)
		if r.Result == status.Failed {
			failed++
		}
	}
	slot := stripWidth / float64(max(len(runs), minSlots))
	newest := runs[0]
	s := strip{
		Name: b.jobName(newest.Kind), Target: b.name(newest.Target), Longest: span(longest),
		Oldest: b.moment(runs[len(runs)-1].Started), Width: stripWidth, Height: middle + 14,
		Bar: units(slot * .7), Middle: fmt.Sprintf("M0 %dH%d", middle-2, stripWidth),
	}
	if largest > 0 {
		s.Largest, s.Height = size(largest), middle+barDown
	}
	s.Summary = fmt.Sprintf("%s, %s; the last %s: %s after %s", plural(len(runs), "run"), ofThem(failed),
		relative(newest.Started, b.now), strings.ToLower(judgeRun(newest).Word), span(newest.Duration))
	if newest.StoredBytes > 0 {
		done := " stored"
		if newest.Kind == status.Verify {
			done = " read"
		}
		s.Summary += ", " + size(newest.StoredBytes) + done
	}
	for i := len(runs) - 1; i >= 0; i-- {
		r := runs[i]
		x := stripWidth - slot*(float64(i)+.5)
		m := mark{Level: judgeRun(r).Level, Up: fmt.Sprintf("M%s %dv-%s", units(x), middle-4, bar(float64(r.Duration), float64(longest), barUp-2))}
		words := []string{r.Started.UTC().Format("2006-01-02 15:04"), judgeRun(r).Word, span(r.Duration)}
		if r.StoredBytes > 0 {
			m.Down = fmt.Sprintf("M%s %dv%s", units(x), middle, bar(float64(r.StoredBytes), float64(largest), barDown))
			words = append(words, size(r.StoredBytes))
		}
		if m.Level == bad {
			m.Cross = fmt.Sprintf("M%s %dl6 6m0-6l-6 6", units(x-3), middle+4)
		}
		m.Title = strings.Join(words, ", ")
		s.Marks = append(s.Marks, m)
	}
	return s
}

func ofThem(failed int) string {
	if failed == 0 {
		return "none failed"
	}
	return strconv.Itoa(failed) + " failed"
}

// bar is a bar's length: never so short that it can't be seen.
func bar(value, largest, length float64) string {
	drawn := 2.0
	if largest > 0 {
		drawn = max(drawn, value/largest*length)
	}
	return strconv.FormatFloat(drawn, 'f', 0, 64)
}

// units is a length in the drawing.
func units(x float64) string {
	return strconv.FormatFloat(math.Round(x*10)/10, 'f', -1, 64)
}
