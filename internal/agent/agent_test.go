package agent

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

// shelfInMemory is a journal's place that can fail.
type shelfInMemory struct {
	mu   sync.Mutex
	kept *record
	err  error
}

func (s *shelfInMemory) load() (record, error) {
	if s.kept == nil {
		return record{}, fs.ErrNotExist
	}
	return *s.kept, nil
}

func (s *shelfInMemory) save(r record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.kept = &r
	}
	return s.err
}

func (s *shelfInMemory) setAside() error { return nil }

func TestAnAgentStartsWithEverythingDownAndSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("connection refused")
		f := &fake{
			picture: func() (*Picture, error) {
				time.Sleep(time.Second)
				return &Picture{Stores: []StorePicture{{URL: "s3://a", Err: down}}}, nil
			},
			standing: func() (*Standing, error) { return nil, down },
			full:     func(context.Context) (*Outcome, error) { return nil, Because(status.StoreDown, down) },
		}
		a, stop := started(t, Options{Config: testConfig(t), Works: f})
		if s := a.Status(); s.Loaded || s.Chains == nil || s.Runs == nil || s.Problems == nil || s.Certificates == nil {
			t.Errorf("before the first look: %+v", s)
		}
		time.Sleep(time.Minute)
		s := a.Status()
		if !s.Loaded || len(s.Stores) != 1 || s.Stores[0].Error == "" || !s.Stores[0].Answered.IsZero() {
			t.Errorf("stores: %+v", s.Stores)
		}
		if got := problemsOf(s, "s3://a"); len(got) != 1 || !strings.HasPrefix(got[0], "critical: does not answer") {
			t.Errorf("about the store: %q", got)
		}
		if got := problemsOf(s, "etcd/main"); !slices.Contains(got, "critical: no store has told yet what it holds") {
			t.Errorf("about the chain: %q", got)
		}
		if got := problemsOf(s, "full etcd/main"); len(got) != 1 || !strings.Contains(got[0], "connection refused") {
			t.Errorf("about the job: %q", got)
		}
		if len(s.Runs) == 0 || s.Runs[0].Reason != status.StoreDown || s.Runs[0].Result != status.Failed {
			t.Errorf("runs: %+v", s.Runs)
		}
		time.Sleep(23 * time.Hour)
		if n := f.count("full main"); n < 30 || n > 45 { // 30 s, 1 min, ... 45 min
			t.Errorf("%d attempts within a day", n)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestAPanicIsAFailedRunAndNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard []string
		f := &fake{}
		f.full = func(context.Context) (*Outcome, error) {
			if f.count("full main") == 1 {
				panic("index out of range")
			}
			return &Outcome{Created: time.Now()}, nil
		}
		a, stop := started(t, Options{Config: testConfig(t), Works: f, Events: func(e events.Event) {
			if w, ok := e.(events.Warning); ok {
				heard = append(heard, w.Message)
			}
		}})
		time.Sleep(time.Hour / 2)
		runs := a.Status().Runs
		failed := runs[len(runs)-1]
		if failed.Result != status.Failed || failed.Message != "panic: index out of range" || runs[0].Result != status.Succeeded {
			t.Errorf("%+v", runs)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		if len(heard) == 0 || !strings.Contains(heard[0], "agent_test.go") {
			t.Errorf("no stack was told: %q", heard)
		}
	})
}

func TestWorkThatDoesNotStopIsToldAndNeverJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		f := &fake{full: func(context.Context) (*Outcome, error) { <-free; return &Outcome{Created: time.Now()}, nil }}
		a, stop := started(t, Options{Config: testConfig(t), Works: f})
		time.Sleep(20 * time.Hour)
		s := a.Status()
		if n := f.count("full main"); n != 1 {
			t.Errorf("%d runs", n)
		}
		if len(s.Runs) != 1 || s.Runs[0].Reason != status.Timeout || s.Runs[0].Duration > time.Hour+time.Minute {
			t.Errorf("%+v", s.Runs)
		}
		if got := problemsOf(s, "full etcd/main"); len(got) != 2 || !strings.HasPrefix(got[0], "critical: a run did not stop") {
			t.Errorf("%q", got)
		}
		if err := stop(); err == nil || err.Error() != "full etcd/main did not stop when told to" {
			t.Errorf("Run: %v", err)
		}
		close(free)
	})
}

