// Package storetest is the one suite that every store passes: the promises of
// storage.Store, tested from outside.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"lifeboat/storage"
)

// Option tells the suite what a store can do beyond the contract.
type Option func(*suite)

// Protects says that the store honours PutOptions.RetainUntil.
func Protects() Option { return func(s *suite) { s.protects = true } }

// Slow makes the suite use fewer objects and writers, for a store behind a
// network or with a costly fsync.
func Slow() Option { return func(s *suite) { s.slow = true } }

// MarkersBlock says that the store refuses a conditional create where a delete
// marker hides an object, as versitygw does and Amazon does not.
func MarkersBlock() Option { return func(s *suite) { s.markersBlock = true } }

type suite struct {
	open         func(t *testing.T) storage.Store
	protects     bool
	slow         bool
	markersBlock bool
}

// Run tests the store that open returns. Each call of open must give an empty
// one; objects may be left behind in it.
func Run(t *testing.T, open func(t *testing.T) storage.Store, options ...Option) {
	s := &suite{open: open}
	for _, option := range options {
		option(s)
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, storage.Store)
	}{
		{"an object is whole once Put returns", s.testWhole},
		{"a Put replaces unless told otherwise", s.testReplace},
		{"of many conditional writers exactly one wins", s.testOneWins},
		{"a source that fails leaves nothing", s.testFailingSource},
		{"a cancelled Put leaves nothing", s.testCancelledPut},
		{"a cancelled context refuses every operation", s.testCancelled},
		{"a large object streams through", s.testLarge},
		{"a reader meets one content, never a mixture", s.testNoMixture},
		{"ranges give the bytes asked for", s.testRanges},
		{"names are listed in byte order", s.testListOrder},
		{"a prefix is a plain string", s.testListPrefix},
		{"a list can be left early", s.testListStops},
		{"a long list is complete", s.testListLong},
		{"a list begins behind any name", s.testListAfter},
		{"an object and a folder of one name are both whole or refused", s.testObjectAndFolder},
		{"invalid names are refused", s.testNames},
		{"a deleted object is gone and may be deleted again", s.testDelete},
		{"deleting the last of a folder doesn't hurt who writes there", s.testDeleteRace},
		{"versions are kept, newest first", s.testVersions},
		{"a protected object outlives a Delete", s.testProtected},
		{"the time is that of its objects", s.testClock},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, s.open(t)) })
	}
}

// The folder and object names of the suite are as lifeboat's own.
const folder = "prod-k3x9/etcd/main/data/"

func put(t *testing.T, s storage.Store, name string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, bytes.NewReader(data), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

// putAfterDelete creates an object where one was deleted.
func (s *suite) putAfterDelete(t *testing.T, store storage.Store, name string, data []byte) {
	t.Helper()
	err := store.Put(t.Context(), name, bytes.NewReader(data), storage.PutOptions{IfAbsent: true})
	if s.markersBlock {
		wantErr(t, "conditional Put over a delete marker", err, storage.ErrExist)
		put(t, store, name, data)
	} else if err != nil {
		t.Fatalf("conditional Put after a Delete: %v", err)
	}
}

func get(t *testing.T, s storage.Store, name string) []byte {
	t.Helper()
	data, info, err := read(t.Context(), s, name, storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	if info.Name != name || info.Size != int64(len(data)) {
		t.Fatalf("Open %q says %q, %d bytes; it gave %d", name, info.Name, info.Size, len(data))
	}
	return data
}

func read(ctx context.Context, s storage.Store, name string, rng storage.Range) ([]byte, storage.Info, error) {
	rc, info, err := s.Open(ctx, name, rng)
	if err != nil {
		return nil, info, err
	}
	data, err := io.ReadAll(rc)
	return data, info, errors.Join(err, rc.Close())
}

func list(t *testing.T, s storage.Store, prefix string) []string {
	t.Helper()
	names := []string{}
	for info, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatalf("list %q: %v", prefix, err)
		}
		names = append(names, info.Name)
	}
	return names
}

func wantErr(t *testing.T, doing string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: got error %v, want %v", doing, err, want)
	}
}

func wantNames(t *testing.T, prefix string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("list %q gave\n%q, want\n%q", prefix, got, want)
	}
}

// wantNothing checks that the store shows no trace of anything.
func wantNothing(t *testing.T, s storage.Store, name string) {
	t.Helper()
	_, _, err := s.Open(t.Context(), name, storage.Range{})
	wantErr(t, "open "+name, err, storage.ErrNotExist)
	wantNames(t, "", list(t, s, ""), []string{})
}

// noise is n bytes that don't repeat, the same for the same seed.
func noise(n int, seed uint64) []byte {
	data := make([]byte, n)
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = src.Read(data) // it never fails
	return data
}

