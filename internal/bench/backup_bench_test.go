package bench

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/backup"
	"lifeboat/backup/etcd"
	"lifeboat/internal/etcdtest"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/freeport"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/restore/datadir"
	"lifeboat/storage"
	"lifeboat/storage/local"
)

// databaseBytes is the size of the values in the database that is backed up:
// the design's goals are set for 1.5 GB. LIFEBOAT_BENCH_BYTES changes it.
func databaseBytes(b *testing.B) int64 {
	size := int64(1500 << 20)
	if text := os.Getenv("LIFEBOAT_BENCH_BYTES"); text != "" {
		if _, err := fmt.Sscan(text, &size); err != nil {
			b.Fatalf("LIFEBOAT_BENCH_BYTES: %v", err)
		}
	}
	return size
}

// workDir is where the database and the backups go: not a memory file system.
func workDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp(os.Getenv("LIFEBOAT_BENCH_DIR"), "lifeboat-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// bigMember starts a real etcd from a Kubernetes-shaped database.
func bigMember(b *testing.B, dir string) *cluster.Cluster {
	b.Helper()
	snapshot := filepath.Join(dir, "built.db")
	if _, err := etcdtest.BuildDB(snapshot, etcdtest.BuildOptions{Bytes: databaseBytes(b), Seed: 1, Trailer: true}); err != nil {
		b.Fatal(err)
	}
	defer os.Remove(snapshot)
	f, err := os.Open(snapshot)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	port, err := freeport.Take()
	if err != nil {
		b.Fatal(err)
	}
	peer := fmt.Sprintf("http://127.0.0.1:%d", port)
	data := filepath.Join(dir, "etcd")
	_, err = datadir.Write(b.Context(), f, datadir.Options{DataDir: data, Name: "m0", PeerURLs: []string{peer}, Token: "bench", ID: "bench", Size: info.Size()})
	if err != nil {
		b.Fatal(err)
	}
	return cluster.StartBinary(b, "3.6", cluster.Options{DataDir: data, Name: "m0", PeerURL: peer, Args: []string{"--quota-backend-bytes=8589934592"}})
}

// rawStream is the yardstick: clientv3's snapshot stream into a file, synced.
func rawStream(b *testing.B, client *clientv3.Client, path string) {
	b.Helper()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer os.Remove(path)
	defer f.Close()
	stream, err := client.Snapshot(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer stream.Close()
	if _, err := io.Copy(f, stream); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
}

// pipeline is what people do by hand: save, compress, encrypt, each with its tool.
func pipeline(b *testing.B, endpoint, recipient, dir string) {
	b.Helper()
	file := filepath.Join(dir, "by-hand.db")
	defer os.Remove(file)
	defer os.Remove(file + ".zst.age")
	script := `set -e; "$ETCDCTL" --endpoints "$ENDPOINT" snapshot save "$FILE" >/dev/null 2>&1
zstd -q -1 -c "$FILE" | age -r "$RECIPIENT" -o "$FILE.zst.age"; sync "$FILE.zst.age"`
	cmd := exec.CommandContext(b.Context(), "bash", "-o", "pipefail", "-c", script)
	cmd.Env = append(os.Environ(), "ETCDCTL="+cluster.Binary(b, "3.6", "etcdctl"), "ENDPOINT="+endpoint, "FILE="+file, "RECIPIENT="+recipient)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
}

// lifeboat is one backup runner with its own repository in store.
type lifeboat struct {
	runner *backup.Runner
	config etcd.Config
}

func newLifeboat(b *testing.B, store storage.Store, endpoint, scratch string, recipient *age.X25519Recipient) *lifeboat {
	b.Helper()
	name, err := manifest.NewCluster(rand.Reader, "bench")
	if err != nil {
		b.Fatal(err)
	}
	signer, err := manifest.GenerateSigner(rand.Reader, name)
	if err != nil {
		b.Fatal(err)
	}
	trust := &manifest.Trust{Cluster: name, Verifiers: []manifest.Verifier{{Key: signer.VerifierText(), Chains: []string{"*"}, Kinds: []string{"*"}}}}
	repo, err := repository.Open(store, repository.Options{Trust: trust, Signer: signer})
	if err != nil {
		b.Fatal(err)
	}
	return &lifeboat{
		config: etcd.Config{Name: "main", Endpoints: []string{endpoint}},
		runner: &backup.Runner{
			Stores: []backup.Store{{URL: "bench", Repository: repo}}, MinStores: 1,
			Recipients: []age.Recipient{recipient}, RecipientNames: []string{recipient.String()},
			Writer: manifest.Writer{Node: "bench", Version: "bench"}, Scratch: scratch, StoreStall: time.Minute,
			Now: time.Now, Rand: rand.Reader,
		},
	}
}

func (l *lifeboat) backup(b *testing.B) {
	b.Helper()
	result, err := l.runner.Etcd(b.Context(), l.config, etcd.Limits{MaxStall: 5 * time.Second})
	if err != nil {
		b.Fatal(err)
	}
	if m := result.Manifest; len(m.Unproved)+len(m.Degraded) > 0 {
		b.Fatalf("the backup is not proved: %v %v", m.Unproved, m.Degraded)
	}
}

// BenchmarkBackup takes turns: the raw stream, a proved and committed backup
// to a directory, one to an S3 server on the same machine, and the same by
// hand. The ratios are to the raw stream. It also watches the Go heap.
//
//	make bench, or: LIFEBOAT_BENCH_DIR=/var/tmp go test -run - -bench Backup -benchtime 5x ./internal/bench
func BenchmarkBackup(b *testing.B) {
	dir := workDir(b)
	live := bigMember(b, dir)
	endpoint := live.Members[0].Endpoint
	client := live.Client()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		b.Fatal(err)
	}
	folder, err := local.New(filepath.Join(dir, "store"))
	if err != nil {
		b.Fatal(err)
	}
	scratch := filepath.Join(dir, "scratch")
	toFolder := newLifeboat(b, folder, endpoint, scratch, identity.Recipient())
	toS3 := newLifeboat(b, s3Store(b), endpoint, scratch, identity.Recipient())

	contenders := []*contender{
		{name: "raw", run: func() { rawStream(b, client, filepath.Join(dir, "raw.db")) }},
		{name: "dir", run: func() { toFolder.backup(b) }},
		{name: "s3", run: func() { toS3.backup(b) }},
		{name: "by-hand", run: func() { pipeline(b, endpoint, identity.Recipient().String(), dir) }},
	}
	var peak atomic.Uint64
	stop := watchHeap(&peak)
	for b.Loop() {
		for _, c := range contenders {
			c.measure()
		}
	}
	stop()
	raw := contenders[0].median()
	for _, c := range contenders {
		b.ReportMetric(c.median().Seconds(), c.name+"-s")
		if c != contenders[0] {
			b.ReportMetric(c.median().Seconds()/raw.Seconds(), c.name+"/raw")
		}
	}
	b.ReportMetric(float64(peak.Load())/(1<<20), "peak-heap-MiB")
}

// contender is one way of doing the work.
type contender struct {
	name string
	run  func()
	took []time.Duration
}

func (c *contender) measure() {
	runtime.GC()
	_ = exec.Command("sync").Run() // let nobody pay for another's writes
	start := time.Now()
	c.run()
	c.took = append(c.took, time.Since(start))
}

func (c *contender) median() time.Duration {
	sorted := slices.Sorted(slices.Values(c.took))
	return sorted[len(sorted)/2]
}

// watchHeap notes the largest Go heap until stop is called.
func watchHeap(peak *atomic.Uint64) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		var stats runtime.MemStats
		for {
			runtime.ReadMemStats(&stats)
			if stats.HeapAlloc > peak.Load() {
				peak.Store(stats.HeapAlloc)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return func() { cancel(); <-done }
}
