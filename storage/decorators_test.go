package storage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"lifeboat/storage"
	"lifeboat/storage/fault"
	"lifeboat/storage/memory"
	"lifeboat/storage/storetest"
)

func noSleep(context.Context, int) error { return nil }

func TestDecoratorsAreStores(t *testing.T) {
	for about, decorate := range map[string]func(storage.Store) storage.Store{
		"stall limit": func(s storage.Store) storage.Store { return storage.WithStallLimit(s, time.Minute) },
		"metered":     func(s storage.Store) storage.Store { return storage.Metered(s, "m", func(storage.Result) {}) },
		"retry":       func(s storage.Store) storage.Store { return storage.Retry(s, 3, noSleep) },
		"all three": func(s storage.Store) storage.Store {
			return storage.Metered(storage.Retry(storage.WithStallLimit(s, time.Minute), 3, noSleep), "m", func(storage.Result) {})
		},
	} {
		t.Run(about, func(t *testing.T) {
			storetest.Run(t, func(*testing.T) storage.Store {
				return decorate(memory.New(memory.WithVersioning()))
			}, storetest.Protects())
		})
	}
}

func put(t *testing.T, s storage.Store, name, content string) {
	t.Helper()
	if err := s.Put(t.Context(), name, strings.NewReader(content), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s storage.Store, name string, rng storage.Range) (string, error) {
	t.Helper()
	rc, _, err := s.Open(t.Context(), name, rng)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(iotest.OneByteReader(rc))
	return string(data), errors.Join(err, rc.Close())
}

func list(t *testing.T, s storage.Store) (names []string, err error) {
	t.Helper()
	for info, err := range s.List(t.Context(), "") {
		if err != nil {
			return names, err
		}
		names = append(names, info.Name)
	}
	return names, nil
}

func TestReadOnly(t *testing.T) {
	inner := memory.New(memory.WithVersioning())
	put(t, inner, "a", "one")
	put(t, inner, "a", "two")
	s := storage.ReadOnly(inner)
	if err := s.Put(t.Context(), "b", strings.NewReader("x"), storage.PutOptions{}); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("put: %v", err)
	}
	if err := s.Delete(t.Context(), "a"); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("delete: %v", err)
	}
	if err := s.Delete(t.Context(), "../a"); !errors.Is(err, storage.ErrInvalidName) {
		t.Errorf("delete outside: %v", err)
	}
	if got, err := get(t, s, "a", storage.Range{}); err != nil || got != "two" {
		t.Errorf("open: %q, %v", got, err)
	}
	if got, err := list(t, s); err != nil || len(got) != 1 {
		t.Errorf("list: %q, %v", got, err)
	}
	n := 0
	for v, err := range s.(storage.Versioned).Versions(t.Context(), "a") {
		if err != nil {
			t.Fatal(err)
		}
		rc, _, err := s.(storage.Versioned).OpenVersion(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		rc.Close()
		n++
	}
	if n != 2 {
		t.Errorf("%d versions", n)
	}
}

