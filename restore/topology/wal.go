package topology

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"lifeboat/internal/manifest"
)

// walIDs is whose a write-ahead log is.
type walIDs struct{ cluster, member manifest.EtcdID }

// Types of records, and the fields of a record and of the metadata in one (etcd's
// server/storage/wal/wal.go, walpb/record.proto and api/etcdserverpb/etcdserver.proto).
const (
	walMetadata = 1
	walChecksum = 4

	recordType, recordCRC, recordData = 1, 2, 3
	metadataMember, metadataCluster   = 1, 2
)

// maxHead is how much of a log is read: the metadata is its second record.
const maxHead = 64 << 10

// readWAL reads the metadata at the beginning of the first log file. The log
// is the only place in a data directory that names the cluster.
func readWAL(folder string) (*walIDs, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*.wal"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s holds no log", folder)
	}
	slices.Sort(files)
	f, err := os.Open(files[0])
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head, err := io.ReadAll(io.LimitReader(f, maxHead))
	if err != nil {
		return nil, err
	}
	ids, err := parseWAL(head)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", files[0], err)
	}
	return ids, nil
}

var errNoWAL = errors.New("no write-ahead log of etcd")

// parseWAL finds the metadata. Each record has its length before it, and is
// filled up to eight bytes: the length's top byte, if its top bit is set, holds the number
// of those. Checksums go on from record to record.
func parseWAL(head []byte) (*walIDs, error) {
	table, crc := crc32.MakeTable(crc32.Castagnoli), uint32(0)
	for len(head) >= 8 {
		field := binary.LittleEndian.Uint64(head)
		size, pad := field&^(0xff<<56), uint64(0)
		if int64(field) < 0 {
			pad = field >> 56 & 7
		}
		head = head[8:]
		if size == 0 || size+pad > uint64(len(head)) {
			return nil, errNoWAL
		}
		record := fieldsOf(head[:size])
		head = head[size+pad:]
		if record == nil {
			return nil, errNoWAL
		}
		switch record.varints[recordType] {
		case walChecksum:
			crc = uint32(record.varints[recordCRC])
		case walMetadata:
			if crc32.Update(crc, table, record.bytes[recordData]) != uint32(record.varints[recordCRC]) {
				return nil, fmt.Errorf("%w: its metadata is damaged", errNoWAL)
			}
			metadata := fieldsOf(record.bytes[recordData])
			if metadata == nil || metadata.varints[metadataCluster] == 0 {
				return nil, errNoWAL
			}
			return &walIDs{cluster: manifest.EtcdID(metadata.varints[metadataCluster]), member: manifest.EtcdID(metadata.varints[metadataMember])}, nil
		default:
			return nil, errNoWAL
		}
	}
	return nil, errNoWAL
}

// message is a protobuf message's numbers and byte strings, by field.
type message struct {
	varints map[protowire.Number]uint64
	bytes   map[protowire.Number][]byte
}

// fieldsOf takes a message apart; nil if it is none.
func fieldsOf(b []byte) *message {
	m := &message{map[protowire.Number]uint64{}, map[protowire.Number][]byte{}}
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil
		}
		b = b[n:]
		switch kind {
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return nil
			}
			m.varints[number], b = v, b[n:]
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return nil
			}
			m.bytes[number], b = v, b[n:]
		default:
			return nil
		}
	}
	return m
}
