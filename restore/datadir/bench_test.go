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
		settle(b)
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
		settle(b)
		start = time.Now()
		var mark time.Time = start
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
