package replay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"lifeboat/internal/etcdtest/cluster"
)

// change is one key's change as etcd's database file holds it.
type change struct {
	main, sub int64
	tombstone bool
	raw       []byte // the file's value: a marshaled KeyValue
	kv        *mvccpb.KeyValue
	seen      time.Time
}

// bucketKey is the change's key in the file (etcd's mvcc/revision.go).
func (c *change) bucketKey() []byte {
	k := binary.BigEndian.AppendUint64(nil, uint64(c.main))
	k = append(k, '_')
	k = binary.BigEndian.AppendUint64(k, uint64(c.sub))
	if c.tombstone {
		k = append(k, 't')
	}
	return k
}

// sample is what a live member said of its keys.
type sample struct {
	rev, compact int64
	hash         uint32
	member       string
}

// oracle remembers everything that happened in etcd since revision 1, and what
// live members said of it.
type oracle struct {
	mu      sync.Mutex
	changes []change
	last    int64 // all of it and before it is known
	compact int64 // highest that was asked for
	samples map[int64][]sample
	failed  error
	moved   chan struct{} // closed and replaced at each step
	done    chan struct{}
}

// watchFrom1 begins to remember. It must begin before anything is compacted.
func watchFrom1(t *testing.T, c *cluster.Cluster) *oracle {
	t.Helper()
	o := &oracle{samples: map[int64][]sample{}, last: 1, moved: make(chan struct{}), done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	client := c.Client()
	go func() {
		defer close(o.done)
		for resp := range client.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(2)) {
			if !o.take(resp) {
				return
			}
		}
		if ctx.Err() == nil {
			o.fail(errors.New("the oracle's watch ended"))
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-o.done
	})
	return o
}

func (o *oracle) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed == nil {
		o.failed = err
	}
	o.step()
}

// step wakes those who wait. The lock is held.
func (o *oracle) step() {
	close(o.moved)
	o.moved = make(chan struct{})
}

func (o *oracle) take(resp clientv3.WatchResponse) bool {
	if err := resp.Err(); err != nil {
		o.fail(fmt.Errorf("the oracle's watch (compact revision %d): %w", resp.CompactRevision, err))
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	for _, e := range resp.Events {
		c := change{main: e.Kv.ModRevision, tombstone: e.Type == clientv3.EventTypeDelete, kv: e.Kv, seen: now}
		if n := len(o.changes); n > 0 && o.changes[n-1].main == c.main {
			c.sub = o.changes[n-1].sub + 1
		} else if c.main != o.last+1 && (n == 0 || c.main != o.changes[n-1].main+1) {
			o.failed = fmt.Errorf("the oracle saw revision %d after %d", c.main, o.last)
			o.step()
			return false
		}
		stored := c.kv
		if c.tombstone {
			stored = &mvccpb.KeyValue{Key: c.kv.Key}
		}
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(stored)
		if err != nil {
			o.failed = err
			return false
		}
		c.raw = raw
		o.changes = append(o.changes, c)
	}
	// etcd's client gives whole revisions only: it does not ask for fragments.
	if n := len(o.changes); n > 0 {
		o.last = o.changes[n-1].main
	}
	o.step()
	return true
}

func (o *oracle) seen() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last
}

// wait returns when everything up to the revision is known.
func (o *oracle) wait(t *testing.T, rev int64) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		o.mu.Lock()
		last, failed, moved := o.last, o.failed, o.moved
		o.mu.Unlock()
		if failed != nil {
			t.Fatal(failed)
		}
		if last >= rev {
			return
		}
		select {
		case <-moved:
		case <-deadline:
			t.Fatalf("the oracle is at revision %d and should have seen %d", last, rev)
		}
	}
}

// check fails the test if the oracle lost anything.
func (o *oracle) check(t *testing.T) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed != nil {
		t.Fatal(o.failed)
	}
}

// history is all changes up to a revision, in etcd's order.
func (o *oracle) history(rev int64) []change {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(o.changes)
	for n > 0 && o.changes[n-1].main > rev {
		n--
	}
	return o.changes[:n:n]
}

