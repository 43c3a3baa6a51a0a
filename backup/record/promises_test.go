package record

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
)

func TestTooFarBehindIsAGapAndAsksForAFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		_, stop := w.start()
		time.Sleep(5 * time.Second)
		w.etcd.puts(t, 10, "recorded")
		time.Sleep(5 * time.Second)
		stop()
		last := w.etcd.head()
		w.etcd.puts(t, 5000, "more than etcd should be asked for")
		w.etcd.maxLag = 1000
		r, stop := w.start()
		time.Sleep(15 * time.Second)
		if _, ok := w.asked("not recorded"); !ok {
			t.Errorf("asked for %v", w.all())
		}
		gaps := r.Status().Gaps
		if len(gaps) != 1 || int64(gaps[0].From) != last+1 || int64(gaps[0].To) != w.etcd.head() {
			t.Errorf("gaps %+v, the last recorded is %d", gaps, last)
		}
		if told := strings.Join(w.warnings(), "; "); !strings.Contains(told, "too far behind") {
			t.Errorf("told %q", told)
		}
		w.chains[0].addFull(w.etcd, 0, "")
		from := w.etcd.head() + 1
		w.etcd.puts(t, 10, "afterwards")
		time.Sleep(10 * time.Second)
		w.replay(w.chains[0], from, w.etcd.head())
		stop()
	})
}

// Where one member's database is damaged, another gives what was missed. Where all
// are, that is a gap, and recording goes on behind it.
func TestADamagedDatabaseIsAGapOnlyWhereThereIsNoOther(t *testing.T) {
	for name, damaged := range map[string][]bool{"one of two": {true, false}, "both": {true, true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1)
				w.etcd.puts(t, 10, "before")
				w.chains[0].addFull(w.etcd, 0, "")
				_, stop := w.start()
				time.Sleep(5 * time.Second)
				stop()
				from := w.etcd.head() + 1
				w.etcd.puts(t, 50, "missed")
				w.etcd.damaged = damaged
				r, stop := w.start()
				time.Sleep(15 * time.Second)
				gaps := r.Status().Gaps
				if damaged[1] {
					if len(gaps) != 1 || int64(gaps[0].From) != from || int64(gaps[0].To) != w.etcd.head() {
						t.Errorf("gaps %+v", gaps)
					}
					if _, ok := w.asked("not recorded"); !ok {
						t.Errorf("asked for %v", w.all())
					}
					if told := strings.Join(w.warnings(), "; "); !strings.Contains(told, "is damaged") {
						t.Errorf("told %q", told)
					}
					w.chains[0].addFull(w.etcd, 0, "")
					from = w.etcd.head() + 1
				} else if len(gaps) > 0 {
					t.Errorf("gaps %+v", gaps)
				}
				w.etcd.puts(t, 10, "afterwards")
				time.Sleep(10 * time.Second)
				w.replay(w.chains[0], from, w.etcd.head())
				stop()
			})
		})
	}
}

// What leaves no events can change while nothing is watched: a member that gets
// another version restarts.
func TestAWatchKnowsWhatTheOneBeforeSaw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		_, stop := w.start()
		time.Sleep(5 * time.Second)
		w.etcd.fail(errors.New("it restarts"))
		time.Sleep(5 * time.Second)
		w.etcd.fail(nil)
		time.Sleep(15 * time.Second)
		stop()
		if f := w.etcd.facts; len(f) < 2 || f[0] == nil || f[0] != f[len(f)-1] {
			t.Errorf("watches were given %v", f)
		}
	})
}

func TestCompactionsOfAnotherHistoryAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 1000, "before")
		w.etcd.compact(900)
		w.chains[0].addFull(w.etcd, 0, "")
		r, stop := w.start()
		time.Sleep(5 * time.Second)
		w.etcd.puts(t, 10, "recorded")
		time.Sleep(5 * time.Second)
		w.etcd.fail(errors.New("restored without a bump"))
		time.Sleep(time.Second)
		w.etcd.rewind(100)
		w.etcd.compact(0)
		w.etcd.fail(nil)
		time.Sleep(15 * time.Second)
		epoch, ok := w.asked("history")
		if !ok || epoch != 2 {
			t.Fatalf("asked for %v", w.all())
		}
		w.chains[0].addFull(w.etcd, epoch, "")
		from := w.etcd.head() + 1
		w.etcd.puts(t, 10, "another history")
		time.Sleep(10 * time.Second)
		asks := len(w.all())
		w.etcd.fail(errors.New("it restarts"))
		time.Sleep(time.Second)
		w.etcd.fail(nil)
		w.etcd.puts(t, 10, "meanwhile")
		time.Sleep(15 * time.Second)
		w.replay(w.chains[0], from, w.etcd.head())
		if s := r.Status(); len(s.Gaps) > 0 || len(w.all()) > asks {
			t.Errorf("gaps %+v, asked for %v", s.Gaps, w.all()[asks:])
		}
		stop()
	})
}

// tapeOf is a tape with a section that begins behind revision 9.
func tapeOf(t *testing.T, records ...segment.Record) (*tape, section) {
	t.Helper()
	tape, err := openTape(t.TempDir(), 1<<30)
	if err == nil {
		err = tape.begin(section{id: 1, clusterID: 7, memberID: 1}, 9)
	}
	for _, r := range records {
		if err == nil {
			err = tape.record(r)
		}
		if err == nil && r.IsEvent() {
			err = tape.whole(r.Main)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tape.close(); err != nil {
			t.Error(err)
		}
	})
	s, _ := tape.now()
	return tape, s
}

