package snapdb

import (
	"encoding/binary"
)

// record is one element of the key bucket: what one operation did to one key.
type record struct {
	main, sub int64
	tombstone bool
	marker    bool   // an empty value: the mark of a revision bump
	key       []byte // "" for a marker, which is how etcd takes it
	value     []byte
	version   int64
	lease     int64
}

// parseRevision decodes a key of the key bucket: 8 bytes main revision, '_',
// 8 bytes sub revision, and 't' for a deletion (etcd's
// server/storage/mvcc/revision.go).
func parseRevision(k []byte) (main, sub int64, tombstone bool, err error) {
	if len(k) != 17 && (len(k) != 18 || k[17] != 't') || k[8] != '_' {
		return 0, 0, false, corruptf("%x is not the key of a revision", k)
	}
	main, sub = int64(binary.BigEndian.Uint64(k)), int64(binary.BigEndian.Uint64(k[9:]))
	if main < 0 || sub < 0 {
		return 0, 0, false, corruptf("revision %d, %d", main, sub)
	}
	return main, sub, len(k) == 18, nil
}

// parseRecord decodes an element of the key bucket. Its slices point into the
// file.
func parseRecord(e element) (r record, err error) {
	if e.flags != 0 {
		return r, corruptf("a bucket or flags %#x among the revisions", e.flags)
	}
	if r.main, r.sub, r.tombstone, err = parseRevision(e.key); err != nil {
		return r, err
	}
	if len(e.value) == 0 {
		r.marker = true
		if r.tombstone {
			return r, corruptf("revision %d: a deletion of no key", r.main)
		}
		return r, nil
	}
	if !r.parseKeyValue(e.value) {
		return r, corruptf("revision %d, %d does not hold a key and value", r.main, r.sub)
	}
	return r, nil
}

// parseKeyValue decodes an mvccpb.KeyValue: 1 key, 2 create revision,
// 3 modification revision, 4 version, 5 value, 6 lease. By hand, since it is
// done for every revision and must not copy.
func (r *record) parseKeyValue(b []byte) bool {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 || tag>>3 == 0 {
			return false
		}
		b = b[n:]
		switch tag & 7 {
		case 0:
			v, n := binary.Uvarint(b)
			if n <= 0 {
				return false
			}
			b = b[n:]
			switch tag >> 3 {
			case 4:
				r.version = int64(v)
			case 6:
				r.lease = int64(v)
			}
		case 2:
			v, n := binary.Uvarint(b)
			if n <= 0 || v > uint64(len(b)-n) {
				return false
			}
			field := b[n : n+int(v)]
			b = b[n+int(v):]
			switch tag >> 3 {
			case 1:
				r.key = field
			case 5:
				r.value = field
			}
		default: // etcd never wrote another type here
			return false
		}
	}
	return true
}
