package spool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// model is a log as it should be.
type model struct {
	payloads []string
	ends     []Position // of payloads
	start    Position   // of the first
	flushed  int        // payloads that outlive a crash
}

// holds fails unless the log has the model's records, but for the oldest, which
// it may still have or have released up to a whole file.
func (m *model) holds(t *testing.T, l *Log, released int) {
	t.Helper()
	i, found := slices.BinarySearch(m.ends, l.Start())
	first := i + 1
	if l.Start() == m.start {
		first = 0
	} else if !found {
		t.Fatalf("the log starts at %d, inside a record", l.Start())
	}
	if first > released {
		t.Fatalf("the log starts with record %d, and only %d are released", first, released)
	}
	want(t, l, m.payloads[first:]...)
}

func TestWhateverIsDoneTheLogHoldsWhatItShould(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			l := open(t, filepath.Join(t.TempDir(), "spool"), Options{MaxBytes: 400 << 10, FileBytes: 1 + rnd.Int64N(20<<10)})
			m, released := &model{}, 0
			for step := range 400 {
				switch n := rnd.IntN(100); {
				case n < 80:
					p := fmt.Sprint("record ", step, string(make([]byte, size(rnd))))
					end, err := l.Append([]byte(p))
					if errors.Is(err, ErrFull) {
						if l.Bytes()+int64(len(p)) < 400<<10-20 {
							t.Fatalf("full with %d bytes and %d more", l.Bytes(), len(p))
						}
						continue
					} else if err != nil {
						t.Fatal(err)
					}
					m.payloads, m.ends = append(m.payloads, p), append(m.ends, end)
				case n < 88:
					if err := l.Flush(); err != nil {
						t.Fatal(err)
					}
					m.flushed = len(m.payloads)
				case n < 94 && len(m.ends) > released:
					released += 1 + rnd.IntN(len(m.ends)-released)
					if err := l.Release(m.ends[released-1]); err != nil {
						t.Fatal(err)
					}
				case n < 97:
					l = reopen(t, l)
					m.flushed = len(m.payloads)
				default:
					crashed(t, l, m, released)
				}
				if int64(l.End()) != l.end.Load() || len(m.ends) > 0 && l.End() != m.ends[len(m.ends)-1] {
					t.Fatalf("step %d: the log ends at %d", step, l.End())
				}
				if step%20 == 0 {
					m.holds(t, l, released)
				}
			}
			m.holds(t, l, released)
		})
	}
}

func size(rnd *rand.Rand) int {
	if rnd.IntN(30) == 0 {
		return rnd.IntN(100 << 10)
	}
	return rnd.IntN(500)
}

// crashed looks at what the next process would find, had this one died now.
func crashed(t *testing.T, l *Log, m *model, released int) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names(t, l) {
		b, err := os.ReadFile(filepath.Join(l.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	next, err := Open(dir, l.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if next.Start() != l.Start() {
		t.Fatalf("starts at %d instead of %d", next.Start(), l.Start())
	}
	count := len(m.ends)
	if end := next.End(); end != l.End() {
		i, found := slices.BinarySearch(m.ends, end)
		if count = i + 1; end == m.start {
			count = 0
		} else if !found {
			t.Fatalf("ends at %d, inside a record", end)
		}
	}
	if count < m.flushed {
		t.Fatalf("%d records are left, and %d were flushed", count, m.flushed)
	}
	(&model{payloads: m.payloads[:count], ends: m.ends[:count]}).holds(t, next, released)
}
