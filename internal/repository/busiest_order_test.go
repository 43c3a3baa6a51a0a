package repository

import (
	"strings"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	broken "lifeboat/storage/fault"
)

func TestTheBusiestMinutesAreFoundThoughNotEverySegmentIsRead(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.full(r, at(100))
	a := r.Appender(etcdMain)
	rev, last := manifest.Revision(100), time.Time{}
	const segments = mostForBursts + 50
	bursts := map[int]int64{1: 700, segments / 2: 900, segments - 1: 800} // changes of keys, in few revisions
	for i := range segments {
		revisions, events, pause := manifest.Revision(5), int64(5), 9*time.Second
		if changes, is := bursts[i]; is {
			revisions, events, pause = 4, changes, 0
		}
		w.clock.forward(pause)
		last = w.append(a, rev+1, rev+revisions, func(m *manifest.Manifest) { m.Span.Events = events }).Manifest.Span.LastTime
		rev += revisions
	}
	w.full(r, at(rev)) // its index lists them
	f := broken.New(w.store)
	r = on(w.open(), f)
	line, err := r.Timeline(t.Context(), etcdMain)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Busiest(t.Context(), line, 3)
	if err != nil || len(got) != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	for i, want := range []int64{900, 800, 700} {
		if b := got[i]; b.Changes < want || b.Changes >= want+100 || b.Epoch != 1 {
			t.Errorf("burst %d: %+v, want %d changes and a few", i, b, want)
		}
	}
	if b := got[1]; !b.Minute.Equal(last.Truncate(time.Minute)) || b.Last != rev {
		t.Errorf("%+v, want the minute of %s and revisions up to %d", b, last, rev)
	}
	read := map[string]bool{}
	for _, call := range f.Trace() {
		if call.Op == broken.Open && strings.Contains(call.Name, "/manifests/") {
			read[call.Name] = true
		}
	}
	if len(read) < mostForBursts || len(read) > mostForBursts+10 {
		t.Errorf("%d manifests were read, of %d segments", len(read), segments)
	}
}
