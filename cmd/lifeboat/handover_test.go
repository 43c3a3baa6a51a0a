package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/snapdb"
	"lifeboat/internal/status"
)

// handOver is how long a test waits for another agent to record, on a busy
// machine. The first in turn begins after 10 s without news, the second after
// 20 s.
const handOver = 90 * time.Second

func TestRecordingOutlivesTheAgentThatRecords(t *testing.T) {
	t.Parallel()
	c := newCrew(t, "", cluster.StartBinary(t, "3.6", cluster.Options{Members: 3}), nil, "full:", "full: \"@every 10m\"")
	seen := watchFromTheBeginning(t, c.etcd)
	acknowledged, rest := writeSteadily(t, c.etcd)

	// The first in turn records alone for a while, so that it is known who does.
	killed, _ := c.first()
	c.start(killed)
	c.until(handOver, killed.node+" records", killed.records)
	for _, p := range c.agents {
		if p != killed {
			c.start(p)
		}
	}
	for _, p := range c.agents {
		c.until(handOver, p.node+" knows of the records", func() bool { return p.covered() > 0 })
	}
	c.until(handOver, "one agent records", func() bool { return slices.Equal(c.recording(), []*process{killed}) })

	// Killed, it leaves what it has committed, and nothing else.
	reported := killed.covered()
	killed.ends = true
	begin := time.Now()
	_ = killed.cmd.Process.Kill()
	_ = killed.cmd.Wait()
	var second *process
	c.until(handOver, "another agent records", func() bool {
		second = c.successor(killed)
		return second != nil && second.covered() > reported
	})
	t.Logf("%s was killed at revision %d; %s recorded beyond it %s later", killed.node, reported, second.node, time.Since(begin).Round(time.Second))

	// The one that comes back stands by.
	c.start(killed)
	c.until(handOver, killed.node+" is back and stands by", func() bool { return killed.covered() >= reported && killed.stands() })

	// Told to end, an agent commits what it has before it goes.
	spooled := second.recorder().Revision
	second.ends = true
	begin = time.Now()
	if err := second.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.cmd.Wait(); err != nil {
		t.Errorf("told to end, %s ended with %v", second.node, err)
	}
	took := time.Since(begin)
	ended := c.timeline()
	if got := int64(ended.Spans[len(ended.Spans)-1].Last.Revision); got < spooled {
		t.Errorf("%s had revision %d on its disk and left the store at %d", second.node, spooled, got)
	} else {
		spooled = got
	}
	var third *process
	c.until(handOver, "another agent records again", func() bool {
		third = c.successor(second)
		return third != nil && third.covered() > spooled
	})
	t.Logf("%s ended within %s at revision %d; %s recorded beyond it %s later", second.node, took.Round(100*time.Millisecond), spooled, third.node, (time.Since(begin) - took).Round(time.Second))

	rest()
	last := acknowledged()
	c.until(handOver, fmt.Sprint("revision ", last, " is in the store"), func() bool { return third.covered() >= last })
	seen.wait(last)
	c.verified()

	// What is in the store is one history without a hole, and the one that was.
	line := c.timeline()
	if len(line.Spans) != 1 || len(line.Gaps) != 0 || line.Spans[0].Epoch != 1 || int64(line.Spans[0].Last.Revision) != last {
		t.Fatalf("want one span of epoch 1 to revision %d, got %+v, gaps %+v", last, line.Spans, line.Gaps)
	}
	if n := len(line.Spans[0].Fulls); n != 1 {
		t.Errorf("%d fulls: a hand-over needs none", n)
	}
	for _, rev := range []int64{reported - 1, reported, reported + 1, (reported + spooled) / 2, spooled, spooled + 1, last} {
		if got, want := c.exported(rev), seen.hash(rev); got != want {
			t.Errorf("revision %d of the store has HashKV %08x, by etcd's watch it is %08x", rev, got, want)
		}
	}
	t.Logf("revisions %d to %d, of them %d in segments by %s, %s and %s", line.Spans[0].First.Revision, last, line.Spans[0].Segments, killed.node, second.node, third.node)
}

// recorder is what an agent says of the recorder of its only etcd.
func (p *process) recorder() status.Recorder {
	if all := p.status().Recorders; len(all) == 1 {
		return all[0]
	}
	return status.Recorder{}
}

// records reports whether the agent records and has committed something.
func (p *process) records() bool {
	r := p.recorder()
	return r.Active && len(r.Stores) == 1 && r.Stores[0].Segments > 0
}

// stands reports whether the agent's recorder watches that of another.
func (p *process) stands() bool {
	r := p.recorder()
	return r.Running && !r.Active
}

// covered is the revision up to which the agent knows that the store can give
// all back; 0 if it does not say.
func (p *process) covered() int64 {
	if r := p.recorder(); len(r.Stores) == 1 {
		return r.Stores[0].Revision
	}
	return 0
}

func (c *crew) recording() (list []*process) {
	for _, p := range c.agents {
		if p.recorder().Active {
			list = append(list, p)
		}
	}
	return list
}

