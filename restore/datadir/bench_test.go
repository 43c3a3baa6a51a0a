package datadir

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"lifeboat/internal/etcdtest"
)

// BenchmarkRestore compares Write with etcdutl's restore on the same 1.5 GB
// snapshot, turn by turn, each on a quiet disk. The metric "ratio" is ours
// divided by etcdutl's wall time; the goal is 0.8 or less.
//
//	LIFEBOAT_BENCH_DIR=/var/tmp go test -run - -bench Restore -benchtime 3x ./restore/datadir
func BenchmarkRestore(b *testing.B) {
	path := bigSnapshot(b)
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	dir := filepath.Dir(path)
	var ours, theirs time.Duration
	i := 0
	for b.Loop() {
		i++
		target := filepath.Join(dir, fmt.Sprintf("etcdutl-%d", i))
		unix.Sync()
		start := time.Now()
		err := snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
			SnapshotPath: path, Name: "m", OutputDataDir: target, PeerURLs: []string{"http://127.0.0.1:2380"},
			InitialCluster: "m=http://127.0.0.1:2380", InitialClusterToken: "token",
			RevisionBump: 1_000_000_000, MarkCompacted: true,
		})
		if err != nil {
			b.Fatal(err)
		}
		theirs += time.Since(start)
		b.Logf("etcdutl %v", time.Since(start))
		os.RemoveAll(target)

		target = filepath.Join(dir, fmt.Sprintf("ours-%d", i))
		unix.Sync()
		start = time.Now()
		mark := start
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		_, err = Write(context.Background(), f, Options{
			DataDir: target, Name: "m", PeerURLs: []string{"http://127.0.0.1:2380"}, Token: "token",
			Bump: 1_000_000_000, ID: "bench", Size: info.Size(),
			at: func(p string) {
				if p != "receiving" {
					b.Logf("  %-10s +%v", p, time.Since(mark))
					mark = time.Now()
				}
			},
		})
		f.Close()
		if err != nil {
			b.Fatal(err)
		}
		ours += time.Since(start)
		b.Logf("ours    %v", time.Since(start))
		os.RemoveAll(target)
	}
	b.ReportMetric(ours.Seconds()/float64(i), "ours-s/op")
	b.ReportMetric(theirs.Seconds()/float64(i), "etcdutl-s/op")
	b.ReportMetric(ours.Seconds()/theirs.Seconds(), "ratio")
}

// bigSnapshot returns the path of a 1.5 GB snapshot. It is built in the folder
// that LIFEBOAT_BENCH_DIR names and kept there, else for this run only.
func bigSnapshot(b *testing.B) string {
	b.Helper()
	dir := os.Getenv("LIFEBOAT_BENCH_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	path := filepath.Join(dir, "snapshot-1500MB.db")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	_, err := etcdtest.BuildDB(path, etcdtest.BuildOptions{Bytes: 1_300_000_000, ValueBytes: 3000, Trailer: true, Storage: "3.7.0"})
	if err != nil {
		b.Fatal(err)
	}
	return path
}
