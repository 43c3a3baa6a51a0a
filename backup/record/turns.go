package record

import (
	"fmt"
	"time"

	"lifeboat/internal/manifest"
)

// Several recorders of one cluster take turns without talking to each other:
// the chains tell. Whoever records goes on for as long as it is alive; the
// others watch the chains' tips, and the first of them by rank takes over when
// the tips stand still although etcd went on. Two at once are wasteful and
// harmless: what both commit is the same, and a chain takes each revision from
// whoever is first. Then the one that finds itself behind stands down.

// sight is what a recorder that stands by goes by. Times are of its own clock.
type sight struct {
	now, began time.Time // began: when it began to stand by
	rank       int
	writer     manifest.Writer
	patience   time.Duration // of the first in rank
	heartbeat  time.Duration
	stores     int // that can be used at all
	tips       []tip
	head       func() int64 // etcd's revision, asked only if it matters; 0 if unknown
}

// tip is a store's tip as it was last seen.
type tip struct {
	url    string
	last   int64
	writer manifest.Writer // of the newest segment; none if there is none
	moved  time.Time       // since when it is known to be as it is
	ahead  bool            // its time was in the future: no heartbeat moves it
}

// turn says whether to record; else why not.
func (s sight) turn() (bool, string) {
	wait := s.patience * time.Duration(1+s.rank)
	if len(s.tips) < s.stores && s.now.Sub(s.began) < wait {
		if len(s.tips) == 0 {
			return false, "no store has answered yet"
		}
		return false, "not all stores have answered yet"
	}
	if len(s.tips) == 0 {
		return true, "" // the spool may hold what comes, until a store answers
	}
	// The tip that stands still for longest decides: another recorder that does
	// not reach a store leaves it to us.
	oldest := s.tips[0]
	for _, t := range s.tips {
		if t.moved.Before(oldest.moved) {
			oldest = t
		}
	}
	still := s.now.Sub(oldest.moved)
	others := oldest.writer.Node != "" && oldest.writer != s.writer
	switch {
	case !others && (s.rank == 0 || oldest.writer == s.writer && oldest.writer.Node != ""):
		return true, ""
	case still < wait && others:
		return false, "standing by: " + oldest.writer.Node + " records"
	case still < wait:
		return false, fmt.Sprintf("standing by: number %d in turn", s.rank+1)
	case !others: // nobody records
		return true, ""
	case still >= 3*s.heartbeat+wait && !oldest.ahead: // a living one commits even when nothing changes
		return true, ""
	case s.head() > oldest.last:
		return true, ""
	}
	return false, "standing by: " + oldest.writer.Node + " records, and nothing changes"
}
