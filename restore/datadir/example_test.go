package datadir_test

import (
	"context"
	"fmt"
	"os"

	"lifeboat/restore/datadir"
)

func ExampleWrite() {
	f, err := os.Open("snapshot.db") // made by etcdctl snapshot save
	if err != nil {
		fmt.Println("open:", err)
		return
	}
	defer f.Close()
	res, err := datadir.Write(context.Background(), f, datadir.Options{
		DataDir:  "/var/lib/etcd",
		Name:     "cp1",
		PeerURLs: []string{"https://10.0.0.11:2380"},
		Token:    "fresh-and-random",
		Bump:     1_000_000_000,
		ID:       "2026-11-01-restore",
		AsideDir: "/var/lib/lifeboat/aside",
	})
	if err != nil {
		fmt.Println("restore:", err)
		return
	}
	fmt.Printf("etcd starts at revision %d; the old member is in %s\n", res.Revision, res.Aside)
}
