package record

import (
	"cmp"
	"maps"
	"slices"

	"lifeboat/internal/segment"
)

// missed gathers the leases that changes on a tape hang on and that nothing on
// the tape tells of: a recorder that was killed had no time to ask for them.
type missed struct {
	first map[int64]int64 // by id, the first revision that names it
	told  map[int64]bool
}

func (m *missed) take(r segment.Record) error {
	if m.first == nil {
		m.first, m.told = map[int64]int64{}, map[int64]bool{}
	}
	switch r.Kind {
	case segment.KindLease:
		m.told[r.Lease.ID] = true
		delete(m.first, r.Lease.ID)
	case segment.KindPut:
		id, err := segment.LeaseOf(r.KV)
		if err != nil {
			return err
		}
		if _, known := m.first[id]; id != 0 && !known && !m.told[id] {
			m.first[id] = r.Main
		}
	}
	return nil
}

// tell calls f for each, in the order of revisions.
func (m *missed) tell(f func(id, revision int64)) {
	ids := slices.SortedFunc(maps.Keys(m.first), func(a, b int64) int { return cmp.Compare(m.first[a], m.first[b]) })
	for _, id := range ids {
		f(id, m.first[id])
	}
}
