package backup_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/etcdtest/cluster"
)

// everything reads all keys with their versions, and HashKV at a revision.
func everything(t *testing.T, live *cluster.Cluster, revision int64) (map[string]string, uint32) {
	t.Helper()
	client := live.Client(0)
	response, err := client.Get(t.Context(), "", clientv3.WithFromKey(), clientv3.WithRev(revision))
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{}
	for _, kv := range response.Kvs {
		keys[string(kv.Key)] = fmt.Sprintf("%d %d %d %x %s", kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease, kv.Value)
	}
	hash, err := client.HashKV(t.Context(), live.Members[0].Endpoint, revision)
	if err != nil {
		t.Fatal(err)
	}
	return keys, hash.Hash
}

func TestBackupsOfEveryVersionComeBack(t *testing.T) {
	t.Parallel()
	for _, version := range cluster.Versions {
		t.Run("etcd "+version, func(t *testing.T) {
			t.Parallel()
			live := cluster.StartBinary(t, version, cluster.Options{Members: 3, TLS: true})
			filled, err := etcdtest.Fill(t.Context(), live.Client(), etcdtest.FillOptions{Objects: 200, Seed: 3})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := live.Client().Compact(t.Context(), filled.Revision/2); err != nil {
				t.Fatal(err)
			}
			wantKeys, wantHash := everything(t, live, filled.Revision)

			w, store := newWorld(t), directory(t)
			m := mustEtcd(t, w.runner(t, store), configOf(live))
			if int64(m.Etcd.Revision) != filled.Revision || m.Etcd.HashKV != wantHash || len(m.Unproved)+len(m.Degraded) > 0 {
				t.Errorf("revision %d, HashKV %d, unproved %q, degraded %q; want revision %d, HashKV %d",
					m.Etcd.Revision, m.Etcd.HashKV, m.Unproved, m.Degraded, filled.Revision, wantHash)
			}
			for i := range live.Members { // all is lost
				live.Kill(i)
			}
			w.verified(t, store)

			dataDir, peerURL := w.restored(t, store, m)
			again := cluster.StartBinary(t, version, cluster.Options{DataDir: dataDir, PeerURL: peerURL})
			gotKeys, gotHash := everything(t, again, filled.Revision)
			if gotHash != wantHash || len(gotKeys) != len(wantKeys) {
				t.Errorf("%d keys with HashKV %d came back, want %d with %d", len(gotKeys), gotHash, len(wantKeys), wantHash)
			}
			for key, want := range wantKeys {
				if gotKeys[key] != want {
					t.Errorf("%s: %s, want %s", key, gotKeys[key], want)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if put, err := again.Client().Put(ctx, "/registry/after", "the storm"); err != nil || put.Header.Revision <= filled.Revision {
				t.Errorf("put: %v, %v", put, err)
			}
		})
	}
}
