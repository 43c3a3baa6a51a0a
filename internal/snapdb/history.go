package snapdb

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
)

// Change is one element of the key bucket as History gives it: what one
// operation did to one key. Its slice points into the file.
type Change struct {
	Main, Sub int64
	Tombstone bool
	Lease     int64  // of a put; 0: none
	KV        []byte // as stored: an mvccpb.KeyValue, of a tombstone with the key alone
}

// History calls each with every change after a revision, in the order in which
// they were made, and reads no page that holds older ones alone. It is
// ErrCompacted when the file was compacted beyond after: then some of them are
// gone. Damage that is met is ErrCorrupt; an error of each is returned as it is.
// The last revision of a file that a member gave is whole.
//
// The file must not change meanwhile.
func History(ctx context.Context, path string, after int64, each func(Change) error) error {
	return withFile(path, func(data []byte, _ int64) error {
		r, err := openDatabase(ctx, data, nil)
		if err != nil {
			return fmt.Errorf("read the history of etcd database %s: %w", path, err)
		}
		if compacted := r.compacted(); after < compacted {
			return fmt.Errorf("read the history of etcd database %s after revision %d: %w: at %d", path, after, ErrCompacted, compacted)
		}
		from := binary.BigEndian.AppendUint64(nil, uint64(after+1))
		return r.walkBucketFrom(r.buckets["key"], from, func(e element) error {
			rec, err := parseRecord(e)
			if err == nil && rec.marker {
				err = corruptf("revision %d: nothing was changed", rec.main)
			}
			if err != nil {
				return fmt.Errorf("read the history of etcd database %s: %w", path, err)
			}
			return each(Change{Main: rec.main, Sub: rec.sub, Tombstone: rec.tombstone, Lease: rec.lease, KV: e.value})
		})
	})
}

// walkBucketFrom is walkBucket for the elements whose keys are not below from.
// Branches below it are not read, and so not checked.
func (db *database) walkBucketFrom(b bucket, from []byte, f func(element) error) error {
	wanted := func(e element) error {
		if bytes.Compare(e.key, from) < 0 {
			return nil
		}
		return f(e)
	}
	if b.root != 0 {
		w := walker{db: db, seen: newBitmap(db.pages), f: wanted, from: from}
		return w.tree(b.root, nil, nil, 0)
	}
	return db.walkBucket(b, nil, wanted)
}
