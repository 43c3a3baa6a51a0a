package record

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/repository"
	"lifeboat/storage"
)

func TestWhatRollUpsReplaceIsDeletedByWhoRecords(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		told int
	}{
		"it may":                         {nil, 0},
		"its credentials may not":        {fmt.Errorf("delete: %w", storage.ErrPermission), 1},
		"by a clock that is not trusted": {fmt.Errorf("sweep: %w", repository.ErrClock), 1},
		"a store that fails":             {errors.New("no route"), 4},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1)
				c := w.chains[0]
				c.sweep = test.err
				w.etcd.puts(t, 10, "before")
				c.addFull(w.etcd, 0, "")
				r, stop := w.start()
				for range 25 {
					w.etcd.puts(t, 10, "value")
					time.Sleep(10 * time.Minute)
				}
				stop()
				if c.prunes != 4 || c.sweeps != 4 {
					t.Errorf("%d prunes, %d sweeps in four hours", c.prunes, c.sweeps)
				}
				told := 0
				for _, line := range w.warnings() {
					if strings.Contains(line, "were not deleted") {
						told++
					}
				}
				if s := r.Status().Stores[0]; told != test.told || s.Err != "" {
					t.Errorf("told %d times: %q; the store %q", told, w.warnings(), s.Err)
				}
			})
		})
	}
}

func TestASweepThatHangsKeepsNothingFromBeingCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, hung, stop := hungWorld(t, func(o *Options) { o.StoreStall = 10 * time.Second })
		hung.sweeps.Store(true)
		for range 50 {
			w.etcd.puts(t, 10, "value")
			time.Sleep(10 * time.Minute)
		}
		if tip, err := w.chains[0].Head(t.Context()); err != nil || int64(tip.Last) != w.etcd.head() {
			t.Errorf("the chain is at %v of %d, %v", tip, w.etcd.head(), err)
		}
		if n := hung.calls.Load(); n == 0 || n > 5 {
			t.Errorf("%d sweeps hang after eight hours", n)
		}
		close(hung.release)
		stop()
	})
}

func TestHalfASpoolIsRolledUpBeforeTheHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		c, value := w.chains[0], strings.Repeat("v", 4*kib)
		w.etcd.puts(t, 10, "before")
		c.addFull(w.etcd, 0, "")
		r, stop := w.start(small)
		bytes := func() int64 { return r.Status().SpoolBytes }
		next := c.firstFull() // which comes again, to be compared
		for n := range 3 {
			for i := 0; len(c.segments(true)) == n; i++ {
				if held := bytes(); held > 3<<20 || i > 120 {
					t.Fatalf("roll-up %d is not there after %d s, with %d bytes in the spool", n, i, held)
				}
				w.etcd.puts(t, 10, value)
				time.Sleep(time.Second)
				if held := bytes(); len(c.segments(true)) > n && i < 30 {
					t.Fatalf("roll-up %d came after %d s already, with %d bytes in the spool", n, i, held)
				}
			}
			span := c.segments(true)[n].Span
			if int64(span.First) != next || int64(span.Last) < w.etcd.head()-40 {
				t.Errorf("roll-up %d holds revisions %d to %d, etcd %d to %d", n, span.First, span.Last, next, w.etcd.head())
			}
			next = int64(span.Last) + 1
			if held := bytes(); held > 1<<20 {
				t.Errorf("%d bytes are in the spool behind roll-up %d", held, n)
			}
		}
		w.etcd.puts(t, 10, "the last")
		time.Sleep(5 * time.Second)
		w.replay(c, 12, w.etcd.head())
		stop()
	})
}
