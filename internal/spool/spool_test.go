package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func open(t testing.TB, dir string, opts Options) *Log {
	t.Helper()
	l, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// reopen closes the log and opens it again.
func reopen(t testing.TB, l *Log) *Log {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, l.dir, l.opts)
}

func add(t testing.TB, l *Log, payloads ...string) (ends []Position) {
	t.Helper()
	for _, p := range payloads {
		end, err := l.Append([]byte(p))
		if err != nil {
			t.Fatalf("append %.20q: %v", p, err)
		}
		ends = append(ends, end)
	}
	return ends
}

// drain reads to the end of the log.
func drain(t testing.TB, r *Reader) (payloads []string) {
	t.Helper()
	for {
		p, at, err := r.Next()
		if errors.Is(err, io.EOF) {
			if at != r.log.End() {
				t.Fatalf("no more at %d, and the log ends at %d", at, r.log.End())
			}
			return payloads
		}
		if err != nil {
			t.Fatal(err)
		}
		payloads = append(payloads, string(p))
	}
}

func want(t testing.TB, l *Log, payloads ...string) {
	t.Helper()
	got := drain(t, l.Read(l.Start()))
	if !slices.Equal(got, payloads) {
		t.Fatalf("the log holds %d records instead of %d:\n%.300q\n%.300q", len(got), len(payloads), got, payloads)
	}
}

func numbered(n, size int) (payloads []string) {
	for i := range n {
		p := fmt.Appendf(nil, "record %d ", i)
		for len(p) < size {
			p = append(p, byte('a'+i%26))
		}
		payloads = append(payloads, string(p))
	}
	return payloads
}

func names(t testing.TB, l *Log) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestRecordsAreReadBeforeAndAfterAFlushAndByTheNextProcess(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "a", "spool"), Options{MaxBytes: 1 << 20, FileBytes: 1000})
	payloads := numbered(100, 50)
	ends := add(t, l, payloads...)
	want(t, l, payloads...)
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	want(t, l, payloads...)
	l = reopen(t, l)
	want(t, l, payloads...)
	if l.End() != ends[99] || l.Bytes() != int64(ends[99]) {
		t.Errorf("ends at %d with %d bytes instead of %d", l.End(), l.Bytes(), ends[99])
	}
	payloads = append(payloads, "more")
	add(t, l, "more")
	for i, end := range ends {
		if got := drain(t, l.Read(end)); !slices.Equal(got, payloads[i+1:]) {
			t.Fatalf("from %d: %q", end, got)
		}
	}
	if files := names(t, l); len(files) < 5 {
		t.Errorf("files of 1000 bytes: %q", files)
	}
	for _, path := range append(names(t, l), ".") {
		info, err := os.Stat(filepath.Join(l.dir, path))
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v, error %v", path, info.Mode(), err)
		}
	}
}

func TestAReaderAtTheEndFindsWhatComesLater(t *testing.T) {
	l := open(t, t.TempDir(), Options{MaxBytes: 1 << 20, FileBytes: 300})
	r := l.Read(0)
	for i, p := range numbered(200, 40) {
		if _, _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Fatalf("before record %d: %v", i, err)
		}
		end := add(t, l, p)[0]
		if i%7 == 0 {
			if err := l.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if got, at, err := r.Next(); string(got) != p || at != end || err != nil {
			t.Fatalf("record %d: %q at %d, error %v", i, got, at, err)
		}
	}
}

