package segment

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// An event of 64 bytes, and one of a Kubernetes object's size.
var sizes = map[string]int{"small": 64, "object": 1500}

func BenchmarkWriter(b *testing.B) {
	for name, size := range sizes {
		b.Run(name, func(b *testing.B) {
			r := put(b, 1<<40, "/registry/leases/kube-node-lease/node-1", strings.Repeat("x", size))
			w, err := NewWriter(io.Discard, Header{First: 1 << 40})
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(r.KV)))
			b.ReportAllocs()
			for b.Loop() {
				if err := w.Write(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkReader(b *testing.B) {
	for name, size := range sizes {
		b.Run(name, func(b *testing.B) {
			const events = 10000
			r := put(b, 1<<40, "/registry/leases/kube-node-lease/node-1", strings.Repeat("x", size))
			records := make([]Record, events)
			for i := range records {
				records[i] = r
			}
			segment := write(b, Header{First: 1 << 40}, records, 1<<40)
			b.SetBytes(int64(len(segment)))
			b.ReportAllocs()
			for b.Loop() {
				r, err := NewReader(bytes.NewReader(segment))
				for err == nil {
					_, err = r.Next()
				}
				if err != io.EOF {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*events/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func BenchmarkMark(b *testing.B) {
	m := NewMarker([32]byte{1})
	events := []Event{{KV: put(b, 1, "/registry/leases/kube-node-lease/node-1", strings.Repeat("x", 1500)).KV}}
	for b.Loop() {
		m.Of(1, events)
	}
}
