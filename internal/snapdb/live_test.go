package snapdb_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/snapdb"
)

// takeSnapshot saves a snapshot as "etcdctl snapshot save" does.
func takeSnapshot(t testing.TB, c *clientv3.Client) string {
	t.Helper()
	rc, err := c.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	path := filepath.Join(t.TempDir(), "snapshot.db")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, rc); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFactsAndHashEqualThoseOfLiveMembers(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run("etcd "+version, func(t *testing.T) {
			t.Parallel()
			members := 1
			if version == "3.6" {
				members = 3
			}
			// A raft snapshot is when 3.5 stores its term and 3.6 its version.
			cl := cluster.StartBinary(t, version, cluster.Options{Members: members, Args: []string{"--snapshot-count", "100"}})
			c, ctx := cl.Client(), t.Context()
			fill := func(first, n int) {
				t.Helper()
				if _, err := etcdtest.Fill(ctx, c, etcdtest.FillOptions{Objects: n, First: first, Seed: 3, ValueBytes: 600}); err != nil {
					t.Fatal(err)
				}
			}
			fill(0, 1500)
			compareLive(t, cl, c, "never compacted")
			rev := revision(t, c)
			if _, err := c.Compact(ctx, rev-400, clientv3.WithCompactPhysical()); err != nil {
				t.Fatal(err)
			}
			compareLive(t, cl, c, "compacted in the middle")
			fill(1500, 500)
			compareLive(t, cl, c, "compacted and changed again")

			// A deletion at the very compact revision, and nothing after it.
			if _, err := c.Put(ctx, "/registry/x", "1"); err != nil {
				t.Fatal(err)
			}
			del, err := c.Delete(ctx, "/registry/x")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Compact(ctx, del.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
				t.Fatal(err)
			}
			for _, m := range cl.Members {
				// What a member keeps of a compaction revision is as of the one
				// before; a revision further on it has to compute.
				waitCompacted(t, c, m.Endpoint)
			}
			if _, err := c.Put(ctx, "/registry/y", "1"); err != nil {
				t.Fatal(err)
			}
			compareLive(t, cl, c, "compacted at a deletion")
			compareUnfinished(t, version, cl, c)
			waitStorageVersion(t, c, version+".0")
		})
	}
}

func revision(t testing.TB, c *clientv3.Client) int64 {
	t.Helper()
	r, err := c.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	return r.Header.Revision
}

