package materialize_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/lease"

	"lifeboat/internal/durable/tinydisk"
	"lifeboat/internal/manifest"
	"lifeboat/internal/seal"
	"lifeboat/internal/segment"
	"lifeboat/restore/materialize"
)

// fixture is a base at revision 61 of a history to about 301, compacted at 150
// and 250, and what a good materialization of it is given.
type fixture struct {
	*live
	base base
	end  int64
	dir  string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{dir: t.TempDir()}
	f.live = openLive(t, filepath.Join(f.dir, "live"), rand.New(rand.NewPCG(1, 1)))
	t.Cleanup(f.close)
	for f.kv.Rev() < 61 {
		f.transact(20)
	}
	f.base = base{path: filepath.Join(f.dir, "base"), rev: 61}
	f.live.snapshot(f.base.path)
	f.hash(61)
	f.base.hash = manifest.HashKV{Revision: 61, HashKV: f.hashes[[2]int64{61, 0}]}
	for f.kv.Rev() < 300 {
		f.transact(20)
		switch rev := f.kv.Rev(); { // some transactions change nothing
		case rev == 200 && f.compact < 150:
			f.compactTo(150)
		case rev == 280 && f.compact < 250:
			f.compactTo(250)
		}
	}
	f.end = f.kv.Rev()
	return f
}

func (f *fixture) options(segments ...[]byte) materialize.Options {
	return materialize.Options{To: f.end, Base: f.base.hash, Hashes: f.anchors, Scratch: f.dir, Segments: len(segments), Open: opening(segments)}
}

// spans cuts the history at the given first revisions.
func (f *fixture) spans(at ...int64) [][]byte {
	var all [][]byte
	for i, first := range at {
		last := f.end
		if i+1 < len(at) {
			last = at[i+1] - 1
		}
		all = append(all, f.segment(f.t, first, last))
	}
	return all
}

func (f *fixture) run(t *testing.T, opts materialize.Options) (*materialize.Result, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	copyFile(t, f.base.path, path)
	return materialize.Append(t.Context(), path, opts)
}

// altered is the history with some events changed.
func (f *fixture) altered(edit func(h *history)) *history {
	h := &history{changes: append([]change(nil), f.changes...), leases: f.leases}
	for i := range h.changes {
		h.changes[i].kv = bytes.Clone(h.changes[i].kv)
	}
	edit(h)
	return h
}

// flip changes the last byte of a value or key of the first event at or behind
// a revision that satisfies ok.
func flip(main int64, ok func(change) bool) func(h *history) {
	return func(h *history) {
		for i := range h.changes {
			if c := &h.changes[i]; c.main >= main && (ok == nil || ok(*c)) {
				f, _ := segment.FieldsOf(c.kv)
				if c.delete {
					f.Key[len(f.Key)-1] ^= 1
				} else {
					f.Value[len(f.Value)-1] ^= 1
				}
				return
			}
		}
		panic("no such event")
	}
}

