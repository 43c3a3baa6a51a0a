package datadir

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/freeport"
)

var versions = []string{"3.5", "3.6", "3.7"}

// takeSnapshot fills a real etcd, with history, a compaction and deletions on
// both sides of it, and has its own etcdctl save a snapshot.
func takeSnapshot(t *testing.T, version string) (path string, revision int64) {
	t.Helper()
	ctx := t.Context()
	c := cluster.StartBinary(t, version, cluster.Options{})
	client := c.Client()
	if _, err := etcdtest.Fill(ctx, client, etcdtest.FillOptions{Objects: 400, Seed: 1}); err != nil {
		t.Fatal(err)
	}
	now, err := client.Get(ctx, "now")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	filled, err := etcdtest.Fill(ctx, client, etcdtest.FillOptions{Objects: 300, Seed: 2, First: 1000})
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "snapshot.db")
	out, err := exec.CommandContext(ctx, cluster.Binary(t, version, "etcdctl"),
		"--endpoints", c.Members[0].Endpoint, "snapshot", "save", path).CombinedOutput()
	if err != nil {
		t.Fatalf("save a snapshot: %v\n%s", err, out)
	}
	c.Stop(0)
	return path, filled.Revision
}

// dump reads a database, bucket by bucket.
func dump(t *testing.T, path string) map[string]map[string]string {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	all := map[string]map[string]string{}
	err = db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Errorf("%s: %v", path, err)
		}
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			bucket := map[string]string{}
			all[string(name)] = bucket
			return b.ForEach(func(k, v []byte) error {
				bucket[string(k)] = string(v)
				return nil
			})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

type raftLog struct {
	Metadata *etcdserverpb.Metadata
	State    *raftpb.HardState
	Entries  []*raftpb.Entry
	Changes  []*raftpb.ConfChange // what the entries hold
	Marks    []*walpb.Snapshot
	Snap     *raftpb.SnapshotMetadata
	Members  any // the v2 store in the snapshot, without its counters
}

// readRaft reads a member's log and snapshot with etcd's own readers.
func readRaft(t *testing.T, dataDir string) raftLog {
	t.Helper()
	var l raftLog
	walDir := filepath.Join(dataDir, "member", "wal")
	var err error
	if l.Marks, err = wal.ValidSnapshotEntries(zap.NewNop(), walDir); err != nil {
		t.Fatal(err)
	}
	w, err := wal.OpenForRead(zap.NewNop(), walDir, &walpb.Snapshot{Index: new(uint64), Term: new(uint64)})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	metadata, state, entries, err := w.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	l.State, l.Entries, l.Metadata = state, entries, &etcdserverpb.Metadata{}
	for _, e := range entries {
		change := &raftpb.ConfChange{}
		if err := proto.Unmarshal(e.Data, change); err != nil {
			t.Fatal(err)
		}
		e.Data = nil
		l.Changes = append(l.Changes, change)
		dropZeros(e.ProtoReflect())
		dropZeros(change.ProtoReflect())
	}
	if err := proto.Unmarshal(metadata, l.Metadata); err != nil {
		t.Fatal(err)
	}
	s, err := snap.New(zap.NewNop(), filepath.Join(dataDir, "member", "snap")).Load()
	if err != nil {
		t.Fatal(err)
	}
	l.Snap = s.Metadata
	dropZeros(l.Snap.ProtoReflect())
	dropZeros(l.State.ProtoReflect())
	dropZeros(l.Metadata.ProtoReflect())
	for _, m := range l.Marks {
		dropZeros(m.ProtoReflect())
	}
	var tree any
	if err := json.Unmarshal(s.Data, &tree); err != nil {
		t.Fatal(err)
	}
	l.Members = withoutCounters(tree)
	return l
}

// dropZeros makes a zero that was written the same as a field left out: etcd
// 3.6 encodes both alike, 3.7 tells them apart, and both read both.
func dropZeros(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsList() || f.IsMap():
		case f.Message() != nil:
			dropZeros(v.Message())
		case f.Enum() != nil && v.Enum() == 0, f.Enum() == nil && v.Equal(f.Default()):
			m.Clear(f)
		}
		return true
	})
}

// withoutCounters drops what depends on the order in which etcd's v2 store was
// given its members, which is that of a Go map.
func withoutCounters(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range []string{"CreatedIndex", "ModifiedIndex", "CreateRevision", "EventHistory", "Stats"} {
			delete(v, k)
		}
		for k := range v {
			v[k] = withoutCounters(v[k])
		}
		return v
	case []any:
		for i := range v {
			v[i] = withoutCounters(v[i])
		}
	}
	return v
}

