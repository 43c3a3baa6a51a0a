package files

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestARestoreAndItsUndoCanBeKilledBeforeEveryChange kills the restore before
// every change, and the undo of each such part before each of its own.
func TestARestoreAndItsUndoCanBeKilledBeforeEveryChange(t *testing.T) {
	for _, place := range places {
		t.Run("aside on the "+place, func(t *testing.T) {
			t.Parallel()
			total, err := newMachine(t, place).apply(0)
			if err != nil || total < 15 {
				t.Fatalf("%d steps, %v", total, err)
			}
			for n := 1; n <= total+1; n++ {
				for k := 1; ; k++ {
					m := newMachine(t, place)
					if _, err := m.apply(n); (err == nil) != (n == total+1) {
						t.Fatalf("stop %d of the restore: %v", n, err)
					}
					_, _, err := m.undo(k)
					if err != nil && !errors.Is(err, errKilled) {
						t.Fatalf("stop %d of the restore, %d of its undo: %v", n, k, err)
					}
					if err == nil {
						m.mustBeAsBefore(fmt.Sprintf("stop %d of the restore, then undone in %d steps", n, k-1))
						break
					}
					nothingLost(t, m.root, m.aside, err.Error())
					m.mustUndo()
					m.mustBeAsBefore(fmt.Sprintf("stop %d of the restore, %d of its undo, then undone", n, k))
					if t.Failed() {
						return
					}
				}
			}
		})
	}
}

// undoRun is what a child process is told to undo.
type undoRun struct {
	Root, Aside string
	Before      Before
}

// undoingChild undoes slowly enough to be hit.
func undoingChild(text string) error {
	var run undoRun
	if err := json.Unmarshal([]byte(text), &run); err != nil {
		return err
	}
	fmt.Println("prepared")
	_, err := undo(context.Background(), run.Root, run.Aside, "r1", run.Before, func(string, string) error {
		time.Sleep(time.Millisecond)
		return nil
	})
	return err
}

// TestAnUndoSurvivesKill9 kills the real process at random moments.
func TestAnUndoSurvivesKill9(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for i := range 12 {
		m := newMachine(t, places[i%2])
		m.mustApply()
		text, err := json.Marshal(undoRun{Root: m.root, Aside: m.aside, Before: m.before})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "LIFEBOAT_TEST_UNDO="+string(text))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("prepared"))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(1+random.IntN(25)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed, or done already
		nothingLost(t, m.root, m.aside, "killed")
		m.mustUndo()
		m.mustBeAsBefore("killed, then undone")
	}
}

func TestTheFirstBeforeCountsWhenAnInterruptedRestoreIsGoneOnWith(t *testing.T) {
	for _, place := range places {
		t.Run("aside on the "+place, func(t *testing.T) {
			total, _ := newMachine(t, place).apply(0)
			for n := 1; n <= total; n++ {
				m := newMachine(t, place)
				if _, err := m.apply(n); !errors.Is(err, errKilled) {
					t.Fatal(err)
				}
				m.mustApply()
				m.mustUndo()
				m.mustBeAsBefore(fmt.Sprintf("stopped at %d, gone on with and undone", n))
			}
		})
	}
}
