package materialize

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"sort"

	"go.etcd.io/bbolt"

	"lifeboat/internal/segment"
)

// survey says which events at or below the compact revision to leave out. It
// takes a reading of its own: whether an event is superseded is known only when
// all later ones were seen. What it keeps of each event is in a scratch file.
type survey struct {
	upTo int64 // it is of the events up to this revision; 0: there is none
	seed maphash.Seed
	file *os.File
	n    int64  // events
	skip bitmap // of the n, in order
	keys *keySet
}

// entry is what is kept of an event.
type entry struct {
	main, key, content uint64
}

const entryBytes = 24

func (e entry) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, e.main)
	b = binary.LittleEndian.AppendUint64(b, e.key)
	return binary.LittleEndian.AppendUint64(b, e.content)
}

func parseEntry(b []byte) entry {
	return entry{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])}
}

func (e *event) entry() entry { return entry{uint64(e.main), e.key, e.content} }

func (p *survey) close() {
	if p.file != nil {
		p.file.Close()
	}
}

// survey reads all events up to the anchor's compact revision. Those that
// overlap the base or each other are compared here.
func (m *maker) survey(ctx context.Context, db *bbolt.DB) (_ *survey, err error) {
	p := &survey{upTo: int64(m.anchor.CompactRevision), seed: maphash.MakeSeed()}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.file, err = os.CreateTemp(m.opts.Scratch, ".materialize-*.tmp"); err != nil {
		return nil, fmt.Errorf("keep account of the changes: %w", err)
	}
	if err := os.Remove(p.file.Name()); err != nil { // it lives as long as it is open
		return nil, err
	}
	s := &streams{opts: &m.opts, hashed: p.upTo, seed: p.seed, pool: newPool()}
	err = db.View(func(tx *bbolt.Tx) error {
		v := &surveyor{survey: p, streams: s, base: comparer{keys: tx.Bucket(keyBucket), compact: m.base.compact()},
			last: m.base.last, w: bufio.NewWriterSize(p.file, 256<<10)}
		if err := s.walk(ctx, m.base.last, p.upTo, false, v); err != nil {
			return err
		}
		m.res.Overlap += v.overlap
		return v.flush()
	})
	if err != nil {
		return nil, err
	}
	return p, p.judge(ctx)
}

// surveyor is the survey while it reads.
type surveyor struct {
	*survey
	streams *streams
	base    comparer
	last    int64 // the base's revision
	w       *bufio.Writer
	scratch []byte
	overlap int64
	seen    int64 // revision that was compared last with an earlier segment's
	at      int64 // the number of the event behind it
}

func (v *surveyor) flush() error {
	if err := v.w.Flush(); err != nil {
		return fmt.Errorf("keep account of the changes: %w", err)
	}
	return nil
}

func (v *surveyor) event(e *event, sub int64, known bool) error {
	if known {
		v.overlap++
		if e.main <= v.last {
			return v.base.compare(e, sub)
		}
		return v.compare(e, sub)
	}
	v.scratch = e.entry().append(v.scratch[:0])
	v.n++
	if _, err := v.w.Write(v.scratch); err != nil {
		return fmt.Errorf("keep account of the changes: %w", err)
	}
	return nil
}

// compare holds an event to the one that an earlier segment gave in its place.
func (v *surveyor) compare(e *event, sub int64) error {
	if sub == 0 {
		if err := v.flush(); err != nil {
			return err
		}
		if v.seen != e.main-1 {
			var err error
			if v.at, err = v.find(e.main); err != nil {
				return err
			}
		}
		v.seen = e.main
	}
	other, err := v.entry(v.at)
	if err != nil {
		return err
	}
	v.at++
	if other != e.entry() {
		return fmt.Errorf("%w: revision %d, in two segments", ErrDiffers, e.main)
	}
	return nil
}

func (v *surveyor) revision(main, events int64, known bool) error {
	if !known {
		return nil
	}
	if main <= v.last {
		return v.base.ends(main, events)
	}
	next, err := v.entry(v.at)
	if err != nil {
		return err
	}
	if next.main == uint64(main) {
		return fmt.Errorf("%w: revision %d, in two segments", ErrDiffers, main)
	}
	return nil
}

func (v *surveyor) lease(segment.Lease, int64) error { return nil }

func (v *surveyor) batch(b *batch) error {
	v.streams.put(b)
	return nil
}

// entry reads what was kept of event i; all zero behind the last.
func (p *survey) entry(i int64) (entry, error) {
	if i >= p.n {
		return entry{}, nil
	}
	var b [entryBytes]byte
	if _, err := p.file.ReadAt(b[:], i*entryBytes); err != nil {
		return entry{}, fmt.Errorf("read the account of the changes: %w", err)
	}
	return parseEntry(b[:]), nil
}

// find is the number of a revision's first event.
func (p *survey) find(main int64) (int64, error) {
	var failed error
	i := sort.Search(int(p.n), func(i int) bool {
		e, err := p.entry(int64(i))
		failed = errors.Join(failed, err)
		return e.main >= uint64(main)
	})
	return int64(i), failed
}

// judge goes back from the last event: the first that is met of each key is the
// newest and stays, a deletion too. The others are skipped, and their keys noted.
func (p *survey) judge(ctx context.Context) error {
	p.skip, p.keys = newBitmap(p.n), newKeySet()
	const at = 4096
	buf := make([]byte, at*entryBytes)
	for end := p.n; end > 0; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		begin := max(0, end-at)
		b := buf[:(end-begin)*entryBytes]
		if _, err := p.file.ReadAt(b, begin*entryBytes); err != nil {
			return fmt.Errorf("read the account of the changes: %w", err)
		}
		for i := end - 1; i >= begin; i-- {
			if !p.keys.add(parseEntry(b[(i-begin)*entryBytes:]).key) {
				p.skip.set(i)
			}
		}
		end = begin
	}
	return nil
}

// account reads the survey again while the events come a second time.
type account struct {
	*survey
	r *bufio.Reader
	i int64
}

// next compares an event with its first reading and says whether to skip it.
func (a *account) next(e *event) (skip bool, err error) {
	var b [entryBytes]byte
	if _, err := readFull(a.r, b[:]); err != nil {
		return false, fmt.Errorf("read the account of the changes: %w", err)
	}
	if parseEntry(b[:]) != e.entry() {
		return false, fmt.Errorf("%w: revision %d, when read for the second time", ErrDiffers, e.main)
	}
	a.i++
	return a.skip.has(a.i - 1), nil
}
