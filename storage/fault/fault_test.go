package fault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"lifeboat/storage"
	"lifeboat/storage/fault"
	"lifeboat/storage/memory"
	"lifeboat/storage/storetest"
)

func TestAStoreWithoutFaultsIsAStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) storage.Store {
		return fault.New(memory.New(memory.WithVersioning()))
	}, storetest.Protects())
}

var errTest = errors.New("503 from the test")

func put(s storage.Store, name, content string) error {
	return s.Put(context.Background(), name, strings.NewReader(content), storage.PutOptions{})
}

func get(s storage.Store, name string) (string, error) {
	rc, _, err := s.Open(context.Background(), name, storage.Range{})
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(rc)
	return string(data), errors.Join(err, rc.Close())
}

func list(s storage.Store, prefix string) (names []string, err error) {
	for info, err := range s.List(context.Background(), prefix) {
		if err != nil {
			return names, err
		}
		names = append(names, info.Name)
	}
	return names, nil
}

// filled holds a to d, each with ten bytes.
func filled(t *testing.T) *fault.Store {
	t.Helper()
	inner := memory.New(memory.WithVersioning())
	for _, name := range []string{"a", "b", "c", "d"} {
		if err := put(inner, name, strings.Repeat(name, 10)); err != nil {
			t.Fatal(err)
		}
	}
	return fault.New(inner)
}

func TestFailures(t *testing.T) {
	for _, test := range []struct {
		op      fault.Op
		when    fault.When
		gives   string // to the caller, before the error
		putDone bool   // "new" is there
		deleted bool   // "a" is gone
	}{
		{op: fault.Put, when: fault.Before, putDone: false},
		{op: fault.Put, when: fault.After, putDone: true},
		{op: fault.Put, when: fault.Partial, putDone: false},
		{op: fault.Delete, when: fault.Before, deleted: false},
		{op: fault.Delete, when: fault.After, deleted: true},
		{op: fault.Delete, when: fault.Partial, deleted: false},
		{op: fault.Open, when: fault.Before, gives: ""},
		{op: fault.Open, when: fault.After, gives: ""},
		{op: fault.Open, when: fault.Partial, gives: "bbbbb"},
		{op: fault.List, when: fault.Before, gives: ""},
		{op: fault.List, when: fault.After, gives: "a b c d"},
		{op: fault.List, when: fault.Partial, gives: "a b"},
	} {
		t.Run(fmt.Sprintf("a %s that fails %s", test.op, test.when), func(t *testing.T) {
			s := filled(t)
			s.FailOn(test.op, 2, test.when, errTest)
			for nth := 1; nth <= 3; nth++ {
				var gives string
				var err error
				switch test.op {
				case fault.Put:
					err = put(s, fmt.Sprint("new", nth), "content")
				case fault.Delete:
					err = s.Delete(t.Context(), []string{"", "c", "a", "d"}[nth])
				case fault.Open:
					gives, err = get(s, "b")
				case fault.List:
					var names []string
					names, err = list(s, "")
					gives = strings.Join(names, " ")
				}
				if nth != 2 {
					if err != nil {
						t.Fatalf("operation %d failed: %v", nth, err)
					}
					continue
				}
				if !errors.Is(err, errTest) || gives != test.gives {
					t.Fatalf("got %q and %v, want %q", gives, err, test.gives)
				}
			}
			if got, err := get(s.Inner(), "new2"); test.op == fault.Put && (err == nil) != test.putDone || err == nil && got != "content" {
				t.Errorf("the put object is %q, %v", got, err)
			}
			if _, err := get(s.Inner(), "a"); (err != nil) != test.deleted {
				t.Errorf("the deleted object: %v", err)
			}
		})
	}
}

