package datadir

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/internal/etcdtest/cluster"
)

// TestAMemberCanBeginWithNothing starts each etcd from an empty database whose
// revision was raised, and lets a watcher from before find out.
func TestAMemberCanBeginWithNothing(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "data")
			const bump = 5_000_000_000
			folder := t.TempDir()
			text, err := EmptySnapshot(folder)
			if err != nil {
				t.Fatal(err)
			}
			if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			res, err := Write(t.Context(), bytes.NewReader(text), Options{
				DataDir: dir, Name: "m0", PeerURLs: []string{"http://127.0.0.1:1"}, Token: "t", Bump: bump, ID: "r1", Size: int64(len(text)),
			})
			if err != nil || res.Last != 0 || res.Revision != bump {
				t.Fatalf("%+v, %v", res, err)
			}
			c := cluster.StartBinary(t, version, cluster.Options{DataDir: dir})
			client := c.Client()
			watch := client.Watch(t.Context(), "", clientv3.WithPrefix(), clientv3.WithRev(700))
			select {
			case r := <-watch:
				if !errors.Is(r.Err(), rpctypes.ErrCompacted) {
					t.Errorf("a watcher from before is told %v", r.Err())
				}
			case <-time.After(20 * time.Second):
				t.Error("a watcher from before waits for what will not come")
			}
			all, err := client.Get(t.Context(), "", clientv3.WithPrefix())
			if err != nil || len(all.Kvs) != 0 || all.Header.Revision < bump {
				t.Errorf("%v, %v", all, err)
			}
			if put, err := client.Put(t.Context(), "/registry/events/a", "b"); err != nil || put.Header.Revision <= bump {
				t.Errorf("%v, %v", put, err)
			}
		})
	}
}
