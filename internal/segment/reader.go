package segment

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// Reader reads one segment, whatever the bytes are: its memory is bounded by
// the bytes that have arrived and by MaxRecord. It is for one goroutine.
type Reader struct {
	r       *bufio.Reader
	header  Header
	span    span
	scratch []byte
	err     error // the first, io.EOF at the end; it stays
}

// NewReader reads a segment's beginning. Errors wrap ErrMalformed, ErrTruncated
// or what the underlying reader said.
func NewReader(r io.Reader) (*Reader, error) {
	s := &Reader{r: bufio.NewReaderSize(r, 64<<10)}
	var start [len(Magic) + 1]byte
	if n, err := io.ReadFull(s.r, start[:]); err != nil {
		// What begins otherwise is something else rather than cut short.
		if whole(err) && string(start[:n]) != Magic[:min(n, len(Magic))] {
			return nil, malformed("not a segment")
		}
		return nil, truncated(err, "its beginning")
	}
	if string(start[:len(Magic)]) != Magic {
		return nil, malformed("not a segment")
	}
	if version := start[len(Magic)]; version != Version {
		return nil, malformed("version %d of the format, and only version %d is known", version, Version)
	}
	header, err := s.record()
	if err != nil {
		return nil, err
	}
	if header.Kind != KindHeader {
		return nil, malformed("begins with a %s record", header.Kind)
	}
	s.header = header.Header
	s.span = span{first: s.header.First, last: s.header.First - 1}
	return s, nil
}

// Header is the segment's.
func (s *Reader) Header() Header { return s.header }

// Last is the revision read so far; First-1 when there is none. Events counts
// its puts and deletes.
func (s *Reader) Last() int64   { return s.span.last }
func (s *Reader) Events() int64 { return s.span.events }

// Next is the next record between header and end, whose KV is valid until the
// call after it. io.EOF comes only when the segment is whole and nothing is
// behind it: until then, nothing that was read may be taken for true. Errors wrap
// ErrMalformed, ErrTruncated or what the underlying reader said.
func (s *Reader) Next() (Record, error) {
	if s.err != nil {
		return Record{}, s.err
	}
	r, err := s.next()
	s.err = err
	return r, err
}

func (s *Reader) next() (Record, error) {
	r, err := s.record()
	if err != nil {
		return Record{}, err
	}
	switch r.Kind {
	case KindHeader:
		return Record{}, malformed("a second header record")
	case KindPut, KindDelete:
		if err := s.span.take(&r); err != nil {
			return Record{}, err
		}
	case KindEnd:
		return Record{}, s.finish(r.End)
	}
	return r, nil
}

// finish compares the end with what came before it, and looks behind it.
func (s *Reader) finish(end End) error {
	if end.Last != s.span.last || end.Events != s.span.events {
		return malformed("its end speaks of %d events up to revision %d, and there were %d up to %d",
			end.Events, end.Last, s.span.events, s.span.last)
	}
	switch _, err := s.r.ReadByte(); {
	case err == nil:
		return malformed("bytes behind its end")
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("read segment behind its end: %w", err)
	}
	return io.EOF
}

// record reads one record into scratch.
func (s *Reader) record() (Record, error) {
	size, err := s.length()
	if err != nil {
		return Record{}, err
	}
	if err := s.fill(size); err != nil {
		return Record{}, err
	}
	return ParseRecord(s.scratch)
}

// length reads a record's length: a varint in its shortest form.
func (s *Reader) length() (int, error) {
	size := uint64(0)
	for shift := 0; ; shift += 7 {
		b, err := s.r.ReadByte()
		if err != nil {
			return 0, truncated(err, "a record's length")
		}
		if size |= uint64(b&0x7f) << shift; size > MaxRecord {
			return 0, malformed("record of more than %d bytes", MaxRecord)
		}
		if b < 0x80 {
			if b == 0 {
				return 0, malformed("record's length is not a number")
			}
			return int(size), nil
		}
		if shift > 28 {
			return 0, malformed("record's length is not a number")
		}
	}
}

// step bounds what is allocated for bytes that have not come yet.
const step = 1 << 20

func (s *Reader) fill(size int) error {
	if cap(s.scratch) > step && size <= step {
		s.scratch = nil // the room for one large record is not kept for ever
	}
	s.scratch = s.scratch[:0]
	for have := 0; have < size; have = len(s.scratch) {
		more := min(size-have, max(step, have))
		if cap(s.scratch) < have+more {
			grown := make([]byte, have, have+more)
			copy(grown, s.scratch)
			s.scratch = grown
		}
		s.scratch = s.scratch[:have+more]
		if _, err := io.ReadFull(s.r, s.scratch[have:]); err != nil {
			return truncated(err, "a record")
		}
	}
	return nil
}

func whole(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// truncated says what was cut where the bytes ended. Other errors are the
// underlying reader's.
func truncated(err error, what string) error {
	if whole(err) {
		return fmt.Errorf("%w: within %s", ErrTruncated, what)
	}
	return fmt.Errorf("read segment: %w", err)
}
