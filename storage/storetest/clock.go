package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"lifeboat/storage"
)

// testClock tests stores that tell the time: by the clock of their objects, and
// without a trace.
func (s *suite) testClock(t *testing.T, store storage.Store) {
	ask := func(ctx context.Context) (time.Time, error) {
		now, known, err := storage.NowOf(ctx, store)
		if err == nil && !known {
			t.Skip("this store tells no time")
		}
		return now, err
	}
	before, err := ask(t.Context())
	if err != nil {
		t.Fatalf("an empty store: %v", err)
	}
	put(t, store, folder+"an object", []byte("x"))
	after, err := ask(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	modified := time.Time{}
	for info, err := range store.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		modified = info.Modified
	}
	const tick = time.Second // dates of HTTP have whole seconds
	if modified.Before(before.Add(-tick)) || modified.After(after.Add(tick)) {
		t.Errorf("an object of %s was put between %s and %s", modified, before, after)
	}
	wantNames(t, "", list(t, store, ""), []string{folder + "an object"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ask(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("asked under a cancelled context: %v", err)
	}
}
