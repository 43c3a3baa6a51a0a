package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/storage"
)

// tricky are names whose byte order differs from that of a walk that sorts
// entries folder by folder: '-' and '.' come before '/', '0' after it.
var tricky = []string{
	"a-b/c", "a-c", "a.b", "a/b-c", "a/b.c", "a/b/c", "a/b/d", "a/b0", "a/c", "a0", "aa/b", "b", "c/a b", "c/ä", "é/x",
}

func (s *suite) testListOrder(t *testing.T, store storage.Store) {
	wantNames(t, "", list(t, store, ""), []string{})
	for i := range tricky {
		put(t, store, tricky[(i*7)%len(tricky)], []byte("x")) // 7 is prime to their number: each once, mixed
	}
	if !slices.IsSorted(tricky) {
		t.Fatal("the suite's own names are not sorted")
	}
	wantNames(t, "", list(t, store, ""), tricky)
}

func (s *suite) testListPrefix(t *testing.T, store storage.Store) {
	for _, name := range tricky {
		put(t, store, name, []byte("x"))
	}
	prefixes := []string{
		"", "a", "a/", "a/b", "a/b/", "a/b/c", "a/b/c/", "a-", "a.", "aa", "b", "b/", "c", "c/", "c/a ", "c/\xc3", "\xc3",
		"z", "/", "/a", "./a", "../", "..", ".", "a//", "a/../a", "a/./b", "a\\", "\x00", "a/b/c/d/e/f", strings.Repeat("a", 2000),
	}
	for _, prefix := range prefixes {
		want := []string{}
		for _, name := range tricky {
			if strings.HasPrefix(name, prefix) {
				want = append(want, name)
			}
		}
		wantNames(t, prefix, list(t, store, prefix), want)
	}
}

func (s *suite) testListStops(t *testing.T, store storage.Store) {
	for _, name := range tricky {
		put(t, store, name, []byte("x"))
	}
	seq := store.List(t.Context(), "a")
	for range 2 { // and begun again
		var got []string
		for info, err := range seq {
			if err != nil {
				t.Fatal(err)
			}
			// Changing the store within a list is allowed.
			if err := store.Delete(t.Context(), "b"); err != nil {
				t.Fatal(err)
			}
			if got = append(got, info.Name); len(got) == 3 {
				break
			}
		}
		wantNames(t, "a", got, tricky[:3])
	}
}