func (s *suite) testWhole(t *testing.T, store storage.Store) {
	for name, data := range map[string][]byte{
		folder + "empty":                    {},
		folder + "byte":                     {0},
		folder + "id/snapshot.db.zst.age":   noise(300_001, 1),
		"README.txt":                        []byte("how to open this\n"),
		folder + "Ünï cödé +%41&=?#'\";~ x": []byte("a name of many signs"),
	} {
		// A reader that gives its bytes in dribs, and the last with its EOF.
		err := store.Put(t.Context(), name, iotest.DataErrReader(iotest.HalfReader(bytes.NewReader(data))), storage.PutOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := get(t, store, name); !bytes.Equal(got, data) {
			t.Errorf("%q holds %d bytes, not the %d that were put", name, len(got), len(data))
		}
		var listed []storage.Info
		for info, err := range store.List(t.Context(), name) {
			if err != nil {
				t.Fatal(err)
			}
			listed = append(listed, info)
		}
		if len(listed) != 1 || listed[0].Name != name || listed[0].Size != int64(len(data)) {
			t.Fatalf("list of %q is %+v", name, listed)
		}
		_, info, err := read(t.Context(), store, name, storage.Range{})
		if err != nil {
			t.Fatal(err)
		}
		// Some stores list whole seconds, or have a header of whole seconds.
		if off := info.Modified.Sub(listed[0].Modified).Abs(); off > time.Second || info.Modified.IsZero() {
			t.Errorf("%q was modified %s by Open and %s by List", name, info.Modified, listed[0].Modified)
		}
	}
}

func (s *suite) testReplace(t *testing.T, store storage.Store) {
	name := folder + "x"
	put(t, store, name, []byte("one, which is longer"))
	put(t, store, name, []byte("two"))
	if got := get(t, store, name); string(got) != "two" {
		t.Fatalf("replaced object holds %q", got)
	}
	err := store.Put(t.Context(), name, bytes.NewReader([]byte("three")), storage.PutOptions{IfAbsent: true})
	wantErr(t, "conditional Put over an object", err, storage.ErrExist)
	if got := get(t, store, name); string(got) != "two" {
		t.Fatalf("after a refused Put the object holds %q", got)
	}
	if err := store.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	s.putAfterDelete(t, store, name, []byte("four"))
	if got := get(t, store, name); string(got) != "four" {
		t.Fatalf("the object holds %q", got)
	}
	wantNames(t, "", list(t, store, ""), []string{name})
}

func (s *suite) testRanges(t *testing.T, store storage.Store) {
	name, data := folder+"x", noise(100_000, 2)
	put(t, store, name, data)
	put(t, store, folder+"empty", nil)
	size := int64(len(data))
	for _, test := range []struct {
		about string
		rng   storage.Range
		want  []byte
	}{
		{"the zero range is everything", storage.Range{}, data},
		{"from an offset to the end", storage.Range{Offset: 99_990}, data[99_990:]},
		{"the first byte", storage.Range{Length: 1}, data[:1]},
		{"the last byte", storage.Range{Offset: size - 1, Length: 1}, data[size-1:]},
		{"from the middle", storage.Range{Offset: 50_000, Length: 777}, data[50_000:50_777]},
		{"a length past the end is cut", storage.Range{Offset: 99_999, Length: 10}, data[99_999:]},
		{"a length that is far too large is cut", storage.Range{Offset: 1, Length: 1<<63 - 1}, data[1:]},
		{"an offset at the end gives nothing", storage.Range{Offset: size}, nil},
		{"an offset past the end gives nothing", storage.Range{Offset: size + 10, Length: 3}, nil},
	} {
		got, info, err := read(t.Context(), store, name, test.rng)
		if err != nil {
			t.Fatalf("%s: %v", test.about, err)
		}
		if !bytes.Equal(got, test.want) {
			t.Errorf("%s: got %d bytes, want %d", test.about, len(got), len(test.want))
		}
		if info.Size != size || info.Name != name {
			t.Errorf("%s: the Info is not of the whole object: %+v", test.about, info)
		}
	}
	for _, rng := range []storage.Range{{}, {Offset: 5}, {Length: 5}, {Offset: 5, Length: 5}} {
		if got, _, err := read(t.Context(), store, folder+"empty", rng); err != nil || len(got) != 0 {
			t.Errorf("range %+v of an empty object: %d bytes, error %v", rng, len(got), err)
		}
	}
	for _, rng := range []storage.Range{{Offset: -1}, {Length: -1}} {
		if rc, _, err := store.Open(t.Context(), name, rng); err == nil {
			rc.Close()
			t.Errorf("range %+v was accepted", rng)
		}
	}
	_, _, err := store.Open(t.Context(), folder+"absent", storage.Range{Offset: 1, Length: 2})
	wantErr(t, "open a range of nothing", err, storage.ErrNotExist)
}

func (s *suite) testNames(t *testing.T, store storage.Store) {
	for about, name := range InvalidNames() {
		err := store.Put(t.Context(), name, bytes.NewReader([]byte("x")), storage.PutOptions{})
		wantErr(t, "Put with "+about, err, storage.ErrInvalidName)
		err = store.Put(t.Context(), name, bytes.NewReader([]byte("x")), storage.PutOptions{IfAbsent: true})
		wantErr(t, "conditional Put with "+about, err, storage.ErrInvalidName)
		_, _, err = store.Open(t.Context(), name, storage.Range{})
		wantErr(t, "Open with "+about, err, storage.ErrInvalidName)
		wantErr(t, "Delete with "+about, store.Delete(t.Context(), name), storage.ErrInvalidName)
	}
	wantNames(t, "", list(t, store, ""), []string{})
	for _, name := range ValidNames() {
		store := s.open(t) // in one store, a deleted version of "a" may stand in the way of "a/b"
		put(t, store, name, []byte(name))
		if got := get(t, store, name); string(got) != name {
			t.Errorf("%q holds %q", name, got)
		}
		wantNames(t, name, list(t, store, name), []string{name})
		if err := store.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
}
