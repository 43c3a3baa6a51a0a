package materialize_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/freeport"
	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/datadir"
	"lifeboat/restore/materialize"
)

// recorded is a real cluster with what it did.
type recorded struct {
	t   *testing.T
	rng *rand.Rand
	cl  *cluster.Cluster
	c   *clientv3.Client
	history
	base    base
	hashes  map[[2]int64]uint32
	anchors []manifest.HashKV
	compact int64
	grants  []clientv3.LeaseID
	ttl     map[int64]int64
	seen    atomic.Int64 // revision that the watch has come to
}

func (r *recorded) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *recorded) key(i int) string { return fmt.Sprintf("/registry/k%03d", i) }

// work does n random transactions and compacts now and then.
func (r *recorded) work(n int) {
	ctx := r.t.Context()
	for range n {
		used := map[int]bool{}
		var ops []clientv3.Op
		for range 1 + r.rng.IntN(5)*r.rng.IntN(2) {
			k := r.rng.IntN(60)
			if used[k] || used[k+1] || used[k+2] || used[k+3] {
				continue
			}
			used[k] = true
			switch r.rng.IntN(7) {
			case 0:
				ops = append(ops, clientv3.OpDelete(r.key(k)))
			case 1:
				used[k+1], used[k+2], used[k+3] = true, true, true
				ops = append(ops, clientv3.OpDelete(r.key(k), clientv3.WithRange(r.key(k+4))))
			case 2:
				ops = append(ops, clientv3.OpPut(r.key(k), fmt.Sprint(r.rng.Uint64()), clientv3.WithLease(r.grants[r.rng.IntN(len(r.grants))])))
			default:
				ops = append(ops, clientv3.OpPut(r.key(k), strings.Repeat(fmt.Sprint(r.rng.Uint64()), 1+r.rng.IntN(40))))
			}
		}
		res, err := r.c.Txn(ctx).Then(ops...).Commit()
		r.must(err)
		rev := res.Header.Revision
		switch r.rng.IntN(70) {
		case 0:
			r.grant()
		case 1:
			i := r.rng.IntN(len(r.grants))
			_, err := r.c.Revoke(ctx, r.grants[i])
			r.must(err)
			r.grants = slices.Delete(r.grants, i, i+1)
			r.grant()
		case 2:
			if rev > r.compact+2 {
				r.compactTo(r.compact + 1 + r.rng.Int64N(rev-r.compact-1))
			}
		}
		if r.rng.IntN(3) == 0 {
			r.hash(0)
		}
	}
}

func (r *recorded) grant() {
	g, err := r.c.Grant(r.t.Context(), 1000+r.rng.Int64N(5000))
	r.must(err)
	r.grants = append(r.grants, g.ID)
	r.ttl[int64(g.ID)] = g.TTL
}

