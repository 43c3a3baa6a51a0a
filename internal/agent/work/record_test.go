package work

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"lifeboat/backup/record"
	"lifeboat/internal/agent"
	"lifeboat/internal/config"
	"lifeboat/internal/etcdtest"
	"lifeboat/internal/status"
)

func TestNoRecoveryPointOfAnEarlierRecorderLiesInTheFuture(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for _, before := range []time.Duration{-time.Minute, time.Hour} {
		counted := map[string]status.RecorderStore{"s": {Store: "s", RecoveryPoint: now.Add(before)}}
		told := recorderStatus(record.Status{Stores: []record.StoreStatus{{URL: "s"}}}, counted, now)
		if want := now.Add(min(before, 0)); !told.Stores[0].RecoveryPoint.Equal(want) {
			t.Errorf("%s, want %s", told.Stores[0].RecoveryPoint, want)
		}
	}
}

// recorded is a Record that runs, as an agent would run it.
type recorded struct {
	*Work
	t    *testing.T
	done chan error
	stop context.CancelFunc

	mu    sync.Mutex
	told  status.Recorder
	asked int
}

func (w *world) record(c *config.Config) *recorded {
	w.t.Helper()
	r := &recorded{t: w.t, done: make(chan error, 1)}
	r.Work = New(Options{Config: c, Rand: rand.Reader, Version: "test", Events: w.listen, Now: time.Now})
	r.checkEvery = 200 * time.Millisecond
	ctx, cancel := context.WithCancel(w.t.Context())
	r.stop = cancel
	var fulls sync.Mutex
	hooks := agent.Recording{
		Rank: func() int { return 0 },
		AskFull: func(string) {
			r.mu.Lock()
			r.asked++
			r.mu.Unlock()
			go func() {
				if !fulls.TryLock() {
					return
				}
				defer fulls.Unlock()
				if _, err := r.Full(ctx, "main"); err != nil && ctx.Err() == nil {
					w.t.Error(err)
				}
			}()
		},
		Report: func(s status.Recorder) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.told = s
		},
	}
	go func() { r.done <- r.Record(ctx, "main", hooks) }()
	return r
}

func (r *recorded) until(what string, is func(status.Recorder) bool) status.Recorder {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		r.mu.Lock()
		told := r.told
		r.mu.Unlock()
		if is(told) {
			return told
		}
		if time.Now().After(end) {
			r.t.Fatalf("never %s: %+v", what, told)
		}
	}
}

func TestTheAgentRecordsAndBeginsAnewWithRenewedKeysAndStores(t *testing.T) {
	w := newWorld(t)
	m, err := etcdtest.StartEmbedded(filepath.Join(w.dir, "etcd"), etcdtest.EmbeddedOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	client, err := m.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	put := func(n int) (revision int64) {
		for i := range n {
			answer, err := client.Put(t.Context(), fmt.Sprint("k", i), "v")
			if err != nil {
				t.Fatal(err)
			}
			revision = answer.Header.Revision
		}
		return revision
	}
	put(20)
	c := *w.config
	c.Etcd = []config.Etcd{{Name: "main", Endpoints: []string{m.Endpoint}}}
	c.Segments.Interval = config.Duration(200 * time.Millisecond)
	late := filepath.Join(w.dir, "late") // a file where a store's folder will be
	if err := os.WriteFile(late, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Stores = append(c.Stores, config.DefaultStore("file://"+filepath.Join(late, "store")))
	r := w.record(&c)

	// With no full there, it asks for one and goes on from it.
	r.until("records", func(s status.Recorder) bool { return s.Active && s.Stores[0].Revision >= 21 })
	last := put(30)
	told := r.until("has the changes in a store", func(s status.Recorder) bool { return s.Stores[0].Revision == last })
	if told.Stores[0].Segments == 0 || told.Stores[0].Epoch != 1 || told.SpoolLimit == 0 || told.Stores[1].Error == "" || r.asked == 0 {
		t.Errorf("%+v, asked %d times", told, r.asked)
	}

	// A key that was renewed, and a store that answers again.
	segments := told.Stores[0].Segments
	if err := os.Chtimes(c.Signing.KeyFile, time.Time{}, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(late); err != nil {
		t.Fatal(err)
	}
	last = put(30)
	told = r.until("goes on, in both stores", func(s status.Recorder) bool {
		return len(s.Stores) == 2 && s.Stores[0].Revision == last && s.Stores[1].Revision == last && s.Stores[1].Error == ""
	})
	if told.Stores[0].Segments <= segments {
		t.Errorf("what was committed before is forgotten: %+v", told)
	}
	r.stop()
	select {
	case err := <-r.done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it does not stop")
	}
	if _, err := os.Stat(filepath.Join(c.StateDir, "spool")); err != nil {
		t.Error(err)
	}
}
