package memory

import (
	"context"
	"time"

	"lifeboat/storage"
)

var _ storage.Clock = (*Store)(nil)

// Now implements storage.Clock: it is the clock that WithClock has set.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	return s.now(), ctx.Err()
}