func TestALookThatHangsStopsNoBackup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		f := &fake{picture: func() (*Picture, error) { <-free; return nil, errors.New("late") }}
		a, stop := started(t, Options{Config: testConfig(t), Works: f})
		time.Sleep(13 * time.Hour)
		if n := f.count("full main"); n < 2 || n > 4 { // one at the start and one a slot
			t.Errorf("%d fulls", n)
		}
		if n := f.count("look"); n != 1 {
			t.Errorf("%d looks at once", n)
		}
		if s := a.Status(); s.Loaded || len(problemsOf(s, "stores")) != 1 {
			t.Errorf("loaded %v, %+v", s.Loaded, s.Problems)
		}
		close(free)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestAnInterruptedRunIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{full: func(ctx context.Context) (*Outcome, error) { <-ctx.Done(); return nil, ctx.Err() }}
		a, stop := started(t, Options{Config: testConfig(t), Works: f})
		time.Sleep(time.Minute)
		if err := stop(); err != nil {
			t.Error(err)
		}
		s := a.Status()
		if len(s.Runs) != 1 || s.Runs[0].Reason != status.Interrupted || len(problemsOf(s, "full etcd/main")) != 0 {
			t.Errorf("%+v, %+v", s.Runs, s.Problems)
		}
	})
}

