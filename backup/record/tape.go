package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"lifeboat/internal/segment"
	"lifeboat/internal/spool"
)

// tape is the spool with what a recorder knows of it: which revisions lie
// where, and of which history. One goroutine, the watch's, writes it; all others
// read. Records of internal/segment lie in it, and notes (see note).
//
// It holds one section after the other. Within a section revisions follow each
// other without a gap; between two of them changes were lost, or history is
// another.
type tape struct {
	log    *spool.Log
	missed missed   // leases, of what was on the tape when it was opened
	gaveUp error    // why all that was on it then is not any more; nil: it is
	room   int64    // for records; notes have some more
	alarms []*alarm // one a committer; not changed once there is a writer

	mu       sync.Mutex
	sections []section
	noted    spool.Position // end of the newest note
	scratch  []byte

	// The writer's own: the newest revision of which events were given, where
	// they begin, and whether more may come.
	event int64
	begun spool.Position
	open  bool
}

// section is a contiguous span of one history.
type section struct {
	id                  int64 // when it was begun, in nanoseconds; larger than that of the one before
	clusterID, memberID uint64
	epoch               uint64 // a chain that is still in a lower one holds another history; 0: any
	why                 string // it was begun, and not the one before gone on with; not kept for longer than the process lives

	first, last int64          // revisions; last is the newest that is known to be whole, first-1 if none is
	start, end  spool.Position // whence to read first, and where all up to last has been given
	waypoints   []waypoint     // ascending, the first of them is (start, first)

	newest segment.Moment // the newest time that is on the tape
}

// waypoint is a place to read from: what lies behind it is of revision next or
// higher.
type waypoint struct {
	at   spool.Position
	next int64
}

// forNotes is the part of the spool that only notes fill: a watch must be able
// to begin, and make void what the one before it left, when there is no room.
const forNotes = 64 << 10

// between is how far apart notes are at least, and waypoints: what is read in
// vain to find a revision.
const between = 256 << 10

func (s *section) holds(revision int64) bool { return s.first <= revision && revision <= s.last }

// alarm wakes a committer when the tape has grown past a position.
type alarm struct {
	at   spool.Position // guarded by tape.mu
	ring chan struct{}  // buffered, one
}

func (a *alarm) now() {
	select {
	case a.ring <- struct{}{}:
	default:
	}
}

// errStrange: the spool is whole and holds what is not understood, as that of a
// newer version.
var errStrange = errors.New("not known to this version")

// openTape opens the spool and learns from its notes what is in it. What is not
// understood is given up: it would be no more so at the next start.
func openTape(dir string, maxBytes int64) (*tape, error) {
	log, err := spool.Open(dir, spool.Options{MaxBytes: maxBytes})
	if err != nil {
		return nil, err
	}
	t := &tape{log: log, room: maxBytes - min(forNotes, maxBytes/8)}
	err = t.learn()
	if errors.Is(err, errStrange) {
		t = &tape{log: log, room: t.room, gaveUp: err}
		err = log.Reset()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read what the spool holds: %w", err), log.Close())
	}
	return t, nil
}

// learn reads all of the spool once. What lies before the first note is of an
// unknown history and is passed over.
func (t *tape) learn() error {
	reader := t.log.Read(t.log.Start())
	at, event := t.log.Start(), int64(0)
	for {
		payload, end, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if isNote(payload) {
			n, err := parseNote(payload)
			if err != nil {
				return fmt.Errorf("%w: %w", errStrange, err)
			}
			t.take(n, at, end)
			if n.begins {
				event = 0
			}
		} else if len(t.sections) > 0 {
			s := &t.sections[len(t.sections)-1]
			r, err := segment.ParseRecord(payload)
			if err == nil {
				err = t.missed.take(r)
			}
			if err != nil {
				return fmt.Errorf("%w: %w", errStrange, err)
			}
			if r.IsEvent() && r.Main > event { // so the one before it is whole
				if event > s.last {
					s.last, s.end = event, at
				}
				event = r.Main
			}
			if r.Kind == segment.KindTime {
				s.newest = r.Time
			}
		}
		at = end
	}
	return nil
}

