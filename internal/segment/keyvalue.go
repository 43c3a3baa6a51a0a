package segment

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// Fields are those of a marshaled mvccpb.KeyValue. Key and Value are parts of
// what was scanned.
type Fields struct {
	Key, Value                                  []byte
	CreateRevision, ModRevision, Version, Lease int64
}

// The field numbers of mvccpb.KeyValue (etcd's api/mvccpb/kv.proto) and the
// wire types of protobuf.
const (
	fieldKey, fieldCreate, fieldMod, fieldVersion, fieldValue, fieldLease = 1, 2, 3, 4, 5, 6

	wireVarint, wireFixed64, wireBytes, wireFixed32 = 0, 1, 2, 5
)

var errNotKeyValue = errors.New("not a key-value")

// FieldsOf scans a marshaled mvccpb.KeyValue without copying. Fields that
// are unknown are passed over, as protobuf wants it.
func FieldsOf(kv []byte) (Fields, error) {
	var f Fields
	for len(kv) > 0 {
		tag, n := varint(kv)
		if n <= 0 || tag>>3 == 0 || tag>>3 > 1<<29-1 {
			return Fields{}, errNotKeyValue
		}
		kv = kv[n:]
		number, wire := tag>>3, tag&7
		if number <= fieldLease && (wire == wireBytes) != (number == fieldKey || number == fieldValue) {
			return Fields{}, errNotKeyValue
		}
		switch wire {
		case wireVarint:
			v, n := varint(kv)
			if n <= 0 {
				return Fields{}, errNotKeyValue
			}
			kv = kv[n:]
			switch number {
			case fieldCreate:
				f.CreateRevision = int64(v)
			case fieldMod:
				f.ModRevision = int64(v)
			case fieldVersion:
				f.Version = int64(v)
			case fieldLease:
				f.Lease = int64(v)
			}
		case wireBytes:
			size, n := varint(kv)
			if n <= 0 || size > uint64(len(kv)-n) {
				return Fields{}, errNotKeyValue
			}
			b := kv[n : n+int(size) : n+int(size)]
			kv = kv[n+int(size):]
			switch number {
			case fieldKey:
				f.Key = b
			case fieldValue:
				f.Value = b
			}
		case wireFixed64, wireFixed32:
			size := 8
			if wire == wireFixed32 {
				size = 4
			}
			if number <= fieldLease || len(kv) < size {
				return Fields{}, errNotKeyValue
			}
			kv = kv[size:]
		default: // groups, which proto3 has not
			return Fields{}, errNotKeyValue
		}
	}
	return f, nil
}

// varint is binary.Uvarint with the short numbers first: most are.
func varint(b []byte) (uint64, int) {
	if len(b) > 0 && b[0] < 0x80 {
		return uint64(b[0]), 1
	}
	return binary.Uvarint(b)
}

// KeyOf is the key in a marshaled mvccpb.KeyValue, a part of it.
func KeyOf(kv []byte) ([]byte, error) {
	f, err := FieldsOf(kv)
	return f.Key, err
}

// LeaseOf is the id of the lease that a marshaled mvccpb.KeyValue is attached
// to; 0 is none.
func LeaseOf(kv []byte) (int64, error) {
	f, err := FieldsOf(kv)
	return f.Lease, err
}

// AppendTombstone appends a marshaled mvccpb.KeyValue with the key alone: what
// etcd's database holds for a delete.
func AppendTombstone(dst, key []byte) []byte {
	dst = append(dst, fieldKey<<3|wireBytes)
	dst = binary.AppendUvarint(dst, uint64(len(key)))
	return append(dst, key...)
}

// tombstoneSize is the length of what AppendTombstone appends.
func tombstoneSize(key []byte) int {
	return 1 + (bits.Len64(uint64(len(key))|1)+6)/7 + len(key)
}
