package replay

import (
	"encoding/json"
	"fmt"
	"time"
)

// span is what `lifeboat list --points` says can be restored.
type span struct {
	Epoch uint64 `json:"epoch"`
	First near   `json:"first"`
	Last  near   `json:"last"`
}

type near struct {
	Revision int64     `json:"revision"`
	Time     time.Time `json:"time"`
}

// timeline is what the program says of its stores.
type timeline struct {
	Spans []span `json:"spans"`
}

// points asks for the time line; it may fail while a store is down.
func (s *site) points() (*timeline, error) {
	s.t.Helper()
	out, code, errs := s.run("list", "--points", "-o", "json")
	if code != 0 {
		return nil, fmt.Errorf("list --points: exit code %d: %s", code, errs)
	}
	var all []timeline
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, fmt.Errorf("list --points: %w in %s", err, out)
	}
	if len(all) != 1 {
		return nil, fmt.Errorf("list --points tells of %d chains", len(all))
	}
	return &all[0], nil
}

// holds reports whether a revision can be restored by the time line's word.
func (l *timeline) holds(rev int64) bool {
	for _, s := range l.Spans {
		if s.First.Revision <= rev && rev <= s.Last.Revision {
			return true
		}
	}
	return false
}

// head is the furthest revision.
func (l *timeline) head() (rev int64) {
	for _, s := range l.Spans {
		rev = max(rev, s.Last.Revision)
	}
	return rev
}

// recorded waits until the program says that it can restore a revision, or one
// behind it.
func (s *site) recorded(rev int64) *timeline {
	s.t.Helper()
	var l *timeline
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if l, err = s.points(); err == nil && l.head() >= rev {
			return l
		}
	}
	s.t.Fatalf("revision %d is not recoverable after a minute: %+v, %v", rev, l, err)
	return nil
}