// note is what a recorder writes between records: that all revisions up to one
// have been given, and of which history.
type note struct {
	section             int64
	clusterID, memberID uint64
	epoch               uint64
	whole               int64 // the revision
	begins              bool  // a watch begins here: events of higher revisions that lie before it are void, they come again
}

// noteMark begins a note's payload; records' kinds are small numbers.
const noteMark = 0xF0

func isNote(payload []byte) bool { return payload[0] == noteMark }

func (n note) append(dst []byte) []byte {
	begins := byte(0)
	if n.begins {
		begins = 1
	}
	dst = append(dst, noteMark, begins)
	for _, v := range []uint64{uint64(n.section), n.clusterID, n.memberID, n.epoch, uint64(n.whole)} {
		dst = binary.BigEndian.AppendUint64(dst, v)
	}
	return dst
}

func parseNote(payload []byte) (note, error) {
	if len(payload) != 2+5*8 {
		return note{}, fmt.Errorf("a note of %d bytes", len(payload))
	}
	v := func(i int) uint64 { return binary.BigEndian.Uint64(payload[2+8*i:]) }
	return note{
		begins: payload[1] == 1, section: int64(v(0)), clusterID: v(1), memberID: v(2), epoch: v(3), whole: int64(v(4)),
	}, nil
}

// take adds what a note that lies at [at, end) says to what is known.
func (t *tape) take(n note, at, end spool.Position) {
	if len(t.sections) == 0 || t.sections[len(t.sections)-1].id != n.section {
		t.sections = append(t.sections, section{
			id: n.section, clusterID: n.clusterID, epoch: n.epoch,
			first: n.whole + 1, last: n.whole, start: at, end: end, waypoints: []waypoint{{at, n.whole + 1}},
		})
	}
	s := &t.sections[len(t.sections)-1]
	s.memberID = n.memberID
	if n.whole >= s.last {
		s.last, s.end = n.whole, end
	}
	if last := s.waypoints[len(s.waypoints)-1]; at-last.at >= between {
		s.waypoints = append(s.waypoints, waypoint{at, n.whole + 1})
	}
	t.noted = end
}

// begin begins a section, or goes on with the newest after a watch was lost:
// then all but id and memberID are as they were, and last says behind which
// revision it goes on.
func (t *tape) begin(s section, last int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open = false
	if n := len(t.sections); n > 0 && t.sections[n-1].id == s.id && t.noted == t.log.End() {
		t.sections[n-1].memberID = s.memberID
		return nil // nothing came since the last note
	}
	if err := t.write(note{section: s.id, clusterID: s.clusterID, memberID: s.memberID, epoch: s.epoch, whole: last, begins: true}); err != nil {
		return err
	}
	if newest := &t.sections[len(t.sections)-1]; s.why != "" {
		newest.why = s.why
	}
	for _, a := range t.alarms {
		a.now()
	}
	return nil
}

func (t *tape) write(n note) error {
	t.scratch = n.append(t.scratch[:0])
	at := t.log.End()
	end, err := t.log.Append(t.scratch)
	if err != nil {
		return err
	}
	t.take(n, at, end)
	return nil
}

// record adds one record.
func (t *tape) record(r segment.Record) error {
	t.scratch = segment.AppendRecord(t.scratch[:0], r)
	if t.log.Bytes()+int64(len(t.scratch)) > t.room {
		return spool.ErrFull
	}
	if err := t.head(); err != nil {
		return err
	}
	t.scratch = segment.AppendRecord(t.scratch[:0], r)
	at := t.log.End()
	if _, err := t.log.Append(t.scratch); err != nil {
		return err
	}
	if r.IsEvent() {
		if !t.open || r.Main != t.event {
			t.event, t.begun, t.open = r.Main, at, true
		}
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.sections[len(t.sections)-1]
	if r.Kind == segment.KindTime {
		s.newest = r.Time
	}
	if !t.open {
		s.end = t.log.End()
	}
	return nil
}

// head notes where the tape begins, when all that was on it was released: a
// process that starts again passes over what lies before the first note.
func (t *tape) head() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open || t.noted > t.log.Start() {
		return nil
	}
	s := t.sections[len(t.sections)-1]
	return t.write(note{section: s.id, clusterID: s.clusterID, memberID: s.memberID, epoch: s.epoch, whole: s.last})
}

