package spool

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// What etcd's disk feels: a write-ahead log beside the spool, 4 KiB and an fsync
// each time, without a spool and with one that takes 20 MB/s.
func BenchmarkNeighbour(b *testing.B) {
	for _, rate := range []int{0, 20 << 20} {
		name := "alone"
		if rate > 0 {
			name = "beside a spool"
		}
		b.Run(name, func(b *testing.B) {
			dir, err := os.MkdirTemp(os.Getenv("LIFEBOAT_BENCH_DIR"), "neighbour-")
			if err != nil {
				b.Fatal(err)
			}
			defer os.RemoveAll(dir)
			wal, err := os.Create(filepath.Join(dir, "wal"))
			if err != nil {
				b.Fatal(err)
			}
			defer wal.Close()
			if err := wal.Truncate(64 << 20); err != nil { // as etcd allocates it
				b.Fatal(err)
			}
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				feed(b, filepath.Join(dir, "spool"), rate, stop)
			}()
			block := make([]byte, 4<<10)
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				begun := time.Now()
				if _, err := wal.WriteAt(block, int64(i%(16<<10))*4096); err != nil {
					b.Fatal(err)
				}
				if err := wal.Sync(); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begun))
			}
			close(stop)
			<-stopped
			slices.Sort(took)
			b.ReportMetric(took[len(took)*99/100].Seconds()*1000, "p99-ms")
			b.ReportMetric(took[len(took)-1].Seconds()*1000, "max-ms")
		})
	}
}

// feed appends at a rate, in bytes a second, until stop.
func feed(b *testing.B, dir string, rate int, stop chan struct{}) {
	l := open(b, dir, Options{})
	payload := bytes.Repeat([]byte("x"), 1500)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			l.Reset()
			return
		case <-tick.C:
		}
		for range rate / 100 / len(payload) {
			if _, err := l.Append(payload); err != nil {
				b.Error(err)
				return
			}
		}
		if l.Bytes() > 900<<20 {
			l.Reset()
		}
	}
}