func TestWhatIsNotAsRecordedIsRefused(t *testing.T) {
	f := newFixture(t)
	good := f.spans(40, 100, 200)
	if res, err := f.run(t, f.options(good...)); err != nil || res.ProvedAt == nil || res.Skipped == 0 || res.Overlap == 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	put := func(c change) bool { return !c.delete }
	// The newest of its key up to the anchor's revision, so that its hash covers it.
	current := func(c change) bool {
		if c.delete || c.main > 250 {
			return false
		}
		kv := f.at(t, 250)[string(c.parsed(t).Key)]
		return kv != nil && kv.ModRevision == c.main
	}
	with := func(h *history, first, last int64) []byte { return h.segment(t, first, last) }
	for _, tt := range []struct {
		name string
		opts materialize.Options
		want error
	}{
		{"a hole behind the base", f.options(f.segment(t, 63, f.end)), materialize.ErrHole},
		{"a hole between segments", f.options(f.segment(t, 62, 100), f.segment(t, 102, f.end)), materialize.ErrHole},
		{"a hole of an empty segment", f.options(f.segment(t, 62, 100), f.segment(t, 103, 102), f.segment(t, 103, f.end)), materialize.ErrHole},
		{"an end before the revision wanted", f.options(f.segment(t, 62, f.end-1)), materialize.ErrHole},
		{"no segments", f.options(), materialize.ErrHole},
		{"a value that differs from the base's", f.options(with(f.altered(flip(50, put)), 40, f.end)), materialize.ErrDiffers},
		{"another event than the base's", f.options(with(f.altered(deleteInstead(50)), 40, f.end)), materialize.ErrDiffers},
		{"fewer events than the base has", f.options(with(f.altered(dropOne(55)), 40, f.end)), materialize.ErrDiffers},
		{"more events than the base has", f.options(with(f.altered(repeatOne(55)), 40, f.end)), materialize.ErrDiffers},
		{"a difference of two segments up to the compaction", f.options(f.segment(t, 62, 120), with(f.altered(flip(90, nil)), 80, f.end)), materialize.ErrDiffers},
		{"fewer events in the second of two segments", f.options(f.segment(t, 62, 120), with(f.altered(dropOne(90)), 80, f.end)), materialize.ErrDiffers},
		{"more events in the second of two segments", f.options(f.segment(t, 62, 120), with(f.altered(repeatOne(90)), 80, f.end)), materialize.ErrDiffers},
		{"more events at the very end of the overlap", f.options(f.segment(t, 62, 120), with(f.altered(repeatOne(120)), 80, f.end)), materialize.ErrDiffers},
		{"a difference of two segments behind the compaction", f.options(f.segment(t, 62, 280), with(f.altered(flip(270, nil)), 260, f.end)), materialize.ErrDiffers},
		{"fewer events behind the compaction", f.options(f.segment(t, 62, 280), with(f.altered(dropOne(265)), 260, f.end)), materialize.ErrDiffers},
		{"a difference around the compaction, in the third segment", f.options(f.segment(t, 62, 140), f.segment(t, 141, 200), with(f.altered(flip(145, nil)), 141, f.end)), materialize.ErrDiffers},
		{"a value that the recorded hash knows otherwise", f.options(with(f.altered(flip(62, current)), 40, f.end)), materialize.ErrHash},
		{"a deletion of another key", f.options(with(f.altered(flip(151, func(c change) bool { return c.delete && c.main < 250 })), 40, f.end)), materialize.ErrHash},
		{"a segment cut short at its last byte", f.options(good[0], good[1], good[2][:len(good[2])-1]), materialize.ErrDamaged},
		{"bytes behind the last segment", f.options(good[0], good[1], append(bytes.Clone(good[2]), 0)), materialize.ErrDamaged},
		{"no segment", f.options([]byte("something else")), materialize.ErrDamaged},
		{"segments out of order", f.options(good[1], good[0], good[2]), materialize.ErrHole},
		{"segments that begin out of order", f.options(f.segment(t, 40, 100), f.segment(t, 30, 200), good[2]), materialize.ErrInvalid},
		{"a revision that the base is beyond", func() materialize.Options { o := f.options(good...); o.To = 60; return o }(), materialize.ErrInvalid},
		{"no revision", materialize.Options{}, materialize.ErrInvalid},
		{"a wrong hash of the base", func() materialize.Options {
			o := f.options(good...)
			o.Hashes, o.Base.HashKV = nil, o.Base.HashKV^1
			return o
		}(), materialize.ErrHash},
		{"a wrong recorded hash", func() materialize.Options {
			o := f.options(good...)
			o.Hashes = []manifest.HashKV{o.Hashes[0], o.Hashes[1]}
			o.Hashes[1].HashKV ^= 1
			return o
		}(), materialize.ErrHash},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, err := f.run(t, tt.opts)
			if !errors.Is(err, tt.want) || res != nil {
				t.Errorf("%+v, %v; want %v", res, err, tt.want)
			}
			if tt.want != materialize.ErrInvalid && !errors.Is(err, materialize.ErrDamaged) {
				t.Errorf("%v is not known as damage", err)
			}
			if tt.want != materialize.ErrHash && errors.Is(err, materialize.ErrHash) {
				t.Errorf("%v", err)
			}
		})
	}
	left, _ := filepath.Glob(filepath.Join(f.dir, ".materialize*"))
	if len(left) > 0 {
		t.Errorf("left in scratch: %v", left)
	}
}