// written is a cut, and what its segment holds.
func writeCut(t *testing.T, tape *tape, c *cut) (done *written, records []segment.Record) {
	t.Helper()
	var plain bytes.Buffer
	done, err := c.write(&plain, tape, segment.NewMarker([32]byte{1}), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r, err := segment.NewReader(&plain)
	if err != nil {
		t.Fatal(err)
	}
	for {
		rec, err := r.Next()
		if err == io.EOF {
			return done, records
		}
		if err != nil {
			t.Fatal(err)
		}
		rec.KV = nil
		records = append(records, rec)
	}
}

func leaseOf(id, revision int64) segment.Record {
	return segment.Record{Kind: segment.KindLease, Lease: segment.Lease{ID: id, TTL: 60, Revision: revision}}
}

func TestAManifestTellsOfCompactionsAndOfHashes(t *testing.T) {
	compaction := func(revision int64) segment.Record {
		return segment.Record{Kind: segment.KindCompaction, Compaction: segment.Compaction{Revision: revision, Head: 11, At: 5}}
	}
	hash := func(member uint64, kv uint32) segment.Record {
		return segment.Record{Kind: segment.KindHash, Hash: segment.Hash{Member: member, HashKV: kv, Revision: 10, Compact: 8}}
	}
	tape, s := tapeOf(t, put(10, "k", "v"), put(11, "k", "v"), compaction(8), compaction(8), compaction(10), hash(1, 77), hash(2, 77), hash(2, 77))
	done, records := writeCut(t, tape, &cut{section: s, from: s.start, first: 10})
	if len(records) != 8 {
		t.Errorf("%d records: %v", len(records), records)
	}
	if !slices.Equal(done.span.Compactions, []manifest.Revision{8, 10}) {
		t.Errorf("compactions %v", done.span.Compactions)
	}
	if h := done.span.Hashes; len(h) != 1 || h[0].Revision != 10 || h[0].CompactRevision != 8 || h[0].HashKV != 77 || !slices.Equal(h[0].Members, []manifest.EtcdID{1, 2}) {
		t.Errorf("hashes %+v", h)
	}
}

func TestASegmentHasTheLeasesThatWereAnsweredBehindIt(t *testing.T) {
	tape, s := tapeOf(t, put(10, "k", "v"), put(11, "k", "v"), leaseOf(5, 10), leaseOf(6, 11), put(12, "k", "v"))
	leases := func(records []segment.Record) (ids []int64) {
		for _, r := range records {
			if r.Kind == segment.KindLease {
				ids = append(ids, r.Lease.ID)
			}
		}
		return ids
	}
	first, records := writeCut(t, tape, &cut{section: s, from: s.start, first: 10, limit: 1})
	if ids := leases(records); first.span.Last != 10 || !slices.Equal(ids, []int64{5}) {
		t.Errorf("the segment to revision %d has leases %v", first.span.Last, ids)
	}
	rest, records := writeCut(t, tape, &cut{section: s, from: first.end, first: 11})
	if ids := leases(records); rest.span.Last != 12 || !slices.Equal(ids, []int64{5, 6}) {
		t.Errorf("the segment to revision %d has leases %v", rest.span.Last, ids)
	}
}

func TestATimeThatWasBeyondACutIsTheNextOnesRecoveryPoint(t *testing.T) {
	moment := segment.Record{Kind: segment.KindTime, Time: segment.Moment{At: 7000, AtLeast: 10, AtMost: 12}}
	tape, s := tapeOf(t, put(10, "k", "v"), moment, put(11, "k", "v"), put(12, "k", "v"))
	first, _ := writeCut(t, tape, &cut{section: s, from: s.start, first: 10, limit: 20})
	if first.span.Last >= 12 || !first.span.LastTime.Before(time.UnixMilli(7000)) || len(first.late) != 1 {
		t.Fatalf("to revision %d as of %s, late %v", first.span.Last, first.span.LastTime, first.late)
	}
	next, _ := writeCut(t, tape, &cut{section: s, from: first.end, first: int64(first.span.Last) + 1, reached: first.span.LastTime, late: first.late})
	if next.span.Last != 12 || !next.span.LastTime.Equal(time.UnixMilli(7000)) {
		t.Errorf("to revision %d as of %s", next.span.Last, next.span.LastTime)
	}
}

func TestACutWaitsALittleForItsLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		r, stop := w.start()
		time.Sleep(70 * time.Second)
		last := func() int64 { return int64(w.chains[0].tip().Last) }
		r.leases.Missed(5, w.etcd.head()+1) // nobody answers here
		w.etcd.puts(t, 1, "on a lease")
		time.Sleep(2500 * time.Millisecond)
		if last() == w.etcd.head() {
			t.Error("it did not wait")
		}
		time.Sleep(3 * time.Second)
		if last() != w.etcd.head() {
			t.Errorf("it waits for ever: the chain is at %d, etcd at %d", last(), w.etcd.head())
		}
		stop()
	})
}

func TestLeasesThatAKilledRecorderDidNotAskForAreAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		_, stop := w.start()
		time.Sleep(5 * time.Second)
		w.chains[0].fail(errors.New("no route")) // it stays on the tape
		w.etcd.change(func() {
			main := int64(len(w.etcd.revisions)) + 1
			rec := put(main, "leased", "v")
			rec.KV = append(rec.KV, 6<<3, 99)
			w.etcd.revisions = append(w.etcd.revisions, []segment.Record{rec})
		})
		time.Sleep(5 * time.Second)
		stop()
		r, stop := w.start()
		time.Sleep(time.Second)
		if head := w.etcd.head(); !r.leases.Pending(head) || r.leases.Pending(head-1) {
			t.Error("the lease is not asked for")
		}
		// Another history has none of them: an id may stand for another lease there.
		w.etcd.change(func() { w.etcd.cluster = 8 })
		w.etcd.fail(errors.New("away"))
		time.Sleep(time.Second)
		w.etcd.fail(nil)
		time.Sleep(15 * time.Second)
		if r.leases.Pending(1 << 60) {
			t.Error("a lease of another history is asked for")
		}
		stop()
	})
}

