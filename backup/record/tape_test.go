package record

import (
	"io"
	"testing"

	"lifeboat/internal/segment"
)

// A watch that ends inside a revision, between fragments of a response, leaves
// some of its events on the tape; the next watch gives all of them.
func TestARevisionThatCameInPartsIsGivenOnceAndWhole(t *testing.T) {
	for name, restart := range map[string]bool{"in one process": false, "over a restart": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			tape, err := openTape(dir, 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			big := string(make([]byte, between/2))
			event := func(main int64, key string) { must(tape.record(put(main, key, big))) }
			must(tape.begin(section{id: 1, clusterID: 7, memberID: 1}, 9))
			for main := int64(10); main < 20; main++ {
				event(main, "a")
				event(main, "b") // the first fragment ends here
				must(tape.whole(main - 1))
				event(main, "c")
				must(tape.whole(main))
			}
			event(20, "a")
			event(20, "b")
			must(tape.whole(19)) // and here the watch ends
			must(tape.settle())
			if restart {
				must(tape.close())
				if tape, err = openTape(dir, 1<<30); err != nil {
					t.Fatal(err)
				}
			}
			defer func() { must(tape.close()) }()
			s, ok := tape.now()
			if !ok || s.first != 10 || s.last != 19 {
				t.Fatalf("the tape holds %d to %d", s.first, s.last)
			}
			must(tape.begin(section{id: 1, clusterID: 7, memberID: 2}, 19))
			for main := int64(20); main < 23; main++ {
				event(main, "a")
				event(main, "b")
				event(main, "c")
				must(tape.whole(main))
			}
			s, _ = tape.now()
			for next := int64(10); next <= 23; next++ {
				from, ok := tape.find(1, next)
				if !ok {
					t.Fatalf("revision %d is not found", next)
				}
				reel, want := tape.read(from, s.end), next
				for {
					g, _, err := reel.next()
					if err == io.EOF {
						break
					}
					must(err)
					if g == nil || g.main < next {
						continue
					}
					if g.main != want || len(g.events) != 3 {
						t.Fatalf("read from %d: revision %d with %d events, want %d with 3", next, g.main, len(g.events), want)
					}
					want++
				}
				if want != 23 {
					t.Fatalf("read from %d: it ends behind %d", next, want-1)
				}
			}
		})
	}
}

// A watch that ends before it has said that what it gave is whole is followed by
// one that gives it again.
func TestRevisionsThatAreGivenAgainAreReadOnce(t *testing.T) {
	tape, err := openTape(t.TempDir(), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	defer tape.close()
	for _, watch := range [][2]int64{{10, 20}, {15, 17}, {15, 30}} {
		if err := tape.begin(section{id: 1, clusterID: 7}, watch[0]-1); err != nil {
			t.Fatal(err)
		}
		for main := watch[0]; main <= watch[1]; main++ {
			if err := tape.record(put(main, "key", "value")); err != nil {
				t.Fatal(err)
			}
			if main == 14 || main == 30 {
				if err := tape.whole(main); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	s, _ := tape.now()
	reel, want := tape.read(s.start, s.end), int64(10)
	for {
		g, _, err := reel.next()
		if err == io.EOF {
			break
		}
		if err != nil || g == nil || g.main != want || len(g.events) != 1 {
			t.Fatalf("%+v, %v, want revision %d", g, err, want)
		}
		want++
	}
	if want != 31 {
		t.Errorf("it ends behind %d", want-1)
	}
}

// Notes are no records: neither reads the other's.
func TestNotesAndRecordsAreToldApart(t *testing.T) {
	n := note{section: 1 << 60, clusterID: 1 << 63, memberID: 5, epoch: 3, whole: 77, begins: true}
	payload := n.append(nil)
	if !isNote(payload) {
		t.Error("a note is not taken for one")
	}
	if got, err := parseNote(payload); err != nil || got != n {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := segment.ParseRecord(payload); err == nil {
		t.Error("a note is taken for a record")
	}
	if isNote(segment.AppendRecord(nil, put(5, "key", "value"))) {
		t.Error("a record is taken for a note")
	}
}
