// Package materialize turns the database of a full and the segments behind it
// into the database that etcd would have held at a later revision.
//
// The events go straight into the file's key bucket under their revisions, and
// the leases into the lease bucket, so that history, create and modification
// revisions, versions and leases are exact. Where a recorded HashKV allows it,
// what a compaction superseded is left out, as etcd itself would have it gone.
// Then the file must give a HashKV that etcd gave, or it is refused.
//
// docs/decisions/0014-materialized-databases.md has the reasons for what is done to the
// base's own revisions.
package materialize

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"go.etcd.io/bbolt"

	"lifeboat/internal/boltfile"
	"lifeboat/internal/manifest"
	"lifeboat/internal/snapdb"
)

// What a caller may branch on. The three after ErrDamaged wrap it: all of them
// mean that what was stored is not what was recorded.
var (
	ErrDamaged = errors.New("recorded changes are damaged")
	ErrDiffers = fmt.Errorf("%w: two records of one revision differ", ErrDamaged)
	ErrHole    = fmt.Errorf("%w: revisions are missing", ErrDamaged)
	ErrHash    = fmt.Errorf("%w: HashKV is not the recorded one", ErrDamaged)

	ErrInvalid = errors.New("invalid options for materializing")
)

// Options says what is appended up to where.
type Options struct {
	// To is the last revision wanted: the database's own at least.
	To int64

	// Segments is how many there are, and Open gives the plain bytes of one,
	// counted from 0. They come in the order of their first revisions, may
	// overlap, and are without a hole from the database's own last revision to To.
	//
	// Open is called by several goroutines at once, up to twice for a segment,
	// and not for those that begin beyond To. What is used is read to its end,
	// and an error there or of Close is an error of the whole: that is where
	// seals are checked.
	Segments int
	Open     func(ctx context.Context, i int) (io.ReadCloser, error)

	// Base is the hash that the caller has proved the database against. With
	// HashKV 0 there was none; then the database's own is taken, which proves
	// only that appending has not spoiled it.
	Base manifest.HashKV
	// Hashes are the recorded ones of the way, in any order.
	Hashes []manifest.HashKV

	// Scratch is a folder for a temporary file of hashes, 24 bytes a change, which
	// is gone at the end.
	Scratch string

	// Progress, if set, is told how many revisions beyond the database's own are
	// done, up to To less that one.
	Progress func(done int64)
}

// Result says what the database has become.
type Result struct {
	Base            int64 // the database's own last revision
	Revision        int64 // Options.To
	CompactRevision int64 // what a member started from it compares by; 0: never compacted
	Events          int64 // changes behind Base, up to Revision
	Written         int64
	Skipped         int64 // superseded at or below CompactRevision
	Removed         int64 // of the base, for the same reason
	Overlap         int64 // changes that were there already and were compared
	Leases          int   // written to the lease bucket
	MadeUp          int   // of them those with a made-up time to live
	Bytes           int64 // of the file

	// ProvedAt is the recorded hash that the result was compared with; nil
	// where there was none beyond the base, and only the base's was.
	ProvedAt *manifest.HashKV
}

// madeUpTTL is granted to leases of which nothing is known, in seconds.
const madeUpTTL = 60

// Append brings the database at path, a file without hash trailer that nobody
// else has open, to revision opts.To. It is not synced. After an error the file
// is of no use and must be thrown away.
//
// Its memory is bounded: a hundred megabytes or two, most of it for what opens
// and unseals several segments at a time, and up to 14 bytes for each changed
// key; then, while proving, as much for each key of the database.
func Append(ctx context.Context, path string, opts Options) (*Result, error) {
	if opts.Segments > 0 && opts.Open == nil || opts.Segments < 0 || opts.To < 1 {
		return nil, fmt.Errorf("%w: %d segments to revision %d", ErrInvalid, opts.Segments, opts.To)
	}
	m := &maker{path: path, opts: opts, res: &Result{Revision: opts.To}}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("materialize: %w", err)
	}
	// Room for what is usually added; bbolt maps anew when it is not enough.
	if err := boltfile.Edit(path, 2*info.Size()+1<<30, func(db *bbolt.DB) error { return m.edit(ctx, db) }); err != nil {
		return nil, fmt.Errorf("append changes up to revision %d: %w", opts.To, damaged(err))
	}
	if err := m.prove(ctx); err != nil {
		return nil, fmt.Errorf("prove the database at revision %d: %w", opts.To, damaged(err))
	}
	if info, err = os.Stat(path); err != nil {
		return nil, fmt.Errorf("materialize: %w", err)
	}
	m.res.Bytes = info.Size()
	return m.res, nil
}

// maker is one Append.
type maker struct {
	path string
	opts Options
	res  *Result

	base   state
	anchor *manifest.HashKV // recorded, beyond the base; nil if there is none
	check  manifest.HashKV  // what the result is compared with
}

func (m *maker) edit(ctx context.Context, db *bbolt.DB) (err error) {
	if err := db.View(func(tx *bbolt.Tx) (err error) { m.base, err = readState(tx); return err }); err != nil {
		return err
	}
	if m.base.last > m.opts.To {
		return fmt.Errorf("%w: the database is at revision %d already", ErrInvalid, m.base.last)
	}
	m.res.Base, m.res.CompactRevision = m.base.last, m.base.compact()
	if err := m.choose(ctx); err != nil {
		return err
	}
	plan := &survey{}
	if m.anchor != nil && int64(m.anchor.CompactRevision) > m.base.last {
		if plan, err = m.survey(ctx, db); err != nil {
			return err
		}
		defer plan.close()
		if err := m.thin(ctx, db, plan); err != nil {
			return err
		}
	}
	return m.append(ctx, db, plan)
}

// choose picks what the result is compared with: the newest recorded hash that
// says something of the segments, else the base's.
func (m *maker) choose(ctx context.Context) error {
	for i, h := range m.opts.Hashes {
		at, compact := int64(h.Revision), int64(h.CompactRevision)
		if at > m.opts.To || at <= m.base.last || compact < m.base.compact() || compact > at {
			continue
		}
		best := m.anchor
		if best == nil || h.Revision > best.Revision || h.Revision == best.Revision && h.CompactRevision > best.CompactRevision {
			m.anchor = &m.opts.Hashes[i]
		}
	}
	switch {
	case m.anchor != nil:
		m.check, m.res.ProvedAt = *m.anchor, m.anchor
		m.res.CompactRevision = max(m.res.CompactRevision, int64(m.anchor.CompactRevision))
	case m.opts.Base.HashKV != 0:
		m.check = m.opts.Base
	default:
		m.check = manifest.HashKV{Revision: manifest.Revision(m.base.last), CompactRevision: manifest.Revision(m.base.compact())}
		var err error
		m.check.HashKV, err = snapdb.HashKV(ctx, m.path, m.base.last, m.base.compact())
		return err
	}
	return nil
}

func (m *maker) prove(ctx context.Context) error {
	at, compact := int64(m.check.Revision), int64(m.check.CompactRevision)
	got, same, err := snapdb.CheckHashKV(ctx, m.path, at, compact, m.check.HashKV)
	if err != nil {
		return err
	}
	if !same {
		return fmt.Errorf("%w: at revision %d, compacted at %d, it is %d and not %d", ErrHash, at, compact, got, m.check.HashKV)
	}
	return nil
}

// damaged marks errors of the packages below that mean damage.
func damaged(err error) error {
	if !errors.Is(err, ErrDamaged) && (errors.Is(err, boltfile.ErrDamaged) || errors.Is(err, snapdb.ErrCorrupt)) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}
