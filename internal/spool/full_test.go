//go:build linux

package spool

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"lifeboat/internal/durable/tinydisk"
)

func TestAFullDiskRefusesRecordsAndLosesNone(t *testing.T) {
	disk := tinydisk.Full(t, 2<<20)
	ballast := tinydisk.Fill(t, disk, 700<<10)
	dir := filepath.Join(disk, "spool")
	l := open(t, dir, Options{FileBytes: 100 << 10})
	var payloads []string
	var err error
	for _, p := range numbered(10_000, 1000) {
		if _, err = l.Append([]byte(p)); err != nil {
			break
		}
		payloads = append(payloads, p)
	}
	end := l.End()
	for range 3 {
		for _, p := range [][]byte{make([]byte, 1000), make([]byte, 3*bufferBytes)} {
			if _, err = l.Append(p); !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("append %d bytes after %d records: %v", len(p), len(payloads), err)
			}
		}
		if err := l.Flush(); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("flush: %v", err)
		}
	}
	if l.End() != end || l.Bytes() != int64(end) {
		t.Errorf("ends at %d with %d bytes instead of %d", l.End(), l.Bytes(), end)
	}
	want(t, l, payloads...)

	// Died now, it would have lost what was never flushed, and be whole.
	onDisk := map[string][]byte{}
	for _, name := range names(t, l) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		onDisk[name] = b
	}
	if n := check(t, onDisk, payloads); n < len(payloads)-bufferBytes/1000 {
		t.Errorf("%d records are on disk of %d", n, len(payloads))
	}

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := l.Flush(); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	add(t, l, "more", string(make([]byte, 3*bufferBytes)))
	l = reopen(t, l)
	want(t, l, append(payloads, "more", string(make([]byte, 3*bufferBytes)))...)
}

func TestAFullDiskIsFreedByReleaseAndReset(t *testing.T) {
	disk := tinydisk.Full(t, 1<<20)
	l := open(t, filepath.Join(disk, "spool"), Options{FileBytes: 100 << 10})
	payload := bytes.Repeat([]byte("x"), 10_000)
	fill := func() {
		t.Helper()
		for range 1000 {
			if _, err := l.Append(payload); errors.Is(err, syscall.ENOSPC) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
		t.Fatal("the disk is never full")
	}
	fill()
	end := l.End()
	if err := l.Release(end / 2); err != nil {
		t.Fatal(err)
	}
	add(t, l, "after a release")
	fill()
	if err := l.Reset(); err != nil {
		t.Fatal(err)
	}
	add(t, l, "after a reset")
	want(t, l, "after a reset")
	l = reopen(t, l)
	want(t, l, "after a reset")
	fill()
	if l.End() <= end {
		t.Errorf("ends at %d, and ended at %d before", l.End(), end)
	}
	// Closed on a full disk, it keeps what is on it.
	files := names(t, l)
	if err := l.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("closed with records in memory: %v", err)
	}
	l = open(t, l.dir, l.opts)
	if got := drain(t, l.Read(l.Start())); len(got) < 50 || got[0] != "after a reset" || !slices.Equal(names(t, l), files) {
		t.Errorf("%d records in %q", len(got), names(t, l))
	}
}
