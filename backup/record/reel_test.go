package record

import (
	"crypto/rand"
	"fmt"
	"runtime"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
)

// heapWatch is a writer that looks at the heap as bytes pass.
type heapWatch struct{ next, bytes, most int64 }

func (h *heapWatch) Write(p []byte) (int, error) {
	if h.bytes += int64(len(p)); h.bytes >= h.next {
		h.next = h.bytes + 1<<20
		h.most = max(h.most, heap())
	}
	return len(p), nil
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A range of keys that is deleted at once is one revision of as many events.
func TestARevisionOfManyEventsIsNotHeld(t *testing.T) {
	const events = 200_000
	tape, err := openTape(t.TempDir(), 1<<30)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(err)
	defer func() { must(tape.close()) }()
	signer, err := manifest.GenerateSigner(rand.Reader, "cp1")
	must(err)
	marker := segment.NewMarker(signer.MarkKey())
	event := func(i int) segment.Record {
		return put(10, fmt.Sprintf("/registry/leases/somewhere/of-a-longer-name-%d", i), "")
	}
	must(tape.begin(section{id: 1, clusterID: 7, memberID: 1}, 9))
	mark := marker.Begin(10, events)
	for watch := range 2 { // the first is lost in the midst of it
		for i := range events / (2 - watch) {
			must(tape.record(event(i)))
			if i%50_000 == 0 {
				must(tape.record(segment.Record{Kind: segment.KindLease, Lease: segment.Lease{ID: int64(i + 1), TTL: 60, Revision: 10}}))
			}
			if watch == 1 {
				mark.Add(segment.Event{KV: event(i).KV})
			}
		}
		if watch == 0 {
			must(tape.begin(section{id: 1, clusterID: 7, memberID: 1}, 9))
		}
	}
	must(tape.whole(10))
	must(tape.record(put(11, "key", "value")))
	must(tape.whole(11))
	s, _ := tape.now()
	before, out := heap(), &heapWatch{}
	done, err := (&cut{section: s, from: s.start, first: 10}).write(out, tape, marker, time.Now())
	must(err)
	if done.span.Events != events+1 || done.span.Last != 11 || out.bytes < events*40 {
		t.Errorf("%d events up to revision %d in %d bytes", done.span.Events, done.span.Last, out.bytes)
	}
	if grown := out.most - before; grown > 12<<20 {
		t.Errorf("%d MiB are held", grown>>20)
	}
	if got, err := tape.mark(s, 10, marker); err != nil || got != mark.String() {
		t.Errorf("mark %s, %v, want %s", got, err, mark)
	}
}
