package s3

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"testing"

	"lifeboat/internal/s3test"
	"lifeboat/storage"
)

// A sealed snapshot of a large cluster, there and back. The server shares the
// machine, so this bounds the speed from below.
func BenchmarkTransfer(b *testing.B) {
	const size = 400 << 20
	content := randomBytes(size)
	for _, tls := range []bool{true, false} {
		server := s3test.Start(b, s3test.Options{TLS: tls})
		s := newStore(b, server, nil)
		b.Run(fmt.Sprintf("put/tls=%v", tls), func(b *testing.B) {
			b.SetBytes(size)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for b.Loop() {
				if err := s.Put(b.Context(), "large", onlyReader{bytes.NewReader(content)}, storage.PutOptions{}); err != nil {
					b.Fatal(err)
				}
			}
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(b.N)/(1<<20), "MiB-allocated/op")
		})
		b.Run(fmt.Sprintf("get/tls=%v", tls), func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				r, _, err := s.Open(b.Context(), "large", storage.Range{})
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, r); err != nil || n != size {
					b.Fatal(n, err)
				}
				_ = r.Close()
			}
		})
	}
}
