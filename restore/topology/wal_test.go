package topology

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// record makes one as etcd writes it.
func record(kind, crc uint64, data []byte) []byte {
	var b []byte
	b = protowire.AppendVarint(protowire.AppendTag(b, recordType, protowire.VarintType), kind)
	b = protowire.AppendVarint(protowire.AppendTag(b, recordCRC, protowire.VarintType), crc)
	if data != nil {
		b = protowire.AppendBytes(protowire.AppendTag(b, recordData, protowire.BytesType), data)
	}
	length, pad := uint64(len(b)), (8-len(b)%8)%8
	if pad > 0 {
		length |= uint64(0x80|pad) << 56
	}
	return append(append(binary.LittleEndian.AppendUint64(nil, length), b...), make([]byte, pad)...)
}

func log() []byte {
	data := protowire.AppendVarint(protowire.AppendTag(nil, metadataMember, protowire.VarintType), 7)
	data = protowire.AppendVarint(protowire.AppendTag(data, metadataCluster, protowire.VarintType), 9)
	const before = 77
	crc := crc32.Update(before, crc32.MakeTable(crc32.Castagnoli), data)
	return append(record(walChecksum, before, nil), record(walMetadata, uint64(crc), data)...)
}

func TestParseWAL(t *testing.T) {
	ids, err := parseWAL(log())
	if err != nil || ids.cluster != 9 || ids.member != 7 {
		t.Fatalf("%+v, %v", ids, err)
	}
	whole := log()
	for i := range len(whole) {
		if _, err := parseWAL(whole[:i]); !errors.Is(err, errNoWAL) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
	for i := range len(whole) * 8 {
		damaged := log()
		damaged[i/8] ^= 1 << (i % 8)
		if ids, err := parseWAL(damaged); err == nil && (ids.cluster != 9 || ids.member != 7) {
			t.Errorf("a flip of bit %d gave %+v", i, ids)
		}
	}
}

func FuzzParseWAL(f *testing.F) {
	f.Add(log())
	f.Fuzz(func(_ *testing.T, head []byte) { _, _ = parseWAL(head) })
}
