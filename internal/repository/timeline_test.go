package repository

import (
	"strings"
	"testing"
)

func TestATimeLineBreaksWhereASegmentIsMissing(t *testing.T) {
	for name, indexed := range map[string]bool{"that an index knows": true, "that nothing lists": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			w.full(r, at(100))
			w.segment(r, 101, 110)
			lost := w.segment(r, 111, 120)
			w.segment(r, 121, 130)
			w.full(r, at(130))
			if !indexed {
				w.segment(r, 131, 140)
				lost = w.segment(r, 141, 150)
				w.segment(r, 151, 160)
			}
			remove(t, w.store, w.stored(r, etcdMain, lost.Sequence))
			line, err := w.open().Timeline(t.Context(), etcdMain)
			if err != nil || len(line.Problems) == 0 {
				t.Fatalf("%+v, %v", line, err)
			}
			last := line.Spans[0].Last.Revision
			if last != lost.Manifest.Span.First-1 || indexed && (len(line.Gaps) != 1 || !strings.Contains(line.Gaps[0].Why, "missing")) {
				t.Errorf("the first span ends at %d, the gaps are %+v", last, line.Gaps)
			}
		})
	}
}