func waitCompacted(t testing.TB, c *clientv3.Client, endpoint string) {
	t.Helper()
	for range 200 {
		if _, err := c.HashKV(t.Context(), endpoint, 0); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s does not answer HashKV", endpoint)
}

// waitStorageVersion waits for what 3.6 and later store some seconds after
// their first raft snapshot; until then their files look like those of 3.5.
func waitStorageVersion(t *testing.T, c *clientv3.Client, want string) {
	t.Helper()
	var got string
	for range 40 {
		if got = inspect(t, takeSnapshot(t, c)).StorageVersion; got == want {
			return
		}
		if got != "3.5.0" {
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	t.Errorf("storage version %q, want %q", got, want)
}

// compareLive takes a snapshot and compares what it says with what every
// member says at the same revision, and at older ones.
func compareLive(t *testing.T, cl *cluster.Cluster, c *clientv3.Client, when string) {
	t.Helper()
	// A follower may lag: a linearizable read from it first brings it up.
	one := cl.Client(0)
	revision(t, one)
	path := takeSnapshot(t, one)
	if err := snapdb.VerifyTrailer(t.Context(), path); err != nil {
		t.Errorf("%s: %v", when, err)
	}
	f := inspect(t, path)
	all, err := c.Get(t.Context(), "", clientv3.WithFromKey(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	if f.Revision != all.Header.Revision || f.Keys != all.Count {
		t.Errorf("%s: revision %d with %d keys, etcd has %d with %d", when, f.Revision, f.Keys, all.Header.Revision, all.Count)
	}
	leases, err := c.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if f.Leases != int64(len(leases.Leases)) || f.Leases == 0 {
		t.Errorf("%s: %d leases, etcd has %d", when, f.Leases, len(leases.Leases))
	}
	if f.ClusterVersion != cl.Version+".0" {
		t.Errorf("%s: cluster version %q", when, f.ClusterVersion)
	}
	if f.Term == 0 || f.ConsistentIndex == 0 || f.AuthRevision != 1 || len(f.Members) != len(cl.Members) || !f.HasTrailer {
		t.Errorf("%s: %+v", when, f)
	}
	ids := map[uint64]bool{}
	list, err := c.MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Members {
		ids[m.ID] = true
	}
	for _, m := range f.Members {
		if !ids[m.ID] || m.Name == "" || len(m.PeerURLs) == 0 || len(m.ClientURLs) == 0 {
			t.Errorf("%s: member %+v", when, m)
		}
	}
	for _, m := range cl.Members {
		at := hashKV(t, c, m.Endpoint, f.Revision)
		if f.HashKV != at.Hash || f.CompactRevision != at.CompactRevision {
			t.Errorf("%s: %x as of compact revision %d, member %s has %x as of %d", when, f.HashKV, f.CompactRevision, m.Name, at.Hash, at.CompactRevision)
		}
		low := max(f.CompactRevision, 1)
		for rev := low + 1; rev < f.Revision; rev += 1 + (f.Revision-low)/7 {
			want := hashKV(t, c, m.Endpoint, rev)
			got, err := snapdb.HashKV(t.Context(), path, rev, want.CompactRevision)
			if err != nil || got != want.Hash {
				t.Errorf("%s: at revision %d: %x, %v; member %s has %x", when, rev, got, err, m.Name, want.Hash)
			}
		}
	}
}

// hashKV waits for members that lag.
func hashKV(t testing.TB, c *clientv3.Client, endpoint string, rev int64) *clientv3.HashKVResponse {
	t.Helper()
	for {
		r, err := c.HashKV(t.Context(), endpoint, rev)
		if err == nil {
			return r
		}
		if !strings.Contains(err.Error(), "future revision") {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// compareUnfinished compacts a copy of the file up to the middle without
// finishing, starts etcd from it and compares.
func compareUnfinished(t *testing.T, version string, cl *cluster.Cluster, c *clientv3.Client) {
	t.Helper()
	if _, err := etcdtest.Fill(t.Context(), c, etcdtest.FillOptions{Objects: 500, First: 3000, Seed: 3, ValueBytes: 600}); err != nil {
		t.Fatal(err)
	}
	one := cl.Client(0)
	revision(t, one)
	path := takeSnapshot(t, one)
	before := inspect(t, path)
	scheduled := before.Revision - 200
	path = edit(t, path, func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("scheduledCompactRev"), revisionKey(scheduled, 0, false))
	})
	f := inspect(t, path)
	if !f.UnfinishedCompaction() || f.CompactRevision != scheduled || f.Keys != before.Keys {
		t.Errorf("%+v", f)
	}
	// The live members, once they have compacted at the same revision.
	if _, err := c.Compact(context.Background(), scheduled, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	for _, m := range cl.Members {
		for {
			want := hashKV(t, c, m.Endpoint, f.Revision)
			if want.CompactRevision < scheduled { // a follower that lags
				time.Sleep(10 * time.Millisecond)
				continue
			}
			if want.Hash != f.HashKV || want.CompactRevision != scheduled {
				t.Errorf("unfinished compaction in %s: %x as of %d, member %s has %x as of %d", version, f.HashKV, f.CompactRevision, m.Name, want.Hash, want.CompactRevision)
			}
			break
		}
	}
	// As of a later compact revision, from the file before it.
	got, err := snapdb.HashKV(t.Context(), path, f.Revision, scheduled)
	if err != nil || got != f.HashKV {
		t.Errorf("HashKV %x, %v; Inspect %x", got, err, f.HashKV)
	}
}

// A file that BuildDB made, restored with a bump by etcdutl: the marker, a
// compaction that etcd has yet to do, and all keys as before.
func TestFactsAndHashOfABumpedRestoreEqualThoseOfItsMember(t *testing.T) {
	path, built := build(t, etcdtest.BuildOptions{Objects: 1000, Seed: 9, Trailer: true})
	dir := filepath.Join(t.TempDir(), "data")
	const peer = "http://127.0.0.1:2380"
	out, err := exec.Command(cluster.Binary(t, "3.6", "etcdutl"), "snapshot", "restore", path, "--data-dir", dir,
		"--name", "m0", "--initial-advertise-peer-urls", peer, "--initial-cluster", "m0="+peer,
		"--bump-revision", "1000000", "--mark-compacted").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	restored := filepath.Join(t.TempDir(), "db")
	data, err := os.ReadFile(filepath.Join(dir, "member", "snap", "db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(restored, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f := inspect(t, restored)
	bumped := built.Revision + 1_000_000
	if f.Revision != bumped || f.BumpedTo != bumped || f.CompactRevision != bumped || !f.UnfinishedCompaction() || f.Keys != built.Live {
		t.Errorf("%+v", f)
	}
	cl := cluster.StartBinary(t, "3.6", cluster.Options{DataDir: dir, Args: []string{"--force-new-cluster"}})
	c := cl.Client()
	all, err := c.Get(t.Context(), "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	if all.Count != built.Live || all.Header.Revision != bumped {
		t.Errorf("etcd has %d keys at revision %d", all.Count, all.Header.Revision)
	}
	// The hash that etcd keeps of its compaction is as of the one before it.
	if _, err := c.Put(t.Context(), "/registry/x", "1"); err != nil {
		t.Fatal(err)
	}
	after := inspect(t, takeSnapshot(t, c))
	want := hashKV(t, c, cl.Members[0].Endpoint, after.Revision)
	if after.HashKV != want.Hash || after.CompactRevision != want.CompactRevision {
		t.Errorf("%x as of %d, etcd has %x as of %d", after.HashKV, after.CompactRevision, want.Hash, want.CompactRevision)
	}
	if kept := hashKV(t, c, cl.Members[0].Endpoint, bumped); kept.CompactRevision == bumped && kept.Hash != f.HashKV {
		t.Errorf("restored: %x, etcd has %x", f.HashKV, kept.Hash)
	}
}