// successor is an agent other than one that has ended which records; nil if
// there is none yet.
func (c *crew) successor(gone *process) *process {
	for _, p := range c.recording() {
		if p != gone && p.records() {
			return p
		}
	}
	return nil
}

// timeline is what list --points says.
func (c *crew) timeline() timelineJSON {
	c.t.Helper()
	var lines []timelineJSON
	out := c.run(exitDone, "list", "--points", "-q", "-o", "json", "--config", c.config)
	if err := json.Unmarshal([]byte(out), &lines); err != nil || len(lines) != 1 || len(lines[0].Spans) == 0 {
		c.t.Fatalf("list --points: %v\n%s", err, out)
	}
	return lines[0]
}

// exported is the HashKV of a revision as export writes it.
func (c *crew) exported(rev int64) uint32 {
	c.t.Helper()
	out := filepath.Join(c.t.TempDir(), "exported.db")
	c.run(exitDone, "export", "-q", "--config", c.config, "--identity", c.identity, "--revision", strconv.FormatInt(rev, 10), "--out", out)
	facts, err := snapdb.Inspect(c.t.Context(), out, snapdb.Options{})
	if err != nil {
		c.t.Fatal(err)
	}
	if facts.Revision != rev {
		c.t.Errorf("the export of revision %d ends with %d", rev, facts.Revision)
	}
	return facts.HashKV
}

// writeSteadily changes keys until rest is called, at the latest when the test
// ends. acknowledged is the newest revision that etcd has confirmed.
func writeSteadily(t *testing.T, etcd *cluster.Cluster) (acknowledged func() int64, rest func()) {
	t.Helper()
	client := etcd.Client()
	lease, err := client.Grant(t.Context(), 3600)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var newest int64
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-time.After(5 * time.Millisecond):
			}
			key, ops := fmt.Sprint("steady/", i%100), []clientv3.Op(nil)
			switch i % 5 {
			case 0:
				ops = append(ops, clientv3.OpDelete(key), clientv3.OpPut(key+"/new", fmt.Sprint(i), clientv3.WithLease(lease.ID)))
			case 1:
				ops = append(ops, clientv3.OpPut(key, fmt.Sprint(i)), clientv3.OpPut(key+"/a", ""), clientv3.OpDelete(key+"/new"))
			default:
				ops = append(ops, clientv3.OpPut(key, fmt.Sprint(i)))
			}
			answer, err := client.Txn(context.Background()).Then(ops...).Commit() // not ctx's: what is not acknowledged may be done
			if err != nil {
				t.Errorf("write to etcd: %v", err)
				return
			}
			mu.Lock()
			newest = answer.Header.Revision
			mu.Unlock()
		}
	}()
	rest = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(rest)
	return func() int64 {
		mu.Lock()
		defer mu.Unlock()
		return newest
	}, rest
}

// watcher is an ordinary client that watches all keys from the beginning on.
type watcher struct {
	t       *testing.T
	mu      sync.Mutex
	changes []seenChange // in etcd's order
	err     error
}

// seenChange is a change as etcd stores it: the key and the value in its file.
type seenChange struct {
	main       int64
	key, value []byte
}

// watchFromTheBeginning must come before anything is compacted.
func watchFromTheBeginning(t *testing.T, etcd *cluster.Cluster) *watcher {
	w := &watcher{t: t}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	client := etcd.Client()
	go func() {
		defer close(done)
		var sub int64
		for answer := range client.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(1)) {
			w.mu.Lock()
			w.err = errors.Join(w.err, answer.Err())
			for _, e := range answer.Events {
				main := e.Kv.ModRevision
				if n := len(w.changes); n > 0 && w.changes[n-1].main == main {
					sub++
				} else {
					sub = 0
				}
				key := binary.BigEndian.AppendUint64(nil, uint64(main))
				key = binary.BigEndian.AppendUint64(append(key, '_'), uint64(sub))
				stored := e.Kv
				if e.Type == clientv3.EventTypeDelete {
					key, stored = append(key, 't'), &mvccpb.KeyValue{Key: e.Kv.Key}
				}
				value, err := proto.MarshalOptions{Deterministic: true}.Marshal(stored)
				w.err = errors.Join(w.err, err)
				w.changes = append(w.changes, seenChange{main, key, value})
			}
			w.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return w
}

// wait returns when the watch has come to a revision.
func (w *watcher) wait(rev int64) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		w.mu.Lock()
		n, err := len(w.changes), w.err
		reached := n > 0 && w.changes[n-1].main >= rev
		w.mu.Unlock()
		if err != nil {
			w.t.Fatalf("the watch: %v", err)
		}
		if reached {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("the watch did not come to revision %d", rev)
		}
	}
}

// hash is what HashKV of a revision is by what was seen, in an etcd that never
// compacted: a checksum of every change.
func (w *watcher) hash(rev int64) uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	h.Write([]byte("key"))
	for _, c := range w.changes {
		if c.main <= rev {
			h.Write(c.key)
			h.Write(c.value)
		}
	}
	return h.Sum32()
}