// seenAt is when a revision was seen.
func (o *oracle) seenAt(rev int64) time.Time {
	history := o.history(rev)
	if len(history) == 0 {
		return time.Time{}
	}
	return history[len(history)-1].seen
}

// stateAt is every key that was there at a revision.
func (o *oracle) stateAt(rev int64) map[string]*mvccpb.KeyValue {
	state := map[string]*mvccpb.KeyValue{}
	for _, c := range o.history(rev) {
		if c.tombstone {
			delete(state, string(c.kv.Key))
		} else {
			state[string(c.kv.Key)] = c.kv
		}
	}
	return state
}

// hashAt computes what etcd answers to HashKV at a revision, as of a compact
// revision (-1 or 0: never compacted), from the history alone (etcd's
// mvcc/kvstore.go and hash.go): everything after the compaction, and of what is
// older the puts that are still in force at rev.
func (o *oracle) hashAt(rev, compact int64) uint32 {
	history := o.history(rev)
	newest := map[string]int{} // the last change of each key
	for i := range history {
		newest[string(history[i].kv.Key)] = i
	}
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	h.Write([]byte("key"))
	for i := range history {
		c := &history[i]
		if c.main <= compact && (c.tombstone || newest[string(c.kv.Key)] != i) {
			continue
		}
		h.Write(c.bucketKey())
		h.Write(c.raw)
	}
	return h.Sum32()
}

// ask has the live member that a client is connected to compute HashKV at a
// revision, and remembers the answer.
func (o *oracle) ask(ctx context.Context, member *clientv3.Client, rev int64) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	maintenance := etcdserverpb.NewMaintenanceClient(member.ActiveConnection())
	resp, err := maintenance.HashKV(ctx, &etcdserverpb.HashKVRequest{Revision: rev})
	if err != nil {
		return sample{}, err
	}
	s := sample{rev: rev, compact: resp.CompactRevision, hash: resp.Hash, member: member.Endpoints()[0]}
	// etcd reads its compact revision before it locks what it hashes: a compaction
	// that begins in between makes an answer that is of neither. Then the member
	// no longer reads at the compact revision that it named.
	if _, err := member.Get(ctx, "x", clientv3.WithSerializable(), clientv3.WithRev(max(s.compact, 1)), clientv3.WithCountOnly()); err != nil {
		return sample{}, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.samples[rev] = append(o.samples[rev], s)
	return s, nil
}

// sampleUntil asks live members for their hashes at recent revisions until the
// context ends. Members that are down, behind or have compacted don't answer.
func (o *oracle) sampleUntil(ctx context.Context, c *cluster.Cluster, rng *rand.Rand, every time.Duration) (wait func()) {
	var members []*clientv3.Client
	for i := range c.Members {
		members = append(members, c.Client(i))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(every):
			}
			rev := o.seen()
			if rng.IntN(2) == 0 {
				rev -= rng.Int64N(200)
			}
			if rev >= 1 {
				_, _ = o.ask(ctx, members[rng.IntN(len(members))], rev)
			}
		}
	}()
	return func() { <-done }
}

// sampled are the revisions that a live member hashed, in no order.
func (o *oracle) sampled() []int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	revs := make([]int64, 0, len(o.samples))
	for rev := range o.samples {
		revs = append(revs, rev)
	}
	return revs
}

// samplesAt is what live members said of a revision.
func (o *oracle) samplesAt(rev int64) []sample {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]sample(nil), o.samples[rev]...)
}

// sound holds the oracle's own memory to every answer of a live member, so
// that what is judged by it is judged by etcd.
func (o *oracle) sound(t *testing.T) {
	t.Helper()
	o.check(t)
	n, told := 0, 0
	for _, rev := range o.sampled() {
		for _, s := range o.samplesAt(rev) {
			n++
			if told > maxDifferences {
				break
			}
			if got := o.hashAt(s.rev, s.compact); got != s.hash {
				t.Errorf("member %s says HashKV %d at revision %d as of %d, the oracle's memory gives %d", s.member, s.hash, s.rev, s.compact, got)
			}
		}
	}
	if n == 0 {
		t.Error("no live member was asked for a hash")
	}
}