func (s *suite) testListAfter(t *testing.T, store storage.Store) {
	ranger, ok := store.(storage.Ranger)
	if !ok {
		t.Skip("this store lists from the first name only")
	}
	for _, name := range tricky {
		put(t, store, name, []byte("x"))
	}
	for _, prefix := range []string{"", "a", "a/", "a/b", "c/", "z", "a/../a"} {
		for _, after := range append(slices.Clone(tricky), "", "!", "A", "a", "a/", "a/b/", "a/b/cc", "a0~", "aa/", "z", "zz", "a//") {
			want := []string{}
			for _, name := range tricky {
				if strings.HasPrefix(name, prefix) && name > after {
					want = append(want, name)
				}
			}
			got := []string{}
			for info, err := range ranger.ListAfter(t.Context(), prefix, after) {
				if err != nil {
					t.Fatalf("prefix %q after %q: %v", prefix, after, err)
				}
				if info.Size != 1 || info.Modified.IsZero() {
					t.Fatalf("%+v", info)
				}
				got = append(got, info.Name)
			}
			if !slices.Equal(got, want) {
				t.Errorf("prefix %q after %q: %q, want %q", prefix, after, got, want)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range ranger.ListAfter(ctx, "", "a") {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("under a cancelled context: %v", err)
		}
		return
	}
	t.Error("a list under a cancelled context ends without an error")
}

func (s *suite) testListLong(t *testing.T, store storage.Store) {
	n := 1100 // two pages of S3
	var want []string
	for i := range n {
		want = append(want, fmt.Sprintf("%smanifests/%020d", folder, i))
	}
	var wg sync.WaitGroup
	const workers = 8
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				if err := store.Put(t.Context(), want[i], strings.NewReader("x"), storage.PutOptions{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	wantNames(t, folder, list(t, store, folder), want)
	hundred := strings.TrimSuffix(want[900], "00") // 900 to 999
	wantNames(t, hundred, list(t, store, hundred), want[900:1000])
	got := []string{}
	for info, err := range storage.ListAfter(t.Context(), store, folder, want[49]) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info.Name)
	}
	wantNames(t, "after "+want[49], got, want[50:])
}

// An object store can hold both "a" and "a/b", a file system can't. It must say
// so, and lose nothing.
func (s *suite) testObjectAndFolder(t *testing.T, store storage.Store) {
	for _, names := range [][2]string{{"o/a", "o/a/b/c"}, {"f/a/b/c", "f/a"}, {"f/a/b/c", "f/a/b"}} {
		for _, ifAbsent := range []bool{false, true} {
			put(t, store, names[0], []byte("first"))
			err := store.Put(t.Context(), names[1], strings.NewReader("second"), storage.PutOptions{IfAbsent: ifAbsent})
			want := []string{names[0]}
			if err == nil {
				want = append(want, names[1])
				slices.Sort(want)
				if got := get(t, store, names[1]); string(got) != "second" {
					t.Fatalf("%s holds %q", names[1], got)
				}
			} else {
				wantErr(t, "Put of "+names[1]+" beside "+names[0], err, storage.ErrInvalidName)
			}
			if got := get(t, store, names[0]); string(got) != "first" {
				t.Fatalf("%s holds %q", names[0], got)
			}
			wantNames(t, "", list(t, store, ""), want)
			for _, name := range names {
				if err := store.Delete(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
			wantNames(t, "", list(t, store, ""), []string{})
		}
	}
}

func (s *suite) testVersions(t *testing.T, store storage.Store) {
	versioned, ok := store.(storage.Versioned)
	if !ok {
		t.Skip("the store keeps no versions")
	}
	name := folder + "manifests/1"
	versions := func(name string) (all []storage.Version) {
		for v, err := range versioned.Versions(t.Context(), name) {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, v)
		}
		return all
	}
	if got := versions(name); len(got) != 0 {
		t.Fatalf("an absent object has versions %+v", got)
	}
	put(t, store, name, []byte("one"))
	if len(versions(name)) == 0 {
		t.Skip("the store's versioning is off")
	}
	put(t, store, name, []byte("two!"))
	put(t, store, name+"0", []byte("another object, of which the name is a prefix"))
	if err := store.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	s.putAfterDelete(t, store, name, []byte("three"))
	if err := store.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	got := versions(name)
	want := []string{"three", "two!", "one"}
	if len(got) != len(want) {
		t.Fatalf("got %d versions, want %d", len(got), len(want))
	}
	for i, v := range got {
		rc, info, err := versioned.OpenVersion(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(rc)
		if err := errors.Join(err, rc.Close()); err != nil {
			t.Fatal(err)
		}
		if string(data) != want[i] || info.Size != int64(len(want[i])) || v.Size != info.Size || v.Name != name {
			t.Errorf("version %d (%+v) holds %q, want %q", i, v, data, want[i])
		}
	}
	_, _, err := store.Open(t.Context(), name, storage.Range{})
	wantErr(t, "open a deleted object", err, storage.ErrNotExist)
}

func (s *suite) testProtected(t *testing.T, store storage.Store) {
	name := folder + "x"
	opts := storage.PutOptions{IfAbsent: true, RetainUntil: time.Now().Add(time.Hour)}
	if err := store.Put(t.Context(), name, bytes.NewReader([]byte("kept")), opts); err != nil {
		t.Fatalf("a store that can't protect must ignore RetainUntil: %v", err)
	}
	if !s.protects {
		t.Skip("the store protects nothing")
	}
	if err := store.Delete(t.Context(), name); err != nil {
		wantErr(t, "delete a protected object", err, storage.ErrProtected)
		if got := get(t, store, name); string(got) != "kept" {
			t.Fatalf("the protected object holds %q", got)
		}
		return
	}
	// A versioned store may hide it; the bytes must remain.
	versioned, ok := store.(storage.Versioned)
	if !ok {
		t.Fatal("a protected object could be deleted")
	}
	for v, err := range versioned.Versions(t.Context(), name) {
		if err != nil {
			t.Fatal(err)
		}
		rc, _, err := versioned.OpenVersion(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		if data, err := io.ReadAll(rc); err != nil || string(data) != "kept" {
			t.Fatalf("the protected version holds %q, error %v", data, err)
		}
		return
	}
	t.Fatal("a protected object is gone with its versions")
}
