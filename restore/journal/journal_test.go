package journal

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type order struct {
	Node  string
	Point int
}

type note struct{ WasRunning bool }

func clock() func() time.Time {
	at := time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)
	return func() time.Time { at = at.Add(time.Second); return at }
}

func open(t *testing.T, path string, now func() time.Time) *Folder {
	t.Helper()
	f, err := Open(path, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func begin(t *testing.T, f *Folder, id string) *Journal {
	t.Helper()
	j, err := f.Begin(id, order{Node: "cp1", Point: 7})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAKilledRestoreIsFoundAsItWas(t *testing.T) {
	path, now := filepath.Join(t.TempDir(), "restores"), clock()
	f := open(t, path, now)
	begin(t, f, "first")
	j := begin(t, f, "second")
	check(t, j.Begin("stop", note{WasRunning: true}))
	check(t, j.Done("stop"))
	check(t, j.Begin("files", note{}))
	f.Close() // as a dead process does

	list, err := open(t, path, now).List()
	check(t, err)
	if len(list) != 2 || list[0].Record().ID != "second" || list[1].Record().ID != "first" {
		t.Fatalf("found %v", list)
	}
	found := list[0]
	var was order
	check(t, found.Order(&was))
	if was != (order{"cp1", 7}) || found.Record().Outcome != UnderWay {
		t.Errorf("order %+v, outcome %q", was, found.Record().Outcome)
	}
	stop, files := found.Step("stop"), found.Step("files")
	if stop == nil || stop.Done == nil || !strings.Contains(string(stop.Note), "true") || files == nil || files.Done != nil || found.Step("start") != nil {
		t.Errorf("steps %+v", found.Record().Steps)
	}
	// Begun again, by a process that finds nothing running: the first note counts.
	check(t, found.Begin("stop", note{WasRunning: false}))
	if s := found.Step("stop"); s.Done != nil || !strings.Contains(string(s.Note), "true") {
		t.Errorf("begun again: %+v", s)
	}
	check(t, found.Undone("files"))
	check(t, found.End(Aborted))
	info, err := os.Stat(filepath.Join(found.Dir(), FileName))
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the journal has mode %v", info.Mode())
	}
	if err := found.Done("start"); err == nil {
		t.Error("a step that was never begun is done")
	}
}

func TestOneProcessHasTheFolder(t *testing.T) {
	path := t.TempDir()
	f := open(t, path, clock())
	if _, err := Open(path, clock()); !errors.Is(err, ErrBusy) {
		t.Errorf("a second: %v", err)
	}
	f.Close()
	open(t, path, clock())
}

func TestIdsThatAreNoFolders(t *testing.T) {
	f := open(t, t.TempDir(), clock())
	for _, id := range []string{"", ".", "..", ".x", "a/b", "../up"} {
		if _, err := f.Begin(id, order{}); err == nil {
			t.Errorf("%q began", id)
		}
	}
	begin(t, f, "once")
	if _, err := f.Begin("once", order{}); err == nil {
		t.Error("the same id began twice")
	}
}

func TestAJournalThatCantBeReadHidesNoOther(t *testing.T) {
	for name, damage := range map[string]struct {
		text string
		want error
	}{
		"cut":            {`{"format": 1, "id": "bad"`, ErrDamaged},
		"of another":     {`{"format": 1, "id": "good", "order": {}, "steps": []}`, ErrDamaged},
		"newer":          {`{"format": 2, "id": "bad", "what": 1}`, ErrNewer},
		"unknown field":  {`{"format": 1, "id": "bad", "what": 1}`, ErrDamaged},
		"unknown end":    {`{"format": 1, "id": "bad", "outcome": "perhaps"}`, ErrDamaged},
		"a step twice":   {`{"format": 1, "id": "bad", "steps": [{"name": "a"}, {"name": "a"}]}`, ErrDamaged},
		"far too large":  {strings.Repeat(" ", mostBytes+1), ErrDamaged},
		"without format": {`{"id": "bad"}`, ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir()
			f := open(t, path, clock())
			begin(t, f, "good")
			check(t, os.Mkdir(filepath.Join(path, "bad"), 0o700))
			check(t, os.WriteFile(filepath.Join(path, "bad", FileName), []byte(damage.text), 0o600))
			check(t, os.Mkdir(filepath.Join(path, "empty"), 0o700)) // killed before the first word
			list, err := f.List()
			if !errors.Is(err, damage.want) || len(list) != 1 || list[0].Record().ID != "good" {
				t.Errorf("found %d, %v", len(list), err)
			}
			if !strings.Contains(err.Error(), filepath.Join(path, "bad", FileName)) {
				t.Errorf("the error does not say which: %v", err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"format": 1, "id": "x", "created": "2026-11-21T03:00:00Z", "outcome": "done", "order": {"a": 1}, "steps": [{"name": "stop", "begun": "2026-11-21T03:00:00Z", "note": null}]}`))
	f.Add([]byte(`{"format": 2}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parse(text)
		if err == nil && (r == nil || r.Format != format) || err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
			t.Errorf("%+v, %v", r, err)
		}
	})
}
