package segment

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

// span is what writer and reader both hold a segment's events to: the revisions
// are First, First+1 and so on, each with one event or more.
type span struct {
	first, last, events int64
}

func (s *span) take(r *Record) error {
	if r.Main != s.last+1 && (r.Main != s.last || s.events == 0) {
		return malformed("revision %d after %d", r.Main, s.last)
	}
	s.last = r.Main
	s.events++
	return nil
}

// Writer writes one segment. It is for one goroutine.
type Writer struct {
	w       *bufio.Writer
	span    span
	scratch []byte
	err     error // the first; nothing is written after it
}

var errClosed = errors.New("segment writer is closed")

// NewWriter begins a segment. What is written counts only once Close has
// returned nil.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	s := &Writer{w: bufio.NewWriterSize(w, 64<<10), span: span{first: h.First, last: h.First - 1}}
	r := Record{Kind: KindHeader, Header: h}
	if err := r.check(); err != nil {
		return nil, err
	}
	if _, err := s.w.WriteString(Magic + string(rune(Version))); err != nil {
		return nil, err
	}
	if err := s.put(r); err != nil {
		return nil, err
	}
	return s, nil
}

// Write adds a record, whose KV is the caller's again afterwards. Events come
// in the order of their revisions without a hole; other records may stand
// anywhere among them. A record that can't be part of the segment gives
// ErrMalformed and ends it.
func (s *Writer) Write(r Record) error {
	if s.err != nil {
		return s.err
	}
	s.err = s.write(&r)
	return s.err
}

func (s *Writer) write(r *Record) error {
	if r.Kind == KindHeader || r.Kind == KindEnd {
		return malformed("%s record among the others", r.Kind)
	}
	if err := r.check(); err != nil {
		return err
	}
	if r.IsEvent() {
		if err := s.span.take(r); err != nil {
			return err
		}
	}
	return s.put(*r)
}

func (s *Writer) put(r Record) error {
	s.scratch = AppendRecord(s.scratch[:0], r)
	if len(s.scratch) > MaxRecord {
		return malformed("%s record of %d bytes, at most %d", r.Kind, len(s.scratch), MaxRecord)
	}
	var length [binary.MaxVarintLen64]byte
	if _, err := s.w.Write(binary.AppendUvarint(length[:0], uint64(len(s.scratch)))); err != nil {
		return err
	}
	_, err := s.w.Write(s.scratch)
	return err
}

// Last is the revision written so far; First-1 when there is none. Events
// counts its puts and deletes.
func (s *Writer) Last() int64   { return s.span.last }
func (s *Writer) Events() int64 { return s.span.events }

// Close ends the segment, which must reach the revision last (First-1 for one
// without events), and gives all of it to the underlying writer, which stays
// open.
func (s *Writer) Close(last int64) error {
	if s.err != nil {
		return s.err
	}
	s.err = errClosed
	if last != s.span.last {
		return malformed("ends at revision %d instead of %d", s.span.last, last)
	}
	if err := s.put(Record{Kind: KindEnd, End: End{Last: s.span.last, Events: s.span.events}}); err != nil {
		return err
	}
	return s.w.Flush()
}
