package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// folder writes a spool of n records in several files and returns its files.
func folder(t *testing.T, payloads []string) map[string][]byte {
	t.Helper()
	l := open(t, t.TempDir(), Options{MaxBytes: 1 << 20, FileBytes: 100})
	add(t, l, payloads...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, name := range names(t, l) {
		b, err := os.ReadFile(filepath.Join(l.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
	}
	return files
}

// check opens a spool of those files, which must hold the first records of
// payloads and nothing else, and takes more. It returns how many it held.
func check(t *testing.T, files map[string][]byte, payloads []string) int {
	t.Helper()
	dir := t.TempDir()
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := Open(dir, Options{MaxBytes: 1 << 20, FileBytes: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := drain(t, l.Read(l.Start()))
	if len(got) > len(payloads) || !slices.Equal(got, payloads[:len(got)]) {
		t.Fatalf("the log holds %q", got)
	}
	more := append(slices.Clone(got), "more", "and more")
	add(t, l, "more", "and more")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(dir, l.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	want(t, again, more...)
	return len(got)
}

func sorted(files map[string][]byte) (names []string) {
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func TestATornTailIsCutAtTheLastWholeRecord(t *testing.T) {
	payloads := numbered(8, 40)
	files := folder(t, payloads)
	last := sorted(files)[len(files)-1]
	whole := files[last]
	before := check(t, without(files, last), payloads)
	for n := range len(whole) + 1 {
		files[last] = whole[:n]
		if got, expect := check(t, files, payloads), before+n/45; got != expect {
			t.Errorf("cut to %d bytes: %d records instead of %d", n, got, expect)
		}
		// As a crash of the machine may leave it: the size is there, not the bytes.
		files[last] = append(bytes.Clone(whole[:n]), make([]byte, 64)...)
		if got, expect := check(t, files, payloads), before+n/45; got != expect {
			t.Errorf("cut to %d bytes, with zeros behind: %d records instead of %d", n, got, expect)
		}
	}
}

func without(files map[string][]byte, name string) map[string][]byte {
	rest := map[string][]byte{}
	for n, b := range files {
		if n != name {
			rest[n] = b
		}
	}
	return rest
}

func TestNothingBehindDamageIsKept(t *testing.T) {
	payloads := numbered(8, 40)
	files := folder(t, payloads)
	if len(files) != 3 {
		t.Fatalf("%d files", len(files))
	}
	offset := 0
	for _, name := range sorted(files) {
		whole := files[name]
		for at := range whole {
			b := bytes.Clone(whole)
			b[at] ^= 1 << (at % 8)
			files[name] = b
			if got, expect := check(t, files, payloads), (offset+at)/45; got != expect {
				t.Fatalf("byte %d of %s: %d records instead of %d", at, name, got, expect)
			}
		}
		files[name] = whole
		if offset > 0 { // a hole; without the first file the log begins later, and is whole
			if got, expect := check(t, without(files, name), payloads), offset/45; got != expect {
				t.Errorf("without %s: %d records instead of %d", name, got, expect)
			}
			files[name] = whole[:45]
			if got, expect := check(t, files, payloads), offset/45+1; got != expect {
				t.Errorf("with %s cut at a record: %d records instead of %d", name, got, expect)
			}
			files[name] = whole
		}
		offset += len(whole)
	}
	first := sorted(files)[0]
	if got := check(t, without(files, first), payloads[3:]); got != 5 {
		t.Errorf("without the first file: %d records", got)
	}
	// A file whose bytes stood elsewhere, as a crash in a reset leaves it.
	files = map[string][]byte{"00000000000000000360.spool": files[first]}
	if got := check(t, files, payloads); got != 0 {
		t.Errorf("%d records at another position", got)
	}
}

func TestFilesOfOthersAreLeftAndLinksAreRefused(t *testing.T) {
	dir := t.TempDir()
	strangers := []string{"1.spool", "README", "-0000000000000000001.spool", "99999999999999999999.spool", "00000000000000000000.spool.bak"}
	for _, name := range strangers {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := open(t, dir, Options{})
	add(t, l, "a")
	want(t, reopen(t, l), "a")
	for _, name := range strangers {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != "x" {
			t.Errorf("%s: %q, error %v", name, b, err)
		}
	}
	dir = t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "00000000000000000000.spool")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil {
		t.Error("followed a link")
	}
	if _, err := Open(filepath.Join(dir, "00000000000000000000.spool"), Options{}); err == nil {
		t.Error("opened a file as a folder")
	}
}

func TestDamageUnderAnOpenLogIsFoundByItsReader(t *testing.T) {
	l := open(t, t.TempDir(), Options{MaxBytes: 1 << 20, FileBytes: 100})
	add(t, l, numbered(8, 40)...)
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	r := l.Read(0)
	if err := os.Truncate(l.path(135), 60); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		_, _, err := r.Next()
		if i < 3 && err != nil || i >= 4 && !errors.Is(err, ErrDamaged) {
			t.Errorf("record %d: %v", i, err)
		}
	}
	if err := os.Remove(l.path(0)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Read(0).Next(); !errors.Is(err, ErrDamaged) || errors.Is(err, io.EOF) {
		t.Errorf("a file that is gone: %v", err)
	}
}

// Whatever is in the folder, a log opens, and what it holds is what it held.
func FuzzOpen(f *testing.F) {
	frame := append(appendHeader(nil, 0, []byte("payload")), "payload"...)
	f.Add(frame, frame, uint16(len(frame)))
	f.Add(append(bytes.Clone(frame), append(appendHeader(nil, 12, []byte("b")), 'b')...), []byte{}, uint16(18))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), make([]byte, 20), uint16(11))
	f.Add([]byte("\x80\x80\x80\x20\x00\x00\x00\x00"), []byte("\x00\x00\x00\x00\x00"), uint16(8))
	f.Fuzz(func(t *testing.T, a, b []byte, second uint16) {
		dir := t.TempDir()
		for at, bytes := range map[uint16][]byte{0: a, second: b} {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%020d.spool", at)), bytes, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		before := drain(t, l.Read(l.Start()))
		add(t, l, "more")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if l, err = Open(dir, Options{}); err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		want(t, l, append(before, "more")...)
	})
}
