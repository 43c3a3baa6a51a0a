package snapdb_test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/snapdb"
)

// BenchmarkInspect reads a Kubernetes-shaped database of 1.5 GB, warm, and
// reports the largest Go heap that it saw: go test -bench Inspect -benchtime 3x
func BenchmarkInspect(b *testing.B) {
	path, built := bigFile(b)
	for _, bb := range []struct {
		name string
		run  func() error
	}{
		{"finished compaction", func() error {
			_, err := snapdb.Inspect(b.Context(), path, snapdb.Options{})
			return err
		}},
		// As after a restore with a bump, or amid a compaction: a set of all keys.
		{"later compaction", func() error {
			_, err := snapdb.HashKV(b.Context(), path, built.Revision, built.Revision)
			return err
		}},
		{"trailer", func() error { return snapdb.VerifyTrailer(b.Context(), path) }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.SetBytes(built.Size)
			peak := heapPeak()
			for b.Loop() {
				if err := bb.run(); err != nil {
					b.Fatal(err)
				}
			}
			heap := peak()
			b.ReportMetric(float64(heap)/(1<<20), "heap-MiB")
			b.ReportMetric(float64(heap)/float64(built.Live), "heap-B/key")
		})
	}
}

// heapPeak watches the Go heap until the returned function is called, which
// says by how much it grew at most.
func heapPeak() func() uint64 {
	runtime.GC()
	var start, now runtime.MemStats
	runtime.ReadMemStats(&start)
	stop, peak := make(chan struct{}), make(chan uint64)
	go func() {
		top := start.HeapAlloc
		for {
			select {
			case <-stop:
				peak <- top - start.HeapAlloc
				return
			case <-time.After(5 * time.Millisecond):
				runtime.ReadMemStats(&now)
				top = max(top, now.HeapAlloc)
			}
		}
	}()
	return func() uint64 { close(stop); return <-peak }
}

// bigFile builds the database once and reads it, so that it is in memory.
func bigFile(b *testing.B) (string, *etcdtest.BuildResult) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "big.db")
	built, err := etcdtest.BuildDB(path, etcdtest.BuildOptions{Bytes: 950_000_000, Trailer: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("%d bytes, %d keys", built.Size, built.Live)
	if err := snapdb.VerifyTrailer(b.Context(), path); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.Remove(path) })
	return path, built
}
