package materialize

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"io"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/encoding/protowire"

	"lifeboat/internal/segment"
)

const (
	txBytes   = 8 << 20 // of values in one transaction, which holds them in memory
	txEvents  = 50_000
	thinBatch = 2048 // deletions in one transaction: each may take a page of memory
	fill      = 0.9  // of a page, as etcd does it
)

func readFull(r io.Reader, b []byte) (int, error) { return io.ReadFull(r, b) }

// comparer holds events to what the database has.
type comparer struct {
	keys    *bbolt.Bucket
	compact int64 // at or below it, events may be gone
	rev     []byte
}

func (c *comparer) compare(e *event, sub int64) error {
	c.rev = appendRevision(c.rev[:0], e.main, sub, e.tombstone)
	have := c.keys.Get(c.rev)
	if have == nil && e.main <= c.compact {
		c.rev = appendRevision(c.rev[:0], e.main, sub, !e.tombstone)
		if c.keys.Get(c.rev) == nil {
			return nil
		}
	}
	if have == nil || !bytes.Equal(have, e.kv) {
		return fmt.Errorf("%w: revision %d, in the database and a segment", ErrDiffers, e.main)
	}
	return nil
}

// ends makes sure that the database has no more events of a revision.
func (c *comparer) ends(main, events int64) error {
	c.rev = appendRevision(c.rev[:0], main, events, false)
	if k, _ := c.keys.Cursor().Seek(c.rev); k != nil {
		next, _, _, err := parseRevision(k)
		if err != nil {
			return err
		}
		if next == main {
			return fmt.Errorf("%w: revision %d has more events in the database than in a segment", ErrDiffers, main)
		}
	}
	return nil
}

// thin removes the base's revisions of the keys that have events skipped.
//
// etcd counts a key's versions, and remembers when it was created, by the
// revisions that it finds when it opens the file: the first says what it is, and
// each later one adds one. So between a revision that is there and the next
// that is there none may be missing; those before the first may.
func (m *maker) thin(ctx context.Context, db *bbolt.DB, p *survey) error {
	from := make([]byte, revisionBytes)
	for from != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := db.Update(func(tx *bbolt.Tx) error {
			keys := tx.Bucket(keyBucket)
			keys.FillPercent = fill
			gone, next, err := m.superseded(ctx, keys, from, p)
			if err != nil {
				return err
			}
			for _, k := range gone {
				if err := keys.Delete(k); err != nil {
					return err
				}
			}
			m.res.Removed += int64(len(gone))
			from = next
			return nil
		})
		if err != nil {
			return err
		}
	}
	p.keys = nil
	return nil
}

// superseded lists the revisions to remove from a place on, and where to go on;
// nil at the end.
func (m *maker) superseded(ctx context.Context, keys *bbolt.Bucket, from []byte, p *survey) (gone [][]byte, next []byte, err error) {
	c, n := keys.Cursor(), 0
	for k, v := c.Seek(from); k != nil; k, v = c.Next() {
		if n++; n&0xfff == 0 && ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		if len(v) == 0 {
			continue // what a revision bump has left, and no key's
		}
		if len(gone) == thinBatch {
			return gone, bytes.Clone(k), nil
		}
		key, err := segment.KeyOf(v)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: revision %x: %w", ErrDamaged, k, err)
		}
		if p.keys.repeated(maphash.Bytes(p.seed, key)) {
			gone = append(gone, bytes.Clone(k))
		}
	}
	return gone, nil, nil
}

// append writes the events behind the base.
func (m *maker) append(ctx context.Context, db *bbolt.DB, p *survey) error {
	s := &streams{opts: &m.opts, hashed: p.upTo, seed: p.seed, pool: newPool()}
	a := &appender{maker: m, reached: m.base.last, db: db, streams: s, surveyed: p.upTo, missing: map[int64]bool{}, synthetic: map[int64]bool{}}
	if p.upTo > 0 {
		a.account = &account{survey: p, r: bufio.NewReaderSize(io.NewSectionReader(p.file, 0, p.n*entryBytes), 256<<10)}
	}
	defer a.rollback()
	if err := a.begin(); err != nil {
		return err
	}
	if err := s.walk(ctx, m.base.last, m.opts.To, true, a); err != nil {
		return err
	}
	return a.finish()
}

// appender is the writing.
type appender struct {
	*maker
	db       *bbolt.DB
	streams  *streams
	surveyed int64    // what is known up to here was compared
	account  *account // nil: nothing is skipped

	tx      *bbolt.Tx
	keys    *bbolt.Bucket
	leases  *bbolt.Bucket
	present comparer
	held    []*batch // values that the transaction needs
	bytes   int
	events  int
	written int // events of the batch at hand that are in the transaction

	reached   int64
	lastLease int64          // is known, or missing
	missing   map[int64]bool // leases that events name and that nothing is known of, yet
	synthetic map[int64]bool // leases whose recorded time to live is made up
}

