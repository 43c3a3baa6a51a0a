package agent

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

// TestWhoSharesALookSeesWhatItSaw: a job looks again before it runs, and must not
// decide on the picture before that.
func TestWhoSharesALookSeesWhatItSaw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		f.picture = func() (*Picture, error) {
			time.Sleep(time.Second)
			return &Picture{Stores: []StorePicture{{URL: "s3://a", Chains: map[manifest.Chain]status.InStore{}}}}, nil
		}
		// Whoever takes the picture down asks for the time, and has to wait for it.
		slow := func() time.Time { time.Sleep(time.Second); return time.Now() }
		a, err := newAgent(Options{Config: testConfig(t), Works: f, Wall: slow}, &shelfInMemory{})
		if err != nil {
			t.Fatal(err)
		}
		start := a.mono()
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				a.lookNow(t.Context())
				a.mu.Lock()
				defer a.mu.Unlock()
				if !a.board.looked || a.board.taken < start {
					t.Errorf("after %s it is not on the board", a.mono()-start)
				}
			})
		}
		all.Wait()
		if n := f.count("look"); n != 1 {
			t.Errorf("%d looks for three who asked at the same moment", n)
		}
	})
}

// TestALookThatBeganBeforeServesNobody: it may have missed what the caller did.
func TestALookThatBeganBeforeServesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{picture: func() (*Picture, error) { time.Sleep(time.Second); return nil, errors.New("down") }}
		a, err := newAgent(Options{Config: testConfig(t), Works: f}, &shelfInMemory{})
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		all.Go(func() { a.lookNow(t.Context()) })
		for range 2 { // these wait, and share the second
			time.Sleep(time.Second / 4)
			all.Go(func() { a.lookNow(t.Context()) })
		}
		all.Wait()
		if n := f.count("look"); n != 2 {
			t.Errorf("%d looks, want 2", n)
		}
	})
}
