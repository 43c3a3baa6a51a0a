package watch

import (
	"errors"
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"lifeboat/internal/segment"
)

// watchMethod is etcdserverpb.Watch/Watch. It is called without the generated
// client, so that key-values stay the bytes that etcd's database holds, and so
// that a thousand events cost no thousand allocations.
const watchMethod = "/etcdserverpb.Watch/Watch"

// message is etcdserverpb.WatchResponse. Receiving into it again uses its
// memory again.
type message struct {
	cluster  uint64
	revision int64 // the header's: what it stands for depends on the kind of the response

	created, canceled, fragment bool
	compact                     int64
	reason                      string
	events                      [][]byte // marshaled mvccpb.Event, parts of wire

	wire []byte
}

// event is one mvccpb.Event.
type event struct {
	deletion bool
	main     int64
	lease    int64
	kv       []byte // as segment.Record has it
}

// Field numbers of etcd's rpc.proto and kv.proto.
const (
	responseHeader   = 1
	responseCreated  = 3
	responseCanceled = 4
	responseCompact  = 5
	responseReason   = 6
	responseFragment = 7
	responseEvents   = 11

	headerCluster  = 1
	headerRevision = 3

	eventType = 1
	eventKV   = 2

	typeDelete = 1

	keyValueKey = 1
)

// codec sends requests as they are and receives into messages.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	request, ok := v.(*pb.WatchRequest)
	if !ok {
		return nil, fmt.Errorf("marshal %T as a watch request", v)
	}
	wire, err := proto.Marshal(request)
	return mem.BufferSlice{mem.SliceBuffer(wire)}, err
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*message)
	if !ok {
		return fmt.Errorf("unmarshal a watch response into %T", v)
	}
	if cap(m.wire) > keptWire && data.Len() <= keptWire {
		m.wire = nil // one huge message is no reason to hold its memory for ever
	}
	m.wire = slices.Grow(m.wire[:0], data.Len())[:data.Len()]
	data.CopyTo(m.wire)
	return m.parse()
}

// keptWire is the memory in bytes that a message keeps for the next. etcd's
// fragments have up to 2 MiB unless configured otherwise.
const keptWire = 4 << 20

// parse reads wire into the other fields.
func (m *message) parse() error {
	*m = message{wire: m.wire, events: m.events[:0]}
	err := fields(m.wire, func(number protowire.Number, value uint64, part []byte) error {
		switch number {
		case responseHeader:
			return fields(part, func(number protowire.Number, value uint64, _ []byte) error {
				switch number {
				case headerCluster:
					m.cluster = value
				case headerRevision:
					m.revision = int64(value)
				}
				return nil
			})
		case responseCreated:
			m.created = value != 0
		case responseCanceled:
			m.canceled = value != 0
		case responseCompact:
			m.compact = int64(value)
		case responseReason:
			m.reason = string(part)
		case responseFragment:
			m.fragment = value != 0
		case responseEvents:
			m.events = append(m.events, part)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("watch response: %w", err)
	}
	return nil
}

var errNoKey = errors.New("event without a key")

// parseEvent reads one event. Its kv is a part of b, but for a deletion whose
// key stands where etcd does not put it.
func parseEvent(b []byte) (event, error) {
	var e event
	err := fields(b, func(number protowire.Number, value uint64, part []byte) error {
		switch number {
		case eventType:
			e.deletion = value == typeDelete
		case eventKV:
			e.kv = part
		}
		return nil
	})
	if err != nil {
		return event{}, fmt.Errorf("watch event: %w", err)
	}
	kv, err := segment.FieldsOf(e.kv)
	if err != nil {
		return event{}, fmt.Errorf("watch event: %w", err)
	}
	if len(kv.Key) == 0 {
		return event{}, errNoKey
	}
	e.main, e.lease = kv.ModRevision, kv.Lease
	if e.deletion {
		e.lease = 0
		e.kv = tombstone(e.kv, kv.Key)
	}
	return e, nil
}

// tombstone is a key-value with the key alone: what the database holds for a
// deletion. The watch has the revision too, behind the key.
func tombstone(kv, key []byte) []byte {
	if number, kind, n := protowire.ConsumeTag(kv); n > 0 && number == keyValueKey && kind == protowire.BytesType {
		if first, m := protowire.ConsumeBytes(kv[n:]); m > 0 && len(first) == len(key) && &first[0] == &key[0] {
			return kv[: n+m : n+m]
		}
	}
	return segment.AppendTombstone(nil, key)
}

// fields calls each with every field of a protobuf message: value for numbers,
// part for the rest, which is a part of b.
func fields(b []byte, each func(number protowire.Number, value uint64, part []byte) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var value uint64
		var part []byte
		switch kind {
		case protowire.VarintType:
			value, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			part, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := each(number, value, part); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
