package materialize_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"

	"filippo.io/age"
	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/manifest"
	"lifeboat/internal/seal"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/materialize"
)

// sealed are segments as a store holds them, with what opens them.
type sealed struct {
	objects [][]byte
	sums    []seal.Sums
	id      *age.X25519Identity
}

func sealAll(tb testing.TB, plain [][]byte) *sealed {
	tb.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		tb.Fatal(err)
	}
	s := &sealed{id: id}
	for _, p := range plain {
		var b bytes.Buffer
		w, err := seal.NewWriter(&b, []age.Recipient{id.Recipient()})
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(p); err != nil {
			tb.Fatal(err)
		}
		if err := w.Close(); err != nil {
			tb.Fatal(err)
		}
		s.objects, s.sums = append(s.objects, b.Bytes()), append(s.sums, w.Sums())
	}
	return s
}

func (s *sealed) open(_ context.Context, i int) (io.ReadCloser, error) {
	return seal.NewReader(bytes.NewReader(s.objects[i]), s.sums[i], s.id)
}

type unsealed struct {
	*seal.Reader
	file *os.File
}

func (u unsealed) Close() error { return errors.Join(u.Reader.Close(), u.file.Close()) }

// kubernetesHistory updates the objects of a database n times: six in ten
// changes go to one object in ten. One change in twenty deletes or creates anew.
func kubernetesHistory(tb testing.TB, path string, n int) *history {
	tb.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	type object struct {
		kv    *mvccpb.KeyValue
		alive bool
	}
	var objects []*object
	byKey := map[string]*object{}
	var last int64
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		tb.Fatal(err)
	}
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("key")).ForEach(func(k, v []byte) error {
			kv := &mvccpb.KeyValue{}
			if err := proto.Unmarshal(v, kv); err != nil {
				return err
			}
			last = int64(binary.BigEndian.Uint64(k))
			if len(k) == 18 {
				byKey[string(kv.Key)].alive = false
				return nil
			}
			if o := byKey[string(kv.Key)]; o != nil {
				o.kv = kv
				return nil
			}
			o := &object{kv, true}
			objects, byKey[string(kv.Key)] = append(objects, o), o
			return nil
		})
	})
	if err := errors.Join(err, db.Close()); err != nil {
		tb.Fatal(err)
	}
	h := &history{}
	for range n {
		last++
		i := rng.IntN(len(objects))
		if rng.IntN(10) < 6 {
			i = rng.IntN(len(objects)/10 + 1)
		}
		o := objects[i]
		kv := &mvccpb.KeyValue{Key: o.kv.Key}
		if o.alive && rng.IntN(40) == 0 {
			o.alive = false
		} else {
			next := &mvccpb.KeyValue{Key: o.kv.Key, Value: bytes.Clone(o.kv.Value), CreateRevision: o.kv.CreateRevision, ModRevision: last, Version: o.kv.Version + 1, Lease: o.kv.Lease}
			if !o.alive {
				next.CreateRevision, next.Version = last, 1
			}
			copy(next.Value[rng.IntN(len(next.Value)):], fmt.Sprint(last))
			o.kv, o.alive, kv = next, true, next
		}
		b, err := proto.Marshal(kv)
		if err != nil {
			tb.Fatal(err)
		}
		h.changes = append(h.changes, change{main: last, delete: !o.alive, kv: b})
	}
	return h
}

// straight appends the changes with nothing but bbolt: the yardstick.
func straight(tb testing.TB, path string, changes []change) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, NoGrowSync: true, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		tb.Fatal(err)
	}
	for len(changes) > 0 {
		err := db.Update(func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte("key"))
			b.FillPercent = 0.9
			for size := 0; len(changes) > 0 && size < 16<<20; changes = changes[1:] {
				c := changes[0]
				k := binary.BigEndian.AppendUint64(nil, uint64(c.main))
				k = append(append(k, '_'), 0, 0, 0, 0, 0, 0, 0, 0)
				if c.delete {
					k = append(k, 't')
				}
				size += len(c.kv)
				if err := b.Put(k, c.kv); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		tb.Fatal(err)
	}
}

