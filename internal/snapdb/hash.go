package snapdb

import (
	"fmt"
	"hash/crc32"
)

// HashKV is the CRC-32C of the key bucket's name and of every revision's key
// and value in order, with exceptions (etcd's server/storage/mvcc/hash.go and
// key_index.go, the same in 3.5, 3.6 and 3.7). At revision R and compact
// revision C:
//
//   - revisions after R don't count;
//   - a revision up to C counts only when it is the last of its key up to R
//     and no deletion, because the compaction may or may not have removed the
//     others yet. So a revision that was current at C and changed after it
//     counts no more;
//   - unless no key is alive at R: then etcd's set of those to keep is empty,
//     which it takes for "no compaction", and all but deletions at C count that
//     the member still has. Here that is what a finished compaction leaves.
//
// The revisions come in order, so whether one up to C has a later sister must
// be known before: a keeper reads the tree backwards from its end, keys alone.
// After a finished compaction the revisions up to C are the last of their keys
// up to C, and it is enough to read back to C.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// point says as of when a hash is.
type point struct {
	rev     int64
	compact int64 // 0 or less: never compacted
}

// keeper knows which revisions up to the compact revision count.
type keeper struct {
	point
	full  bool    // more than one revision of a key may lie at or below compact
	later *keySet // keys with a revision in (compact, rev]
	kept  bitList // full: of the revisions up to compact, last first, whether they count
	live  int64   // keys alive at rev, of those seen: all of them when full

	markerAlive bool // a bump marker is current: it counts, but is no key
}

// newKeeper reads what it must of the key bucket at b. finished is the
// revision up to which compactions were completed in the file.
func newKeeper(db *database, b bucket, at point, finished int64) (*keeper, error) {
	k := &keeper{point: at, later: newKeySet(), full: at.compact > max(finished, 0)}
	if at.compact <= 0 {
		return k, nil
	}
	if err := k.readBack(db, b); err != nil {
		return nil, err
	}
	if k.full && k.noneAlive() && at.rev > at.compact {
		// What a finished compaction leaves: the keys alive at its revision.
		left := &keeper{point: point{rev: at.compact, compact: at.compact}, later: newKeySet(), full: true}
		if err := left.readBack(db, b); err != nil {
			return nil, err
		}
		k.kept = left.kept
	}
	if k.full {
		k.later = nil // kept holds all there is to know
	}
	return k, nil
}

func (k *keeper) noneAlive() bool { return k.live == 0 && !k.markerAlive }

// readBack fills later and kept from the key bucket's end.
func (k *keeper) readBack(db *database, b bucket) error {
	return db.walkBucketBack(b, func(e element) error {
		main, _, _, err := parseRevision(e.key)
		if err != nil {
			return err
		}
		if main > k.rev {
			return nil
		}
		if main <= k.compact && !k.full {
			return errStop
		}
		r, err := parseRecord(e)
		if err != nil {
			return err
		}
		alive := k.later.add(r.key) && !r.tombstone
		if alive && !r.marker {
			k.live++
		}
		if alive && r.marker {
			k.markerAlive = true
		}
		if main <= k.compact {
			k.kept.append(alive)
		}
		return nil
	})
}

// hasher computes HashKV over records that come in order.
type hasher struct {
	*keeper
	crc   uint32
	all   uint32 // the hash if nothing is alive at all, while that may be so
	below int64  // revisions up to compact so far
	none  bool   // nothing is known to be alive so far

	bare         uint32 // full, and nothing is alive: the hash of the revisions behind compact alone
	endsDeleting bool   // the revision of the hash has deleted a key
}

func newHasher(k *keeper) *hasher {
	h := &hasher{keeper: k, crc: crc32.Update(0, castagnoli, []byte("key"))}
	h.bare = h.crc
	h.all, h.none = h.crc, k.compact > 0 && !k.full && k.noneAlive()
	return h
}

// add takes the next record and says whether it counts. raw is its key and
// value as they lie in the file, one behind the other.
func (h *hasher) add(r *record, raw []byte) (bool, error) {
	if r.main > h.rev {
		return false, nil
	}
	h.endsDeleting = h.endsDeleting || r.tombstone && r.main == h.rev
	if r.main > h.compact || h.compact <= 0 {
		h.crc = crc32.Update(h.crc, castagnoli, raw)
		if h.none {
			h.all = crc32.Update(h.all, castagnoli, raw)
		}
		if h.full && h.noneAlive() {
			h.bare = crc32.Update(h.bare, castagnoli, raw)
		}
		return true, nil
	}
	var keep bool
	if h.full {
		i := h.kept.n - 1 - h.below
		if i < 0 {
			return false, corruptf("the revisions up to %d differ between two readings", h.compact)
		}
		keep = h.kept.at(i)
	} else if keep = !r.tombstone && !h.later.has(r.key); keep && !r.marker {
		h.live++
	}
	h.below++
	if keep {
		h.none = false
		h.crc = crc32.Update(h.crc, castagnoli, raw)
	} else if h.none && !(r.tombstone && r.main == h.compact) {
		h.all = crc32.Update(h.all, castagnoli, raw)
	}
	return keep, nil
}

func (h *hasher) sum() uint32 {
	if h.none {
		return h.all
	}
	return h.crc
}

// afterCompaction is the hash that a member keeps of a compaction at rev; see
// CheckHashKV.
func (h *hasher) afterCompaction() uint32 {
	switch {
	case !h.endsDeleting:
	case h.none:
		return h.crc
	case h.full && h.noneAlive() && h.rev > h.compact:
		return h.bare
	}
	return h.sum()
}

// check says whether the file can tell the hash at this point.
func (p point) check(exact, compacted int64) error {
	switch {
	case p.rev > exact:
		return fmt.Errorf("revision %d: %w; the last one is %d", p.rev, ErrFuture, exact)
	case p.compact > p.rev:
		return fmt.Errorf("compact revision %d is above revision %d: %w", p.compact, p.rev, ErrCompacted)
	case max(p.compact, 0) < max(compacted, 0):
		return fmt.Errorf("compact revision %d: %w at %d", p.compact, ErrCompacted, compacted)
	}
	return nil
}
