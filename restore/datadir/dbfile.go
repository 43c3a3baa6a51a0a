package datadir

import (
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"lifeboat/internal/boltfile"
)

// edit runs fn in one writing transaction of a database, without syncing: the
// caller syncs the file once.
func edit(path string, fn func(tx *bbolt.Tx) error) error {
	err := boltfile.Edit(path, 0, func(db *bbolt.DB) error { return db.Update(fn) })
	if errors.Is(err, boltfile.ErrDamaged) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}
