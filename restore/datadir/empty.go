package datadir

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/schema"
)

// EmptySnapshot returns the snapshot of an etcd to which nothing was ever written,
// for a member that begins anew: Receive takes it like any. It names no version, so
// etcd 3.5 and later start from it. The folder is for a file that is gone when it
// returns.
func EmptySnapshot(folder string) ([]byte, error) {
	file := filepath.Join(folder, "empty.db")
	defer os.Remove(file)
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		return nil, fmt.Errorf("make an empty database: %w", err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range schema.AllBuckets {
			if _, err := tx.CreateBucketIfNotExists(b.Name()); err != nil {
				return err
			}
		}
		return nil
	})
	if cerr := db.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("make an empty database: %w", err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("make an empty database: %w", err)
	}
	sum := sha256.Sum256(text)
	return append(text, sum[:]...), nil
}
