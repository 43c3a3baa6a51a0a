package record

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/backup"
	"lifeboat/backup/etcd"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/s3test"
	"lifeboat/internal/segment"
	"lifeboat/storage"
	"lifeboat/storage/local"
	"lifeboat/storage/s3"
)

// real is a real etcd recorded to real stores.
type real struct {
	*world
	trust  *manifest.Trust
	config etcd.Config
	stores []storage.Store
	client *clientv3.Client
	full   sync.Mutex // held while one is taken
	fulls  sync.WaitGroup
}

func newReal(t testing.TB, c *cluster.Cluster, stores ...storage.Store) *real {
	w := newWorld(t, 0)
	name, err := manifest.NewCluster(rand.Reader, "test")
	if err != nil {
		t.Fatal(err)
	}
	c.Settle()
	return &real{
		world: w, stores: stores, client: c.Client(),
		config: etcd.Config{Name: "main", Endpoints: c.Endpoints(), CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile},
		trust: &manifest.Trust{Cluster: name, Verifiers: []manifest.Verifier{
			{Key: w.signer.VerifierText(), Chains: []string{"*"}, Kinds: []string{"*"}},
		}},
	}
}

func (w *real) open(i int) *repository.Repository {
	r, err := repository.Open(w.stores[i], repository.Options{
		Trust: w.trust, Signer: w.signer, Name: fmt.Sprint("store ", i), Writer: manifest.Writer{Node: w.node, Version: "test"},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *real) backups() (list []backup.Store) {
	for i := range w.stores {
		list = append(list, backup.Store{URL: fmt.Sprint("store ", i), Repository: w.open(i)})
	}
	return list
}

// start records; fulls are taken when they are asked for.
func (w *real) start(change ...func(*Options)) (*Recorder, func()) {
	o := w.world.options()
	o.Etcd, o.Stores = w.config, w.backups()
	o.AskFull = func(why string, epoch uint64) {
		w.world.ask(why, epoch)
		if w.full.TryLock() {
			w.fulls.Go(func() {
				defer w.full.Unlock()
				w.takeFull(epoch)
			})
		}
	}
	for _, c := range change {
		c(&o)
	}
	r := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("run: %v", err)
		}
		w.fulls.Wait()
	})
	w.t.Cleanup(stop)
	return r, stop
}

func (w *real) takeFull(epoch uint64) {
	runner := &backup.Runner{
		Stores: w.backups(), MinStores: 1, Recipients: []age.Recipient{w.identity.Recipient()}, RecipientNames: []string{"r"},
		Writer: manifest.Writer{Node: w.node, Version: "test"}, Scratch: w.dir + "-scratch", StoreStall: 20 * time.Second,
		Now: time.Now, Rand: rand.Reader, Events: w.listen, Epoch: epoch, Marker: segment.NewMarker(w.signer.MarkKey()),
	}
	if _, err := runner.Etcd(context.Background(), w.config, etcd.Limits{}); err != nil {
		w.t.Logf("full: %v", err)
	}
}

// head is etcd's revision.
func (w *real) head() int64 {
	w.t.Helper()
	r, err := w.client.Get(w.t.Context(), "x", clientv3.WithCountOnly())
	if err != nil {
		w.t.Fatal(err)
	}
	return r.Header.Revision
}

// change makes n revisions: puts, deletes, and transactions of both.
func (w *real) change(n int, value string) {
	w.t.Helper()
	for i := range n {
		key := fmt.Sprintf("key%d", i%50)
		ops := []clientv3.Op{clientv3.OpPut(key, fmt.Sprint(value, i))}
		switch i % 4 {
		case 1:
			ops = append(ops, clientv3.OpPut(key+"a", value), clientv3.OpPut(key+"b", value))
		case 2:
			ops = append(ops, clientv3.OpDelete("key1", clientv3.WithPrefix()))
			ops[0] = clientv3.OpPut("other"+key, value)
		}
		if _, err := w.client.Txn(w.t.Context()).Then(ops...).Commit(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// until waits for the recorder.
func (w *real) until(r *Recorder, what string, ok func(Status) bool) {
	w.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if ok(r.Status()) {
			return
		}
	}
	w.t.Fatalf("not within a minute: %s; %+v, asked for %v, told %q", what, r.Status(), w.all(), w.warnings())
}

// caughtUp waits until every store holds etcd's revision.
func (w *real) caughtUp(r *Recorder) {
	w.t.Helper()
	head := w.head()
	w.until(r, fmt.Sprint("all stores hold revision ", head), func(s Status) bool {
		return len(s.Stores) > 0 && !slices.ContainsFunc(s.Stores, func(s StoreStatus) bool { return int64(s.Revision) < head || s.Waiting != "" })
	})
}

// exact fails unless what a store holds of the newest epoch, read by somebody
// new, is what etcd's own watch says, up to the head.
func (w *real) exact(i int) (events int) {
	w.t.Helper()
	repo, chain := w.open(i), w.config.Chain()
	route, err := repo.Route(w.t.Context(), chain, repository.Point{})
	if err != nil {
		w.t.Fatal(err)
	}
	head := w.head()
	if int64(route.Revision) != head {
		w.t.Fatalf("store %d can be restored to revision %d, etcd is at %d", i, route.Revision, head)
	}
	got := map[int64][]segment.Record{}
	for _, s := range route.Segments {
		body, err := repo.OpenStored(w.t.Context(), s.Manifest.Objects[0])
		if err != nil {
			w.t.Fatal(err)
		}
		plain, err := unseal(body, s.Manifest.Objects[0], w.identity)
		body.Close()
		if err != nil {
			w.t.Fatal(err)
		}
		for main, events := range w.read(s.Manifest.Span, plain) {
			got[main] = events
		}
	}
	base := int64(route.Base.Manifest.Etcd.Revision)
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	last := base
	for last < head {
		for response := range w.client.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(base+1)) {
			if err := response.Err(); err != nil {
				w.t.Fatal(err)
			}
			for _, e := range response.Events {
				main := e.Kv.ModRevision
				if len(got[main]) == 0 {
					w.t.Fatalf("revision %d lacks an event", main)
				}
				rec := got[main][0]
				got[main] = got[main][1:]
				fields, err := segment.FieldsOf(rec.KV)
				if err != nil || string(fields.Key) != string(e.Kv.Key) || string(fields.Value) != string(e.Kv.Value) || (rec.Kind == segment.KindDelete) != (e.Type == clientv3.EventTypeDelete) {
					w.t.Fatalf("revision %d: %q, etcd has %q", main, fields.Key, e.Kv.Key)
				}
				last = main
				events++
			}
			if last >= head {
				break
			}
		}
	}
	for main, rest := range got {
		if main > base && len(rest) > 0 {
			w.t.Fatalf("revision %d has %d events too many", main, len(rest))
		}
	}
	report, err := repo.Verify(w.t.Context(), repository.VerifyOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	if failures := repository.Failures(report.Problems); len(failures) > 0 {
		w.t.Fatalf("verify found %v", failures)
	}
	return events
}

func folder(t testing.TB) storage.Store {
	t.Helper()
	store, err := local.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func bucket(t testing.TB, server *s3test.Server) storage.Store {
	t.Helper()
	server.Setenv(t)
	store, err := s3.New(t.Context(), s3.Config{Bucket: server.Bucket, Endpoint: server.Endpoint, CAFile: server.CAFile})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestARealEtcdIsRecordedExactlyOverRestarts(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			stores := []storage.Store{folder(t)}
			if version == cluster.Versions[0] {
				stores = append(stores, bucket(t, s3test.Start(t, s3test.Options{}))) // sets the environment, which keeps it from running beside others
			} else {
				t.Parallel()
			}
			w := newReal(t, cluster.StartBinary(t, version, cluster.Options{}), stores...)
			w.change(20, "before")
			r, stop := w.start()
			w.until(r, "a full is there", func(s Status) bool { return len(s.Stores) > 0 && s.Stores[0].Waiting == "" && s.Stores[0].Revision > 0 })
			w.change(300, "first")
			w.caughtUp(r)
			stop()
			w.change(100, "while nobody records")
			r, stop = w.start()
			w.change(100, "second")
			w.caughtUp(r)
			stop()
			w.dir += "-new" // without the spool: the chain tells where to go on
			r, stop = w.start()
			w.change(100, "third")
			w.caughtUp(r)
			for i := range w.stores {
				if n := w.exact(i); n < 600 {
					t.Errorf("store %d: only %d events were compared", i, n)
				}
			}
			if s := r.Status(); len(s.Gaps) > 0 || len(w.all()) != 1 {
				t.Errorf("gaps %v, asked for %v", s.Gaps, w.all())
			}
			stop()
		})
	}
}

// copyDir copies a stopped member's data.
func copyDir(t testing.TB, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy %s: %v: %s", from, err, out)
	}
}