func TestRollUpsAreProtectedAndSmallSegmentsAreNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		w.prepare = func(r *Recorder) { r.committers[0].retainDays = 7 }
		_, stop := w.start()
		for range 70 {
			w.etcd.puts(t, 1, "value")
			time.Sleep(time.Minute)
		}
		stop()
		big := w.chains[0].segments(true)
		if len(big) == 0 {
			t.Fatal("nothing was rolled up")
		}
		for _, m := range append(big, w.chains[0].segments(false)...) {
			if until := m.RetainUntil; m.Span.RollUp != (until != nil) || until != nil && !until.Equal(m.Created.AddDate(0, 0, 7)) {
				t.Errorf("roll-up %v of %s is to be kept until %v", m.Span.RollUp, m.Created, until)
			}
		}
	})
}

func TestALongIntervalMakesOthersWaitLonger(t *testing.T) {
	for interval, want := range map[time.Duration]time.Duration{2 * time.Second: 10 * time.Second, time.Second: 10 * time.Second, time.Minute: 5 * time.Minute} {
		w := newWorld(t, 0)
		o := w.options()
		o.Interval = interval
		if got := New(o).sight(t.Context(), time.Now()).patience; got != want {
			t.Errorf("with an interval of %s the first takes over after %s, want %s", interval, got, want)
		}
	}
}

// A recorder can't compare marks of another key. It commits the revision once
// more instead, and whoever replays the chain compares the two in the clear.
func TestAnotherRecorderBeginsWithTheLastRevisionOfTheOneBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		second := w.another("cp2", 0)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		_, stop := w.start()
		time.Sleep(5 * time.Second)
		w.etcd.puts(t, 10, "by the first")
		time.Sleep(5 * time.Second)
		stop()
		last := w.chains[0].tip().Recorded
		w.etcd.puts(t, 10, "by the second")
		_, stop = second.start()
		time.Sleep(90 * time.Second)
		stop()
		for _, m := range w.chains[0].segments(false) {
			if m.Writer.Node == "cp2" {
				if m.Span.First != last || m.Span.Last <= last {
					t.Errorf("the first ended with revision %d, the second begins with %d to %d", last, m.Span.First, m.Span.Last)
				}
				return
			}
		}
		t.Error("the second has committed nothing")
	})
}

func TestMuchIsCutBeforeTheIntervalIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		_, stop := w.start(func(o *Options) { o.Interval, o.Heartbeat, o.MaxBytes = 10*time.Minute, 10*time.Minute, 256*kib })
		time.Sleep(11 * time.Minute)
		recorded := func() manifest.Revision { return w.chains[0].tip().Last }
		w.etcd.puts(t, 10, "little")
		time.Sleep(time.Minute)
		if int64(recorded()) == w.etcd.head() {
			t.Error("little did not wait for the interval")
		}
		w.etcd.puts(t, 800, strings.Repeat("v", kib)) // less than four segments: that is no catching up
		time.Sleep(5 * time.Second)
		if behind := w.etcd.head() - int64(recorded()); behind > 300 {
			t.Errorf("%d revisions of 1 KiB wait for the interval", behind)
		}
		for _, m := range w.chains[0].segments(false) {
			if m.Objects[0].PlainSize > 2*256*kib {
				t.Errorf("a segment of %d bytes", m.Objects[0].PlainSize)
			}
		}
		stop()
	})
}

func TestAFullIsAskedForEachMinuteByWhoRecordsAndNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		second := w.another("cp2", 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		_, stop := w.start()
		time.Sleep(5 * time.Second)
		other, stopSecond := second.start()
		for range 10 {
			w.etcd.puts(t, 10, "value")
			time.Sleep(time.Second)
		}
		(&sink{r: other}).Changed("seen before its turn ended")
		time.Sleep(3 * time.Second)
		if other.Status().Active || len(second.all()) > 0 {
			t.Errorf("one who stands by asked: %v", second.all())
		}
		stopSecond()
		w.chains[0].mu.Lock()
		w.chains[0].list = nil // somebody has emptied the store
		w.chains[0].mu.Unlock()
		time.Sleep(5 * time.Minute)
		if n := len(w.all()); n < 4 || n > 7 {
			t.Errorf("the one who records asked %d times in five minutes: %v", n, w.all())
		}
		stop()
	})
}