func TestMeteredReportsEveryOperationOnce(t *testing.T) {
	var mu sync.Mutex
	var got []string
	s := storage.Metered(memory.New(), "disk", func(r storage.Result) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, fmt.Sprintf("%s %s %s %d", r.Store, r.Op, r.Code, r.Bytes))
	})
	put(t, s, "a", "four")
	_ = s.Put(t.Context(), "a", strings.NewReader("x"), storage.PutOptions{IfAbsent: true})
	_, _ = get(t, s, "a", storage.Range{Offset: 1})
	_, _ = get(t, s, "b", storage.Range{})
	_, _ = list(t, s)
	_ = s.Delete(t.Context(), "a")
	_ = s.Delete(t.Context(), "/a")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = s.Delete(ctx, "a")
	_ = s.Put(t.Context(), "c", iotest.ErrReader(errors.New("no label")), storage.PutOptions{})
	want := []string{
		"disk put ok 4", "disk put exist 0", "disk open ok 3", "disk open not_exist 0", "disk list ok 0",
		"disk delete ok 0", "disk delete invalid_name 0", "disk delete canceled 0", "disk put error 0",
	}
	if !slices.Equal(got, want) {
		t.Fatalf("reported\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestMeteredReportsAReaderThatBreaks(t *testing.T) {
	inner := memory.New()
	put(t, inner, "a", "12345678")
	faulty := fault.New(inner)
	faulty.FailAt(1, fault.Partial, nil)
	var got []storage.Result
	s := storage.Metered(faulty, "disk", func(r storage.Result) { got = append(got, r) })
	_, _ = get(t, s, "a", storage.Range{})
	if len(got) != 1 || got[0] != (storage.Result{Store: "disk", Op: "open", Code: "error", Bytes: 4}) {
		t.Fatalf("reported %+v", got)
	}
}

func TestRetry(t *testing.T) {
	content := "0123456789abcdef"
	for _, test := range []struct {
		about  string
		faults func(*fault.Store)
		do     func(storage.Store) (string, error)
		want   string
		slept  []int
		fails  bool
	}{
		{
			about:  "an Open that fails is opened again",
			faults: func(f *fault.Store) { f.FailAt(1, fault.Before, nil); f.FailAt(2, fault.After, nil) },
			do:     func(s storage.Store) (string, error) { return get(t, s, "a", storage.Range{}) },
			want:   content, slept: []int{1, 2},
		},
		{
			about:  "a reader that breaks off goes on from there",
			faults: func(f *fault.Store) { f.FailAt(1, fault.Partial, nil); f.FailAt(2, fault.Partial, nil) },
			do:     func(s storage.Store) (string, error) { return get(t, s, "a", storage.Range{}) },
			want:   content, slept: []int{1, 1},
		},
		{
			about:  "a range that breaks off goes on and ends where it should",
			faults: func(f *fault.Store) { f.FailAt(1, fault.Partial, nil); f.FailAt(2, fault.Before, nil) },
			do:     func(s storage.Store) (string, error) { return get(t, s, "a", storage.Range{Offset: 2, Length: 5}) },
			want:   content[2:7], slept: []int{1, 2},
		},
		{
			about: "after three failures in a row the error comes through",
			faults: func(f *fault.Store) {
				for n := range 10 {
					f.FailAt(n+1, fault.Before, nil)
				}
			},
			do:    func(s storage.Store) (string, error) { return get(t, s, "a", storage.Range{}) },
			slept: []int{1, 2}, fails: true,
		},
		{
			about:  "a list that breaks off goes on without repeating",
			faults: func(f *fault.Store) { f.FailAt(1, fault.Partial, nil); f.FailAt(2, fault.Before, nil) },
			do: func(s storage.Store) (string, error) {
				names, err := list(t, s)
				return strings.Join(names, " "), err
			},
			want: "a b c d", slept: []int{1, 2},
		},
		{
			about:  "a Delete that failed but was done is repeated",
			faults: func(f *fault.Store) { f.FailAt(1, fault.After, nil) },
			do:     func(s storage.Store) (string, error) { return "", s.Delete(t.Context(), "b") },
			slept:  []int{1},
		},
		{
			about:  "a Put is not repeated",
			faults: func(f *fault.Store) { f.FailAt(1, fault.Before, nil) },
			do: func(s storage.Store) (string, error) {
				return "", s.Put(t.Context(), "x", strings.NewReader("x"), storage.PutOptions{})
			},
			fails: true,
		},
		{
			about:  "what is not there is not asked for twice",
			faults: func(*fault.Store) {},
			do:     func(s storage.Store) (string, error) { return get(t, s, "absent", storage.Range{}) },
			fails:  true,
		},
	} {
		t.Run(test.about, func(t *testing.T) {
			inner := memory.New()
			for _, name := range []string{"a", "b", "c", "d"} {
				put(t, inner, name, content)
			}
			f := fault.New(inner)
			test.faults(f)
			var slept []int
			s := storage.Retry(f, 3, func(_ context.Context, attempt int) error {
				slept = append(slept, attempt)
				return nil
			})
			got, err := test.do(s)
			if (err != nil) != test.fails || got != test.want {
				t.Errorf("got %q and error %v, want %q", got, err, test.want)
			}
			if !slices.Equal(slept, test.slept) {
				t.Errorf("slept %v, want %v", slept, test.slept)
			}
		})
	}
}

func TestRetryDoesNotJoinTwoContents(t *testing.T) {
	inner := memory.New()
	put(t, inner, "a", "old content")
	f := fault.New(inner)
	f.FailAt(1, fault.Partial, nil)
	s := storage.Retry(f, 3, func(context.Context, int) error {
		put(t, inner, "a", "new and longer content")
		return nil
	})
	if got, err := get(t, s, "a", storage.Range{}); !errors.Is(err, fault.ErrInjected) {
		t.Fatalf("got %q, error %v", got, err)
	}
}

func TestRetryEndsWithItsSleep(t *testing.T) {
	f := fault.New(memory.New())
	f.FailAt(1, fault.Before, nil)
	s := storage.Retry(f, 3, func(context.Context, int) error { return context.Canceled })
	if err := s.Delete(t.Context(), "a"); !errors.Is(err, fault.ErrInjected) || f.Count() != 1 {
		t.Fatalf("got %v after %d operations", err, f.Count())
	}
}
