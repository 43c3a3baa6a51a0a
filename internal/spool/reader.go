package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Reader reads records one after the other. It is for one goroutine, and needs
// no closing.
type Reader struct {
	log    *Log
	at     Position // the next record's
	window []byte   // bytes of the log from there on
	room   []byte   // what window is a part of
}

// chunk is how much is read at a time; twice that is kept between records.
const chunk = 256 << 10

// Read reads from a position on: Start, or the end of a record.
func (l *Log) Read(from Position) *Reader { return &Reader{log: l, at: from} }

// Next is the next record, valid until the call after it, and its end. io.EOF
// says that there is none yet: later calls find what is appended later. Errors wrap
// ErrReleased, ErrDamaged or what the file system said.
func (r *Reader) Next() ([]byte, Position, error) {
	if r.at < r.log.Start() {
		return nil, r.at, r.released()
	}
	length, n := uint64(0), 0
	for need := 1; n <= 0; need = len(r.window) + 1 {
		if err := r.fill(need); err != nil {
			return nil, r.at, err
		}
		if length, n = binary.Uvarint(r.window); n < 0 {
			return nil, r.at, r.damaged("no length")
		}
	}
	if length == 0 || length > MaxPayload {
		return nil, r.at, r.damaged("record of %d bytes", length)
	}
	n += 4
	size := n + int(length)
	if err := r.fill(size); err != nil {
		return nil, r.at, err
	}
	payload := r.window[n:size:size]
	if checksum(r.at, payload) != binary.BigEndian.Uint32(r.window[n-4:]) {
		return nil, r.at, r.damaged("checksum")
	}
	r.window = r.window[size:]
	r.at += Position(size)
	return payload, r.at, nil
}

func (r *Reader) damaged(format string, args ...any) error {
	if r.at < r.log.Start() { // meanwhile, and other bytes are there now
		return r.released()
	}
	return fmt.Errorf("%w at %d: %s", ErrDamaged, r.at, fmt.Sprintf(format, args...))
}

func (r *Reader) released() error {
	return fmt.Errorf("read spool at %d: %w: it starts at %d", r.at, ErrReleased, r.log.Start())
}

// fill makes the window at least need bytes long. io.EOF is only for a reader
// at the end of the log: a record that reaches beyond it is damage.
func (r *Reader) fill(need int) error {
	for len(r.window) < need {
		if err := r.more(need); err != nil {
			return err
		}
	}
	return nil
}

// more adds to the window: from memory what is there, else from one file.
func (r *Reader) more(need int) error {
	l := r.log
	l.mu.Lock()
	end := l.end.Load()
	from := int64(r.at) + int64(len(r.window))
	switch {
	case l.closed:
		l.mu.Unlock()
		return l.errClosed()
	case int64(r.at) < l.start.Load():
		l.mu.Unlock()
		return r.released()
	case int64(r.at) == end:
		l.mu.Unlock()
		return io.EOF
	case int64(r.at)+int64(need) > end:
		l.mu.Unlock()
		return r.damaged("a record reaches beyond the end")
	case from >= l.flushed:
		rest := l.buffer[from-l.flushed : end-l.flushed]
		copy(r.grow(len(rest)), rest)
		l.mu.Unlock()
		return nil
	}
	i, found := slices.BinarySearch(l.files, from)
	if !found {
		i--
	}
	begins, ends := l.files[i], l.flushed
	if i+1 < len(l.files) {
		ends = l.files[i+1]
	}
	path := l.path(begins)
	l.mu.Unlock()

	size := min(max(chunk, int64(need-len(r.window))), ends-from)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err == nil {
		defer f.Close()
		before := len(r.window)
		_, err = f.ReadAt(r.grow(int(size)), from-begins)
		if err != nil {
			r.window = r.window[:before]
		}
	}
	switch {
	case err == nil:
		return nil
	case r.at < l.Start(): // released, or emptied, since
		return r.released()
	case errors.Is(err, io.EOF) || errors.Is(err, fs.ErrNotExist):
		return r.damaged("bytes are missing")
	}
	return fmt.Errorf("read spool at %d: %w", r.at, err)
}

// grow makes the window longer and returns the new part of it.
func (r *Reader) grow(more int) []byte {
	have := len(r.window)
	if have+more > cap(r.room) || cap(r.room) > 4*chunk && have+more <= 2*chunk {
		r.room = make([]byte, max(have+more, 2*chunk))
	}
	r.room = r.room[:cap(r.room)]
	copy(r.room, r.window) // may overlap
	r.window = r.room[:have+more]
	return r.window[have:]
}
