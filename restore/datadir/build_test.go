package datadir

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"google.golang.org/protobuf/proto"
)

// buildSnapshot writes a snapshot of about that many bytes as etcd would have
// made it: Kubernetes-shaped keys of a few revisions each, no free list, the
// hash trailer at its end.
func buildSnapshot(tb testing.TB, path string, size int64) {
	tb.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, NoGrowSync: true, NoFreelistSync: true,
		FreelistType: bbolt.FreelistArrayType, InitialMmapSize: int(size) * 2})
	if err != nil {
		tb.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 1<<16)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	filler := bytes.Repeat([]byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"labels":{"app":"demo"}}}`), 200)
	rev := int64(1)
	must := func(err error) {
		if err != nil {
			tb.Fatal(err)
		}
	}
	must(db.Update(func(tx *bbolt.Tx) error {
		for _, b := range schema.AllBuckets {
			if _, err := tx.CreateBucketIfNotExists(b.Name()); err != nil {
				return err
			}
		}
		meta := tx.Bucket(schema.Meta.Name())
		must(meta.Put(schema.MetaConsistentIndexKeyName, binary.BigEndian.AppendUint64(nil, 500_000)))
		must(meta.Put(schema.MetaTermKeyName, binary.BigEndian.AppendUint64(nil, 7)))
		must(meta.Put(schema.MetaStorageVersionName, []byte("3.7.0")))
		must(tx.Bucket(schema.Cluster.Name()).Put(schema.ClusterClusterVersionKeyName, []byte("3.7.0")))
		return tx.Bucket(schema.Members.Name()).Put([]byte("8e9e05c52164694d"), []byte(`{"id":10276657743932975437,"peerURLs":["http://localhost:2380"],"name":"default"}`))
	}))
	versions := map[int]int64{}
	for written := int64(0); written < size*5/6; {
		must(db.Update(func(tx *bbolt.Tx) error {
			keys := tx.Bucket(schema.Key.Name())
			keys.FillPercent = 0.9
			for range 5000 {
				rev++
				n := rnd.IntN(150_000)
				versions[n]++
				length, half := 1200+rnd.IntN(4000), rnd.IntN(len(noise)/2)
				value := append(append(make([]byte, 0, length), filler[:length*2/3]...), noise[half:half+length/3]...)
				kv, err := proto.Marshal(&mvccpb.KeyValue{
					Key:            []byte(fmt.Sprintf("/registry/pods/namespace-%03d/pod-%06d", n%500, n)),
					Value:          value,
					CreateRevision: rev, ModRevision: rev, Version: versions[n],
				})
				if err != nil {
					return err
				}
				if err := keys.Put(mvcc.RevToBytes(mvcc.Revision{Main: rev}, mvcc.NewRevBytes()), kv); err != nil {
					return err
				}
				if written += int64(len(kv)); written >= size*5/6 {
					break
				}
			}
			return nil
		}))
	}
	plain := path + ".tmp"
	f, err := os.OpenFile(plain, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	must(err)
	h := sha256.New()
	must(db.View(func(tx *bbolt.Tx) error {
		_, err := tx.WriteTo(io.MultiWriter(f, h))
		return err
	}))
	_, err = f.Write(h.Sum(nil))
	must(err)
	must(f.Sync())
	must(f.Close())
	must(db.Close())
	must(os.Rename(plain, path))
}

// bigSnapshot returns the path of a 1.5 GB snapshot, built once per folder that
// LIFEBOAT_BENCH_DIR names, else for this run.
func bigSnapshot(b *testing.B) string {
	b.Helper()
	dir := os.Getenv("LIFEBOAT_BENCH_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	path := filepath.Join(dir, "snapshot-1500MB.db")
	if _, err := os.Stat(path); err != nil {
		b.Logf("building %s", path)
		buildSnapshot(b, path, 1_500_000_000)
	}
	return path
}