func (r *recorded) compactTo(rev int64) {
	for range 1000 { // a recorder that falls behind a compaction is another test's matter
		if r.seen.Load() >= rev {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	_, err := r.c.Compact(r.t.Context(), rev, clientv3.WithCompactPhysical())
	r.must(err)
	r.compact = rev
	for range 100 { // the members compact each at its own pace
		if h, err := r.c.HashKV(r.t.Context(), r.cl.Members[0].Endpoint, rev); err == nil && h.CompactRevision < rev {
			r.anchors = append(r.anchors, manifest.HashKV{Revision: manifest.Revision(rev), CompactRevision: manifest.Revision(max(0, h.CompactRevision)), HashKV: h.Hash})
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.t.Logf("no hash of compaction %d", rev)
}

// hash asks for the hash at a revision, 0 for the present one.
func (r *recorded) hash(rev int64) {
	h, err := r.c.HashKV(r.t.Context(), r.cl.Members[0].Endpoint, rev)
	r.must(err)
	if rev == 0 {
		rev = h.Header.Revision
	}
	if h.HashRevision != 0 {
		rev = h.HashRevision // 3.6 and later say
	}
	r.hashes[[2]int64{rev, max(0, h.CompactRevision)}] = h.Hash
}

// record gathers all events by a watch, until one of the key "/last", as a recorder would.
func (r *recorded) record(ctx context.Context) <-chan error {
	done := make(chan error, 1)
	watch := r.c.Watch(clientv3.WithRequireLeader(ctx), "\x00", clientv3.WithFromKey(), clientv3.WithRev(1), clientv3.WithCreatedNotify())
	if created := <-watch; !created.Created {
		r.t.Fatalf("the watch begins with %+v", created)
	}
	go func() {
		seen := map[int64]bool{}
		for res := range watch {
			if err := res.Err(); err != nil {
				done <- err
				return
			}
			for _, e := range res.Events {
				c := change{main: e.Kv.ModRevision, delete: e.Type == clientv3.EventTypeDelete}
				if c.delete {
					c.kv = segment.AppendTombstone(nil, e.Kv.Key)
				} else {
					c.kv, _ = proto.Marshal((*mvccpb.KeyValue)(e.Kv))
					if l := e.Kv.Lease; l != 0 && !seen[l] {
						seen[l] = true
						r.leases = append(r.leases, segment.Lease{ID: l, Revision: c.main})
					}
				}
				r.changes = append(r.changes, c)
				r.seen.Store(c.main)
				if string(e.Kv.Key) == "/last" {
					done <- nil
					return
				}
			}
		}
		done <- io.ErrUnexpectedEOF
	}()
	return done
}

func TestEtcdStartsOnAMaterializedDatabaseAndAgreesWithTheLiveOne(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run("etcd "+version, func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			members := 1
			if version == "3.7" {
				members = 3
			}
			cl := cluster.StartBinary(t, version, cluster.Options{Members: members})
			r := &recorded{t: t, rng: rand.New(rand.NewPCG(seed, 0)), cl: cl, c: cl.Client(0), hashes: map[[2]int64]uint32{}, ttl: map[int64]int64{}}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := r.record(ctx)
			for range 4 {
				r.grant()
			}
			r.work(150)
			r.snapshot()
			r.work(350)
			_, err := r.c.Put(t.Context(), "/last", "")
			r.must(err)
			r.must(<-done)
			for i := range r.leases {
				r.leases[i].TTL = r.ttl[r.leases[i].ID]
			}
			end := r.changes[len(r.changes)-1].main

			compared := 0
			for i := range 12 {
				p := r.base.rev + 1 + r.rng.Int64N(end-r.base.rev)
				if i%2 == 0 { // where the cluster has told a hash when it was there
					p = r.someHashed()
				}
				if p > r.compact {
					r.hash(p)
				}
				path, res := r.materialize(p, i%4 == 3)
				for at, want := range r.hashes {
					if at[0] != p || at[1] < res.CompactRevision {
						continue
					}
					if _, same, err := snapdb.CheckHashKV(t.Context(), path, at[0], at[1], want); err != nil || !same {
						t.Errorf("HashKV at %d, compacted at %d, is not %d (%v)", at[0], at[1], want, err)
					}
					compared++
				}
				if i%5 == 2 {
					r.start(version, path, res, int64(i/5)*1_000_000)
				}
			}
			t.Logf("%d hashes of the live cluster compared, %d recorded ones, base %d, end %d, compacted at %d", compared, len(r.anchors), r.base.rev, end, r.compact)
			if compared < 6 {
				t.Error("too little was compared")
			}
		})
	}
}

// someHashed is a revision behind the base whose hash the cluster has told.
func (r *recorded) someHashed() int64 {
	var all []int64
	for at := range r.hashes {
		// What was compacted since is told only as of the compact revision then.
		newest := int64(0)
		for _, a := range r.anchors {
			if int64(a.Revision) <= at[0] {
				newest = max(newest, int64(a.CompactRevision))
			}
		}
		if at[0] > r.base.rev && at[1] >= newest {
			all = append(all, at[0])
		}
	}
	if len(all) == 0 {
		r.t.Fatal("no hash was told behind the base")
	}
	return all[r.rng.IntN(len(all))]
}

// snapshot takes the base, as the maintenance API gives it, without its trailer.
func (r *recorded) snapshot() {
	rc, err := r.c.Snapshot(r.t.Context())
	r.must(err)
	defer rc.Close()
	r.base.path = filepath.Join(r.t.TempDir(), "base")
	f, err := os.Create(r.base.path)
	r.must(err)
	n, err := io.Copy(f, rc)
	r.must(err)
	r.must(f.Truncate(n - sha256.Size))
	r.must(f.Close())
	facts, err := snapdb.Inspect(r.t.Context(), r.base.path, snapdb.Options{})
	r.must(err)
	r.base.rev = facts.Revision
	r.base.hash = manifest.HashKV{Revision: manifest.Revision(facts.Revision), CompactRevision: manifest.Revision(max(0, facts.CompactRevision)), HashKV: facts.HashKV}
}

func (r *recorded) materialize(p int64, plain bool) (string, *materialize.Result) {
	r.t.Helper()
	end := r.changes[len(r.changes)-1].main
	route := r.route(r.t, r.rng, max(2, r.base.rev-20), min(end, p+10))
	opts := materialize.Options{To: p, Base: r.base.hash, Hashes: r.anchors, Scratch: r.t.TempDir(), Segments: len(route), Open: opening(route)}
	if plain {
		opts.Hashes = nil
	}
	path := filepath.Join(r.t.TempDir(), "db")
	copyFile(r.t, r.base.path, path)
	res, err := materialize.Append(r.t.Context(), path, opts)
	if err != nil {
		r.t.Fatalf("to %d: %v", p, err)
	}
	if res.MadeUp > 0 {
		r.t.Errorf("%d leases are made up, though all were recorded", res.MadeUp)
	}
	return path, res
}

// start restores the file into a data directory, starts etcd on it and looks at
// all that it can say. bump is added to the revision, as a real restore does.
func (r *recorded) start(version, path string, res *materialize.Result, bump int64) {
	t := r.t
	t.Helper()
	b, err := os.ReadFile(path)
	r.must(err)
	sum := sha256.Sum256(b)
	port, err := freeport.Take()
	r.must(err)
	peer := fmt.Sprintf("http://127.0.0.1:%d", port)
	dir := filepath.Join(t.TempDir(), "restored")
	_, err = datadir.Write(t.Context(), io.MultiReader(strings.NewReader(string(b)), strings.NewReader(string(sum[:]))),
		datadir.Options{DataDir: dir, Name: "r0", PeerURLs: []string{peer}, Token: fmt.Sprint("token", res.Revision), ID: "r1", Bump: uint64(bump)})
	r.must(err)
	cl := cluster.StartBinary(t, version, cluster.Options{DataDir: dir, Name: "r0", PeerURL: peer, Token: fmt.Sprint("token", res.Revision)})
	defer cl.Stop(0)
	c, ctx := cl.Client(), t.Context()
	want := r.at(t, res.Revision)
	leased := map[int64]bool{}
	compare := func(rev int64) {
		t.Helper()
		got, err := c.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(rev))
		r.must(err)
		if len(got.Kvs) != len(want) {
			t.Errorf("at %d: %d keys, want %d", rev, len(got.Kvs), len(want))
		}
		for _, kv := range got.Kvs {
			if w := want[string(kv.Key)]; !proto.Equal(w, (*mvccpb.KeyValue)(kv)) {
				t.Errorf("at %d: %v, want %v", rev, kv, w)
			}
			leased[kv.Lease] = true
		}
		if rev != got.Header.Revision {
			t.Errorf("etcd is at revision %d, want %d", got.Header.Revision, rev)
		}
	}
	compare(res.Revision + bump)
	for id := range leased {
		if id == 0 {
			continue
		}
		l, err := c.TimeToLive(ctx, clientv3.LeaseID(id), clientv3.WithAttachedKeys())
		r.must(err)
		var keys []string
		for _, k := range l.Keys {
			keys = append(keys, string(k))
		}
		var held []string
		for name, kv := range want {
			if kv.Lease == id {
				held = append(held, name)
			}
		}
		slices.Sort(keys)
		slices.Sort(held)
		if l.GrantedTTL != r.ttl[id] || !slices.Equal(keys, held) {
			t.Errorf("lease %x: granted %d s and holding %v, want %d and %v", id, l.GrantedTTL, keys, r.ttl[id], held)
		}
	}
	// What etcd believes of versions shows when it changes a key again.
	rev := res.Revision + bump
	for i := range 64 {
		name := r.key(i)
		put, err := c.Put(ctx, name, "next")
		r.must(err)
		if rev++; put.Header.Revision != rev {
			t.Fatalf("revision %d, want %d", put.Header.Revision, rev)
		}
		next := &mvccpb.KeyValue{Key: []byte(name), Value: []byte("next"), CreateRevision: rev, ModRevision: rev, Version: 1}
		if old := want[name]; old != nil {
			next.CreateRevision, next.Version = old.CreateRevision, old.Version+1
		}
		want[name] = next
	}
	compare(rev)
	// The revisions that were never superseded can be read as they were.
	if old := res.CompactRevision + 1; bump == 0 && old <= res.Revision {
		at := r.at(t, old)
		got, err := c.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(old))
		r.must(err)
		if len(got.Kvs) != len(at) {
			t.Errorf("at %d, right behind the compaction: %d keys, want %d", old, len(got.Kvs), len(at))
		}
	}
	log, err := os.ReadFile(cl.Members[0].LogFile())
	r.must(err)
	for _, bad := range []string{"failed to attach", "lease not found", "tombstone encountered", "panic"} {
		if strings.Contains(string(log), bad) {
			t.Errorf("etcd logs %q:\n%s", bad, log)
		}
	}
}
