package datadir

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/age"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/seal"
	"lifeboat/internal/snapdb"
)

// BenchmarkRestore compares Write with etcdutl's restore on the same 1.5 GB
// snapshot, turn by turn, each on a quiet disk: once from the plain file, as
// etcdutl does, and once as a real restore does, from the sealed object and
// with the database inspected before it counts. The metrics "ratio" and
// "sealed-ratio" are our wall time divided by etcdutl's; the goal is 0.8 or
// less.
//
//	LIFEBOAT_BENCH_DIR=/var/tmp/bench go test -run - -bench Restore -benchtime 3x ./restore/datadir
func BenchmarkRestore(b *testing.B) {
	path := bigSnapshot(b)
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	sealed, sums, id := sealedSnapshot(b, path)
	dir := filepath.Dir(path)
	var plain, full, theirs time.Duration
	n := 0
	for b.Loop() {
		n++
		theirs += measure(b, dir, "etcdutl", func(target string) error {
			return snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
				SnapshotPath: path, Name: "m", OutputDataDir: target, PeerURLs: []string{"http://127.0.0.1:2380"},
				InitialCluster: "m=http://127.0.0.1:2380", InitialClusterToken: "token",
				RevisionBump: 1_000_000_000, MarkCompacted: true,
			})
		})
		opts := Options{Name: "m", PeerURLs: []string{"http://127.0.0.1:2380"}, Token: "token",
			Bump: 1_000_000_000, ID: "bench", Size: info.Size()}
		plain += measure(b, dir, "plain", func(target string) error {
			opts.DataDir, opts.at = target, stopwatch(b)
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = Write(b.Context(), f, opts)
			return err
		})
		full += measure(b, dir, "sealed", func(target string) error {
			opts.DataDir, opts.at = target, stopwatch(b)
			opts.Check = func(ctx context.Context, path string) error {
				_, err := snapdb.Inspect(ctx, path, snapdb.Options{})
				return err
			}
			f, err := os.Open(sealed)
			if err != nil {
				return err
			}
			defer f.Close()
			r, err := seal.NewReader(f, sums, id)
			if err != nil {
				return err
			}
			_, err = Write(b.Context(), r, opts)
			opts.Check = nil
			return err
		})
	}
	b.ReportMetric(plain.Seconds()/float64(n), "plain-s/op")
	b.ReportMetric(full.Seconds()/float64(n), "sealed-s/op")
	b.ReportMetric(theirs.Seconds()/float64(n), "etcdutl-s/op")
	b.ReportMetric(plain.Seconds()/theirs.Seconds(), "ratio")
	b.ReportMetric(full.Seconds()/theirs.Seconds(), "sealed-ratio")
}

func measure(b *testing.B, dir, name string, restore func(target string) error) time.Duration {
	b.Helper()
	target := filepath.Join(dir, "restored-"+name)
	defer os.RemoveAll(target)
	unix.Sync()
	start := time.Now()
	if err := restore(target); err != nil {
		b.Fatal(err)
	}
	took := time.Since(start)
	b.Logf("%s %v", name, took)
	return took
}

// stopwatch logs how long each part of a Write took.
func stopwatch(b *testing.B) func(string) {
	mark := time.Now()
	return func(point string) {
		if point == "received" || point == "verified" || point == "finished" || point == "aside" {
			b.Logf("  %-8s +%v", point, time.Since(mark))
			mark = time.Now()
		}
	}
}

func sealedSnapshot(b *testing.B, path string) (string, seal.Sums, *age.X25519Identity) {
	b.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		b.Fatal(err)
	}
	in, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer in.Close()
	sealed := filepath.Join(b.TempDir(), "snapshot.db.zst.age")
	out, err := os.Create(sealed)
	if err != nil {
		b.Fatal(err)
	}
	defer out.Close()
	w, err := seal.NewWriter(out, []age.Recipient{id.Recipient()})
	if err == nil {
		_, err = io.Copy(w, in)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		b.Fatal(err)
	}
	return sealed, w.Sums(), id
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
