package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/iotest"

	"lifeboat/storage"
)

func (s *suite) testOneWins(t *testing.T, store storage.Store) {
	rounds, writers := 10, 16
	if s.slow {
		rounds, writers = 3, 8
	}
	for round := range rounds {
		name := fmt.Sprintf("%smanifests/%020d", folder, round)
		contents := make([][]byte, writers)
		errs := make([]error, writers)
		start := make(chan struct{})
		var wg sync.WaitGroup
		for i := range writers {
			contents[i] = noise(1+rand.IntN(200_000), uint64(i)+1)
			wg.Go(func() {
				<-start
				errs[i] = store.Put(t.Context(), name, bytes.NewReader(contents[i]), storage.PutOptions{IfAbsent: true})
			})
		}
		close(start)
		wg.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Fatalf("both writer %d and writer %d were told that they created %s", winner, i, name)
			case err == nil:
				winner = i
			case !errors.Is(err, storage.ErrExist):
				t.Fatalf("a writer that lost got %v", err)
			}
		}
		if winner < 0 {
			t.Fatalf("nobody created %s", name)
		}
		if got := get(t, store, name); !bytes.Equal(got, contents[winner]) {
			t.Fatalf("%s holds other bytes than its creator wrote", name)
		}
	}
	if got := list(t, store, ""); len(got) != rounds {
		t.Fatalf("the losers left something: %q", got)
	}
}

var errSource = errors.New("the source broke")

func (s *suite) testFailingSource(t *testing.T, store storage.Store) {
	for _, ifAbsent := range []bool{false, true} {
		// Below, at and above what a store may hold back before it writes.
		for _, before := range []int{0, 1, 70_000, 6 << 20} {
			src := io.MultiReader(bytes.NewReader(noise(before, 3)), iotest.ErrReader(errSource))
			err := store.Put(t.Context(), folder+"x", src, storage.PutOptions{IfAbsent: ifAbsent})
			wantErr(t, fmt.Sprintf("Put whose source fails after %d bytes", before), err, errSource)
			wantNothing(t, store, folder+"x")
		}
	}
	// Errors of the source are not the store's, whatever they look like.
	put(t, store, folder+"x", []byte("old"))
	src := io.MultiReader(bytes.NewReader([]byte("new")), iotest.ErrReader(errSource))
	wantErr(t, "Put over an object", store.Put(t.Context(), folder+"x", src, storage.PutOptions{}), errSource)
	if got := get(t, store, folder+"x"); string(got) != "old" {
		t.Fatalf("a failed Put changed the object to %q", got)
	}
	wantNames(t, "", list(t, store, ""), []string{folder + "x"})
}