// whole says that all up to a revision has been given, and wakes those who
// wait for as much.
func (t *tape) whole(revision int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, end := &t.sections[len(t.sections)-1], t.log.End()
	if t.open && revision < t.event { // of the newest more events come
		end = t.begun
	} else {
		t.open = false
	}
	s.last, s.end = max(s.last, revision), end
	for _, a := range t.alarms {
		if a.at != 0 && a.at <= end {
			a.at = 0
			a.now()
		}
	}
	if t.open || end-t.noted < between {
		return nil
	}
	return t.write(note{section: s.id, clusterID: s.clusterID, memberID: s.memberID, epoch: s.epoch, whole: s.last})
}

// settle notes how far the newest section is, unless that can be seen, and gives all to the operating
// system, so that a process that starts again goes on exactly there.
func (t *tape) settle() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	if len(t.sections) > 0 && t.log.End() > t.noted && !t.open {
		s := t.sections[len(t.sections)-1]
		err = t.write(note{section: s.id, clusterID: s.clusterID, memberID: s.memberID, epoch: s.epoch, whole: s.last})
	}
	return errors.Join(err, t.log.Flush())
}

func (t *tape) close() error { return errors.Join(t.settle(), t.log.Close()) }

// alarmAt has the committer's alarm ring when the tape reaches a position; 0
// never.
func (t *tape) alarmAt(a *alarm, at spool.Position) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a.at = at
}

// all are the sections, oldest first, without their waypoints.
func (t *tape) all() []section {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := slices.Clone(t.sections)
	for i := range list {
		list[i].waypoints = nil
	}
	return list
}

// now is the newest section, without its waypoints; false if there is none.
func (t *tape) now() (section, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.sections) == 0 {
		return section{}, false
	}
	s := t.sections[len(t.sections)-1]
	s.waypoints = nil
	return s, true
}

// section is one of them, and whether it is the newest.
func (t *tape) section(id int64) (s section, newest, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, s := range t.sections {
		if s.id == id {
			s.waypoints = nil
			return s, i == len(t.sections)-1, true
		}
	}
	return section{}, false, false
}

// newest is the newest section's id; 0 if there is none.
func (t *tape) newest() int64 {
	s, _ := t.now()
	return s.id
}

// find is where to read from to get revision next and all behind it; false if
// the section no longer holds it.
func (t *tape) find(id, next int64) (spool.Position, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.sections {
		s := &t.sections[i]
		if s.id != id || next < s.first || next > s.last+1 {
			continue
		}
		if next == s.last+1 {
			return s.end, true
		}
		at := s.start
		for _, w := range s.waypoints {
			if w.next <= next {
				at = w.at
			}
		}
		return at, true
	}
	return 0, false
}

// release says that nobody needs what lies below a position. The note before
// it stays: see head.
func (t *tape) release(upTo spool.Position) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if upTo < t.log.End() {
		upTo = t.noteBefore(upTo)
	}
	if err := t.log.Release(upTo); err != nil {
		return err
	}
	start := t.log.Start()
	for i := range t.sections {
		s := &t.sections[i]
		s.waypoints = slices.DeleteFunc(s.waypoints, func(w waypoint) bool { return w.at < start })
		if len(s.waypoints) == 0 || s.start < start && s.end < s.waypoints[0].at {
			s.waypoints = []waypoint{{max(s.end, start), s.last + 1}}
		}
		s.start, s.first = s.waypoints[0].at, s.waypoints[0].next
	}
	for len(t.sections) > 1 && t.sections[0].end <= start {
		t.sections = t.sections[1:]
	}
	return nil
}

// noteBefore is the newest waypoint, where a note lies, that is not behind a
// position. t.mu is held.
func (t *tape) noteBefore(upTo spool.Position) spool.Position {
	at := t.log.Start()
	for i := range t.sections {
		for _, w := range t.sections[i].waypoints {
			if w.at <= upTo {
				at = max(at, w.at)
			}
		}
	}
	return at
}

// bytes is how much is kept.
func (t *tape) bytes() int64 { return t.log.Bytes() }

func whole(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }
