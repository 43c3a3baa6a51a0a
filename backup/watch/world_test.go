package watch_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"lifeboat/backup/etcd"
	"lifeboat/backup/watch"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/segment"
)

func TestMain(m *testing.M) {
	// The tests wait for elections and timeouts most of the time.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// tape is a sink that keeps all and holds the drain to its promises.
type tape struct {
	t testing.TB

	mu       sync.Mutex
	records  []segment.Record
	complete int64
	changed  []string
	inside   bool // a Sink method is running
	slow     time.Duration
	refuse   error
}

func (s *tape) enter() func() {
	s.mu.Lock()
	if s.inside {
		s.t.Error("the sink is called by two goroutines at once")
	}
	s.inside = true
	return func() { s.inside = false; s.mu.Unlock() }
}

func (s *tape) Record(r segment.Record) error {
	defer s.enter()()
	if s.refuse != nil {
		return s.refuse
	}
	time.Sleep(s.slow)
	r.KV = bytes.Clone(r.KV)
	// What segments refuse must not come.
	if _, err := segment.ParseRecord(segment.AppendRecord(nil, r)); err != nil {
		s.t.Errorf("the drain gave a record that no segment takes: %v", err)
	}
	if n := len(s.records); !r.IsEvent() && n > 0 && s.records[n-1].IsEvent() && s.records[n-1].Main > s.complete {
		s.t.Errorf("a %s stands inside revision %d", r.Kind, s.records[n-1].Main)
	}
	s.records = append(s.records, r)
	return nil
}

func (s *tape) Complete(revision int64, at time.Time) error {
	defer s.enter()()
	if revision <= s.complete {
		s.t.Errorf("complete up to %d after %d", revision, s.complete)
	}
	if at.IsZero() {
		s.t.Error("complete at no time")
	}
	s.complete = revision
	return nil
}

func (s *tape) Changed(what string) {
	defer s.enter()()
	s.changed = append(s.changed, what)
}

// of gives the records of a kind.
func (s *tape) of(kinds ...segment.Kind) []segment.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []segment.Record
	for _, r := range s.records {
		if slices.Contains(kinds, r.Kind) {
			list = append(list, r)
		}
	}
	return list
}

func (s *tape) reached() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.complete
}

// hash is HashKV of what the tape holds, of a cluster that was never compacted
// and whose first revision the tape has.
func (s *tape) hash() uint32 {
	crc := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	crc.Write([]byte("key"))
	main, sub := int64(0), int64(0)
	for _, r := range s.of(segment.KindPut, segment.KindDelete) {
		if r.Main != main {
			main, sub = r.Main, 0
		}
		key := binary.BigEndian.AppendUint64(nil, uint64(main))
		key = append(key, '_')
		key = binary.BigEndian.AppendUint64(key, uint64(sub))
		if r.Kind == segment.KindDelete {
			key = append(key, 't')
		}
		crc.Write(key)
		crc.Write(r.KV)
		sub++
	}
	return crc.Sum32()
}

// running is a drain in the background.
type running struct {
	*tape
	drain *watch.Drain
	from  watch.Source
	stop  context.CancelCauseFunc
	done  chan struct{}
	err   error // of Run, once done
}

var errStopped = errors.New("stopped by the test")

// quick are options whose periods suit tests.
func quick(from int64) watch.Options {
	return watch.Options{From: from, Tick: 20 * time.Millisecond, Idle: 100 * time.Millisecond, Probe: 50 * time.Millisecond,
		Call: 2 * time.Second, Stall: 5 * time.Second}
}

func run(t testing.TB, source watch.Source, options watch.Options) *running {
	t.Helper()
	return onto(t, source, options, &tape{t: t, complete: options.From - 1})
}

// onto goes on with a tape.
func onto(t testing.TB, source watch.Source, options watch.Options, s *tape) *running {
	ctx, stop := context.WithCancelCause(context.Background())
	r := &running{tape: s, drain: watch.New(source, options, s), from: source, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = r.drain.Run(ctx)
	}()
	t.Cleanup(func() { r.end() })
	return r
}

// end stops the drain and gives what Run returned.
func (r *running) end() error {
	r.stop(errStopped)
	<-r.done
	return r.err
}

// waitFor waits until the condition holds.
func (r *running) waitFor(what string, condition func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		select {
		case <-r.done:
			if !condition() {
				r.t.Fatalf("%s: the drain ended: %v", what, r.err)
			}
			return
		default:
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not after 30 s; complete up to %d", what, r.reached())
		}
	}
}

// waitEnd waits until the drain ends by itself.
func (r *running) waitEnd() *watch.Error {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(30 * time.Second):
		r.t.Fatalf("the drain goes on; complete up to %d", r.reached())
	}
	var e *watch.Error
	if !errors.As(r.err, &e) {
		r.t.Fatalf("Run ended with %v (%T), not with its own error", r.err, r.err)
	}
	return e
}

// said is whether a change was told of whose text contains this.
func (r *running) said(text string) func() bool {
	return func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.ContainsFunc(r.changed, func(s string) bool { return strings.Contains(s, text) })
	}
}

func (r *running) waitRevision(revision int64) {
	r.t.Helper()
	r.waitFor(fmt.Sprintf("revision %d", revision), func() bool { return r.reached() >= revision })
}

// open gives the cluster as lifeboat sees it.
func open(t testing.TB, c *cluster.Cluster, members ...int) *etcd.Cluster {
	t.Helper()
	endpoints := c.Endpoints()
	if len(members) > 0 {
		endpoints = nil
		for _, i := range members {
			endpoints = append(endpoints, c.Members[i].Endpoint)
		}
	}
	opened, err := etcd.Open(etcd.Config{Name: "main", Endpoints: endpoints, CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile}, etcd.Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close() })
	return opened
}

func sources(t testing.TB, c *etcd.Cluster) []watch.Source {
	t.Helper()
	list, err := watch.Sources(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// source is a cluster's best.
func source(t testing.TB, c *cluster.Cluster) watch.Source {
	t.Helper()
	return sources(t, open(t, c))[0]
}

// at is the source of one member.
func at(t testing.TB, c *cluster.Cluster, member int) watch.Source {
	t.Helper()
	for _, s := range sources(t, open(t, c)) {
		if s.Endpoint == c.Members[member].Endpoint {
			return s
		}
	}
	t.Fatalf("member %d is no source", member)
	return watch.Source{}
}

func leader(t testing.TB, c *cluster.Cluster) int {
	t.Helper()
	for i := range c.Members {
		if at(t, c, i).Leader {
			return i
		}
	}
	t.Fatal("no leader")
	return 0
}

func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func put(t testing.TB, c *clientv3.Client, key, value string, opts ...clientv3.OpOption) int64 {
	t.Helper()
	return must(c.Put(t.Context(), key, value, opts...))(t).Header.Revision
}

func compact(t testing.TB, c *clientv3.Client, revision int64) {
	t.Helper()
	must(c.Compact(t.Context(), revision, clientv3.WithCompactPhysical()))(t)
}

// hashKV has the member compute it.
func hashKV(t testing.TB, s watch.Source, revision int64) *pb.HashKVResponse {
	t.Helper()
	return must(pb.NewMaintenanceClient(s.Conn).HashKV(t.Context(), &pb.HashKVRequest{Revision: revision}))(t)
}