func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// watchHeap begins to look at the heap; the function that it returns ends that
// and says by how many bytes it was higher than at the beginning.
func watchHeap() func() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	before, highest := sample[0].Value.Uint64(), uint64(0)
	stop, done := make(chan bool), make(chan bool)
	go func() {
		defer close(done)
		for {
			metrics.Read(sample)
			highest = max(highest, sample[0].Value.Uint64())
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() uint64 {
		close(stop)
		<-done
		return highest - min(highest, before)
	}
}

// BenchmarkAppend tells revisions a second, end to end: unseal, append, prove.
// "straight" is bbolt alone, with the changes plain in memory and no proof.
// LIFEBOAT_BENCH_OBJECTS and LIFEBOAT_BENCH_CHANGES make it larger.
func BenchmarkAppend(b *testing.B) {
	objects, n := 100_000, 300_000
	fmt.Sscan(os.Getenv("LIFEBOAT_BENCH_OBJECTS"), &objects)
	fmt.Sscan(os.Getenv("LIFEBOAT_BENCH_CHANGES"), &n)
	dir := b.TempDir()
	path := filepath.Join(dir, "base")
	res, err := etcdtest.BuildDB(path, etcdtest.BuildOptions{Objects: objects, Seed: 1})
	if err != nil {
		b.Fatal(err)
	}
	h := kubernetesHistory(b, path, n)
	facts, err := snapdb.Inspect(b.Context(), path, snapdb.Options{})
	if err != nil {
		b.Fatal(err)
	}
	first, last := res.Revision+1, h.changes[len(h.changes)-1].main
	var plain [][]byte
	var size int64
	for at := first; at <= last; at += 50_000 {
		plain = append(plain, h.segment(b, at, min(last, at+49_999)))
		size += int64(len(plain[len(plain)-1]))
	}
	all := sealAll(b, plain)
	segments := len(plain)
	for i, o := range all.objects {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("segment", i)), o, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	plain, all.objects = nil, nil // the heap is the work's own then
	b.Logf("base %d MB, %d objects; %d changes, %d MB plain", res.Size>>20, objects, n, size>>20)
	opts := materialize.Options{
		To: last, Segments: segments, Scratch: dir,
		Open: func(_ context.Context, i int) (io.ReadCloser, error) {
			f, err := os.Open(filepath.Join(dir, fmt.Sprint("segment", i)))
			if err != nil {
				return nil, err
			}
			r, err := seal.NewReader(f, all.sums[i], all.id)
			return unsealed{r, f}, err
		},
		Base: manifest.HashKV{Revision: manifest.Revision(facts.Revision), CompactRevision: manifest.Revision(facts.CompactRevision), HashKV: facts.HashKV},
	}
	run := func(b *testing.B, f func(path string)) {
		b.SetBytes(size)
		var spent, processor time.Duration
		var peak uint64
		for range b.N {
			b.StopTimer()
			target := filepath.Join(dir, "target")
			copyFile(b, path, target)
			runtime.GC()
			highest := watchHeap()
			b.StartTimer()
			start, used := time.Now(), processorTime(b)
			f(target)
			spent += time.Since(start)
			processor += processorTime(b) - used
			peak = max(peak, highest())
		}
		b.ReportMetric(float64(processor.Microseconds())/float64(n)/float64(b.N), "cpu-us/revision")
		b.ReportMetric(float64(peak>>20), "heap-MiB")
		b.ReportMetric(float64(n)*float64(b.N)/spent.Seconds(), "revisions/s")
	}
	anchored := opts
	b.Run("straight", func(b *testing.B) { run(b, func(path string) { straight(b, path, h.changes) }) })
	h = nil
	b.Run("all", func(b *testing.B) {
		run(b, func(path string) {
			if _, err := materialize.Append(b.Context(), path, opts); err != nil {
				b.Fatal(err)
			}
			if anchored.Hashes == nil { // not part of the work: once
				at, compact := last-int64(n)/10, last-int64(n)/5
				sum, err := snapdb.HashKV(b.Context(), path, at, compact)
				if err != nil {
					b.Fatal(err)
				}
				anchored.Hashes = []manifest.HashKV{{Revision: manifest.Revision(at), CompactRevision: manifest.Revision(compact), HashKV: sum}}
			}
		})
	})
	b.Run("compacted", func(b *testing.B) {
		run(b, func(path string) {
			res, err := materialize.Append(b.Context(), path, anchored)
			if err != nil {
				b.Fatal(err)
			}
			if res.ProvedAt == nil || res.Skipped == 0 {
				b.Fatalf("%+v", res)
			}
			b.ReportMetric(float64(res.Written), "written")
			b.ReportMetric(float64(res.Removed), "removed")
		})
	})
}
