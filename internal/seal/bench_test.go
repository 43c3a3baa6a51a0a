package seal

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"filippo.io/age"
)

func BenchmarkSeal(b *testing.B) {
	id := identity(b)
	data := kubernetes(64 << 20)
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				w, err := NewWriter(io.Discard, []age.Recipient{id.Recipient()}, Workers(workers))
				if err != nil {
					b.Fatal(err)
				}
				for p := data; len(p) > 0; p = p[min(len(p), bufferSize):] {
					w.Write(p[:min(len(p), bufferSize)])
				}
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(w.Sums().PlainSize)/float64(w.Sums().StoredSize), "ratio")
			}
		})
	}
}

func BenchmarkUnseal(b *testing.B) {
	id := identity(b)
	data := kubernetes(64 << 20)
	stored, sums := sealed(b, data, id.Recipient())
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		r, err := NewReader(bytes.NewReader(stored), sums, id)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
	}
}