// deleteInstead makes a deletion of the first put at or behind main.
func deleteInstead(main int64) func(h *history) {
	return func(h *history) {
		c := h.firstPut(main)
		f, _ := segment.FieldsOf(c.kv)
		c.delete, c.kv = true, segment.AppendTombstone(nil, f.Key)
	}
}

func (h *history) firstPut(main int64) *change {
	for i := range h.changes {
		if h.changes[i].main >= main && !h.changes[i].delete {
			return &h.changes[i]
		}
	}
	panic("no put")
}

// dropOne leaves out the last event of the first revision at or behind main
// that has several, repeatOne gives one more.
func dropOne(main int64) func(h *history) {
	return func(h *history) {
		for i := 1; i < len(h.changes); i++ {
			if h.changes[i].main >= main && h.changes[i].main == h.changes[i-1].main {
				h.changes = append(h.changes[:i], h.changes[i+1:]...)
				return
			}
		}
	}
}

func repeatOne(main int64) func(h *history) {
	return func(h *history) {
		i := len(h.from(1, main))
		h.changes = append(h.changes[:i], append([]change{h.changes[i-1]}, h.changes[i:]...)...)
	}
}

func TestDamageUnderTheSealIsSeenThoughTheLastRevisionWasRead(t *testing.T) {
	f := newFixture(t)
	all := sealAll(t, f.spans(50, 200))
	last := all.objects[1]
	last[len(last)-1] ^= 1
	opts := f.options()
	opts.Segments, opts.Open = 2, all.open
	opts.To = f.end - 40
	if _, err := f.run(t, opts); !errors.Is(err, seal.ErrDamaged) {
		t.Errorf("%v", err)
	}
	last[len(last)-1] ^= 1
	if _, err := f.run(t, opts); err != nil {
		t.Errorf("and with it right again: %v", err)
	}
}

// closer fails when it is closed.
type closer struct {
	io.Reader
	err error
}

func (c closer) Close() error { return c.err }

