package metrics

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// buckets are for stages that take from a tenth of a second to their deadline
// of an hour and more.
var buckets = []float64{0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200}

// maxSeries bounds each counter's series. Labels come from the configuration
// and from closed sets, so that it is not reached; it is for the day that this
// is not so.
const maxSeries = 5000

// tally holds what is counted as it happens.
type tally struct {
	mu     sync.Mutex
	series map[*family]map[string]*point
	stages map[string]*histogram
}

// point is one series: its family's own labels and its value.
type point struct {
	labels []string
	value  float64
}

type histogram struct {
	count   uint64
	sum     float64
	buckets map[float64]uint64 // cumulative
}

func newTally() *tally {
	return &tally{series: map[*family]map[string]*point{}, stages: map[string]*histogram{}}
}

// add counts. Adding 0 makes the series known.
func (t *tally) add(f *family, n float64, labels ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.point(f, labels); p != nil {
		p.value += n
	}
}

func (t *tally) set(f *family, value float64, labels ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.point(f, labels); p != nil {
		p.value = value
	}
}

// point finds or makes a series; nil: there are too many. The caller holds t.mu.
func (t *tally) point(f *family, labels []string) *point {
	key := strings.Join(labels, "\xff") // not UTF-8: in no label
	if p := t.series[f][key]; p != nil {
		return p
	}
	if t.series[f] == nil {
		t.series[f] = map[string]*point{}
	}
	if len(t.series[f]) >= maxSeries {
		return nil
	}
	p := &point{labels: slices.Clone(labels)}
	t.series[f][key] = p
	return p
}

func (t *tally) observe(stage string, d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.stages[stage]
	if h == nil {
		h = &histogram{buckets: map[float64]uint64{}}
		for _, limit := range buckets {
			h.buckets[limit] = 0
		}
		t.stages[stage] = h
	}
	h.count++
	h.sum += d.Seconds()
	for _, limit := range buckets {
		if d.Seconds() <= limit {
			h.buckets[limit]++
		}
	}
}
