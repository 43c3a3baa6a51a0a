package spool

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const childFolder = "LIFEBOAT_SPOOL_TEST_FOLDER"

// TestMain is also the process that is killed while it appends.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childFolder); dir != "" {
		fmt.Println(appendForEver(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// appendForEver goes on behind the records that are there, and says now and
// then how many are flushed.
func appendForEver(dir string) error {
	l, err := Open(dir, Options{MaxBytes: 256 << 20, FileBytes: 64 << 10})
	if err != nil {
		return err
	}
	n := 0
	for r := l.Read(0); ; n++ {
		if _, _, err := r.Next(); err != nil {
			break
		}
	}
	for ; ; n++ {
		if _, err := l.Append(record(n)); err != nil {
			return err
		}
		if n%50 == 49 {
			if err := l.Flush(); err != nil {
				return err
			}
			fmt.Println(n + 1)
		}
	}
}

// record is longer than the buffer at times.
func record(n int) []byte {
	size := 100
	if n%97 == 0 {
		size = bufferBytes + n%1000
	}
	p := fmt.Appendf(nil, "record %d ", n)
	return append(p, make([]byte, size)...)
}

func TestAProcessKilledWhileItAppendsLosesNothingFlushed(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	dir := filepath.Join(t.TempDir(), "spool")
	held := 0
	for round := range 6 {
		flushed := killed(t, dir, time.Duration(rand.IntN(30))*time.Millisecond)
		l, err := Open(dir, Options{MaxBytes: 256 << 20, FileBytes: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
		got := drain(t, l.Read(0))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if len(got) < max(held, flushed) {
			t.Fatalf("round %d: %d records are left of %d flushed and %d from before", round, len(got), flushed, held)
		}
		for i, p := range got {
			if p != string(record(i)) {
				t.Fatalf("round %d: record %d is %.30q", round, i, p)
			}
		}
		held = len(got)
	}
}

// killed starts a process that appends, kills it a while after its first
// flush, and returns how many records it had flushed.
func killed(t *testing.T, dir string, after time.Duration) (flushed int) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^$")
	child.Env = append(os.Environ(), childFolder+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	lines := bufio.NewScanner(out)
	for first := true; lines.Scan(); first = false {
		// The last line may be cut where the process died: then it counts for less.
		if flushed, err = strconv.Atoi(strings.TrimSpace(lines.Text())); err != nil {
			child.Process.Kill()
			t.Fatalf("the process says %q", lines.Text())
		}
		if first {
			time.AfterFunc(after, func() { child.Process.Kill() })
		}
	}
	if flushed == 0 {
		t.Fatal("the process flushed nothing")
	}
	return flushed
}
