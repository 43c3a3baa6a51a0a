package plane

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/events"
	"lifeboat/restore/journal"
)

// killedAbort aborts, and ends when a listener is told of a point as a kill does: it
// leaves all as it is then.
func (w *world) killedAbort(at string) (killed bool) {
	w.t.Helper()
	folder, err := OpenJournals(filepath.Join(w.state, "restores"), time.Now)
	check(w.t, err)
	defer folder.Close()
	j, err := Unfinished(folder)
	check(w.t, err)
	defer func() {
		if r := recover(); r != nil {
			if r != errKilled {
				panic(r)
			}
			killed = true
		}
	}()
	check(w.t, Abort(w.t.Context(), j, w.machine, func(e events.Event) {
		point := ""
		switch e := e.(type) {
		case events.StageStarted:
			point = "begun " + e.Stage
		case events.StageDone:
			point = "did " + e.Stage
		}
		if point == at {
			panic(errKilled)
		}
	}))
	return false
}

// wantOld checks that a machine is as it was before the restore.
func (w *world) wantOld(before map[string]string) {
	w.t.Helper()
	after := w.tree()
	for name := range after { // folders of the restores' own
		if strings.HasPrefix(name, "var/lib/etcd/.lifeboat") {
			delete(after, name)
		}
	}
	if diff := cmp.Diff(before, after); diff != "" {
		w.t.Errorf("after the abort (-before +after):\n%.3000s", diff)
	}
	if !w.machine.running {
		w.t.Error("kubelet does not run")
	}
	w.wantNoKeys()
}

func TestAnAbortThatWasBegunCanOnlyBeFinished(t *testing.T) {
	for _, s := range []string{stepPods, stepStart, stepEtcd, stepFiles, stepFence, stepStop} {
		for _, at := range []string{"begun undo " + s, "did undo " + s} {
			t.Run(at, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				before := w.old()
				if err := w.run("begun " + stepBackup); !errors.Is(err, errKilled) {
					t.Fatalf("not killed: %v", err)
				}
				if !w.killedAbort(at) {
					t.Fatal("it did not come to that step")
				}
				story := len(w.machine.story)
				err := w.run("")
				if !errors.Is(err, ErrUnfinished) || !strings.Contains(err.Error(), "lifeboat restore abort") || len(w.machine.story) != story {
					t.Errorf("the same command: %v, did %v", err, w.machine.story[story:])
				}
				check(t, w.abort())
				w.wantOld(before)
			})
		}
	}
}

func TestARestoreThatIsKilledAsItBeginsGoesOnOrBack(t *testing.T) {
	for name, on := range map[string]bool{"on": true, "back": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			before := w.old()
			if err := w.run(pointBegun); !errors.Is(err, errKilled) {
				t.Fatalf("not killed: %v", err)
			}
			if staged, err := filepath.Glob(filepath.Join(w.state, "restores", "*", stagedName)); err != nil || len(staged) > 0 {
				t.Fatalf("it came to %v, %v", staged, err)
			}
			if on {
				check(t, w.run(""))
				w.wantRestored()
				return
			}
			check(t, w.abort())
			w.wantOld(before)
		})
	}
}

func TestARestoreThatIsKilledAsItEndsHasEndedOrGoesOn(t *testing.T) {
	w := newWorld(t)
	w.old()
	if err := w.run(pointAllDone); !errors.Is(err, errKilled) {
		t.Fatalf("not killed: %v", err)
	}
	story := len(w.machine.story)
	if err := w.run(pointEnded); !errors.Is(err, errKilled) {
		t.Fatalf("not killed: %v", err)
	}
	if len(w.machine.story) != story {
		t.Errorf("done again: %v", w.machine.story[story:])
	}
	if err := w.abort(); err == nil || !strings.Contains(err.Error(), "nothing is unfinished") {
		t.Errorf("an abort after the end: %v", err)
	}
	w.wantRestored() // and no keys are left
}

func TestStagedKeysGoWithTheRestoreWhoeverOpensTheFolderNext(t *testing.T) {
	w := newWorld(t)
	place := filepath.Join(w.state, "restores")
	begin := func(id string, how journal.Outcome) string {
		f, err := OpenJournals(place, w.options().Now)
		check(t, err)
		defer f.Close()
		j, err := f.Begin(id, w.order)
		check(t, err)
		if how != journal.UnderWay {
			check(t, j.End(how))
		}
		key := filepath.Join(j.Dir(), stagedName, "ca.key")
		check(t, os.MkdirAll(filepath.Dir(key), 0o700))
		check(t, os.WriteFile(key, []byte("secret"), 0o600))
		return key
	}
	done, aborted, open, damaged := begin("done", journal.Done), begin("aborted", journal.Aborted), begin("open", journal.UnderWay), begin("damaged", journal.Done)
	check(t, os.WriteFile(filepath.Join(place, "damaged", journal.FileName), []byte("{"), 0o600))
	f, err := OpenJournals(place, w.options().Now)
	check(t, err)
	check(t, f.Close())
	for key, stays := range map[string]bool{done: false, aborted: false, open: true, damaged: true} {
		if _, err := os.Stat(key); (err == nil) != stays {
			t.Errorf("%s: %v", key, err)
		}
	}
}