func TestErrorsOfTheStoreArePassedOn(t *testing.T) {
	f := newFixture(t)
	segments := f.spans(50, 200)
	gone := errors.New("gone")
	for name, open := range map[string]func(i int) (io.ReadCloser, error){
		"opening": func(int) (io.ReadCloser, error) { return nil, gone },
		"reading": func(i int) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(segments[i][:2000]), closer{errReader{gone}, nil})), nil
		},
		"closing": func(i int) (io.ReadCloser, error) { return closer{bytes.NewReader(segments[i]), gone}, nil },
	} {
		t.Run(name, func(t *testing.T) {
			opts := f.options(segments...)
			opts.Open = func(_ context.Context, i int) (io.ReadCloser, error) {
				if i == 1 {
					return open(i)
				}
				return io.NopCloser(bytes.NewReader(segments[i])), nil
			}
			if _, err := f.run(t, opts); !errors.Is(err, gone) || errors.Is(err, materialize.ErrDamaged) {
				t.Errorf("%v", err)
			}
		})
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestASegmentThatReadsDifferentlyTheSecondTimeIsRefused(t *testing.T) {
	f := newFixture(t)
	opts := f.options(f.segment(t, 50, f.end))
	other := f.altered(flip(100, nil)).segment(t, 50, f.end)
	var opened atomic.Int32
	first := opts.Open
	opts.Open = func(ctx context.Context, i int) (io.ReadCloser, error) {
		if opened.Add(1) > 1 {
			return io.NopCloser(bytes.NewReader(other)), nil
		}
		return first(ctx, i)
	}
	if _, err := f.run(t, opts); !errors.Is(err, materialize.ErrDiffers) {
		t.Errorf("%v", err)
	}
}

func TestADamagedBaseIsNoCrash(t *testing.T) {
	f := newFixture(t)
	whole, err := os.ReadFile(f.base.path)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 3))
	refused := 0
	for range 60 {
		b := bytes.Clone(whole)
		page := rng.IntN(len(b)/4096) * 4096
		for i := range 64 {
			b[page+i] = byte(rng.Uint32())
		}
		path := filepath.Join(t.TempDir(), "db")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		// The page may be a free one or the older meta page.
		if _, err := materialize.Append(t.Context(), path, f.options(f.segment(t, 50, f.end))); err != nil {
			refused++
			if !errors.Is(err, materialize.ErrDamaged) {
				t.Errorf("page %d: %v", page/4096, err)
			}
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
	for name, b := range map[string][]byte{"empty": nil, "zeros": make([]byte, 1<<16), "half": whole[:len(whole)/2/4096*4096]} {
		path := filepath.Join(t.TempDir(), "db")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := materialize.Append(t.Context(), path, f.options(f.segment(t, 50, f.end))); !errors.Is(err, materialize.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	path := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, err := materialize.Append(t.Context(), path, f.options(f.segment(t, 50, f.end))); !errors.Is(err, materialize.ErrDamaged) {
		t.Errorf("no etcd database: %v", err)
	}
	if _, err := materialize.Append(t.Context(), filepath.Join(t.TempDir(), "none"), f.options(f.segment(t, 50, f.end))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestAFullDiskIsAnErrorAndNoCrash(t *testing.T) {
	f := newFixture(t)
	big := f.kv.Write(traceutil.TODO())
	for i := range 40 {
		big.Put([]byte{'b', byte(i)}, bytes.Repeat([]byte{byte(i)}, 100_000), lease.NoLease)
	}
	f.live.end(big)
	f.end++
	plain := f.segment(t, 50, f.end)
	base, err := os.ReadFile(f.base.path)
	if err != nil {
		t.Fatal(err)
	}
	disk := tinydisk.Full(t, len(base)+1<<20)
	path := filepath.Join(disk, "db")
	if err := os.WriteFile(path, base, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := materialize.Append(t.Context(), path, f.options(plain)); !errors.Is(err, syscall.ENOSPC) || errors.Is(err, materialize.ErrDamaged) {
		t.Errorf("%v", err)
	}
	tinydisk.Fill(t, disk, 0)
	opts := f.options(plain)
	opts.Scratch = disk
	if _, err := f.run(t, opts); !errors.Is(err, syscall.ENOSPC) || errors.Is(err, materialize.ErrDamaged) {
		t.Errorf("in scratch: %v", err)
	}
}

func TestCancellingEndsItAndLeavesNothingRunning(t *testing.T) {
	f := newFixture(t)
	segments := f.spans(50, 90, 130, 170, 210, 250, 290)
	before := runtime.NumGoroutine()
	for stopAt := range 11 {
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("enough")
		opts := f.options(segments...)
		var opened atomic.Int32
		opts.Open = func(ctx context.Context, i int) (io.ReadCloser, error) {
			if int(opened.Add(1)) == stopAt+1 {
				cancel(why)
				<-ctx.Done()
				return nil, context.Cause(ctx)
			}
			return io.NopCloser(bytes.NewReader(segments[i])), nil
		}
		path := filepath.Join(t.TempDir(), "db")
		copyFile(t, f.base.path, path)
		if _, err := materialize.Append(ctx, path, opts); !errors.Is(err, why) {
			t.Errorf("cancelled when opening for the %dth time: %v", stopAt+1, err)
		}
		cancel(nil)
	}
	var now int
	for range 100 {
		if now = runtime.NumGoroutine(); now <= before {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if now > before {
		t.Errorf("%d goroutines more than before", now-before)
	}
	if left, _ := filepath.Glob(filepath.Join(f.dir, ".materialize*")); len(left) > 0 {
		t.Errorf("left in scratch: %v", left)
	}
}

func TestErrorsSayWhere(t *testing.T) {
	f := newFixture(t)
	_, err := f.run(t, f.options(f.segment(t, 62, 100), f.segment(t, 110, f.end)))
	if err == nil || !strings.Contains(err.Error(), "101 to 109, before segment 2") {
		t.Errorf("%v", err)
	}
}
