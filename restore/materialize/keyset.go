package materialize

import "math/bits"

// keySet is a set of keys' 64-bit hashes, with a mark for those that were added
// more than once. Each takes 10 to 14 bytes. The lowest bit of a hash makes room
// for the mark; so two keys out of a million are taken for one once in
// ten million runs, and then the result's HashKV is wrong, which is noticed.
type keySet struct {
	tables [256]table
}

// table is an open-addressing one that grows by half, alone: the set never
// needs its size twice.
type table struct {
	slots []uint64 // 0 is empty
	used  int
}

const again = 1 // the mark

func newKeySet() *keySet { return &keySet{} }

// split chooses the table by the hash's lower bits; the higher ones choose the
// slot.
func (s *keySet) split(hash uint64) (*table, uint64) {
	id := hash &^ again
	if id == 0 {
		id = 2
	}
	return &s.tables[id>>1&0xff], id
}

// add adds a hash and says whether it is new. One that is not gets the mark.
func (s *keySet) add(hash uint64) bool {
	t, id := s.split(hash)
	if t.used >= len(t.slots)/8*7 {
		t.grow()
	}
	i, found := t.find(id)
	if found {
		t.slots[i] |= again
		return false
	}
	t.slots[i] = id
	t.used++
	return true
}

// repeated says whether a hash was added more than once.
func (s *keySet) repeated(hash uint64) bool {
	t, id := s.split(hash)
	if t.used == 0 {
		return false
	}
	i, found := t.find(id)
	return found && t.slots[i]&again != 0
}

func (t *table) find(id uint64) (slot int, found bool) {
	high, _ := bits.Mul64(id, uint64(len(t.slots)))
	for i := int(high); ; {
		switch t.slots[i] &^ again {
		case id:
			return i, true
		case 0:
			return i, false
		}
		if i++; i == len(t.slots) {
			i = 0
		}
	}
}

func (t *table) grow() {
	old := t.slots
	t.slots = make([]uint64, max(16, (len(old)*3/2+7)&^7))
	for _, slot := range old {
		if slot != 0 {
			i, _ := t.find(slot &^ again)
			t.slots[i] = slot
		}
	}
}

// bitmap has one bit for each of n.
type bitmap []uint64

func newBitmap(n int64) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) set(i int64)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) has(i int64) bool { return b[i/64]>>(i%64)&1 != 0 }
