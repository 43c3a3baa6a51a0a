package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/status"
)

func TestTheJournalSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(journalIn(dir))
	at := time.Date(2026, 3, 1, 4, 30, 0, 0, time.UTC)
	j.add(status.Run{Kind: status.Verify, Started: at, Result: status.Succeeded, Message: "12 objects"}, true)
	j.add(status.Run{Kind: status.Verify, Started: at.Add(time.Hour), Result: status.Failed}, true)
	if err := j.flush(time.Minute); err != nil {
		t.Fatal(err)
	}
	again := openJournal(journalIn(dir))
	if got := again.lastSuccess(status.Verify); !got.Equal(at) {
		t.Errorf("last success %s", got)
	}
	if runs := again.runs(); len(runs) != 2 || runs[0].Result != status.Failed || runs[1].Message != "12 objects" {
		t.Errorf("%+v", runs)
	}
	info, err := os.Stat(filepath.Join(dir, journalName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestTheJournalDoesNotGrow(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(journalIn(dir))
	long := line(strings.Repeat("x", 100_000))
	for i := range 5 * status.MaxRuns {
		before := j.runs()
		j.add(status.Run{Kind: status.Full, Target: "etcd/main", Message: long, ID: fmt.Sprint(i)}, false)
		if i > 0 && before[0].ID != fmt.Sprint(i-1) {
			t.Fatal("what was handed out earlier was changed")
		}
	}
	j.write()
	info, err := os.Stat(filepath.Join(dir, journalName))
	if err != nil || info.Size() > maxJournal/10 {
		t.Errorf("%v, %v", info, err)
	}
	if runs := openJournal(journalIn(dir)).runs(); len(runs) != status.MaxRuns || runs[0].ID != fmt.Sprint(5*status.MaxRuns-1) {
		t.Errorf("%d runs, newest %s", len(runs), runs[0].ID)
	}
}

func TestABackupThatLacksThousandsOfFilesDoesNotFillTheJournal(t *testing.T) {
	did := &Outcome{Degraded: []string{}, Unproved: []string{"no scratch"}}
	for i := range 3000 {
		did.Degraded = append(did.Degraded, fmt.Sprintf("/srv/%04d/%s: permission denied", i, strings.Repeat("x", 100)))
	}
	run := newRun(target{status.Files, "hosts/cp1"}, time.Time{}, 0, outcome[*Outcome]{value: did}, t.Context(), t.Context())
	if n := len(run.Degraded); n != mostReasons || run.Degraded[0] != did.Degraded[0] || !strings.HasPrefix(run.Degraded[n-1], "2996 more") {
		t.Errorf("kept %d: %.200q", n, run.Degraded)
	}
	if !slices.Equal(run.Unproved, did.Unproved) {
		t.Errorf("unproved: %q", run.Unproved)
	}
	dir := t.TempDir()
	j := openJournal(journalIn(dir))
	for range status.MaxRuns {
		j.add(run, false)
	}
	j.write()
	if again := openJournal(journalIn(dir)); again.damaged != "" || len(again.runs()) != status.MaxRuns {
		t.Errorf("after a restart %d runs, %s", len(again.runs()), again.damaged)
	}
}

func TestADamagedJournalIsSetAsideAndTold(t *testing.T) {
	for name, text := range map[string]string{
		"cut off":            `{"format":1,"runs":[{"kind":"fu`,
		"empty":              "",
		"of another form":    `{"format":2}`,
		"much too large":     strings.Repeat(" ", maxJournal+1),
		"not even an object": `[]`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, journalName)
			for _, f := range []string{file, file + ".damaged"} { // an earlier one gives way
				if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			c := testConfig(t)
			c.StateDir = dir
			a, err := New(Options{Config: c, Works: &fake{}})
			if err != nil {
				t.Fatal(err)
			}
			if got := problemsOf(a.Status(), "journal"); len(got) != 1 || !strings.Contains(got[0], "agent.json.damaged") {
				t.Errorf("%q", got)
			}
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) != 1 || entries[0].Name() != "agent.json.damaged" {
				t.Errorf("%v, %v", entries, err)
			}
			a.journal.add(status.Run{Kind: status.Prune, Result: status.Succeeded, Started: time.Now()}, true)
			a.journal.write()
			if got := a.journal.trouble(); got != "" || openJournal(journalIn(dir)).lastSuccess(status.Prune).IsZero() {
				t.Errorf("writing afterwards: %q", got)
			}
		})
	}
}

func TestAJournalThatCantBeReadStopsNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, journalName, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	j := openJournal(journalIn(dir))
	if j.damaged == "" {
		t.Error("nothing was said")
	}
	j.add(status.Run{Kind: status.Full}, false)
	j.write()
	if len(j.runs()) != 1 {
		t.Error("the run is forgotten")
	}
}

// FuzzParseRecord: whatever lies there, an agent starts.
func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"format":1,"runs":[{"kind":"full"}],"lastSuccess":{"verify":"2026-01-01T00:00:00Z"}}`))
	f.Add([]byte(`{"format":1,"runs":null,"lastSuccess":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data)
		if err == nil && len(r.Runs) > status.MaxRuns {
			t.Errorf("%d runs", len(r.Runs))
		}
	})
}
