package replay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"lifeboat/backup/etcd"
	"lifeboat/backup/watch"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
	"lifeboat/restore/materialize"
)

// tape is what a watch gave, in memory.
type tape struct {
	mu       sync.Mutex
	events   []segment.Record
	leases   []segment.Record
	hashes   []manifest.HashKV
	complete int64
	known    *watch.Leases
}

func (s *tape) Record(r segment.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.IsEvent():
		r.KV = bytes.Clone(r.KV)
		s.events = append(s.events, r)
	case r.Kind == segment.KindLease:
		s.leases = append(s.leases, r)
	case r.Kind == segment.KindHash:
		s.hashes = append(s.hashes, manifest.HashKV{
			Revision: manifest.Revision(r.Hash.Revision), CompactRevision: manifest.Revision(r.Hash.Compact),
			HashKV: r.Hash.HashKV, Members: []manifest.EtcdID{manifest.EtcdID(r.Hash.Member)},
		})
	}
	return nil
}

func (s *tape) Complete(rev int64, _ time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.complete = rev
	return nil
}

func (s *tape) Changed(string) {}

func (s *tape) reached() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.complete
}

// tear drops what a lost watch left half.
func (s *tape) tear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := len(s.events); n > 0 && s.events[n-1].Main > s.complete; n-- {
		s.events = s.events[:n-1]
	}
}

// record drains the watch of one member after the other until the context
// ends.
func (s *tape) record(ctx context.Context, t *testing.T, c *etcd.Cluster) {
	for next := 0; ctx.Err() == nil; next++ {
		sources, err := watch.Sources(ctx, c)
		if err != nil || len(sources) == 0 {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		err = watch.Run(ctx, sources[next%len(sources)], watch.Options{From: s.reached() + 1, Probe: 300 * time.Millisecond, Leases: s.known}, s)
		s.tear()
		for _, lost := range []error{watch.ErrHole, watch.ErrCompacted, watch.ErrBehind, watch.ErrOtherCluster, watch.ErrLower} {
			if errors.Is(err, lost) {
				t.Errorf("the watch lost something: %v", err)
				return
			}
		}
		if ctx.Err() == nil {
			t.Logf("the watch goes on at another member: %v", err)
		}
	}
}

// cut makes segments of random lengths from what was recorded.
func (s *tape) cut(t *testing.T, rng *rand.Rand) [][]byte {
	t.Helper()
	var segments [][]byte
	leases := slices.Clone(s.leases)
	slices.SortStableFunc(leases, func(a, b segment.Record) int { return int(a.Lease.Revision - b.Lease.Revision) })
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < len(s.events); {
		var buf bytes.Buffer
		last, to := s.events[i].Main, s.events[i].Main+rng.Int64N(300)
		w, err := segment.NewWriter(&buf, segment.Header{First: last, ClusterID: 1, MemberID: 1})
		must(err)
		for ; i < len(s.events) && s.events[i].Main <= to; i++ {
			for ; len(leases) > 0 && leases[0].Lease.Revision <= s.events[i].Main && (i == 0 || s.events[i-1].Main < s.events[i].Main); leases = leases[1:] {
				must(w.Write(leases[0]))
			}
			must(w.Write(s.events[i]))
			last = s.events[i].Main
		}
		must(w.Close(last))
		segments = append(segments, buf.Bytes())
	}
	return segments
}

// TestAWatchAloneReplaysToEveryRevision leaves out stores, sealing and chains:
// what the watch gave, cut anywhere, appended to any earlier snapshot.
func TestAWatchAloneReplaysToEveryRevision(t *testing.T) {
	s := seed(t)
	rng := rand.New(rand.NewPCG(s, 7))
	c := cluster.StartBinary(t, cluster.Versions[s%3], cluster.Options{Members: 3})
	o, b := watchFrom1(t, c), newBook()
	source, err := etcd.Open(etcd.Config{Name: "main", Endpoints: c.Endpoints()}, etcd.Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	// The tape begins with revision 2: revision 1 is etcd's own, without events.
	recorded := &tape{complete: 1, known: watch.NewLeases()}
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	group.Go(func() { recorded.record(ctx, t, source) })
	wait := o.sampleUntil(ctx, c, rand.New(rand.NewPCG(s, 99)), 5*time.Millisecond)
	w := startWork(t, c, o, b, s, 3*time.Millisecond)
	for recorded.reached() < 20 { // nothing may be compacted before it watches
		time.Sleep(10 * time.Millisecond)
	}
	bases := []string{snapshot(t, c, 0)}
	w.meet(400 * time.Millisecond)
	bases = append(bases, snapshot(t, c, 1))
	w.meet(400 * time.Millisecond)
	w.stop()
	head := o.seen()
	for deadline := time.Now().Add(20 * time.Second); recorded.reached() < head; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the watch is at %d of %d", recorded.reached(), head)
		}
	}
	time.Sleep(2 * time.Second) // leases and hashes come later
	cancel()
	wait()
	group.Wait()
	o.sound(t)
	segments := recorded.cut(t, rng)
	t.Logf("%d revisions in %d segments, %d hashes, %d leases", head, len(segments), len(recorded.hashes), len(recorded.leases))

	proved, live, synthetic := 0, 0, 0
	revs := pick(rng, o, exact(t, bases[0]), head)
	for _, rev := range revs[:min(len(revs), number(t, "LIFEBOAT_POINTS", 20))] {
		base := bases[0]
		if last := bases[1]; rng.IntN(2) == 0 && exact(t, last) <= rev {
			base = last
		}
		path := bare(t, base)
		res, err := materialize.Append(t.Context(), path, materialize.Options{
			To: rev, Segments: len(segments), Scratch: t.TempDir(), Hashes: recorded.hashes,
			Open: func(_ context.Context, i int) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(segments[i])), nil
			},
		})
		if err != nil {
			t.Errorf("materialize %d: %v", rev, err)
			continue
		}
		if res.ProvedAt != nil {
			proved++
		}
		v, err := o.judge(t.Context(), b, path, rev)
		if err != nil {
			t.Fatal(err)
		}
		for _, difference := range v.differences {
			t.Errorf("at revision %d, from %d: %s", rev, res.Base, difference)
		}
		live += v.live
		synthetic += v.synthetic
	}
	t.Logf("%d proved by a recorded hash, %d compared with live hashes, %d leases made up", proved, live, synthetic)
	if live == 0 || len(recorded.hashes) == 0 {
		t.Errorf("of %d revisions %d were compared with what etcd itself said, and it recorded %d hashes", len(revs), live, len(recorded.hashes))
	}
}

// bare is a copy of a snapshot file without its hash trailer.
func bare(t *testing.T, snapshot string) string {
	t.Helper()
	data, err := os.ReadFile(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, data[:len(data)-32], 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// pick gives all revisions that a live member hashed, in random order.
func pick(rng *rand.Rand, o *oracle, from, to int64) []int64 {
	var revs []int64
	for _, rev := range o.sampled() {
		if from <= rev && rev <= to {
			revs = append(revs, rev)
		}
	}
	slices.Sort(revs)
	rng.Shuffle(len(revs), func(i, j int) { revs[i], revs[j] = revs[j], revs[i] })
	return revs
}