func TestFailAtCountsAllOperations(t *testing.T) {
	s := filled(t)
	s.FailAt(3, fault.Before, nil)
	_, _ = list(s, "x/")
	_ = put(s, "e", "e")
	if err := s.Delete(t.Context(), "a"); !errors.Is(err, fault.ErrInjected) {
		t.Fatalf("the third operation: %v", err)
	}
	_ = s.Put(t.Context(), "a", strings.NewReader(""), storage.PutOptions{IfAbsent: true})
	for range s.Versions(t.Context(), "a") {
	}
	if _, err := get(s, "b"); err != nil {
		t.Fatal(err)
	}
	want := []string{"1 list x/", "2 put e", "3 delete a ! before: injected failure", "4 put a if-absent", "5 versions a", "6 open b"}
	var got []string
	for _, call := range s.Trace() {
		got = append(got, call.String())
	}
	if !slices.Equal(got, want) || s.Count() != len(want) {
		t.Fatalf("the trace is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Every operation of a small work is crashed at every moment: nothing works
// afterwards, and what is there is what was done before.
func TestCrash(t *testing.T) {
	work := func(s storage.Store) error {
		if _, err := list(s, ""); err != nil {
			return err
		}
		if err := put(s, "data", "data"); err != nil {
			return err
		}
		if _, err := get(s, "data"); err != nil {
			return err
		}
		if err := put(s, "manifest", "manifest"); err != nil {
			return err
		}
		return s.Delete(context.Background(), "old")
	}
	there := func(s storage.Store) string {
		names, err := list(s, "")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(names, " ")
	}
	want := map[fault.When][]string{
		fault.Before:  {"old", "old", "data old", "data old", "data manifest old"},
		fault.Partial: {"old", "old", "data old", "data old", "data manifest old"},
		fault.After:   {"old", "data old", "data old", "data manifest old", "data manifest"},
	}
	for _, when := range fault.Moments {
		for n := 1; n <= 5; n++ {
			inner := memory.New()
			if err := put(inner, "old", "old"); err != nil {
				t.Fatal(err)
			}
			s := fault.New(inner)
			s.CrashAt(n, when)
			if err := work(s); !errors.Is(err, fault.ErrCrashed) || !s.Crashed() {
				t.Fatalf("crash %s operation %d: %v", when, n, err)
			}
			if s.Count() != n {
				t.Errorf("crash %s operation %d: %d operations", when, n, s.Count())
			}
			if got := there(inner); got != want[when][n-1] {
				t.Errorf("crash %s operation %d leaves %q, want %q", when, n, got, want[when][n-1])
			}
			_, listErr := list(s, "")
			_, getErr := get(s, "old")
			for about, err := range map[string]error{"put": put(s, "x", "x"), "delete": s.Delete(t.Context(), "old"), "list": listErr, "open": getErr} {
				if !errors.Is(err, fault.ErrCrashed) {
					t.Errorf("%s after a crash: %v", about, err)
				}
			}
			s.Reset()
			if err := work(s); err != nil {
				t.Errorf("after the new start: %v", err)
			}
		}
	}
}

func TestACrashReachesWhatIsUnderWay(t *testing.T) {
	s := filled(t)
	rc, _, err := s.Open(t.Context(), "a", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	err = s.Put(t.Context(), "x", io.MultiReader(strings.NewReader("half"), readFunc(func([]byte) (int, error) {
		s.Crash()
		return 0, nil
	})), storage.PutOptions{})
	if !errors.Is(err, fault.ErrCrashed) {
		t.Errorf("the Put under way: %v", err)
	}
	if _, err := get(s.Inner(), "x"); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("it left something: %v", err)
	}
	if _, err := io.ReadAll(rc); !errors.Is(err, fault.ErrCrashed) {
		t.Errorf("the reader under way: %v", err)
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func TestLies(t *testing.T) {
	s := filled(t)
	s.ShortRead("a", 4)
	if got, err := get(s, "a"); err != nil || got != "aaaa" {
		t.Errorf("a short read gave %q, %v", got, err)
	}
	s.FlipBit("b", 8*3+1)
	if got, err := get(s, "b"); err != nil || got != "bbb`bbbbbb" {
		t.Errorf("a flipped bit gave %q, %v", got, err)
	}
	for offset, want := range map[int64]string{3: "`bb", 2: "b`b", 4: "bbb"} {
		rc, _, err := s.Open(t.Context(), "b", storage.Range{Offset: offset, Length: 3})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(rc); err != nil || string(got) != want {
			t.Errorf("from %d a flipped bit gave %q, %v", offset, got, err)
		}
		rc.Close()
	}
	if err := s.FreezeList(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(put(s, "bb", "new"), s.Delete(t.Context(), "c")); err != nil {
		t.Fatal(err)
	}
	if got, err := list(s, ""); err != nil || fmt.Sprint(got) != "[a b c d]" {
		t.Errorf("the frozen list is %q, %v", got, err)
	}
	if got, err := list(s, "b"); err != nil || fmt.Sprint(got) != "[b]" {
		t.Errorf("the frozen list is %q, %v", got, err)
	}
	if got, err := get(s, "bb"); err != nil || got != "new" {
		t.Errorf("what the list hides holds %q, %v", got, err)
	}
	s.Honest()
	if got, err := list(s, ""); err != nil || fmt.Sprint(got) != "[a b bb d]" {
		t.Errorf("the honest list is %q, %v", got, err)
	}
	if got, err := get(s, "a"); err != nil || got != strings.Repeat("a", 10) {
		t.Errorf("honestly read: %q, %v", got, err)
	}
}

func ExampleStore_CrashAt() {
	work := func(s storage.Store) error {
		if err := s.Put(context.Background(), "data", bytes.NewReader([]byte("d")), storage.PutOptions{}); err != nil {
			return err
		}
		return s.Put(context.Background(), "manifest", bytes.NewReader([]byte("m")), storage.PutOptions{IfAbsent: true})
	}
	good := fault.New(memory.New())
	_ = work(good)
	for n := 1; n <= good.Count(); n++ {
		for _, when := range fault.Moments {
			s := fault.New(memory.New())
			s.CrashAt(n, when)
			err := work(s)
			left, _ := list(s.Inner(), "")
			fmt.Println(n, when, left, errors.Is(err, fault.ErrCrashed))
		}
	}
	// Output:
	// 1 before [] true
	// 1 after [data] true
	// 1 partial [] true
	// 2 before [data] true
	// 2 after [data manifest] true
	// 2 partial [data] true
}
