package follow

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
)

func open(t *testing.T) *File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return New(f)
}

func TestEveryReaderSeesAllBytesInOrder(t *testing.T) {
	file := open(t)
	want := make([]byte, 3<<20)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(want)

	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			got, err := io.ReadAll(file.Reader(context.Background()))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("read %d bytes, error %v; want %d bytes", len(got), err, len(want))
			}
		})
	}
	for rest := want; len(rest) > 0; {
		n := min(len(rest), 1+rand.IntN(100_000))
		if _, err := file.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	file.Finish(nil)
	wg.Wait()
}

func TestReaderWaitsAtTheEndUntilFinish(t *testing.T) {
	file := open(t)
	if _, err := file.Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		file.changed = make(chan struct{}) // a channel of this bubble
		done := false
		go func() {
			data, err := io.ReadAll(file.Reader(t.Context()))
			if string(data) != "abc" || err != nil {
				t.Errorf("got %q, %v", data, err)
			}
			done = true
		}()
		synctest.Wait()
		if done {
			t.Fatal("the reader returned before Finish")
		}
		file.Finish(nil)
		synctest.Wait()
		if !done {
			t.Fatal("the reader did not return after Finish")
		}
	})
}

func TestAnErrorAtFinishReachesReadersThatAreBehind(t *testing.T) {
	file := open(t)
	bad := errors.New("bad source")
	file.Write([]byte("abc"))
	file.Finish(bad)
	file.Finish(nil) // too late to make it good
	if data, err := io.ReadAll(file.Reader(context.Background())); len(data) != 0 || !errors.Is(err, bad) {
		t.Fatalf("got %q, %v; want nothing and the error", data, err)
	}
}

func TestACancelledContextEndsTheWait(t *testing.T) {
	file := open(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("why")
	cancel(why)
	if _, err := file.Reader(ctx).Read(make([]byte, 1)); !errors.Is(err, why) {
		t.Fatalf("got %v, want the cause", err)
	}
}
