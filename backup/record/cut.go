package record

import (
	"io"
	"slices"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
	"lifeboat/internal/spool"
)

// cut is a part of the tape that is to become one segment.
type cut struct {
	section section        // as it was when the cut was decided
	from    spool.Position // whence to read
	first   int64          // the first revision wanted; lower ones on the way are passed over
	limit   int64          // plain bytes behind which it ends, between two revisions; 0: all of the section
	rollUp  bool

	// What is known from the segment before it; zero if there is none.
	reached time.Time // its recovery point
	mark    string    // of revision first-1
	late    []segment.Moment
}

// written is what became of a cut.
type written struct {
	span manifest.Span
	end  spool.Position   // whence to read what comes behind it
	late []segment.Moment // times that only what comes behind it proves
}

// write writes the segment's plain bytes.
func (c *cut) write(w io.Writer, t *tape, marker *segment.Marker, now time.Time) (*written, error) {
	out, err := segment.NewWriter(w, segment.Header{
		ClusterID: c.section.clusterID, MemberID: c.section.memberID, First: c.first, At: now.UnixMilli(),
	})
	if err != nil {
		return nil, err
	}
	facts := facts{first: c.first, last: c.first - 1, mark: c.mark, now: now}
	for _, t := range c.late {
		facts.time(t)
	}
	reel := t.read(c.from, c.section.end)
	for c.limit == 0 || facts.bytes < c.limit || reel.holds() { // what was read and not given would be in no segment
		g, other, err := reel.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if other != nil {
			facts.take(*other)
			err = out.Write(*other)
		} else if g.main >= c.first {
			if err = facts.revision(g, marker); err == nil {
				err = g.each(out.Write)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	if err := c.leasesBehind(out, t, reel.at, facts.last); err != nil {
		return nil, err
	}
	if err := out.Close(facts.last); err != nil {
		return nil, err
	}
	span, late := facts.span(c)
	return &written{span: span, end: reel.at, late: late}, nil
}

// lookAhead is how far behind a cut leases are looked for: they are asked for
// when an event names them, and what etcd answers comes a little later.
const lookAhead = 1 << 20

// leasesBehind adds the leases of the cut's own revisions that lie behind it, so
// that a restore to its end has them. They are in the next segment too.
func (c *cut) leasesBehind(out *segment.Writer, t *tape, from spool.Position, last int64) error {
	reader := t.log.Read(from)
	for at := from; at < from+lookAhead; {
		payload, end, err := reader.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		at = end
		if isNote(payload) {
			if n, err := parseNote(payload); err == nil && n.section != c.section.id {
				return nil
			}
			continue
		}
		if segment.Kind(payload[0]) != segment.KindLease {
			continue
		}
		r, err := segment.ParseRecord(payload)
		if err != nil {
			return err
		}
		if r.Lease.Revision <= last {
			if err := out.Write(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// facts gathers what a manifest says of a segment.
type facts struct {
	first, last, events int64
	bytes               int64 // about as many as were written
	mark                string
	now                 time.Time
	times               []segment.Moment
	compactions         []manifest.Revision
	hashes              []manifest.HashKV
}

// overhead is about what one record takes besides its key-value.
const overhead = 12

func (f *facts) revision(g *group, marker *segment.Marker) (err error) {
	f.last, f.events, f.bytes = g.main, f.events+int64(g.count), f.bytes+g.bytes
	f.mark, err = g.mark(marker)
	return err
}

func (f *facts) take(r segment.Record) {
	f.bytes += overhead
	switch r.Kind {
	case segment.KindTime:
		f.time(r.Time)
	case segment.KindCompaction:
		revision := manifest.Revision(r.Compaction.Revision)
		if n := len(f.compactions); revision > 0 && (n == 0 || revision > f.compactions[n-1]) {
			f.compactions = append(f.compactions, revision)
		}
	case segment.KindHash:
		f.hash(r.Hash)
	}
}

// time takes in a time, unless a clock that was ahead gave it.
func (f *facts) time(t segment.Moment) {
	if !ahead(time.UnixMilli(t.At), f.now) {
		f.times = append(f.times, t)
	}
}

// hash notes one member's hash with those of others that are the same.
func (f *facts) hash(h segment.Hash) {
	if h.Revision < 1 || h.Compact > h.Revision {
		return
	}
	member := manifest.EtcdID(h.Member)
	for i := range f.hashes {
		o := &f.hashes[i]
		if o.Revision == manifest.Revision(h.Revision) && o.CompactRevision == manifest.Revision(h.Compact) && o.HashKV == h.HashKV {
			if !slices.Contains(o.Members, member) {
				o.Members = append(o.Members, member)
			}
			return
		}
	}
	f.hashes = append(f.hashes, manifest.HashKV{
		Revision: manifest.Revision(h.Revision), CompactRevision: manifest.Revision(h.Compact), HashKV: h.HashKV, Members: []manifest.EtcdID{member},
	})
}

// span is the manifest's part. The recovery point is the newest time at which
// etcd had acknowledged nothing beyond the cut; times that something beyond it
// must prove are late.
func (f *facts) span(c *cut) (manifest.Span, []segment.Moment) {
	s := manifest.Span{
		ClusterID: manifest.EtcdID(c.section.clusterID), MemberID: manifest.EtcdID(c.section.memberID),
		First: manifest.Revision(f.first), Last: manifest.Revision(f.last), Events: f.events, RollUp: c.rollUp,
		Compactions: f.compactions, Hashes: f.hashes, Mark: f.mark,
		FirstTime: c.reached, LastTime: c.reached,
	}
	var late []segment.Moment
	moments := f.moments()
	for _, m := range moments {
		if s.FirstTime.IsZero() || m.At.Before(s.FirstTime) {
			s.FirstTime = m.At
		}
		if m.AtMost <= s.Last && m.At.After(s.LastTime) {
			s.LastTime = m.At
		}
	}
	for _, t := range f.times {
		if manifest.Revision(t.AtMost) > s.Last {
			late = append(late, t)
		}
	}
	if s.FirstTime.IsZero() { // nothing is known: it claims nothing
		s.FirstTime = time.UnixMilli(0).UTC()
	}
	if s.LastTime.Before(s.FirstTime) {
		s.LastTime = s.FirstTime
		if c.reached.IsZero() {
			s.FirstTime, s.LastTime = time.UnixMilli(0).UTC(), time.UnixMilli(0).UTC()
		}
	}
	s.SetMoments(slices.DeleteFunc(moments, func(m manifest.Moment) bool { return m.At.Before(s.FirstTime) || m.AtLeast < s.First-1 }))
	return s, late[max(0, len(late)-mostLate):]
}

// mostLate bounds the times that wait for their proof: few are enough, since
// the newest that is proved is what counts.
const mostLate = 16

// moments are the times in the manifest's form. A clock that was set back gives
// none until it is as far again.
func (f *facts) moments() []manifest.Moment {
	var list []manifest.Moment
	var before manifest.Moment
	for _, t := range f.times {
		m := manifest.Moment{At: time.UnixMilli(t.At).UTC(), AtLeast: manifest.Revision(t.AtLeast), AtMost: manifest.Revision(t.AtMost)}
		if len(list) > 0 && !m.At.After(before.At) {
			continue
		}
		m.AtLeast, m.AtMost = max(m.AtLeast, before.AtLeast), max(m.AtMost, before.AtMost, m.AtLeast)
		list, before = append(list, m), m
	}
	return list
}
