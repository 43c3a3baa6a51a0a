package segment

import (
	"encoding/binary"
	"fmt"
	"math"
)

// AppendRecord appends one record's type and body to dst. A record with a
// negative number, or of no known kind, gives bytes that ParseRecord refuses.
func AppendRecord(dst []byte, r Record) []byte {
	dst = append(dst, byte(r.Kind))
	switch r.Kind {
	case KindHeader:
		dst = binary.BigEndian.AppendUint64(dst, r.Header.ClusterID)
		dst = binary.BigEndian.AppendUint64(dst, r.Header.MemberID)
		dst = appendNumbers(dst, r.Header.First, r.Header.At)
	case KindPut, KindDelete:
		dst = appendNumbers(dst, r.Main)
		dst = append(dst, r.KV...)
	case KindTime:
		dst = appendNumbers(dst, r.Time.At, r.Time.AtLeast, r.Time.AtMost)
	case KindLease:
		dst = binary.BigEndian.AppendUint64(dst, uint64(r.Lease.ID))
		synthetic := byte(0)
		if r.Lease.Synthetic {
			synthetic = 1
		}
		dst = append(dst, synthetic)
		dst = appendNumbers(dst, r.Lease.TTL, r.Lease.Revision)
	case KindCompaction:
		dst = appendNumbers(dst, r.Compaction.Revision, r.Compaction.Head, r.Compaction.At)
	case KindHash:
		dst = binary.BigEndian.AppendUint64(dst, r.Hash.Member)
		dst = binary.BigEndian.AppendUint32(dst, r.Hash.HashKV)
		dst = appendNumbers(dst, r.Hash.Revision, r.Hash.Compact)
	case KindEnd:
		dst = appendNumbers(dst, r.End.Last, r.End.Events)
	}
	return dst
}

func appendNumbers(dst []byte, numbers ...int64) []byte {
	for _, n := range numbers {
		dst = binary.AppendUvarint(dst, uint64(n))
	}
	return dst
}

// ParseRecord reads what AppendRecord made, and nothing else: every record has
// one form only. The KV is a part of b. Errors wrap ErrMalformed.
func ParseRecord(b []byte) (Record, error) {
	if len(b) == 0 {
		return Record{}, malformed("empty record")
	}
	if len(b) > MaxRecord {
		return Record{}, malformed("record of %d bytes, at most %d", len(b), MaxRecord)
	}
	r := Record{Kind: Kind(b[0])}
	body := parser{rest: b[1:]}
	switch r.Kind {
	case KindHeader:
		r.Header = Header{ClusterID: body.uint64(), MemberID: body.uint64(), First: body.number(), At: body.number()}
	case KindPut, KindDelete:
		r.Main = body.number()
		r.KV, body.rest = body.rest, nil
	case KindTime:
		r.Time = Moment{At: body.number(), AtLeast: body.number(), AtMost: body.number()}
	case KindLease:
		r.Lease = Lease{ID: int64(body.uint64()), Synthetic: body.bool(), TTL: body.number(), Revision: body.number()}
	case KindCompaction:
		r.Compaction = Compaction{Revision: body.number(), Head: body.number(), At: body.number()}
	case KindHash:
		r.Hash = Hash{Member: body.uint64(), HashKV: body.uint32(), Revision: body.number(), Compact: body.number()}
	case KindEnd:
		r.End = End{Last: body.number(), Events: body.number()}
	default:
		return Record{}, malformed("record of unknown %s", r.Kind)
	}
	if len(body.rest) > 0 {
		body.fail("%d bytes too many", len(body.rest))
	}
	if body.err != nil {
		return Record{}, malformed("%s record: %w", r.Kind, body.err)
	}
	if err := r.check(); err != nil {
		return Record{}, err
	}
	return r, nil
}

// check is what a record must fulfil whatever stands around it.
func (r *Record) check() error {
	var err error
	switch r.Kind {
	case KindHeader:
		if err = negative(r.Header.First, r.Header.At); err == nil && r.Header.First < 1 {
			err = fmt.Errorf("first revision %d", r.Header.First)
		}
	case KindPut, KindDelete:
		err = r.checkEvent()
	case KindTime:
		err = negative(r.Time.At, r.Time.AtLeast, r.Time.AtMost)
	case KindLease:
		err = negative(r.Lease.TTL, r.Lease.Revision)
	case KindCompaction:
		err = negative(r.Compaction.Revision, r.Compaction.Head, r.Compaction.At)
	case KindHash:
		err = negative(r.Hash.Revision, r.Hash.Compact)
	case KindEnd:
		err = negative(r.End.Last, r.End.Events)
	default:
		return malformed("record of unknown %s", r.Kind)
	}
	if err != nil {
		return malformed("%s record: %w", r.Kind, err)
	}
	return nil
}

func (r *Record) checkEvent() error {
	if r.Main < 1 {
		return fmt.Errorf("revision %d", r.Main)
	}
	fields, err := FieldsOf(r.KV)
	switch {
	case err != nil:
		return fmt.Errorf("revision %d: %w", r.Main, err)
	case len(fields.Key) == 0:
		return fmt.Errorf("revision %d: no key", r.Main)
	case r.Kind == KindPut && fields.ModRevision != r.Main:
		return fmt.Errorf("revision %d: key-value of revision %d", r.Main, fields.ModRevision)
	case r.Kind == KindDelete && len(r.KV) != tombstoneSize(fields.Key):
		return fmt.Errorf("revision %d: more than a key", r.Main)
	}
	return nil
}

func negative(numbers ...int64) error {
	for _, n := range numbers {
		if n < 0 {
			return fmt.Errorf("negative number %d", n)
		}
	}
	return nil
}

// parser takes fields off the front of a body. After the first failure all it
// gives is zero.
type parser struct {
	rest []byte
	err  error
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
	p.rest = nil
}

func (p *parser) take(n int) []byte {
	if len(p.rest) < n {
		p.fail("too short")
		return make([]byte, n)
	}
	b := p.rest[:n]
	p.rest = p.rest[n:]
	return b
}

func (p *parser) uint64() uint64 { return binary.BigEndian.Uint64(p.take(8)) }
func (p *parser) uint32() uint32 { return binary.BigEndian.Uint32(p.take(4)) }

func (p *parser) bool() bool {
	b := p.take(1)[0]
	if b > 1 {
		p.fail("neither true nor false")
	}
	return b == 1
}

// number reads an unsigned varint in its shortest form, up to the largest int64.
func (p *parser) number() int64 {
	n, size := binary.Uvarint(p.rest)
	if size <= 0 || n > math.MaxInt64 || size > 1 && p.rest[size-1] == 0 {
		p.fail("not a number")
		return 0
	}
	p.rest = p.rest[size:]
	return int64(n)
}
