package watch_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/backup/watch"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/segment"
)

// file is a sink like a spool: it writes records to a file and forgets them.
type file struct {
	w       *bufio.Writer
	scratch []byte
	reached chan int64 // holds the newest complete revision
}

func newFile(b testing.TB) *file {
	f, err := os.Create(filepath.Join(b.TempDir(), "spool"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return &file{w: bufio.NewWriterSize(f, 64<<10), reached: make(chan int64, 1)}
}

func (f *file) Record(r segment.Record) error {
	f.scratch = segment.AppendRecord(f.scratch[:0], r)
	_, err := f.w.Write(f.scratch)
	return err
}

func (f *file) Complete(revision int64, _ time.Time) error {
	select {
	case <-f.reached:
	default:
	}
	f.reached <- revision
	return nil
}

func (f *file) Changed(string) {}

// to drains from one revision until another is complete, and further until
// stop is called.
func (f *file) drain(b testing.TB, s watch.Source, from int64) (wait func(int64), stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- watch.Run(ctx, s, watch.Options{From: from, MaxLag: 1 << 20, Scratch: b.TempDir()}, f) }()
	wait = func(to int64) {
		for {
			select {
			case r := <-f.reached:
				if r >= to {
					return
				}
			case err := <-done:
				b.Fatal(err)
			}
		}
	}
	return wait, sync.OnceFunc(func() { cancel(); <-done })
}

// load makes so many revisions with values of about a kilobyte.
func load(b testing.TB, c *clientv3.Client, n int) {
	const clients = 64
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			value := make([]byte, 1000)
			for j := range value {
				value[j] = byte('a' + random.IntN(26))
			}
			for range n / clients {
				if _, err := c.Put(context.Background(), fmt.Sprintf("/registry/load/%05d", random.IntN(20000)), string(value[random.IntN(500):])); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	running.Wait()
}

// latencies puts at a steady rate until done is closed and gives how long each
// took, from when it was due, in order of length. It is an open loop: a put that
// is slow delays no other, so those that wait behind it count as slow too. All go
// over one client's connection.
func latencies(b testing.TB, c *clientv3.Client, perSecond int, done <-chan struct{}) []time.Duration {
	var mu sync.Mutex
	var all []time.Duration
	var running sync.WaitGroup
	began := time.Now()
	for i := 0; ; i++ {
		due := began.Add(time.Duration(i) * time.Second / time.Duration(perSecond))
		select {
		case <-done:
			running.Wait()
			slices.Sort(all)
			return all
		case <-time.After(time.Until(due)):
		}
		running.Go(func() {
			if _, err := c.Put(context.Background(), fmt.Sprintf("/registry/put/%d", i%1000), "some value"); err != nil {
				b.Error(err)
			}
			took := time.Since(due)
			mu.Lock()
			all = append(all, took)
			mu.Unlock()
		})
	}
}

func after(d time.Duration) <-chan struct{} {
	done := make(chan struct{})
	time.AfterFunc(d, func() { close(done) })
	return done
}

func p99(sorted []time.Duration) time.Duration { return sorted[len(sorted)*99/100] }

const putsPerSecond = 200

// BenchmarkSteady tells how a watch that keeps up changes the put latency.
// Rounds with and without take turns, and the median of the rounds' ratios
// counts, so that other work on the machine troubles both.
func BenchmarkSteady(b *testing.B) {
	c := cluster.StartBinary(b, "3.7", cluster.Options{Sync: true})
	client, s := c.Client(), source(b, c)
	var without, with []time.Duration
	var ratios []float64
	for b.Loop() {
		for range 30 {
			plain := latencies(b, client, putsPerSecond, after(time.Second))
			head, err := s.Head(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			_, stop := newFile(b).drain(b, s, head+1)
			watched := latencies(b, client, putsPerSecond, after(time.Second))
			stop()
			ratios = append(ratios, float64(p99(watched))/float64(p99(plain)))
			without, with = append(without, plain...), append(with, watched...)
		}
	}
	report(b, without, with)
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "p99-ratio-median")
}

func report(b *testing.B, without, with []time.Duration) {
	slices.Sort(without)
	slices.Sort(with)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(p99(without).Microseconds())/1000, "p99-ms-without")
	b.ReportMetric(float64(p99(with).Microseconds())/1000, "p99-ms-with")
	b.ReportMetric(float64(p99(with))/float64(p99(without)), "p99-ratio")
	b.ReportMetric(float64(with[len(with)/2])/float64(without[len(without)/2]), "p50-ratio")
	b.ReportMetric(float64(with[len(with)-1].Microseconds())/1000, "max-ms-with")
	slow, _ := slices.BinarySearch(with, 2*p99(without))
	b.ReportMetric(float64(len(with)-slow)/putsPerSecond/float64(b.N), "s-slow") // puts took more than twice the usual p99
}

// BenchmarkCatchUp tells how the put latency changes when a watch makes up for
// changes that it missed: at the only member, or at a follower of three while
// puts go to the leader. The puts are those of the two minutes that begin with
// the catch-up. The usual is measured on both sides of them, since the machine
// has other work.
func BenchmarkCatchUp(b *testing.B) {
	for _, version := range cluster.Versions {
		for _, missed := range []int{5_000, 20_000, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", version, missed), func(b *testing.B) {
				c := cluster.StartBinary(b, version, cluster.Options{Sync: true})
				client, s := c.Client(), source(b, c)
				load(b, client, missed)
				catchUp(b, missed, client, s, c.Members[0])
			})
		}
	}
	b.Run("follower/100000", func(b *testing.B) {
		c := cluster.StartBinary(b, "3.7", cluster.Options{Sync: true, Members: 3})
		f := followers(b, c)[0]
		client := c.Client(leader(b, c))
		load(b, client, 100_000)
		catchUp(b, 100_000, client, at(b, c, f), c.Members[f])
	})
}

