package record

import (
	"io"

	"lifeboat/internal/segment"
	"lifeboat/internal/spool"
)

// reel reads a part of the tape, revision by revision. It gives a revision when
// it is known to be whole, so that what a lost watch left half is never given.
type reel struct {
	log    *spool.Log
	reader *spool.Reader
	at, to spool.Position // the next record's; all that is begun before to is whole there
	held   []byte         // the record at at, if it was read
	behind spool.Position // and its end

	group group
	last  int64  // the newest revision given: a watch that begins may give some again
	given bool   // the group, which is void at the next step
	arena []byte // what the group's records point into
}

// group is all events of one revision. There may be a million, of a range that
// was deleted.
type group struct {
	main   int64
	count  int
	bytes  int64            // about as many as they take in a segment
	events []segment.Record // none if they are too many to be held

	log      *spool.Log
	from, to spool.Position // where they lie
}

// What a reel holds of one revision. More is read from the spool again.
const (
	mostHeld   = 4 << 20
	mostEvents = 16 << 10
)

// each gives the events, valid until the next.
func (g *group) each(f func(segment.Record) error) error {
	if len(g.events) == g.count {
		for _, e := range g.events {
			if err := f(e); err != nil {
				return err
			}
		}
		return nil
	}
	reader := g.log.Read(g.from)
	for at := g.from; at < g.to; {
		payload, end, err := reader.Next()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if at = end; isNote(payload) {
			continue
		}
		record, err := segment.ParseRecord(payload)
		if err == nil && record.IsEvent() && record.Main == g.main {
			err = f(record)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// read gives a reel of what lies in [from, to).
func (t *tape) read(from, to spool.Position) *reel {
	return &reel{log: t.log, reader: t.log.Read(from), at: from, to: to}
}

// next is the next revision or the next other record, valid until the call
// after it. Then at is where another reel would go on. io.EOF is the end.
func (r *reel) next() (*group, *segment.Record, error) {
	if r.given {
		r.clear()
	}
	for {
		payload, err := r.peek()
		if r.group.main != 0 && r.group.main <= r.last {
			r.clear()
		}
		if err == io.EOF && r.group.main != 0 {
			return r.give()
		}
		if err != nil {
			return nil, nil, err
		}
		if isNote(payload) {
			n, err := parseNote(payload)
			if err != nil {
				return nil, nil, err
			}
			r.pass()
			switch {
			case n.begins && r.group.main > n.whole:
				r.clear()
			case r.group.main != 0 && r.group.main <= n.whole:
				return r.give()
			}
			continue
		}
		record, err := segment.ParseRecord(payload)
		if err != nil {
			return nil, nil, err
		}
		switch {
		case !record.IsEvent():
			r.pass()
			return nil, &record, nil
		case r.group.main != 0 && r.group.main != record.Main:
			return r.give()
		}
		r.add(record)
		r.pass()
	}
}

// holds says that events were passed which next has not given yet.
func (r *reel) holds() bool { return r.group.main != 0 && !r.given }

func (r *reel) give() (*group, *segment.Record, error) {
	r.given, r.last = true, r.group.main
	return &r.group, nil, nil
}

func (r *reel) add(record segment.Record) {
	g := &r.group
	if g.main == 0 {
		*g = group{main: record.Main, events: g.events, log: r.log, from: r.at}
	}
	held := len(g.events) == g.count
	g.count, g.bytes, g.to = g.count+1, g.bytes+int64(len(record.KV))+overhead, r.behind
	if !held {
		return
	}
	if len(g.events) > 0 && (g.count > mostEvents || len(r.arena)+len(record.KV) > mostHeld) {
		g.events, r.arena = nil, nil
		return
	}
	begin := len(r.arena)
	r.arena = append(r.arena, record.KV...)
	record.KV = r.arena[begin:len(r.arena):len(r.arena)]
	g.events = append(g.events, record)
}

// mostKept is the memory that a reel keeps between revisions.
const mostKept = 1 << 20

func (r *reel) clear() {
	r.given, r.group.main, r.group.events, r.arena = false, 0, r.group.events[:0], r.arena[:0]
	if cap(r.arena) > mostKept {
		r.arena, r.group.events = nil, nil
	}
}

// peek is the record at at.
func (r *reel) peek() ([]byte, error) {
	if r.held != nil {
		return r.held, nil
	}
	if r.at >= r.to {
		return nil, io.EOF
	}
	payload, end, err := r.reader.Next()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	r.held, r.behind = payload, end
	return payload, nil
}

func (r *reel) pass() { r.held, r.at = nil, r.behind }

func (g *group) mark(m *segment.Marker) (string, error) {
	mark := m.Begin(g.main, g.count)
	err := g.each(func(e segment.Record) error {
		mark.Add(segment.Event{Delete: e.Kind == segment.KindDelete, KV: e.KV})
		return nil
	})
	return mark.String(), err
}

// mark is that of one revision on the tape; empty if it isn't there.
func (t *tape) mark(s section, revision int64, m *segment.Marker) (string, error) {
	if !s.holds(revision) {
		return "", nil
	}
	from, ok := t.find(s.id, revision)
	if !ok {
		return "", nil
	}
	r := t.read(from, s.end)
	for {
		g, _, err := r.next()
		if err == io.EOF {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		if g != nil && g.main == revision {
			return g.mark(m)
		}
	}
}
