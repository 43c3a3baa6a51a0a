package replay

import (
	"bytes"
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"lifeboat/internal/snapdb"
)

// verdict is what a judgement found.
type verdict struct {
	differences []string
	keys        int
	leases      int
	synthetic   int // leases that were gone before a recorder could ask
	live        int // hashes of live members that were compared
}

// maxDifferences bounds what is told of one point.
const maxDifferences = 12

func (v *verdict) differ(format string, args ...any) {
	if len(v.differences) < maxDifferences {
		v.differences = append(v.differences, fmt.Sprintf(format, args...))
	}
}

// judge compares a database file, materialized at a revision, with what was.
func (o *oracle) judge(ctx context.Context, b *book, path string, rev int64) (*verdict, error) {
	d, err := readDatabase(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	v := &verdict{}
	if last := max(d.last(), d.meta["finishedCompactRev"], d.meta["scheduledCompactRev"]); last != rev {
		v.differ("the file ends at revision %d (newest record %d), want %d", last, d.last(), rev)
	}
	compareKeys(v, o.stateAt(rev), d.state())
	o.compareRecords(v, d, rev)
	o.compareLeases(v, b, d, rev)
	if err := o.compareHashes(ctx, v, d, path, rev); err != nil {
		return nil, err
	}
	return v, nil
}

func compareKeys(v *verdict, want, got map[string]*mvccpb.KeyValue) {
	v.keys = len(want)
	for key, w := range want {
		g := got[key]
		switch {
		case g == nil:
			v.differ("key %q (mod %d) is missing", key, w.ModRevision)
		case g.CreateRevision != w.CreateRevision || g.ModRevision != w.ModRevision || g.Version != w.Version || g.Lease != w.Lease:
			v.differ("key %q: create %d mod %d version %d lease %x, want %d %d %d %x", key,
				g.CreateRevision, g.ModRevision, g.Version, g.Lease, w.CreateRevision, w.ModRevision, w.Version, w.Lease)
		case !bytes.Equal(g.Value, w.Value):
			v.differ("key %q (mod %d): the value of %d bytes is not that of %d", key, w.ModRevision, len(g.Value), len(w.Value))
		}
	}
	for key, g := range got {
		if want[key] == nil {
			v.differ("key %q (mod %d) should not be there", key, g.ModRevision)
		}
	}
}

// compareRecords holds every record, also of old versions and deletions, to
// what happened: the file may lack what a compaction superseded, and holds
// nothing that never was.
func (o *oracle) compareRecords(v *verdict, d *database, rev int64) {
	type place struct{ main, sub int64 }
	history := o.history(rev)
	was := make(map[place]*change, len(history))
	for i := range history {
		was[place{history[i].main, history[i].sub}] = &history[i]
	}
	have := make(map[place]bool, len(d.records))
	for i := range d.records {
		c := &d.records[i]
		have[place{c.main, c.sub}] = true
		w := was[place{c.main, c.sub}]
		if w == nil || w.tombstone != c.tombstone || !bytes.Equal(w.raw, c.raw) {
			v.differ("record %d/%d of key %q (tombstone %t) is not what happened", c.main, c.sub, c.kv.Key, c.tombstone)
		}
	}
	// Above the newest compaction nothing may be missing.
	compact := max(d.meta["finishedCompactRev"], d.meta["scheduledCompactRev"])
	for i := range history {
		if c := &history[i]; c.main > compact && !have[place{c.main, c.sub}] {
			v.differ("record %d/%d of key %q is missing, compacted at %d", c.main, c.sub, c.kv.Key, compact)
		}
	}
}

// compareLeases wants every lease that holds a key, with its granted time.
func (o *oracle) compareLeases(v *verdict, b *book, d *database, rev int64) {
	moment := o.seenAt(rev)
	used := map[int64]int64{} // lease to a mod revision of a key of it
	for _, kv := range o.stateAt(rev) {
		if kv.Lease != 0 {
			used[kv.Lease] = kv.ModRevision
		}
	}
	v.leases = len(used)
	for id, mod := range used {
		g := b.of(id, mod)
		ttl, there := d.leases[id]
		switch {
		case g == nil:
			v.differ("lease %x was never granted", id)
		case !there:
			v.differ("lease %x is missing, and a key of revision %d has it", id, mod)
		case ttl == g.ttl:
		case ttl == syntheticTTL && b.unknowable(g, moment):
			v.synthetic++
		default:
			v.differ("lease %x has %d s, granted were %d s (attached %v, revoked %v)", id, ttl, g.ttl, g.attached, g.gone)
		}
	}
	for id := range d.leases {
		if !b.possible(id, rev) {
			v.differ("lease %x is there and had not been granted at revision %d", id, rev)
		}
	}
}

// compareHashes holds the file's HashKV to each answer of a live member at that
// revision, and to the oracle's own as of the file's compaction.
func (o *oracle) compareHashes(ctx context.Context, v *verdict, d *database, path string, rev int64) error {
	own := max(d.meta["finishedCompactRev"], d.meta["scheduledCompactRev"])
	compare := func(compact int64, want uint32, who string) error {
		got, err := snapdb.HashKV(ctx, path, rev, compact)
		if err != nil {
			return fmt.Errorf("HashKV at %d as of %d: %w", rev, compact, err)
		}
		if got != want {
			v.differ("HashKV at %d as of %d is %d, %s says %d", rev, compact, got, who, want)
		}
		return nil
	}
	if err := compare(own, o.hashAt(rev, own), "the oracle"); err != nil {
		return err
	}
	for _, s := range o.samplesAt(rev) {
		if s.compact < own {
			continue // the file holds no more what that answer was made of
		}
		v.live++
		if err := compare(s.compact, s.hash, s.member); err != nil {
			return err
		}
	}
	return nil
}
