package record

import (
	"bytes"
	"io"
	"slices"

	"filippo.io/age"

	"lifeboat/internal/manifest"
	"lifeboat/internal/seal"
	"lifeboat/internal/segment"
)

// replay reads every segment of an epoch's chain and fails unless what they
// hold is etcd's history, without a hole from the given revision to the head.
func (w *world) replay(c *fakeChain, from, to int64) {
	w.t.Helper()
	got := map[int64][]segment.Record{}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.list {
		if m.Span == nil {
			continue
		}
		if len(m.Objects) != 1 || m.Objects[0].Size != int64(len(c.objects[m.Objects[0].Name])) {
			w.t.Fatalf("segment %d to %d names %v", m.Span.First, m.Span.Last, m.Objects)
		}
		plain, err := unseal(bytes.NewReader(c.objects[m.Objects[0].Name]), m.Objects[0], w.identity)
		if err != nil {
			w.t.Fatal(err)
		}
		for main, events := range w.read(m.Span, plain) {
			if old, ok := got[main]; ok && !same(old, events) && m.Epoch == c.list[len(c.list)-1].Epoch {
				w.t.Fatalf("revision %d is in two segments and differs", main)
			}
			got[main] = events
		}
	}
	for main := from; main <= to; main++ {
		if !same(got[main], w.etcd.revisions[main-1]) {
			w.t.Fatalf("revision %d: recorded %d events, etcd has %d, or they differ", main, len(got[main]), len(w.etcd.revisions[main-1]))
		}
	}
}

func (w *world) read(span *manifest.Span, plain []byte) map[int64][]segment.Record {
	w.t.Helper()
	r, err := segment.NewReader(bytes.NewReader(plain))
	if err != nil {
		w.t.Fatal(err)
	}
	if r.Header().First != int64(span.First) {
		w.t.Fatalf("segment begins at %d, its manifest says %d", r.Header().First, span.First)
	}
	got, events := map[int64][]segment.Record{}, int64(0)
	for {
		rec, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			w.t.Fatal(err)
		}
		if rec.IsEvent() {
			rec.KV = slices.Clone(rec.KV)
			got[rec.Main] = append(got[rec.Main], rec)
			events++
		}
	}
	if events != span.Events || len(got) != int(span.Last-span.First+1) {
		w.t.Fatalf("segment %d to %d holds %d events of %d revisions", span.First, span.Last, events, len(got))
	}
	return got
}

func same(a, b []segment.Record) bool {
	return slices.EqualFunc(a, b, func(a, b segment.Record) bool {
		return a.Kind == b.Kind && a.Main == b.Main && bytes.Equal(a.KV, b.KV)
	})
}

func unseal(stored io.Reader, o manifest.Object, identity age.Identity) ([]byte, error) {
	r, err := seal.NewReader(stored, seal.Sums{PlainSize: o.PlainSize, StoredSize: o.Size, StoredSHA256: o.SHA256}, identity)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