func (s *suite) testCancelledPut(t *testing.T, store storage.Store) {
	for _, ifAbsent := range []bool{false, true} {
		for _, before := range []int{1, 6 << 20} {
			ctx, cancel := context.WithCancel(t.Context())
			src := io.MultiReader(bytes.NewReader(noise(before, 4)), readFunc(func(p []byte) (int, error) {
				cancel()
				return copy(p, "more"), io.EOF // the source itself notices nothing
			}))
			err := store.Put(ctx, folder+"x", src, storage.PutOptions{IfAbsent: ifAbsent})
			cancel()
			wantErr(t, fmt.Sprintf("Put cancelled after %d bytes", before), err, context.Canceled)
			wantNothing(t, store, folder+"x")
		}
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func (s *suite) testCancelled(t *testing.T, store storage.Store) {
	name := folder + "x"
	put(t, store, name, noise(300_000, 5))
	ctx, cancel := context.WithCancel(t.Context())
	rc, _, err := store.Open(ctx, name, storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if n, err := io.Copy(io.Discard, rc); err == nil && n < 300_000 {
		t.Errorf("a reader gave %d bytes of 300000 and no error after a cancel", n)
	}
	rc.Close()
	err = store.Put(ctx, folder+"y", bytes.NewReader([]byte("y")), storage.PutOptions{})
	wantErr(t, "Put", err, context.Canceled)
	_, _, err = store.Open(ctx, name, storage.Range{})
	wantErr(t, "Open", err, context.Canceled)
	wantErr(t, "Delete", store.Delete(ctx, name), context.Canceled)
	err = nil
	for _, err = range store.List(ctx, "") {
	}
	wantErr(t, "List", err, context.Canceled)
	wantNames(t, "", list(t, store, ""), []string{name})
}

func (s *suite) testLarge(t *testing.T, store storage.Store) {
	const size = 20<<20 + 12_345
	source := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{6}), size) }
	if err := store.Put(t.Context(), folder+"large", source(), storage.PutOptions{IfAbsent: true}); err != nil {
		t.Fatal(err)
	}
	rc, info, err := store.Open(t.Context(), folder+"large", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	want, got := sha256.New(), sha256.New()
	if _, err := io.Copy(want, source()); err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(got, rc)
	if err != nil || n != size || info.Size != size {
		t.Fatalf("read %d bytes of %d (want %d), error %v", n, info.Size, size, err)
	}
	if !slices.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Fatal("a large object came back changed")
	}
	// A reader may be left before its end.
	rc, _, err = store.Open(t.Context(), folder+"large", storage.Range{Offset: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(rc, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := rc.Close(); err != nil {
		t.Fatal(err)
	}
}

func (s *suite) testNoMixture(t *testing.T, store storage.Store) {
	name, rounds := folder+"x", 40
	if s.slow {
		rounds = 10
	}
	content := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 1000+i*5000) }
	put(t, store, name, content(0))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				data, info, err := read(t.Context(), store, name, storage.Range{})
				if err != nil || len(data) == 0 || int64(len(data)) != info.Size {
					t.Errorf("read %d bytes of %d while others write, error %v", len(data), info.Size, err)
					return
				}
				if !bytes.Equal(data, content(int(data[0]))) {
					t.Errorf("read a mixture of two contents")
					return
				}
				for info, err := range store.List(t.Context(), "") {
					if err != nil || info.Name != name || info.Size < 1000 || (info.Size-1000)%5000 != 0 {
						t.Errorf("while others write the list holds %+v, error %v", info, err)
						return
					}
				}
			}
		})
	}
	for i := range rounds {
		put(t, store, name, content(i+1))
	}
	close(done)
	wg.Wait()
}

func (s *suite) testDelete(t *testing.T, store storage.Store) {
	name := folder + "id/x"
	if err := store.Delete(t.Context(), name); err != nil {
		t.Fatalf("delete what never was: %v", err)
	}
	put(t, store, name, []byte("x"))
	put(t, store, folder+"y", []byte("y"))
	if err := store.Delete(t.Context(), folder+"id"); err != nil {
		t.Fatalf("delete the name of a folder: %v", err)
	}
	if err := store.Delete(t.Context(), name+"/below"); err != nil {
		t.Fatalf("delete below an object: %v", err)
	}
	_, _, err := store.Open(t.Context(), folder+"id", storage.Range{})
	wantErr(t, "open the name of a folder", err, storage.ErrNotExist)
	_, _, err = store.Open(t.Context(), name+"/below", storage.Range{})
	wantErr(t, "open below an object", err, storage.ErrNotExist)
	wantNames(t, "", list(t, store, ""), []string{name, folder + "y"})
	for range 2 {
		if err := store.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		_, _, err := store.Open(t.Context(), name, storage.Range{})
		wantErr(t, "open a deleted object", err, storage.ErrNotExist)
		wantNames(t, "", list(t, store, ""), []string{folder + "y"})
	}
	put(t, store, name, []byte("again"))
	if got := get(t, store, name); string(got) != "again" {
		t.Fatalf("a name used again holds %q", got)
	}
}

func (s *suite) testDeleteRace(t *testing.T, store storage.Store) {
	rounds, workers := 50, 4
	if s.slow {
		rounds, workers = 5, 2
	}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				name := fmt.Sprintf("%sid/deep/%d", folder, w)
				err := store.Put(t.Context(), name, bytes.NewReader([]byte("x")), storage.PutOptions{IfAbsent: i%2 == 0 && !s.markersBlock})
				if err != nil {
					t.Errorf("put while others delete: %v", err)
					return
				}
				if _, _, err := read(t.Context(), store, name, storage.Range{}); err != nil {
					t.Errorf("read while others delete: %v", err)
				}
				if err := store.Delete(t.Context(), name); err != nil {
					t.Errorf("delete while others put: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	wantNames(t, "", list(t, store, ""), []string{})
}