func etcdutlRestore(t *testing.T, version, snapshot, dataDir string, opts Options) {
	t.Helper()
	args := []string{"snapshot", "restore", snapshot, "--data-dir", dataDir, "--name", opts.Name,
		"--initial-advertise-peer-urls", strings.Join(opts.PeerURLs, ","),
		"--initial-cluster", opts.InitialCluster, "--initial-cluster-token", opts.Token}
	if opts.Bump > 0 {
		args = append(args, "--bump-revision", fmt.Sprint(opts.Bump), "--mark-compacted")
	}
	out, err := exec.CommandContext(t.Context(), cluster.Binary(t, version, "etcdutl"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("etcdutl %s: %v\n%s", version, err, out)
	}
}

func write(t *testing.T, snapshot string, opts Options) Result {
	t.Helper()
	f, err := os.Open(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	opts.Token, opts.ID = cmpOr(opts.Token, "fresh-token"), cmpOr(opts.ID, "r1")
	res, err := Write(t.Context(), f, opts)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func cmpOr(s, or string) string {
	if s != "" {
		return s
	}
	return or
}

func freeURL(t *testing.T) string {
	t.Helper()
	return "http://" + freeport.Address(t)
}

// The only exceptions to equality: none in the database. In the snapshot file
// of several members, counters that etcdutl itself writes differently each time.
func TestWriteEqualsEtcdutl(t *testing.T) {
	for _, version := range versions {
		t.Run("a snapshot of etcd "+version, func(t *testing.T) {
			t.Parallel()
			snapshot, revision := takeSnapshot(t, version)
			const one, three = "m0=http://127.0.0.1:2380", "a=http://10.0.0.1:2380,m0=http://127.0.0.1:2380,c=http://10.0.0.3:2380"
			for _, how := range []struct {
				restorer string
				bump     uint64
				initial  string
			}{
				{"3.6", 1_000_000_000, one}, {"3.6", 0, three}, {"3.7", 1_000_000_000, one}, {"3.7", 1000, three}, {"3.7", 0, one},
			} {
				restorer, bump, initial := how.restorer, how.bump, how.initial
				opts := Options{Name: "m0", PeerURLs: []string{"http://127.0.0.1:2380"}, InitialCluster: initial, Token: "fresh-token", Bump: bump}
				theirs, ours := filepath.Join(t.TempDir(), "theirs"), filepath.Join(t.TempDir(), "ours")
				etcdutlRestore(t, restorer, snapshot, theirs, opts)
				opts.DataDir = ours
				res := write(t, snapshot, opts)
				if res.Last != revision || res.Revision != revision+int64(bump) {
					t.Errorf("revisions %d and %d, want %d and %d", res.Last, res.Revision, revision, revision+int64(bump))
				}
				if d := cmp.Diff(dump(t, filepath.Join(theirs, "member/snap/db")), dump(t, filepath.Join(ours, "member/snap/db"))); d != "" {
					t.Errorf("databases differ (etcdutl %s, bump %d, %s):\n%s", restorer, bump, initial, d)
				}
				if d := cmp.Diff(readRaft(t, theirs), readRaft(t, ours), protocmp.Transform()); d != "" {
					t.Errorf("raft logs differ (etcdutl %s, %s):\n%s", restorer, initial, d)
				}
				if restorer == "3.7" && !strings.Contains(initial, ",") {
					sameBytes(t, theirs, ours)
				}
				onlyPrivate(t, ours)
			}
		})
	}
}

// sameBytes compares the raft files of one member, which our version of the
// library writes byte for byte as etcdutl of that version does.
func sameBytes(t *testing.T, theirs, ours string) {
	t.Helper()
	for _, name := range []string{"wal/0000000000000000-0000000000000000.wal", "snap/" + snapName(1)} {
		a, err := os.ReadFile(filepath.Join(theirs, "member", name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(ours, "member", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s differs", name)
		}
	}
}

func onlyPrivate(t *testing.T, dir string) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != "member" {
		t.Errorf("the data directory holds %v", entries)
	}
}

func TestEtcdStartsFromWhatEtcdutlAndWeWrote(t *testing.T) {
	for _, version := range versions {
		t.Run("etcd "+version, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			snapshot, revision := takeSnapshot(t, version)
			const bump = 1_000_000_000
			var hashes []*clientv3.HashKVResponse
			var keys [][]string
			for _, who := range []string{"etcdutl", "ours"} {
				peer := freeURL(t)
				dir := filepath.Join(t.TempDir(), who)
				opts := Options{Name: "m0", PeerURLs: []string{peer}, InitialCluster: "m0=" + peer, Token: "fresh-token", Bump: bump}
				if who == "etcdutl" {
					etcdutlRestore(t, version, snapshot, dir, opts)
				} else {
					opts.DataDir = dir
					write(t, snapshot, opts)
				}
				c := cluster.StartBinary(t, version, cluster.Options{DataDir: dir, Name: "m0", PeerURL: peer, Token: "fresh-token"})
				client := c.Client()
				hashes = append(hashes, compactedHash(t, client, c.Members[0].Endpoint, revision+bump))
				all, err := client.Get(ctx, "", clientv3.WithPrefix())
				if err != nil {
					t.Fatal(err)
				}
				if all.Header.Revision != revision+bump {
					t.Errorf("%s: revision %d, want %d", who, all.Header.Revision, revision+bump)
				}
				var text []string
				for _, kv := range all.Kvs {
					text = append(text, kv.String())
				}
				keys = append(keys, text)
				put, err := client.Put(ctx, "/registry/new", "1")
				if err != nil {
					t.Fatal(err)
				}
				if put.Header.Revision != revision+bump+1 {
					t.Errorf("%s: a put gave revision %d, want %d", who, put.Header.Revision, revision+bump+1)
				}
				wctx, cancel := context.WithTimeout(ctx, 10*time.Second)
				defer cancel()
				got := <-client.Watch(wctx, "/registry", clientv3.WithPrefix(), clientv3.WithRev(revision))
				if !errors.Is(got.Err(), rpctypes.ErrCompacted) {
					t.Errorf("%s: a watch from revision %d gave %v, want compacted", who, revision, got.Err())
				}
				c.Stop(0)
			}
			if hashes[0].Hash != hashes[1].Hash || hashes[0].CompactRevision != hashes[1].CompactRevision {
				t.Errorf("HashKV differs: %v and %v", hashes[0], hashes[1])
			}
			if len(keys[0]) == 0 || !cmp.Equal(keys[0], keys[1]) {
				t.Errorf("the keys differ: %d and %d", len(keys[0]), len(keys[1]))
			}
		})
	}
}

// compactedHash waits for the compaction that the bump has scheduled.
func compactedHash(t *testing.T, client *clientv3.Client, endpoint string, compacted int64) *clientv3.HashKVResponse {
	t.Helper()
	for range 200 {
		h, err := client.HashKV(t.Context(), endpoint, 0)
		if err != nil {
			t.Fatal(err)
		}
		if h.CompactRevision == compacted {
			return h
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("the compaction at %d was not carried out", compacted)
	return nil
}

func TestThreeRestoredMembersFormACluster(t *testing.T) {
	ctx := t.Context()
	snapshot, revision := takeSnapshot(t, "3.7")
	names := []string{"cp1", "cp2", "cp3"}
	var peers, clients, list []string
	for _, n := range names {
		peers, clients = append(peers, freeURL(t)), append(clients, freeURL(t))
		list = append(list, n+"="+peers[len(peers)-1])
	}
	var ids []uint64
	for i, n := range names {
		dir := filepath.Join(t.TempDir(), n)
		res := write(t, snapshot, Options{DataDir: dir, Name: n, PeerURLs: []string{peers[i]}, InitialCluster: strings.Join(list, ","), Bump: 1000})
		ids = append(ids, res.ClusterID)
		if res.Members != 3 {
			t.Errorf("%d members, want 3", res.Members)
		}
		var log bytes.Buffer
		cmd := exec.CommandContext(ctx, cluster.Binary(t, "3.7", "etcd"), "--data-dir", dir, "--name", n, "--unsafe-no-fsync", "--log-level", "warn",
			"--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
			"--listen-client-urls", clients[i], "--advertise-client-urls", clients[i])
		cmd.Stdout, cmd.Stderr = &log, &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
			if t.Failed() {
				t.Logf("%s:\n%s", n, log.String())
			}
		})
	}
	if ids[0] != ids[1] || ids[1] != ids[2] {
		t.Errorf("cluster ids differ: %x", ids)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: clients, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for range 100 { // reads, since a put that is tried twice may be done twice
		try, cancel := context.WithTimeout(ctx, time.Second)
		_, err = client.Get(try, "/registry/new")
		cancel()
		if err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	put, err := client.Put(ctx, "/registry/new", "1")
	if err != nil {
		t.Fatal(err)
	}
	if put.Header.Revision != revision+1001 {
		t.Errorf("revision %d, want %d", put.Header.Revision, revision+1001)
	}
	members, err := client.MemberList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(members.Members) != 3 {
		t.Errorf("members: %v", members.Members)
	}
	var hashes []uint32
	for _, endpoint := range clients {
		hashes = append(hashes, compactedHash(t, client, endpoint, revision+1000).Hash)
	}
	// All have applied the put only after a moment; the hash up to it is known.
	for i, endpoint := range clients {
		for range 100 {
			h, err := client.HashKV(ctx, endpoint, put.Header.Revision)
			if err == nil {
				hashes[i] = h.Hash
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	if hashes[0] != hashes[1] || hashes[1] != hashes[2] {
		t.Errorf("HashKV differs between the members: %v", hashes)
	}
}
