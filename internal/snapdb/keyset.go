package snapdb

import (
	"hash/maphash"
	"math/bits"
)

// keySet is a set of keys that takes about 10 to 14 bytes a key: it keeps a
// 64-bit hash of each in open-addressing tables. Two keys out of a million
// share a hash once in tens of millions of runs; the seed is another in each,
// so nobody can make keys that do.
type keySet struct {
	seed   maphash.Seed
	tables [256]table
}

// table grows by half, alone: the set never needs its size twice.
type table struct {
	slots []uint64 // 0 is empty
	used  int
}

func newKeySet() *keySet { return &keySet{seed: maphash.MakeSeed()} }

func (s *keySet) hash(key []byte) uint64 {
	h := maphash.Bytes(s.seed, key)
	if h == 0 {
		h = 1
	}
	return h
}

// add puts a key into the set and says whether it is new.
func (s *keySet) add(key []byte) bool {
	h := s.hash(key)
	return s.tables[h&0xff].add(h)
}

func (s *keySet) has(key []byte) bool {
	h := s.hash(key)
	t := &s.tables[h&0xff]
	if t.used == 0 {
		return false
	}
	_, found := t.find(h)
	return found
}

func (t *table) find(h uint64) (slot int, found bool) {
	// The high bits choose the slot; the low ones have chosen the table.
	high, _ := bits.Mul64(h, uint64(len(t.slots)))
	for i := int(high); ; {
		switch t.slots[i] {
		case h:
			return i, true
		case 0:
			return i, false
		}
		if i++; i == len(t.slots) {
			i = 0
		}
	}
}

func (t *table) add(h uint64) bool {
	if t.used >= len(t.slots)/8*7 {
		t.grow()
	}
	i, found := t.find(h)
	if !found {
		t.slots[i] = h
		t.used++
	}
	return !found
}

func (t *table) grow() {
	old := t.slots
	t.slots = make([]uint64, max(16, (len(old)*3/2+7)&^7))
	for _, h := range old {
		if h != 0 {
			i, _ := t.find(h)
			t.slots[i] = h
		}
	}
}

// bitList is a growing list of bits in blocks, so that growing copies nothing.
type bitList struct {
	blocks [][]uint64
	n      int64
}

const bitBlock = 1 << 13 // words

func (l *bitList) append(bit bool) {
	word := l.n / 64
	if word/bitBlock == int64(len(l.blocks)) {
		l.blocks = append(l.blocks, make([]uint64, bitBlock))
	}
	if bit {
		l.blocks[word/bitBlock][word%bitBlock] |= 1 << (l.n % 64)
	}
	l.n++
}

func (l *bitList) at(i int64) bool {
	word := i / 64
	return l.blocks[word/bitBlock][word%bitBlock]>>(i%64)&1 != 0
}
