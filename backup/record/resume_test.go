package record

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/backup"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
)

func TestTheFirstFullMayBeALittleOlderThanTheFirstWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.chains[0].addFull(w.etcd, 0, "")
		w.chains[0].fail(errors.New("not yet"))
		w.etcd.puts(t, 10, "meanwhile")
		r, stop := w.start()
		time.Sleep(20 * time.Second)
		if s := r.Status(); !s.Active || s.Revision == 0 {
			t.Fatalf("nothing is recorded: %+v", s)
		}
		w.chains[0].fail(nil)
		w.etcd.puts(t, 10, "afterwards")
		time.Sleep(time.Minute)
		w.replay(w.chains[0], 12, w.etcd.head())
		if s := r.Status(); len(s.Gaps) > 0 || len(w.all()) > 0 {
			t.Errorf("gaps %v, asked for %v", s.Gaps, w.all())
		}
		stop()
	})
}

func TestWhatADeadRecorderCommittedLastEndsNobodysTurn(t *testing.T) {
	w := newWorld(t, 1)
	o := w.options()
	o.Stores = []backup.Store{{URL: "store", Err: errors.New("a fake")}}
	r := New(o)
	tape, err := openTape(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer tape.close()
	r.tape = tape
	if err := tape.begin(section{id: 1, clusterID: 1}, 8); err != nil { // revision 9 comes again
		t.Fatal(err)
	}
	c, now := r.committers[0], time.Now()
	r.opts.Now = func() time.Time { return now }
	tip := repository.Tip{Epoch: 1, Base: 5, Last: 9, Recorded: 9, LastTime: now, Writer: manifest.Writer{Node: "another"}}
	for _, step := range []struct {
		name          string
		turn, commits bool
		want          bool
	}{
		{"it stands by", false, false, true},
		{"its turn begins", true, false, false},
		{"and nobody commits", false, false, false},
		{"the other one lives", false, true, true},
	} {
		now = now.Add(10 * time.Second)
		if step.turn {
			r.takeTurn()
		}
		if step.commits {
			tip.Last, tip.Recorded, tip.LastTime = tip.Last+1, tip.Recorded+1, now
		}
		now = now.Add(time.Second)
		seen := tip
		if c.see(&seen, now); c.foreign != step.want {
			t.Errorf("%s: another records: %v", step.name, c.foreign)
		}
	}
}

func TestTheFirstWatchBeginsALittleBeforeNow(t *testing.T) {
	for name, test := range map[string]struct {
		q           question
		from, whole int64
	}{
		"of a new etcd":                                    {question{head: 1}, 2, 1},
		"of an etcd that remembers all":                    {question{head: 500}, 2, 1},
		"of an etcd that has compacted":                    {question{head: 500, compacted: 400}, 401, 400},
		"of an etcd that has compacted all":                {question{head: 500, compacted: 500}, 501, 500},
		"of an etcd with a long history":                   {question{head: 5_000_000, compacted: 400}, 4_990_001, 4_990_000},
		"not when chains tell where they are":              {question{head: 500, compacted: 450, chains: []link{{last: 400}}}, 501, 500},
		"not when etcd's history turned out to be another": {question{head: 500, forked: "it is"}, 501, 500},
	} {
		t.Run(name, func(t *testing.T) {
			if b := test.q.begin(); !b.fresh || b.from != test.from || b.whole != test.whole {
				t.Errorf("got %+v, want from %d behind %d", b, test.from, test.whole)
			}
		})
	}
}
