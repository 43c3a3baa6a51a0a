package snapdb

import (
	"context"
	"slices"
)

// reader is an opened file whose bucket directory and meta bucket were read.
type reader struct {
	*database
	seen    bitmap            // pages reached by the checking walks
	buckets map[string]bucket // those of etcd's that the file has
	damaged int               // meta pages

	values              metaValues
	finished, scheduled int64 // compactions; 0 for none
	revision            int64 // exact
}

// known are etcd's buckets (server/storage/schema/bucket.go) that are read
// here; others are only checked.
var known = map[string]bool{
	"key": true, "meta": true, "lease": true, "alarm": true, "cluster": true, "members": true, "auth": true,
}

// openDatabase reads what the rest needs first. Buckets lie in the order of
// their names and "meta" comes after "key", so the directory is read before
// any bucket is.
func openDatabase(ctx context.Context, data []byte, progress func(done, total int64)) (*reader, error) {
	m, damaged, err := chooseMeta(data)
	if err != nil {
		return nil, err
	}
	db := &database{meta: m, data: data, ctx: ctx, progress: progress}
	r := &reader{database: db, damaged: damaged, seen: newBitmap(m.pages), buckets: map[string]bucket{}}
	r.seen.mark(0)
	r.seen.mark(1)
	err = db.walk(m.root, r.seen, func(e element) error {
		if e.flags&bucketElement == 0 {
			return corruptf("%q among the buckets is none", clip(e.key))
		}
		b, err := parseBucket(clip(e.key), e.value)
		if err != nil {
			return err
		}
		if known[string(e.key)] {
			r.buckets[string(e.key)] = b
			return nil
		}
		return db.checkTree(b, r.seen, 0)
	})
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"key", "meta"} {
		if _, ok := r.buckets[name]; !ok {
			return nil, corruptf("no %q bucket: not an etcd database", name)
		}
	}
	if err := r.readMetaBucket(); err != nil {
		return nil, err
	}
	last, err := r.lastRevision()
	if err != nil {
		return nil, err
	}
	// A compaction may have removed the last revision when it was a deletion:
	// etcd-io/etcd#17780. An empty store is at revision 1.
	r.revision = max(1, last, r.finished, r.scheduled)
	return r, nil
}

// compacted is the revision that members compare by: a compaction counts from
// when it is scheduled. -1 is etcd's own way to say "never".
func (r *reader) compacted() int64 {
	if c := max(r.finished, r.scheduled); c > 0 {
		return c
	}
	return -1
}

// lastRevision is the main revision of the key bucket's last key; 0 when it is
// empty.
func (r *reader) lastRevision() (last int64, err error) {
	err = r.walkBucketBack(r.buckets["key"], func(e element) error {
		if last, _, _, err = parseRevision(e.key); err != nil {
			return err
		}
		return errStop
	})
	return last, err
}

// tellLast calls f as Options.LastRevision says. The key bucket was walked
// before, so it is in order.
func (r *reader) tellLast(f func(int64, []LastRecord)) error {
	if r.compacted() >= r.revision {
		return nil
	}
	var records []LastRecord
	err := r.walkBucketBack(r.buckets["key"], func(e element) error {
		rec, err := parseRecord(e)
		if err != nil {
			return err
		}
		if rec.marker {
			records = nil
		}
		if rec.marker || rec.main != r.revision {
			return errStop
		}
		records = append(records, LastRecord{Tombstone: rec.tombstone, KV: e.value})
		return nil
	})
	if err != nil || len(records) == 0 {
		return err
	}
	slices.Reverse(records)
	f(r.revision, records)
	return nil
}

// hash walks the key bucket: HashKV at a point, and each for every record with
// whether it counts.
func (r *reader) hash(at point, each func(rec *record, counts bool)) (*hasher, error) {
	k, err := newKeeper(r.database, r.buckets["key"], at, r.finished)
	if err != nil {
		return nil, err
	}
	h := newHasher(k)
	var rec record
	err = r.walkBucket(r.buckets["key"], r.seen, func(e element) (err error) {
		if rec, err = parseRecord(e); err != nil {
			return err
		}
		counts, err := h.add(&rec, e.key[:cap(e.key)])
		if err == nil && each != nil {
			each(&rec, counts)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// clip shortens what a hostile file may have made long before it is shown.
func clip(b []byte) []byte { return b[:min(len(b), 64)] }
