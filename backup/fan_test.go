package backup

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/patience"
)

func TestFanGivesEveryBranchAllBytes(t *testing.T) {
	want := make([]byte, 2<<20)
	rand.NewChaCha8([32]byte{2}).Read(want)
	fan := newFan(3, time.Minute)
	got := make([][]byte, 3)
	var readers sync.WaitGroup
	for i, b := range fan.branches {
		readers.Go(func() {
			var err error
			if got[i], err = io.ReadAll(b); err != nil {
				t.Errorf("branch %d: %v", i, err)
			}
		})
	}
	for rest := want; len(rest) > 0; {
		n := min(len(rest), 1+rand.IntN(70_000))
		if _, err := fan.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	fan.Close(nil)
	readers.Wait()
	for i := range got {
		if !bytes.Equal(got[i], want) {
			t.Errorf("branch %d got %d bytes that differ", i, len(got[i]))
		}
	}
}

func TestFanGoesOnWithoutAnAbandonedBranch(t *testing.T) {
	fan := newFan(2, time.Minute)
	fan.branches[0].abandon()
	var got []byte
	var reader sync.WaitGroup
	reader.Go(func() { got, _ = io.ReadAll(fan.branches[1]) })
	for range 3 * branchDepth {
		if _, err := fan.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	fan.Close(nil)
	reader.Wait()
	if len(got) != 3*branchDepth {
		t.Errorf("the living branch got %d bytes, want %d", len(got), 3*branchDepth)
	}
}

func TestFanFailsWhenNoBranchIsLeft(t *testing.T) {
	fan := newFan(1, time.Minute)
	fan.branches[0].abandon()
	if _, err := fan.Write([]byte("x")); err == nil {
		t.Error("a write that reaches nobody succeeded")
	}
}

func TestFanErrorReachesTheReaderInsteadOfEOF(t *testing.T) {
	fan := newFan(1, time.Minute)
	fan.Write([]byte("half"))
	why := errors.New("the source is bad")
	fan.Close(why)
	if _, err := io.ReadAll(fan.branches[0]); !errors.Is(err, why) {
		t.Errorf("got %v, want the reason", err)
	}
}

func TestFanDropsAStoreThatTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fan := newFan(2, time.Minute)
		var got []byte
		var reader sync.WaitGroup
		reader.Go(func() { got, _ = io.ReadAll(fan.branches[1]) }) // branches[0] hangs
		start := time.Now()
		for range 2 * branchDepth {
			if _, err := fan.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		fan.Close(nil)
		reader.Wait()
		if waited := time.Since(start); waited != time.Minute {
			t.Errorf("waited %s for the hung store, want once the limit", waited)
		}
		if len(got) != 2*branchDepth {
			t.Errorf("the living store got %d bytes, want %d", len(got), 2*branchDepth)
		}
		if _, err := io.ReadAll(fan.branches[0]); !errors.Is(err, patience.ErrStalled) {
			t.Errorf("the hung store's reader got %v, so its object could become visible", err)
		}
	})
}