func TestAMemberThatWasSetBackBeginsANewEpoch(t *testing.T) {
	for name, grow := range map[string]int{"to a lower revision": 0, "and went on to the same and beyond": 60} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, "3.6", cluster.Options{})
			w := newReal(t, c, folder(t))
			w.change(20, "before")
			saved := filepath.Join(t.TempDir(), "saved")
			c.Stop(0)
			copyDir(t, c.Members[0].Dir, saved)
			c.Restart(0)
			r, stop := w.start()
			w.until(r, "a full is there", func(s Status) bool { return s.RecoveryPoint != time.Time{} && s.Stores[0].Waiting == "" })
			w.change(30, "one history")
			w.caughtUp(r)
			c.Stop(0)
			copyDir(t, saved, c.Members[0].Dir)
			c.Restart(0)
			w.change(grow, "another history")
			w.until(r, "a new epoch", func(s Status) bool { return s.Stores[0].Epoch == 2 && s.Stores[0].Waiting == "" })
			w.change(50, "afterwards")
			w.caughtUp(r)
			if n := w.exact(0); n < 50 {
				t.Errorf("only %d events were compared", n)
			}
			epoch := uint64(0)
			for _, a := range w.all() {
				epoch = max(epoch, a.epoch)
			}
			if epoch != 2 {
				t.Errorf("asked for %v", w.all())
			}
			stop()
		})
	}
}

func TestANewClusterBeginsANewEpoch(t *testing.T) {
	t.Parallel()
	w := newReal(t, cluster.StartBinary(t, "3.6", cluster.Options{}), folder(t))
	w.change(20, "before")
	r, stop := w.start()
	w.change(10, "one cluster")
	w.caughtUp(r)
	stop()
	c := cluster.StartBinary(t, "3.6", cluster.Options{Token: "another"})
	w.client, w.config.Endpoints = c.Client(), c.Endpoints()
	w.change(200, "another cluster")
	r, stop = w.start()
	w.until(r, "a new epoch", func(s Status) bool { return len(s.Stores) == 1 && s.Stores[0].Epoch == 2 && s.Stores[0].Waiting == "" })
	w.change(50, "afterwards")
	w.caughtUp(r)
	w.exact(0)
	stop()
}

func TestAClusterWithoutLeaderAsksForAFullAndIsGoneOnWith(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3})
	w := newReal(t, c, folder(t))
	r, stop := w.start()
	w.change(20, "before")
	w.caughtUp(r)
	c.Kill(1)
	c.Kill(2)
	w.until(r, "a full is asked for", func(Status) bool { _, ok := w.asked("leader"); return ok })
	c.Restart(1)
	c.Restart(2)
	w.change(50, "afterwards")
	w.caughtUp(r)
	w.exact(0)
	if gaps := r.Status().Gaps; len(gaps) > 0 {
		t.Errorf("gaps %v", gaps)
	}
	stop()
}

func TestUsersThatChangeWhileNobodyRecordsAskForAFull(t *testing.T) {
	t.Parallel()
	w := newReal(t, cluster.StartBinary(t, "3.7", cluster.Options{}), folder(t))
	r, stop := w.start()
	w.until(r, "a full is there", func(s Status) bool { return len(s.Stores) > 0 && s.Stores[0].Revision > 0 })
	stop()
	if _, err := w.client.RoleAdd(t.Context(), "reader"); err != nil {
		t.Fatal(err)
	}
	r, stop = w.start()
	w.until(r, "a full of the role", func(s Status) bool {
		_, asked := w.asked("users, roles or rights")
		return asked && s.FullWanted == ""
	})
	stop()
	tip, err := openChain(w.backups()[0], w.config.Chain()).Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if auth, err := w.client.AuthStatus(t.Context()); err != nil || tip.Full == nil || tip.Full.AuthRevision != auth.AuthRevision {
		t.Errorf("the newest full has %+v, etcd %+v (%v)", tip.Full, auth, err)
	}
	before := len(w.all())
	_, stop = w.start()
	time.Sleep(3 * time.Second)
	stop()
	if after := w.all(); len(after) != before {
		t.Errorf("asked again: %v", after[before:])
	}
}

func TestCompactedChangesLeaveAGapUntilTheNextFull(t *testing.T) {
	t.Parallel()
	w := newReal(t, cluster.StartBinary(t, "3.6", cluster.Options{}), folder(t))
	r, stop := w.start()
	w.change(20, "before")
	w.caughtUp(r)
	stop()
	last := w.head()
	w.change(50, "lost")
	if _, err := w.client.Compact(t.Context(), w.head()-5); err != nil {
		t.Fatal(err)
	}
	r, stop = w.start()
	w.until(r, "the gap is filled by a full", func(s Status) bool { return len(s.Gaps) == 1 && s.FullWanted == "" && s.Stores[0].Waiting == "" })
	w.change(20, "afterwards")
	w.caughtUp(r)
	if g := r.Status().Gaps[0]; int64(g.From) != last+1 || !strings.Contains(g.Why, "compacted") {
		t.Errorf("gap %+v; the last recorded was %d", g, last)
	}
	w.exact(0)
	stop()
}
