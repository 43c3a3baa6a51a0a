package datadir

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
)

// revisions is where a database's history ends, before and after a bump.
type revisions struct{ last, now int64 }

// Bump raises the last revision of a database file by bump and marks all that
// is older compacted, as Options.Bump does. The file is not synced. It returns
// the last revision before and after.
func Bump(path string, bump uint64) (last, now int64, err error) {
	var revs revisions
	err = edit(path, func(tx *bbolt.Tx) error {
		revs, err = bumpRevision(tx, bump)
		return err
	})
	return revs.last, revs.now, err
}

// editForMember makes a received database the database of a member whose raft
// log is the one that writeRaft makes: entries 1..n of term 1.
func editForMember(path string, cl *membership.RaftCluster, bump uint64) (revisions, error) {
	var revs revisions
	err := edit(path, func(tx *bbolt.Tx) (err error) {
		if revs, err = bumpRevision(tx, bump); err != nil {
			return err
		}
		if err := replaceMembers(tx, cl); err != nil {
			return err
		}
		metaBucket := tx.Bucket(schema.Meta.Name())
		index := binary.BigEndian.AppendUint64(nil, uint64(len(cl.MemberIDs())))
		if err := metaBucket.Put(schema.MetaConsistentIndexKeyName, index); err != nil {
			return err
		}
		return metaBucket.Put(schema.MetaTermKeyName, binary.BigEndian.AppendUint64(nil, raftTerm))
	})
	return revs, err
}

// bumpRevision puts a key with an empty value at last+bump, which is how etcd
// knows its revision when it opens the file, and schedules a compaction of
// everything up to there, which etcd carries out at its start.
func bumpRevision(tx *bbolt.Tx, bump uint64) (revisions, error) {
	keys, metaBucket := tx.Bucket(schema.Key.Name()), tx.Bucket(schema.Meta.Name())
	if keys == nil || metaBucket == nil {
		return revisions{}, fmt.Errorf("%w: no key or meta bucket: not an etcd database", ErrDamaged)
	}
	last, err := lastRevision(keys, metaBucket)
	if err != nil {
		return revisions{}, err
	}
	if bump == 0 {
		return revisions{last: last, now: last}, nil
	}
	if bump > math.MaxInt64 || last > math.MaxInt64-int64(bump) {
		return revisions{}, fmt.Errorf("%w: revision %d and a bump of %d do not fit in 63 bits", ErrInvalid, last, bump)
	}
	now := last + int64(bump)
	at := mvcc.RevToBytes(mvcc.Revision{Main: now}, mvcc.NewRevBytes())
	if err := keys.Put(at, []byte{}); err != nil {
		return revisions{}, err
	}
	if err := metaBucket.Put(schema.ScheduledCompactKeyName, at); err != nil {
		return revisions{}, err
	}
	return revisions{last: last, now: now}, nil
}

// lastRevision needs no scan: revision keys sort as revisions do, so the last
// key has the highest. A compaction can have removed it (a tombstone at the
// end), so the compaction revisions count too, as they do when etcd opens the
// file.
func lastRevision(keys, metaBucket *bbolt.Bucket) (int64, error) {
	var last int64
	see := func(what string, key []byte) error {
		if key == nil {
			return nil
		}
		if len(key) != 17 && len(key) != 18 {
			return fmt.Errorf("%w: %s of %d bytes", ErrDamaged, what, len(key))
		}
		main := int64(binary.BigEndian.Uint64(key))
		if main < 0 {
			return fmt.Errorf("%w: %s %d", ErrDamaged, what, main)
		}
		last = max(last, main)
		return nil
	}
	lastKey, _ := keys.Cursor().Last()
	if err := see("last revision", lastKey); err != nil {
		return 0, err
	}
	for _, name := range [][]byte{schema.FinishedCompactKeyName, schema.ScheduledCompactKeyName} {
		if err := see(string(name), metaBucket.Get(name)); err != nil {
			return 0, err
		}
	}
	return last, nil
}

// replaceMembers forgets the members of the snapshot's cluster, the removed
// ones too, and writes those of the new one.
func replaceMembers(tx *bbolt.Tx, cl *membership.RaftCluster) error {
	for _, name := range [][]byte{schema.Members.Name(), schema.MembersRemoved.Name()} {
		if tx.Bucket(name) != nil {
			if err := tx.DeleteBucket(name); err != nil {
				return fmt.Errorf("forget the old %s: %w", name, err)
			}
		}
		if _, err := tx.CreateBucket(name); err != nil {
			return fmt.Errorf("create bucket %s: %w", name, err)
		}
	}
	if _, err := tx.CreateBucketIfNotExists(schema.Cluster.Name()); err != nil {
		return fmt.Errorf("create bucket %s: %w", schema.Cluster.Name(), err)
	}
	members := tx.Bucket(schema.Members.Name())
	for _, m := range cl.Members() {
		text, err := json.Marshal(m)
		if err != nil {
			return fmt.Errorf("encode member %s: %w", m.ID, err)
		}
		if err := members.Put(schema.BackendMemberKey(m.ID), text); err != nil {
			return fmt.Errorf("write member %s: %w", m.ID, err)
		}
	}
	return nil
}