func TestABackupThatIsNotInTheStoreIsTakenAgainByAndBy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{} // says that it succeeds, and its store stays empty
		a, stop := started(t, Options{Config: testConfig(t), Works: f})
		time.Sleep(6 * time.Hour)
		if n := f.count("full main"); n < 8 || n > 20 { // as after failures
			t.Errorf("%d fulls", n)
		}
		if got := problemsOf(a.Status(), "etcd/main"); !slices.Contains(got, "critical: there is no backup at all") {
			t.Errorf("%q", got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestAReloadChangesJobsAndLeavesRunsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended atomic.Value
		ended.Store("")
		f := &fake{full: func(ctx context.Context) (*Outcome, error) {
			select {
			case <-time.After(10 * time.Minute):
				ended.Store("by itself")
			case <-ctx.Done():
				ended.Store("cancelled")
			}
			return &Outcome{Created: time.Now()}, nil
		}}
		old := testConfig(t)
		a, stop := started(t, Options{Config: old, Works: f})
		time.Sleep(time.Minute)

		fresh := *old
		fresh.Etcd = []config.Etcd{{Name: "events"}}
		fresh.Schedule.Files = "@every 1h"
		f.reload = errors.New("no such key")
		if err := a.Reload(t.Context(), &fresh); err == nil {
			t.Error("a bad configuration was taken")
		}
		if got := problemsOf(a.Status(), "configuration"); len(got) != 1 || !strings.Contains(got[0], "no such key") {
			t.Errorf("%q", got)
		}
		f.reload = nil
		if err := a.Reload(t.Context(), &fresh); err != nil {
			t.Fatal(err)
		}
		if ended.Load() != "" {
			t.Errorf("the running full ended %s", ended.Load())
		}
		time.Sleep(30 * time.Minute)
		if ended.Load() != "by itself" || f.count("full main") != 1 || f.count("full events") == 0 || f.count("files") == 0 {
			t.Errorf("ended %q, calls %v", ended.Load(), f.calls)
		}
		var jobs []string
		for _, j := range a.Status().Jobs {
			jobs = append(jobs, string(j.Kind)+" "+j.Target)
		}
		if want := []string{"full etcd/events", "files hosts/cp1"}; !slices.Equal(jobs, want) {
			t.Errorf("%q, want %q", jobs, want)
		}
		if got := problemsOf(a.Status(), "configuration"); len(got) != 0 {
			t.Errorf("%q", got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestAJobThatIsDroppedAndTakenUpAgainNeverRunsTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running, most := 0, 0
		var mu sync.Mutex
		f := &fake{full: func(ctx context.Context) (*Outcome, error) {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			select {
			case <-time.After(20 * time.Minute):
			case <-ctx.Done():
			}
			mu.Lock()
			running--
			mu.Unlock()
			return &Outcome{Created: time.Now()}, nil
		}}
		with := testConfig(t)
		without := *with
		without.Etcd = nil
		a, stop := started(t, Options{Config: with, Works: f})
		for i := range 60 {
			time.Sleep(time.Minute)
			if err := a.Reload(t.Context(), []*config.Config{&without, with}[i%2]); err != nil {
				t.Fatal(err)
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if most != 1 {
			t.Errorf("%d runs at once", most)
		}
	})
}

func TestOnlyTheStewardPrunesAndVerifiesAll(t *testing.T) {
	for node, want := range map[string]struct {
		prunes int
		chains []manifest.Chain
	}{
		"cp1": {1, []manifest.Chain{"etcd/main", "hosts/cp1", "hosts/cp2"}},
		"cp2": {0, []manifest.Chain{"hosts/cp2"}},
	} {
		t.Run(node, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				now := time.Now()
				var verified []manifest.Chain
				f := &fake{
					picture: func() (*Picture, error) {
						return &Picture{Stores: []StorePicture{holding("s3://a", map[manifest.Chain]time.Time{"etcd/main": now, "hosts/cp1": now, "hosts/cp2": now})}}, nil
					},
					verify: func(chains []manifest.Chain) (*Outcome, error) { verified = chains; return &Outcome{}, nil },
				}
				c := testConfig(t)
				c.Node = node
				c.Schedule = config.Schedule{Verify: "30 4 * * *", Prune: "45 4 * * *"}
				a, stop := started(t, Options{Config: c, Works: f})
				time.Sleep(time.Hour)
				synctest.Wait()
				if f.count("prune") != want.prunes || !slices.Equal(verified, want.chains) {
					t.Errorf("%d prunes, verified %v", f.count("prune"), verified)
				}
				if j := a.Status().Jobs[1]; want.prunes == 0 && (j.Why != "cp1 prunes" || !j.Due.IsZero()) {
					t.Errorf("%+v", j)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestADegradedFullLeavesTheSlotOpenForWhoHasQuorum(t *testing.T) {
	for name, c := range map[string]struct {
		quorum bool
		fulls  int
	}{"with quorum it is taken again": {true, 1}, "without it is good enough": {false, 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				now := time.Now()
				in := status.InStore{Head: 7, Newest: now, NewestWhole: now.Add(-7 * time.Hour), Valid: true}
				f := &fake{standing: func() (*Standing, error) { return &Standing{Quorum: c.quorum}, nil }}
				f.picture = func() (*Picture, error) {
					return &Picture{Stores: []StorePicture{{URL: "s3://a", Chains: map[manifest.Chain]status.InStore{"etcd/main": in}}}}, nil
				}
				f.full = func(context.Context) (*Outcome, error) { // its own is degraded too, and counts
					in.Head++
					in.Newest = time.Now()
					return &Outcome{Created: in.Newest, Degraded: []string{"NOSPACE"}}, nil
				}
				_, stop := started(t, Options{Config: testConfig(t), Works: f})
				time.Sleep(5 * time.Hour)
				if n := f.count("full main"); n != c.fulls {
					t.Errorf("%d fulls, want %d", n, c.fulls)
				}
				if n := f.count("standing"); n > 70 {
					t.Errorf("etcd was asked %d times", n)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestAFullDiskStopsNoBackup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shelf := &shelfInMemory{err: errors.New("no space left on device")}
		var newest atomic.Pointer[time.Time]
		take := func() time.Time { now := time.Now(); newest.Store(&now); return now }
		take()
		f := &fake{}
		f.picture = func() (*Picture, error) {
			return &Picture{Stores: []StorePicture{holding("s3://a", map[manifest.Chain]time.Time{"etcd/main": *newest.Load()})}}, nil
		}
		f.full = func(context.Context) (*Outcome, error) { return &Outcome{Created: take()}, nil }
		a, err := newAgent(Options{Config: testConfig(t), Works: f}, shelf)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		time.Sleep(25 * time.Hour)
		if n := f.count("full main"); n != 4 {
			t.Errorf("%d fulls", n)
		}
		if got := problemsOf(a.Status(), "journal"); len(got) != 1 || !strings.Contains(got[0], "no space left") {
			t.Errorf("%q", got)
		}
		shelf.mu.Lock()
		shelf.err = nil
		shelf.mu.Unlock()
		time.Sleep(10 * time.Minute)
		if got := problemsOf(a.Status(), "journal"); len(got) != 0 {
			t.Errorf("when there is room again: %q", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if shelf.kept == nil || len(shelf.kept.Runs) != 4 {
			t.Errorf("kept %+v", shelf.kept)
		}
	})
}
