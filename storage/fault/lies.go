package fault

import (
	"context"
	"fmt"
	"io"
	"iter"
	"strings"

	"lifeboat/storage"
)

// lies are the untruths that the store tells without an error.
type lies struct {
	short  map[string]int64 // Open ends cleanly at this offset of the object
	flips  map[string]int64 // Open flips this bit of the object
	list   []storage.Info   // what List knows, if frozen
	frozen bool
}

// ShortRead makes Open of name end without an error at an offset of the object,
// though its Info still gives the whole size. The contract forbids it; broken
// proxies do it.
func (s *Store) ShortRead(name string, offset int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lies.short == nil {
		s.lies.short = map[string]int64{}
	}
	s.lies.short[name] = offset
}

// FlipBit makes Open of name return the object with one bit turned over, bit 0
// being the lowest of the first byte. What is stored stays as it is.
func (s *Store) FlipBit(name string, bit int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lies.flips == nil {
		s.lies.flips = map[string]int64{}
	}
	s.lies.flips[name] = bit
}

// FreezeList makes List answer with what is there now, whatever is put and
// deleted later, as a store does whose listing lags behind.
func (s *Store) FreezeList(ctx context.Context) error {
	var list []storage.Info
	for info, err := range s.inner.List(ctx, "") {
		if err != nil {
			return fmt.Errorf("freeze list: %w", err)
		}
		list = append(list, info)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lies.list, s.lies.frozen = list, true
	return nil
}

// Honest ends all lies.
func (s *Store) Honest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lies = lies{}
}

func (s *Store) frozenList(prefix string) (iter.Seq2[storage.Info, error], bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.lies.list // never changed in place
	return func(yield func(storage.Info, error) bool) {
		for _, info := range list {
			if strings.HasPrefix(info.Name, prefix) && !yield(info, nil) {
				return
			}
		}
	}, s.lies.frozen
}

// lie is what one reader does to the bytes that pass.
type lie struct {
	offset int64 // of the next byte, in the object
	end    int64 // ends here; -1: not before the true end
	bit    int64 // to flip, in the object; -1: none
}

// lieAbout returns nil when there is nothing to hide.
func (s *Store) lieAbout(name string, rng storage.Range) *lie {
	s.mu.Lock()
	defer s.mu.Unlock()
	end, short := s.lies.short[name]
	bit, flip := s.lies.flips[name]
	if !short && !flip {
		return nil
	}
	l := &lie{offset: rng.Offset, end: -1, bit: -1}
	if short {
		l.end = end
	}
	if flip {
		l.bit = bit
	}
	return l
}

// tell changes the n bytes that were read into b.
func (l *lie) tell(b []byte, n int, err error) (int, error) {
	if l == nil {
		return n, err
	}
	start := l.offset
	l.offset += int64(n)
	if at := l.bit/8 - start; l.bit >= 0 && at >= 0 && at < int64(n) {
		b[at] ^= 1 << (l.bit % 8)
	}
	if l.end >= 0 && l.offset >= l.end {
		return int(max(0, l.end-start)), io.EOF
	}
	return n, err
}