func TestOneLogHasOneOwner(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	if _, err := Open(l.dir, Options{}); !errors.Is(err, ErrLocked) {
		t.Fatalf("opened twice: %v", err)
	}
	add(t, l, "a")
	r := l.Read(0)
	l = reopen(t, l)
	want(t, l, "a")
	if _, _, err := r.Next(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a reader of a closed log: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := l.Append([]byte("a"))
	for _, err := range []error{err, l.Flush(), l.Release(0), l.Reset()} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
	if err := l.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
}

func TestReleaseDeletesWholeFilesOnly(t *testing.T) {
	l := open(t, t.TempDir(), Options{MaxBytes: 1 << 20, FileBytes: 1000})
	payloads := numbered(100, 95) // frames of 100 bytes: ten a file
	ends := add(t, l, payloads...)
	if err := l.Release(ends[24]); err != nil {
		t.Fatal(err)
	}
	if l.Start() != ends[19] || l.Bytes() != int64(ends[99]-ends[19]) {
		t.Errorf("starts at %d with %d bytes", l.Start(), l.Bytes())
	}
	want(t, l, payloads[20:]...)
	if _, _, err := l.Read(ends[18]).Next(); !errors.Is(err, ErrReleased) {
		t.Errorf("released, and read: %v", err)
	}
	if err := l.Release(ends[3]); err != nil || l.Start() != ends[19] {
		t.Errorf("released again: start %d, error %v", l.Start(), err)
	}
	if err := l.Release(ends[99] + 1); err == nil {
		t.Error("released what is not there")
	}
	l = reopen(t, l)
	if l.Start() != ends[19] || l.End() != ends[99] {
		t.Errorf("%d to %d after reopening", l.Start(), l.End())
	}
	want(t, l, payloads[20:]...)
}

func TestReleaseOfAllLeavesNothingOnDiskAndPositionsGoOn(t *testing.T) {
	for _, flush := range []bool{true, false} {
		l := open(t, t.TempDir(), Options{MaxBytes: 1 << 20, FileBytes: 1000})
		end := add(t, l, numbered(25, 95)...)[24]
		slow := l.Read(0)
		if _, _, err := slow.Next(); err != nil {
			t.Fatal(err)
		}
		if flush {
			if err := l.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Reset(); err != nil {
			t.Fatal(err)
		}
		if l.Start() != end || l.End() != end || l.Bytes() != 0 {
			t.Errorf("from %d to %d, %d bytes", l.Start(), l.End(), l.Bytes())
		}
		if _, _, err := slow.Next(); !errors.Is(err, ErrReleased) {
			t.Errorf("a slow reader: %v", err)
		}
		if info, err := os.Stat(l.path(int64(end))); len(names(t, l)) != 1 || err != nil || info.Size() != 0 {
			t.Errorf("left are %q, error %v", names(t, l), err)
		}
		l = reopen(t, l)
		if l.Start() != end || l.End() != end {
			t.Errorf("reopened: from %d to %d", l.Start(), l.End())
		}
		add(t, l, "new")
		if err := l.Reset(); err != nil {
			t.Fatal(err)
		}
		add(t, l, "newer")
		want(t, l, "newer")
		want(t, reopen(t, l), "newer")
	}
}

func TestAFullLogTakesNothingUntilSomethingIsReleased(t *testing.T) {
	l := open(t, t.TempDir(), Options{MaxBytes: 1000})
	payloads := numbered(10, 95)
	ends := add(t, l, payloads...)
	for range 2 {
		if _, err := l.Append([]byte("x")); !errors.Is(err, ErrFull) {
			t.Fatalf("got %v", err)
		}
	}
	if l.End() != ends[9] || l.Bytes() != 1000 {
		t.Errorf("%d bytes up to %d", l.Bytes(), l.End())
	}
	want(t, l, payloads...)
	if err := l.Release(ends[4]); err != nil {
		t.Fatal(err)
	}
	if l.Bytes() > 700 { // files are an eighth of the log at most, and a record
		t.Errorf("half is released, and %d of 1000 bytes are taken", l.Bytes())
	}
	add(t, l, "x")
	l = reopen(t, l)
	if got := drain(t, l.Read(ends[4])); !slices.Equal(got, append(payloads[5:], "x")) {
		t.Errorf("got %q", got)
	}
	if _, err := l.Append(make([]byte, 2000)); !errors.Is(err, ErrFull) {
		t.Errorf("more than fits at all: %v", err)
	}
	for _, n := range []int{0, MaxPayload + 1} {
		if _, err := l.Append(make([]byte, n)); err == nil || errors.Is(err, ErrFull) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestLargeRecordsAreNotKeptInMemory(t *testing.T) {
	l := open(t, t.TempDir(), Options{FileBytes: 1 << 20})
	big := bytes.Repeat([]byte("0123456789"), 250_000)
	for range 3 {
		add(t, l, "small", string(big), "small")
	}
	r := l.Read(0)
	for i := range 9 {
		p, _, err := r.Next()
		if wantLen := []int{5, len(big), 5}[i%3]; err != nil || len(p) != wantLen {
			t.Fatalf("record %d of %d bytes, error %v", i, len(p), err)
		}
	}
	if cap(l.buffer) > 2*bufferBytes || cap(r.room) > 4*chunk {
		t.Errorf("%d bytes in the log's buffer, %d in the reader's", cap(l.buffer), cap(r.room))
	}
	l = reopen(t, l)
	if got := drain(t, l.Read(0)); len(got) != 9 || got[7] != string(big) {
		t.Errorf("%d records after reopening", len(got))
	}
}

func TestAReaderThatBeginsInsideARecordOrBehindTheEndFails(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	end := add(t, l, "first", "second")[1]
	for at := Position(0); at <= end+2; at++ {
		_, _, err := l.Read(at).Next()
		switch {
		case at == 0 || at == 10:
			if err != nil {
				t.Errorf("at %d: %v", at, err)
			}
		case at == end:
			if !errors.Is(err, io.EOF) {
				t.Errorf("at the end: %v", err)
			}
		case !errors.Is(err, ErrDamaged):
			t.Errorf("at %d: %v", at, err)
		}
	}
}