func (a *appender) begin() (err error) {
	if a.tx, err = a.db.Begin(true); err != nil {
		return err
	}
	if a.leases, err = a.tx.CreateBucketIfNotExists(leaseBucket); err != nil {
		return err
	}
	a.keys = a.tx.Bucket(keyBucket)
	a.keys.FillPercent = fill
	a.present.keys, a.present.compact = a.keys, a.base.compact()
	return nil
}

func (a *appender) commit() error {
	tx := a.tx
	a.tx = nil
	if err := tx.Commit(); err != nil {
		return err
	}
	for _, b := range a.held {
		a.streams.put(b)
	}
	a.held, a.bytes, a.events = a.held[:0], 0, 0
	return nil
}

func (a *appender) rollback() {
	if a.tx != nil {
		_ = a.tx.Rollback() // an earlier error is the one to report
	}
}

func (a *appender) event(e *event, sub int64, known bool) error {
	if known {
		if e.main <= a.surveyed {
			return nil
		}
		a.res.Overlap++
		return a.present.compare(e, sub)
	}
	a.reached = e.main
	a.res.Events++
	if e.main <= a.surveyed {
		skip, err := a.account.next(e)
		if err != nil {
			return err
		}
		if skip {
			a.res.Skipped++
			return nil
		}
	}
	var rev [revisionBytes + 1]byte
	if err := a.keys.Put(appendRevision(rev[:0], e.main, sub, e.tombstone), e.kv); err != nil {
		return fmt.Errorf("write revision %d: %w", e.main, err)
	}
	a.res.Written++
	a.bytes += len(e.kv)
	a.events++
	a.written++
	if e.lease != 0 && e.lease != a.lastLease && !e.tombstone {
		a.lastLease = e.lease
		if a.leases.Get(leaseKey(e.lease)) == nil {
			a.missing[e.lease] = true
		}
	}
	return nil
}

func (a *appender) revision(main, events int64, known bool) error {
	if known && main > a.surveyed {
		return a.present.ends(main, events)
	}
	return nil
}

// lease takes a recorded lease. Ids can be used again: the later grant counts,
// but one of an overlap does not count as later.
func (a *appender) lease(l segment.Lease, known int64) error {
	there := a.leases.Get(leaseKey(l.ID)) != nil
	if l.ID == 0 || there && (l.Synthetic || l.Revision <= known && !a.synthetic[l.ID]) {
		return nil
	}
	delete(a.missing, l.ID)
	delete(a.synthetic, l.ID)
	if l.Synthetic {
		a.synthetic[l.ID] = true
	}
	return a.grant(l.ID, l.TTL)
}

// grant writes a lease as etcd does: leasepb.Lease has 1 id, 2 time to live as
// granted, 3 what remains of it, if that was checkpointed.
func (a *appender) grant(id, ttl int64) error {
	if ttl <= 0 {
		ttl = madeUpTTL
	}
	key := leaseKey(id)
	if a.leases.Get(key) == nil {
		a.res.Leases++
	}
	b := protowire.AppendTag(nil, 1, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(id))
	b = protowire.AppendTag(b, 2, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(ttl))
	if err := a.leases.Put(key, b); err != nil {
		return fmt.Errorf("write lease %x: %w", uint64(id), err)
	}
	return nil
}

func leaseKey(id int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }

func (a *appender) batch(b *batch) error {
	if a.opts.Progress != nil {
		a.opts.Progress(a.reached - a.base.last)
	}
	if a.written == 0 {
		a.streams.put(b) // nothing of it is needed
		return nil
	}
	a.held, a.written = append(a.held, b), 0
	if a.bytes < txBytes && a.events < txEvents {
		return nil
	}
	if err := a.commit(); err != nil {
		return err
	}
	return a.begin()
}

// finish writes what only the end tells.
func (a *appender) finish() error {
	for id := range a.missing {
		a.res.MadeUp++
		if err := a.grant(id, madeUpTTL); err != nil {
			return err
		}
	}
	a.res.MadeUp += len(a.synthetic)
	if a.anchor != nil && int64(a.anchor.CompactRevision) > a.base.compact() {
		at := appendRevision(nil, int64(a.anchor.CompactRevision), 0, false)
		if err := a.tx.Bucket(metaBucket).Put(scheduled, at); err != nil {
			return err
		}
	}
	now, err := readState(a.tx)
	if err != nil {
		return err
	}
	if now.last != a.opts.To {
		return fmt.Errorf("%w: the database has come to %d, and %d was wanted", ErrHole, now.last, a.opts.To)
	}
	return a.commit()
}
