package backup_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lifeboat/backup"
	"lifeboat/backup/etcd"
	"lifeboat/internal/etcdtest"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/events"
	"lifeboat/storage/memory"
)

func TestAFullThatAnotherOvertookIsDroppedUnlessAPersonAskedForIt(t *testing.T) {
	live := cluster.StartBinary(t, "3.6", cluster.Options{})
	if _, err := etcdtest.Fill(t.Context(), live.Client(), etcdtest.FillOptions{Objects: 50}); err != nil {
		t.Fatal(err)
	}
	config := etcd.Config{Name: "main", Endpoints: live.Endpoints()}
	limits := etcd.Limits{Call: 5 * time.Second, MaxStall: time.Second}
	for name, test := range map[string]struct {
		unattended bool
		lags       bool // one store missed what the other agent took
		commits    int  // stores that take ours
		overtaken  bool
	}{
		"an agent's":                           {true, false, 0, true},
		"an agent's, where a store misses one": {true, true, 1, false},
		"a person's":                           {false, false, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a, b := memory.New(), memory.New()
			slow, quick := w.runner(t, a, b), w.runner(t, a, b)
			slow.Unattended, slow.MinStores = test.unattended, 1
			if test.lags {
				quick = w.runner(t, a)
			}
			// The other agent takes its own while ours is between capture and commit.
			var done atomic.Bool
			w.events.hook = func(e events.Event) {
				if stage, ok := e.(events.StageDone); ok && stage.Stage == "seal" && done.CompareAndSwap(false, true) {
					if result, err := quick.Etcd(context.Background(), config, limits); err != nil || result.Overtaken {
						t.Errorf("the quick one: %+v, %v", result, err)
					}
				}
			}
			result, err := slow.Etcd(t.Context(), config, limits)
			if err != nil {
				t.Fatal(err)
			}
			commits := 0
			for _, c := range result.Commits {
				if c.Err == nil {
					commits++
				} else if !errors.Is(c.Err, backup.ErrOvertaken) {
					t.Error(c.Err)
				}
			}
			if commits != test.commits || result.Overtaken != test.overtaken || (result.Manifest == nil) != test.overtaken {
				t.Errorf("%d stores took it, overtaken %v, manifest %v", commits, result.Overtaken, result.Manifest)
			}
			if told := w.events.all(); strings.Contains(told, "overtaken") {
				t.Errorf("told as a failure: %s", told)
			}
			for _, b := range w.backups(t, a) {
				if b.Epoch != 1 {
					t.Errorf("backup %s is of epoch %d", b.ID, b.Epoch)
				}
			}
			w.verified(t, a)
			w.verified(t, b)
		})
	}
}

// A full that was taken while a clock was a year ahead is no newer than any of
// that year.
func TestAFullFromTheFutureOvertakesNothing(t *testing.T) {
	live := cluster.StartBinary(t, "3.6", cluster.Options{})
	config := etcd.Config{Name: "main", Endpoints: live.Endpoints()}
	limits := etcd.Limits{Call: 5 * time.Second, MaxStall: time.Second}
	w, store := newWorld(t), memory.New()
	wrong := w.runner(t, store)
	wrong.Now = func() time.Time { return time.Now().AddDate(1, 0, 0) }
	if _, err := wrong.Etcd(t.Context(), config, limits); err != nil {
		t.Fatal(err)
	}
	right := w.runner(t, store)
	right.Unattended = true
	result, err := right.Etcd(t.Context(), config, limits)
	if err != nil || result.Overtaken || result.Manifest == nil {
		t.Errorf("%+v, %v", result, err)
	}
	w.verified(t, store)
}

// The survey's callers wait once for all members that are gone.
func TestDeadMembersCostOneCallTogether(t *testing.T) {
	live := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3})
	live.Pause(1)
	live.Pause(2) // they take connections and answer nothing
	defer live.Resume(1)
	defer live.Resume(2)
	const call = 3 * time.Second
	c, err := etcd.Open(etcd.Config{Name: "main", Endpoints: live.Endpoints()}, etcd.Limits{Call: call}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	start := time.Now()
	survey, err := c.Survey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// One round for the states, one for the linearizable read; each member by
	// itself would make it four.
	if took := time.Since(start); took >= 4*call {
		t.Errorf("it took %s", took)
	}
	if survey.FloorErr == nil || len(survey.Members) != 3 {
		t.Errorf("%+v", survey)
	}
}
