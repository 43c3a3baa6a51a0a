package record

import (
	"errors"
	"fmt"
	"slices"

	"lifeboat/internal/segment"
)

// errForked ends a watch whose history is not the one that was recorded.
var errForked = errors.New("etcd's history is another")

// remember keeps the events of the revision that is to be compared.
func (s *sink) remember(rec segment.Record) {
	if s.expect == "" || rec.Main != s.skip {
		return
	}
	rec.KV = slices.Clone(rec.KV)
	s.again.main = rec.Main
	s.again.events, s.again.count = append(s.again.events, rec), s.again.count+1
}

// compare is called when the revision that came again is whole, which the
// next one shows, or the watch says.
func (s *sink) compare() error {
	if s.expect == "" || s.again.main == 0 {
		return nil
	}
	expect := s.expect
	mark, err := s.again.mark(s.r.marker)
	if err != nil {
		return err
	}
	s.expect, s.again = "", group{}
	if equal, comparable := segment.Compare(expect, mark); comparable && !equal {
		return fmt.Errorf("%w: revision %d holds other changes than were recorded", errForked, s.skip)
	}
	return nil
}
