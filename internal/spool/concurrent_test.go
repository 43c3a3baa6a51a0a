package spool

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// Two readers follow one writer, and what both have read is released.
func TestReadersFollowWhileRecordsAreAppendedAndReleased(t *testing.T) {
	const records = 30_000
	l := open(t, t.TempDir(), Options{MaxBytes: 200 << 10, FileBytes: 8 << 10})
	var read [2]atomic.Int64
	var failed atomic.Bool
	var all sync.WaitGroup
	for i := range read {
		all.Go(func() {
			r := l.Read(0)
			for n := 0; n < records && !failed.Load(); {
				p, at, err := r.Next()
				if errors.Is(err, io.EOF) {
					runtime.Gosched()
					continue
				}
				if want := fmt.Sprintf("record %d", n); err != nil || string(p) != want {
					t.Errorf("reader %d: %q instead of %q, error %v", i, p, want, err)
					failed.Store(true)
				}
				n++
				read[i].Store(int64(at))
			}
		})
	}
	all.Go(func() {
		for n := 0; n < records && !failed.Load(); {
			_, err := l.Append(fmt.Appendf(nil, "record %d", n))
			switch {
			case errors.Is(err, ErrFull):
				runtime.Gosched()
				continue
			case err != nil:
				t.Error(err)
				failed.Store(true)
			}
			if n%100 == 0 {
				if err := l.Flush(); err != nil {
					t.Error(err)
				}
			}
			n++
		}
	})
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		both := Position(min(read[0].Load(), read[1].Load()))
		if err := l.Release(both); err != nil {
			t.Fatal(err)
		}
		if l.Bytes() < 0 || l.Bytes() > 200<<10 || l.Start() > both {
			t.Fatalf("%d bytes from %d on, and %d is read", l.Bytes(), l.Start(), both)
		}
		runtime.Gosched()
	}
	if l.Bytes() != 0 && !failed.Load() {
		t.Errorf("%d bytes are left", l.Bytes())
	}
}

// A reader that is overtaken is told so, and never given other bytes.
func TestAReaderThatIsOvertakenIsToldSo(t *testing.T) {
	l := open(t, t.TempDir(), Options{FileBytes: 4 << 10})
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			at := l.End()
			if _, err := l.Append(fmt.Appendf(nil, "at %d", at)); err != nil {
				t.Error(err)
				return
			}
			var err error
			switch {
			case n%1000 == 999:
				err = l.Reset()
			case n%300 == 299:
				err = l.Flush()
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	overtaken := 0
	for tries := 0; tries < 20_000 && overtaken < 10; tries++ {
		r := l.Read(l.Start())
		for range 1000 {
			before := r.at
			p, _, err := r.Next()
			if errors.Is(err, ErrReleased) {
				overtaken++
				break
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if want := fmt.Sprintf("at %d", before); err != nil || string(p) != want {
				t.Errorf("%q instead of %q, error %v", p, want, err)
				break
			}
		}
	}
	close(stop)
	all.Wait()
	t.Log("overtaken", overtaken, "times")
}
