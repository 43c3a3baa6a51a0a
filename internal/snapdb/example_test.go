package snapdb_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/snapdb"
)

func ExampleInspect() {
	dir, err := os.MkdirTemp("", "snapdb-*")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "snapshot.db")
	if _, err := etcdtest.BuildDB(path, etcdtest.BuildOptions{Objects: 1000, Trailer: true}); err != nil {
		panic(err)
	}
	if err := snapdb.VerifyTrailer(context.Background(), path); err != nil {
		panic(err)
	}
	facts, err := snapdb.Inspect(context.Background(), path, snapdb.Options{})
	if err != nil {
		panic(err)
	}
	fmt.Println("revision", facts.Revision, "compacted at", facts.CompactRevision)
	fmt.Println(facts.Keys, "keys for etcd", facts.StorageVersion)
	fmt.Printf("HashKV %08x\n", facts.HashKV)
	// Output:
	// revision 1101 compacted at 1001
	// 990 keys for etcd 3.6.0
	// HashKV 7a0c7242
}
