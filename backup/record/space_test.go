package record

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const kib = 1 << 10

func small(o *Options) { o.SpoolBytes, o.MaxBytes = 4<<20, 256*kib }

func TestADeadStoresPartIsGivenUpWhenTheSpoolIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		value := strings.Repeat("v", 4*kib)
		w.etcd.puts(t, 10, "before")
		for _, c := range w.chains {
			c.addFull(w.etcd, 0, "")
		}
		r, stop := w.start(small)
		time.Sleep(10 * time.Second)
		w.chains[1].fail(errors.New("no route"))
		for range 60 {
			w.etcd.puts(t, 50, value)
			time.Sleep(time.Second)
			if held := r.Status().SpoolBytes; held > 4<<20 {
				t.Fatalf("the spool holds %d bytes", held)
			}
		}
		time.Sleep(5 * time.Second)
		w.replay(w.chains[0], 12, w.etcd.head()) // the living one lacks nothing
		s := r.Status()
		if _, ok := w.asked("given up"); !ok || len(s.Gaps) == 0 || s.Gaps[0].Store != "store 1" || s.FullWanted == "" {
			t.Errorf("asked for %v, gaps %v, status %+v", w.all(), s.Gaps, s)
		}
		if !s.Active || time.Since(s.Stores[0].RecoveryPoint) > 5*time.Second {
			t.Errorf("the living store is behind: %+v", s)
		}
		w.chains[1].fail(nil)
		time.Sleep(35 * time.Second)
		w.chains[1].addFull(w.etcd, 0, "")
		from := w.etcd.head() + 1
		w.etcd.puts(t, 20, "afterwards")
		time.Sleep(10 * time.Second)
		w.replay(w.chains[1], from, w.etcd.head())
		if s := r.Status(); s.Stores[1].Waiting != "" || s.FullWanted != "" || len(s.Gaps) == 0 || s.Gaps[0].To == 0 {
			t.Errorf("after the full: %+v", s)
		}
		stop()
	})
}

func TestWithNoStoreAliveTheFullSpoolIsKeptAndEtcdWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		value := strings.Repeat("v", 4*kib)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		r, stop := w.start(small)
		time.Sleep(10 * time.Second)
		w.chains[0].fail(errors.New("no route"))
		for range 60 {
			w.etcd.puts(t, 50, value)
			time.Sleep(time.Second)
		}
		s := r.Status()
		if _, ok := w.asked("spool is full"); !ok || !strings.Contains(s.Doing, "full") || s.SpoolBytes < 3<<20 || s.SpoolBytes > 4<<20 {
			t.Errorf("asked for %v, status %+v", w.all(), s)
		}
		w.chains[0].fail(nil)
		time.Sleep(3 * time.Minute)
		w.replay(w.chains[0], 12, w.etcd.head()) // etcd had not compacted: nothing is lost
		stop()
	})
}

func TestABurstBeyondTheSpoolForgoesRollUpsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		r, stop := w.start(small)
		time.Sleep(10 * time.Second)
		for range 20 {
			w.etcd.puts(t, 400, strings.Repeat("v", 4*kib)) // 1.6 MiB, many times what the spool holds
			time.Sleep(3 * time.Second)
		}
		time.Sleep(5 * time.Second)
		w.replay(w.chains[0], 12, w.etcd.head())
		if len(w.all()) > 0 || len(r.Status().Gaps) > 0 {
			t.Errorf("asked for %v, gaps %v", w.all(), r.Status().Gaps)
		}
		stop()
	})
}

func TestAFullDiskStopsTheWatchAndNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		r, stop := w.start()
		time.Sleep(10 * time.Second)
		w.etcd.puts(t, 10, "recorded")
		time.Sleep(5 * time.Second)
		full := &os.PathError{Op: "write", Path: filepath.Join(w.dir, "x"), Err: syscall.ENOSPC}
		err := r.withRoom(func() error { return full })
		if !errors.Is(err, errNoRoom) || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a full disk gives %v", err)
		}
		r.stopWatch(err) // as the sink's refusal would end it
		time.Sleep(100 * time.Millisecond)
		if s := r.Status(); !strings.Contains(s.Doing, "no space left") {
			t.Errorf("status %+v", s)
		}
		w.etcd.puts(t, 10, "meanwhile")
		time.Sleep(30 * time.Second)
		w.replay(w.chains[0], 12, w.etcd.head())
		stop()
	})
}

// What the heap holds in a burst is what a committer works on, not what came:
// that is in the spool.
func TestABurstStaysSmallInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		for _, c := range w.chains {
			c.addFull(w.etcd, 0, "")
		}
		r, stop := w.start()
		time.Sleep(10 * time.Second)
		value := strings.Repeat("v", 1000)
		heap := func() uint64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		w.etcd.puts(t, 200_000, value) // takes memory in this test's etcd, and none when given
		before, most := heap(), uint64(0)
		var running sync.WaitGroup
		done := make(chan struct{})
		running.Go(func() {
			for {
				most = max(most, heap())
				select {
				case <-done:
					return
				case <-time.After(500 * time.Millisecond):
				}
			}
		})
		time.Sleep(15 * time.Second)
		close(done)
		running.Wait()
		for i, c := range w.chains {
			if got := r.Status().Stores[i].Revision; int64(got) != w.etcd.head() {
				t.Errorf("store %d is at %d", i, got)
			}
			c.mu.Lock()
			stored := 0
			for _, o := range c.objects {
				stored += len(o)
			}
			c.mu.Unlock()
			most -= min(most, uint64(stored)) // they are in memory here
		}
		if most > before+64<<20 {
			t.Errorf("the heap grew by %d MiB", (most-before)>>20)
		}
		stop()
	})
}

// Who is killed while a copy of the database is read leaves it behind, with all
// its secrets: whoever comes next removes it.
func TestACopyOfTheDatabaseThatWasLeftBehindIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		left := filepath.Join(w.dir, "scratch-123")
		if err := os.MkdirAll(left, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(left, "history.db"), []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, stop := w.start()
		time.Sleep(time.Second)
		stop()
		if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it is still there: %v", err)
		}
	})
}
