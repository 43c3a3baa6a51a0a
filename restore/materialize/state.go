package materialize

import (
	"encoding/binary"
	"fmt"

	"go.etcd.io/bbolt"
)

// The parts of etcd's database that are used here: etcd's
// server/storage/schema/bucket.go and server/storage/mvcc/revision.go, the same
// in 3.5, 3.6 and 3.7.
var (
	keyBucket   = []byte("key")
	leaseBucket = []byte("lease")
	metaBucket  = []byte("meta")
	scheduled   = []byte("scheduledCompactRev")
	finished    = []byte("finishedCompactRev")
)

const (
	revisionBytes = 17 // main revision 8, '_', sub revision 8
	tombstoneMark = 't'
)

// appendRevision appends a key of the key bucket.
func appendRevision(b []byte, main, sub int64, tombstone bool) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(main))
	b = binary.BigEndian.AppendUint64(append(b, '_'), uint64(sub))
	if tombstone {
		b = append(b, tombstoneMark)
	}
	return b
}

// parseRevision reads what appendRevision made.
func parseRevision(b []byte) (main, sub int64, tombstone bool, err error) {
	tombstone = len(b) == revisionBytes+1 && b[revisionBytes] == tombstoneMark
	if len(b) != revisionBytes && !tombstone {
		return 0, 0, false, fmt.Errorf("%w: %x is not the key of a revision", ErrDamaged, b)
	}
	main, sub = int64(binary.BigEndian.Uint64(b)), int64(binary.BigEndian.Uint64(b[9:]))
	if main < 0 || sub < 0 {
		return 0, 0, false, fmt.Errorf("%w: revision %d, %d", ErrDamaged, main, sub)
	}
	return main, sub, tombstone, nil
}

// state is where a database's history ends.
type state struct {
	last                int64 // revision
	finished, scheduled int64 // compactions; 0 for none
}

// compact is what etcd, started from the database, compares by.
func (s state) compact() int64 { return max(s.finished, s.scheduled) }

func readState(tx *bbolt.Tx) (s state, err error) {
	keys, meta := tx.Bucket(keyBucket), tx.Bucket(metaBucket)
	if keys == nil || meta == nil {
		return s, fmt.Errorf("%w: no key or meta bucket: not an etcd database", ErrDamaged)
	}
	read := func(key []byte) (main int64) {
		if key != nil && err == nil {
			main, _, _, err = parseRevision(key)
		}
		return main
	}
	lastKey, _ := keys.Cursor().Last()
	s.last, s.finished, s.scheduled = read(lastKey), read(meta.Get(finished)), read(meta.Get(scheduled))
	// A compaction may have removed the last revision when it was a deletion; an
	// empty store is at revision 1.
	s.last = max(1, s.last, s.finished, s.scheduled)
	return s, err
}
