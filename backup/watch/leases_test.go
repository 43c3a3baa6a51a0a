package watch

import (
	"testing"
	"testing/synctest"
	"time"
)

// ask takes the next question of all that are queued.
func ask(t *testing.T, l *Leases) question {
	t.Helper()
	q, _, ok := l.next()
	if !ok {
		t.Fatal("nothing is asked")
	}
	return q
}

func asksNothing(t *testing.T, l *Leases) {
	t.Helper()
	if q, _, ok := l.next(); ok {
		t.Fatalf("%+v is asked", q)
	}
}

func TestWhatADrainCouldNotAskTheNextOneDoes(t *testing.T) {
	l := NewLeases()
	for id := range int64(3) {
		l.seen(id+1, 10+id)
	}
	ask(t, l)                                                                    // of 1: the drain ends before the answer
	if q := ask(t, l); !l.alive(q, 100, time.Minute) || !l.Pending(q.revision) { // of 2: and before the record was given
		t.Error("a first answer is nothing to record")
	}
	l.resume()
	for id := range int64(3) {
		q := ask(t, l)
		if q != (question{id: id + 1, revision: 10 + id}) {
			t.Errorf("the next drain asks %+v", q)
		}
		if !l.Pending(q.revision) {
			t.Errorf("%+v is not pending", q)
		}
		if !l.alive(q, 100, time.Minute) {
			t.Errorf("the answer to %+v is nothing to record", q)
		}
		l.answered(q.id)
	}
	asksNothing(t, l)
	if l.Pending(1 << 60) {
		t.Error("something is pending")
	}
}

func TestAnIdThatIsGrantedAgainIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLeases()
		answer := func(revision, ttl int64) bool {
			t.Helper()
			l.seen(7, revision)
			q := ask(t, l)
			l.seen(7, revision) // meanwhile: not queued twice
			asksNothing(t, l)
			defer l.answered(q.id)
			return l.alive(q, ttl, time.Hour)
		}
		if !answer(10, 100) {
			t.Error("the first answer is nothing to record")
		}
		l.seen(7, 11)
		asksNothing(t, l) // it was just answered
		time.Sleep(leaseHolds + time.Second)
		if answer(12, 100) {
			t.Error("the same answer is recorded again")
		}
		time.Sleep(leaseHolds + time.Second)
		if !answer(13, 200) {
			t.Error("another time to live is not recorded")
		}
	})
}

func TestNothingIsMadeUpOfALeaseThatWasKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLeases()
		l.seen(7, 10)
		q := ask(t, l)
		l.alive(q, 100, time.Hour)
		l.answered(7)
		time.Sleep(leaseHolds + time.Second)
		l.seen(7, 11)
		if l.gone(ask(t, l)) {
			t.Error("60 s would stand for the 100 s that were recorded")
		}
		l.answered(7)
		l.seen(7, 12) // granted anew and gone at once: nothing is known of this one
		if q := ask(t, l); q.again || !l.gone(q) {
			t.Errorf("%+v: nothing is made up", q)
		}
		l.answered(7)

		l.Missed(8, 20) // it may have been recorded before
		if l.gone(ask(t, l)) {
			t.Error("60 s would stand for what may have been recorded")
		}
		l.answered(8)
		l.Missed(9, 21)
		l.seen(9, 22)
		if q := ask(t, l); q.revision != 21 || !l.alive(q, 300, time.Hour) {
			t.Errorf("%+v is asked, or its answer is not recorded", q)
		}
		asksNothing(t, l)
	})
}
