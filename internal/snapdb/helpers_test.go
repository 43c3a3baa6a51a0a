package snapdb_test

import (
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protowire"
)

func revisionKey(main, sub int64, tombstone bool) []byte {
	k := binary.BigEndian.AppendUint64(nil, uint64(main))
	k = binary.BigEndian.AppendUint64(append(k, '_'), uint64(sub))
	if tombstone {
		k = append(k, 't')
	}
	return k
}

func keyValue(key, value string, version uint64) []byte {
	b := protowire.AppendTag(nil, 1, protowire.BytesType)
	b = protowire.AppendString(b, key)
	b = protowire.AppendTag(b, 4, protowire.VarintType)
	b = protowire.AppendVarint(b, version)
	b = protowire.AppendTag(b, 5, protowire.BytesType)
	return protowire.AppendString(b, value)
}
