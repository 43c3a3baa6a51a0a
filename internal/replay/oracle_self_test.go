package replay

import (
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"lifeboat/internal/etcdtest/cluster"
)

// TestTheOracleAgreesWithLiveMembers holds the judge itself to etcd: its
// hashes to those of all members through work and trouble, and its judgement to
// the members' own database files.
func TestTheOracleAgreesWithLiveMembers(t *testing.T) {
	s := seed(t)
	c := cluster.StartBinary(t, "3.7", cluster.Options{Members: 3})
	o, b := watchFrom1(t, c), newBook()
	ctx, cancel := context.WithCancel(t.Context())
	wait := o.sampleUntil(ctx, c, rand.New(rand.NewPCG(s, 99)), 20*time.Millisecond)
	w := startWork(t, c, o, b, s, 3*time.Millisecond)
	w.meet(50 * time.Millisecond)
	for i := range c.Members {
		path := snapshot(t, c, i)
		rev := exact(t, path)
		o.wait(t, rev)
		v, err := o.judge(t.Context(), b, path, rev)
		if err != nil {
			t.Fatal(err)
		}
		for _, difference := range v.differences {
			t.Errorf("member %d's own file at revision %d: %s", i, rev, difference)
		}
	}
	w.stop()
	w.did(t)
	cancel()
	wait()
	o.sound(t)
	t.Logf("%d revisions, %d of them sampled", o.seen(), len(o.sampled()))
}

// snapshot takes a member's database file over its maintenance API.
func snapshot(t *testing.T, c *cluster.Cluster, i int) string {
	t.Helper()
	r, err := c.Client(i).Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	path := filepath.Join(t.TempDir(), "snapshot.db")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, r); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// exact is the revision at which a file ends.
func exact(t *testing.T, path string) int64 {
	t.Helper()
	d, err := readDatabase(path)
	if err != nil {
		t.Fatal(err)
	}
	return max(d.last(), d.meta["finishedCompactRev"], d.meta["scheduledCompactRev"])
}

// TestTheJudgeSeesEveryKindOfDifference damages a good file in all the ways
// that a replay could be wrong.
func TestTheJudgeSeesEveryKindOfDifference(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{})
	o, b := watchFrom1(t, c), newBook()
	w := startWork(t, c, o, b, seed(t), time.Millisecond)
	for o.seen() < 400 {
		time.Sleep(10 * time.Millisecond)
	}
	w.stop()
	k := &worker{w: w, rng: rand.New(rand.NewPCG(1, 2))}
	g, err := k.grant(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.attach(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	good := snapshot(t, c, 0)
	rev := exact(t, good)
	o.wait(t, rev)
	if _, err := o.ask(t.Context(), c.Client(0), rev); err != nil {
		t.Fatal(err)
	}
	judge := func(t *testing.T, path string) []string {
		v, err := o.judge(t.Context(), b, path, rev)
		if err != nil {
			return []string{err.Error()}
		}
		return v.differences
	}
	if d := judge(t, good); len(d) > 0 {
		t.Fatalf("a good file: %q", d)
	}

	var put, tombstone change // any live key's newest record, and any deletion
	d, err := readDatabase(good)
	if err != nil {
		t.Fatal(err)
	}
	state := d.state()
	for _, c := range d.records {
		if c.tombstone {
			tombstone = c
		} else if kv := state[string(c.kv.Key)]; kv != nil && kv.ModRevision == c.main && c.main < rev {
			put = c
		}
	}
	rewrite := func(f func(kv *mvccpb.KeyValue)) func(keys, leases *bbolt.Bucket) error {
		return func(keys, _ *bbolt.Bucket) error {
			kv := proto.Clone(put.kv).(*mvccpb.KeyValue)
			f(kv)
			raw, err := proto.Marshal(kv)
			if err != nil {
				return err
			}
			return keys.Put(put.bucketKey(), raw)
		}
	}
	lease := func(ttl int64) []byte {
		raw := binary.AppendUvarint([]byte{8}, uint64(g.id))
		return binary.AppendUvarint(append(raw, 16), uint64(ttl))
	}
	leaseKey := binary.BigEndian.AppendUint64(nil, uint64(g.id))
	for _, test := range []struct {
		name, want string
		edit       func(keys, leases *bbolt.Bucket) error
	}{
		{"a value", "the value of", rewrite(func(kv *mvccpb.KeyValue) { kv.Value = append(kv.Value, 'x') })},
		{"a version", "version", rewrite(func(kv *mvccpb.KeyValue) { kv.Version++ })},
		{"a create revision", "create", rewrite(func(kv *mvccpb.KeyValue) { kv.CreateRevision++ })},
		{"a mod revision", "mod", rewrite(func(kv *mvccpb.KeyValue) { kv.ModRevision-- })},
		{"a key's lease", "lease", rewrite(func(kv *mvccpb.KeyValue) { kv.Lease++ })},
		{"a lost record", "missing", func(keys, _ *bbolt.Bucket) error { return keys.Delete(put.bucketKey()) }},
		{"a lost deletion", "is missing", func(keys, _ *bbolt.Bucket) error { return keys.Delete(tombstone.bucketKey()) }},
		{"a record too many", "is not what happened", func(keys, _ *bbolt.Bucket) error {
			again := put
			again.sub = 500
			return keys.Put(again.bucketKey(), again.raw)
		}},
		{"a revision too many", "ends at", func(keys, _ *bbolt.Bucket) error {
			again := put
			again.main = rev + 1
			return keys.Put(again.bucketKey(), again.raw)
		}},
		{"a lost lease", "is missing, and", func(_, leases *bbolt.Bucket) error { return leases.Delete(leaseKey) }},
		{"a lease's time", "granted were 1000 s", func(_, leases *bbolt.Bucket) error { return leases.Put(leaseKey, lease(999)) }},
		{"a short time in place of a lease's", "granted were 1000 s", func(_, leases *bbolt.Bucket) error { return leases.Put(leaseKey, lease(syntheticTTL)) }},
		{"a lease too many", "had not been granted", func(_, leases *bbolt.Bucket) error {
			return leases.Put(binary.BigEndian.AppendUint64(nil, 5), []byte{8, 5, 16, 100})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bad.db")
			data, err := os.ReadFile(good)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, data[:len(data)-len(data)%512], 0o600); err != nil {
				t.Fatal(err)
			}
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			err = db.Update(func(tx *bbolt.Tx) error { return test.edit(tx.Bucket([]byte("key")), tx.Bucket([]byte("lease"))) })
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(judge(t, path), "\n"); !strings.Contains(got, test.want) {
				t.Errorf("the judge says %q, want %q", got, test.want)
			}
		})
	}
}
