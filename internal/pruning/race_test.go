package pruning

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/retention"
	"lifeboat/internal/s3test"
	"lifeboat/storage"
	"lifeboat/storage/local"
	"lifeboat/storage/s3"
)

func TestPrunersWritersAndReadersGetAlongInAFolder(t *testing.T) {
	store, err := local.New(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	crowd(t, store, 100)
}

func TestPrunersWritersAndReadersGetAlongOnARealS3(t *testing.T) {
	server := s3test.Start(t, s3test.Options{Versioning: true})
	server.Setenv(t)
	store, err := s3.New(t.Context(), s3.Config{Bucket: server.Bucket, Prefix: "backups", Endpoint: server.Endpoint})
	if err != nil {
		t.Fatal(err)
	}
	crowd(t, store, 30)
}

// ledger is what the crowd knows to be true.
type ledger struct {
	mu        sync.Mutex
	committed map[manifest.ID]bool // acknowledged to a writer
	removed   map[manifest.ID]bool // by a prune manifest that its pruner saw committed
	gaveUp    int
	reads     int
	swept     int
}

// crowd lets writers, pruners and readers work on one chain at once while days
// go by, until so many backups were tried. Then every backup that a writer was
// told of is there and whole, or was removed by a prune; and nothing else is.
func crowd(t *testing.T, inner storage.Store, tries int) {
	w := newWorld(t, inner)
	l := &ledger{committed: map[manifest.ID]bool{}, removed: map[manifest.ID]bool{}}
	if err := w.open().Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	work := make(chan int)
	ctx, done := context.WithCancel(t.Context())
	var writers, others sync.WaitGroup
	for range 3 {
		writers.Go(func() {
			for n := range work {
				l.write(t, w, n)
			}
		})
	}
	for range 2 {
		others.Go(func() {
			for ctx.Err() == nil {
				l.prune(t, w)
			}
		})
		others.Go(func() {
			for ctx.Err() == nil {
				l.restore(t, w)
			}
		})
	}
	for n := 0; n < tries || n < 20*tries && !l.enough(tries); n++ {
		work <- n
		w.forward(time.Duration(5+rand.IntN(10)) * time.Minute)
		if n%20 == 19 {
			w.forward(26 * time.Hour)
		}
	}
	close(work)
	writers.Wait()
	done()
	others.Wait()
	l.settle(t, w)
	t.Logf("%d committed, %d gave up, %d removed, %d objects swept, %d reads", len(l.committed), l.gaveUp, len(l.removed), l.swept, l.reads)
	if !l.enough(tries) {
		t.Error("too little happened to show anything")
	}
}

// enough reports whether each of the crowd got something done: on a busy machine
// one of them may have had no turn for long.
func (l *ledger) enough(tries int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.committed) >= tries/4 && len(l.removed) > 0 && l.reads > 0 && l.swept > 0
}

// write makes one backup. Some writers fall asleep before their commit, and
// some are killed.
func (l *ledger) write(t *testing.T, w *world, n int) {
	repo := w.open()
	m, body := w.draft(etcdMain)
	if err := repo.PutObject(t.Context(), m.Objects[0].Name, strings.NewReader(body), time.Time{}); err != nil {
		t.Error(err)
		return
	}
	switch n % 7 {
	case 3:
		return
	case 5:
		time.Sleep(50 * time.Millisecond)
	}
	_, err := repo.Commit(t.Context(), m)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.committed[m.ID] = true
	case errors.Is(err, repository.ErrTooOld), errors.Is(err, repository.ErrSuperseded), strings.Contains(err.Error(), "is not in the store"):
		l.gaveUp++
	default:
		t.Errorf("commit: %v", err)
	}
}

func (l *ledger) prune(t *testing.T, w *world) {
	report, err := Run(t.Context(), w.open(), Options{Policy: retention.Policy{Hourly: 3, Daily: 2, Minimum: 2, PointInTime: 6 * time.Hour}})
	if err != nil && !errors.Is(err, repository.ErrTooOld) && !errors.Is(err, repository.ErrStale) { // a pruner that slept gives up as a writer does
		t.Errorf("prune: %v", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, chain := range report.Chains {
		if chain.Committed == 0 {
			continue
		}
		for _, b := range chain.Backups {
			if !b.Keep {
				l.removed[manifest.ID(b.ID)] = true
			}
		}
	}
	if report.Swept != nil {
		l.swept += report.Swept.Objects
	}
}

// restore picks a backup that is listed and reads it slowly. As long as it is
// faster than the grace that prunes give, it reads all of it.
func (l *ledger) restore(t *testing.T, w *world) {
	repo := w.open()
	began := w.now()
	backups, problems, err := repo.Backups(t.Context())
	if err != nil || len(repository.Failures(problems)) > 0 {
		t.Errorf("list: %v, %v", err, problems)
		return
	}
	if len(backups) == 0 {
		return
	}
	b := backups[rand.IntN(len(backups))]
	time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
	err = fetch(t.Context(), w.store, b.Manifest)
	if slow := w.now().Sub(began) >= repository.ObjectGrace; err != nil && !slow {
		t.Errorf("read %s, %s after it was listed: %v", b.ID, w.now().Sub(began), err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
}

// settle compares the store with the ledger once all is quiet.
func (l *ledger) settle(t *testing.T, w *world) {
	listed := w.listed()
	for id := range l.committed {
		if _, there := listed[id]; there == l.removed[id] {
			t.Errorf("backup %s: listed %t, removed by a prune %t", id, there, l.removed[id])
		}
	}
	for id, b := range listed {
		if !l.committed[id] {
			t.Errorf("backup %s is listed, and no writer was told so", id)
		}
		if err := fetch(t.Context(), w.store, b.Manifest); err != nil {
			t.Errorf("backup %s: %v", id, err)
		}
	}
	// Three prunes weeks apart leave nothing but what is listed.
	for range 3 {
		w.forward(8 * 24 * time.Hour)
		report := w.run(Options{Policy: retention.Policy{Minimum: 1000}})
		l.swept += report.Swept.Objects
	}
	var want []string
	for _, b := range w.listed() {
		want = append(want, cluster+"/"+b.Objects[0].Name)
	}
	var got []string
	for info, err := range w.store.List(t.Context(), cluster+"/etcd/main/data/") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info.Name)
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("stored are\n%s\nwanted are\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// fetch reads a backup's bytes and compares them with its manifest.
func fetch(ctx context.Context, store storage.Store, m *manifest.Manifest) error {
	for _, o := range m.Objects {
		body, _, err := store.Open(ctx, cluster+"/"+o.Name, storage.Range{})
		if err != nil {
			return err
		}
		data, err := io.ReadAll(body)
		if err := errors.Join(err, body.Close()); err != nil {
			return err
		}
		if sha256.Sum256(data) != o.SHA256 {
			return fmt.Errorf("other bytes in %s", o.Name)
		}
	}
	return nil
}
