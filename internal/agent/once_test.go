package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

func TestADeadStoreStopsNoBackupToTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Hour)
		var mu sync.Mutex
		dead := false
		newest := map[string]time.Time{}
		urls := []string{"s3://a", "s3://b"}
		f := &fake{}
		f.picture = func() (*Picture, error) {
			mu.Lock()
			defer mu.Unlock()
			p := &Picture{}
			for _, url := range urls {
				store := StorePicture{URL: url, Chains: map[manifest.Chain]status.InStore{}}
				if at, any := newest[url]; any {
					store = holding(url, map[manifest.Chain]time.Time{"etcd/main": at})
				}
				if dead && url == "s3://b" {
					store = StorePicture{URL: url, Err: errors.New("connection refused")}
				}
				p.Stores = append(p.Stores, store)
			}
			return p, nil
		}
		f.full = func(context.Context) (*Outcome, error) {
			mu.Lock()
			defer mu.Unlock()
			did := &Outcome{Created: time.Now()}
			newest["s3://a"] = did.Created
			if dead {
				return did, Because(status.StoreDown, errors.New("in 1 of 2"))
			}
			newest["s3://b"] = did.Created
			return did, nil
		}
		kill := func(yes bool) {
			mu.Lock()
			defer mu.Unlock()
			dead = yes
		}
		c := testConfig(t)
		c.MinStores, c.Stores = 2, append(c.Stores, config.DefaultStore("s3://b"))
		a, stop := started(t, Options{Config: c, Works: f})
		for _, step := range []struct {
			name  string
			dead  bool
			until time.Duration // of the day
			fulls int
		}{
			{"the first, and one at 6:00", false, 7 * time.Hour, 2},
			{"one in each slot, tried once, since nobody can do better", true, 19 * time.Hour, 4},
			{"one as soon as the store is back", false, 20 * time.Hour, 5},
			{"and as before", false, 25 * time.Hour, 6},
		} {
			kill(step.dead)
			time.Sleep(time.Until(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(step.until)))
			if n := f.count("full main"); n != step.fulls {
				t.Errorf("%s: %d fulls, want %d", step.name, n, step.fulls)
			}
			s := a.Status()
			if got := problemsOf(s, "s3://b"); (len(got) > 0) != step.dead {
				t.Errorf("%s: problems %q", step.name, got)
			}
			if got := problemsOf(s, "full etcd/main"); step.dead && (len(got) != 1 || !strings.Contains(got[0], "in 1 of 2")) {
				t.Errorf("%s: problems %q", step.name, got)
			}
			if got := problemsOf(s, "etcd/main"); step.dead && !slices.Contains(got, "critical: fewer than 2 stores hold a backup that is in time") {
				t.Errorf("%s: problems %q", step.name, got)
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestOnceServesWhatIsDueAndWaitsForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		stored := map[manifest.Chain]time.Time{"etcd/main": now.Add(-time.Minute)}
		f := &fake{
			picture:  func() (*Picture, error) { return &Picture{Stores: []StorePicture{holding("s3://a", stored)}}, nil },
			standing: func() (*Standing, error) { return &Standing{Rank: 4, Quorum: true, First: "cp9"}, nil },
		}
		c := testConfig(t)
		c.Schedule.Files, c.Schedule.Verify, c.Schedule.Jitter = "@every 1h", "@every 1h", 10
		once := func() error {
			a, err := newAgent(Options{Config: c, Works: f}, &shelfInMemory{})
			if err != nil {
				t.Fatal(err)
			}
			return a.Once(t.Context())
		}
		// The 00:00 slot of the bubble's first day lies between the full and now.
		if err := once(); err != nil {
			t.Error(err)
		}
		if f.count("full main") != 1 || f.count("files") != 1 || f.count("verify") != 1 {
			t.Errorf("calls %v", f.calls)
		}
		stored["etcd/main"] = now
		f.files = func(context.Context) (*Outcome, error) { return nil, errors.New("permission denied") }
		if err := once(); err == nil || !strings.Contains(err.Error(), "files hosts/cp1: permission denied") {
			t.Errorf("error %v", err)
		}
		if f.count("full main") != 1 {
			t.Errorf("a slot that was served is served again: %v", f.calls)
		}
		if time.Since(now) > time.Minute {
			t.Errorf("it took %s", time.Since(now))
		}
	})
}

// A timer starts nothing while the last start has not ended.
func TestOnceDoesNotWaitForWorkThatDoesNotStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		f := &fake{full: func(context.Context) (*Outcome, error) { <-free; return nil, nil }}
		c := testConfig(t)
		c.Schedule.Files = "@every 1h"
		a, err := newAgent(Options{Config: c, Works: f}, &shelfInMemory{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		began := time.Now()
		if err := a.Once(ctx); !errors.Is(err, errStuck) || ctx.Err() != nil {
			t.Errorf("error %v", err)
		}
		if took := time.Since(began); took > 2*time.Hour || f.count("files") != 1 {
			t.Errorf("it took %s, calls %v", took, f.calls)
		}
		close(free)
	})
}

func TestOnceDoesNotWaitForATimeThatIsWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		newest := time.Now().AddDate(10, 0, 0)
		f := &fake{picture: func() (*Picture, error) {
			return &Picture{Stores: []StorePicture{holding("s3://a", map[manifest.Chain]time.Time{"etcd/main": newest})}}, nil
		}}
		once := func() {
			t.Helper()
			a, err := newAgent(Options{Config: testConfig(t), Works: f}, &shelfInMemory{})
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Once(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if once(); f.count("full main") != 1 {
			t.Errorf("%d fulls, since the newest is of a time to come", f.count("full main"))
		}
		newest = time.Now().Add(time.Minute) // clocks differ a little
		if once(); f.count("full main") != 1 {
			t.Errorf("%d fulls", f.count("full main"))
		}
	})
}

func TestOneRunOfAKindAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, most atomic.Int32
		hang := make(chan struct{})
		var hung atomic.Bool
		f := &fake{full: func(ctx context.Context) (*Outcome, error) {
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			if hung.CompareAndSwap(false, true) { // and holds up the other until its deadline, no longer
				<-hang
			}
			time.Sleep(time.Minute)
			return &Outcome{Created: time.Now()}, nil
		}}
		c := testConfig(t)
		c.Etcd = []config.Etcd{{Name: "main"}, {Name: "events"}}
		a, stop := started(t, Options{Config: c, Works: f})
		time.Sleep(deadlines[status.Full])
		if f.count("full main")+f.count("full events") != 1 || most.Load() != 1 {
			t.Errorf("while one hangs: calls %v, %d at once", f.calls, most.Load())
		}
		time.Sleep(10 * time.Minute)
		if n := f.count("full main") + f.count("full events"); n < 2 || f.count("full main") == 0 || f.count("full events") == 0 {
			t.Errorf("after the deadline: calls %v", f.calls)
		}
		most.Store(1)
		close(hang)
		time.Sleep(time.Hour)
		if most.Load() != 1 {
			t.Errorf("%d at once", most.Load())
		}
		if got := a.Status().Jobs; len(got) != 2 || got[0].Running && got[1].Running {
			t.Errorf("%+v", got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