func catchUp(b *testing.B, missed int, client *clientv3.Client, s watch.Source, member *cluster.Member) {
	const usual, window = 15 * time.Second, 2 * time.Minute
	runtime.GC()
	var without, with []time.Duration
	var lasted, used time.Duration
	before := memory(b, member, "VmHWM")
	for b.Loop() {
		without = append(without, latencies(b, client, putsPerSecond, after(usual))...)
		head, err := s.Head(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		began, cpuBegan := time.Now(), cpu(b, member)
		wait, stop := newFile(b).drain(b, s, max(head-int64(missed), 1)+1)
		caughtUp := make(chan struct{})
		go func() {
			defer close(caughtUp)
			wait(head)
			lasted += time.Since(began)
			used += cpu(b, member) - cpuBegan
		}()
		with = append(with, latencies(b, client, putsPerSecond, after(window))...)
		<-caughtUp
		stop()
		without = append(without, latencies(b, client, putsPerSecond, after(usual))...)
	}
	report(b, without, with)
	b.ReportMetric(lasted.Seconds()/float64(b.N), "s/catchup")
	b.ReportMetric(used.Seconds()/float64(b.N), "etcd-cpu-s")
	b.ReportMetric(memory(b, member, "VmHWM")-before, "etcd-MiB-more")
}

// cpu is the processor time that a member has used.
func cpu(b testing.TB, member *cluster.Member) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", member.PID()))
	if err != nil {
		b.Fatal(err)
	}
	// Fields 14 and 15, in hundredths of a second; the second is the name in
	// parentheses.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var user, system int64
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		b.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

// memory is what the kernel says of a member's memory, in MiB.
func memory(b testing.TB, member *cluster.Member, field string) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", member.PID()))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kib float64
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	b.Fatalf("no %s for member %s", field, member.Name)
	return 0
}

// BenchmarkHeap tells the largest heap of this process, the writing clients
// included, while 200,000 changes are drained as they are made, and once more
// from history.
func BenchmarkHeap(b *testing.B) {
	const changes = 200_000
	c := cluster.StartBinary(b, "3.7", cluster.Options{})
	client, s := c.Client(), source(b, c)
	for b.Loop() {
		head, err := s.Head(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		measure := func(name string, work func()) {
			done, largest := make(chan struct{}), make(chan uint64)
			go func() {
				var most uint64
				for {
					select {
					case <-done:
						largest <- most
						return
					case <-time.After(10 * time.Millisecond):
					}
					var stats runtime.MemStats
					runtime.ReadMemStats(&stats)
					most = max(most, stats.HeapInuse)
				}
			}()
			work()
			close(done)
			b.ReportMetric(float64(<-largest)/(1<<20), name)
		}
		for _, burst := range []string{"burst-MiB", "catchup-MiB"} {
			runtime.GC()
			measure(burst, func() {
				wait, stop := newFile(b).drain(b, s, head+1)
				if burst == "burst-MiB" {
					load(b, client, changes)
				}
				now, err := s.Head(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				wait(now)
				stop()
			})
		}
	}
	b.ReportMetric(0, "ns/op")
}
