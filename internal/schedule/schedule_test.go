package schedule

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestSchedulesSayWhenTheyCome keeps the next runs and the interval of many
// expressions in a file that a person can check.
func TestSchedulesSayWhenTheyCome(t *testing.T) {
	starts := []string{"2024-02-27T22:30:15Z", "2025-03-30T00:59:59Z", "2026-12-31T23:59:59.999Z"}
	expressions := []string{
		"0 */6 * * *", "15 */6 * * *", "30 4 * * *", "* * * * *", "*/7 * * * *",
		"0 9-17 * * 1-5", "*/5 9-17 * * 1-5", "0 0 1 * *", "0 0 31 * *", "0 0 29 2 *", "0 0 13 * FRI",
		"0 0 30 2 *", "@daily", "@weekly", "@yearly", "@every 6h", "@every 90s", "@every 1500ms",
	}
	var out strings.Builder
	for _, e := range expressions {
		s, err := Parse(e)
		if err != nil {
			t.Fatalf("%s: %v", e, err)
		}
		for _, text := range starts {
			start, err := time.Parse(time.RFC3339Nano, text)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&out, "%-18s after %s  interval %-10s", e, text, s.Interval(start))
			for next, n := s.Next(start), 0; n < 3; next, n = s.Next(next), n+1 {
				if next.IsZero() {
					out.WriteString("  never")
					break
				}
				if next.Location() != time.UTC {
					t.Errorf("%s: next run in %s", e, next.Location())
				}
				fmt.Fprintf(&out, "  %s", next.Format(time.RFC3339Nano))
			}
			out.WriteString("\n")
		}
	}
	golden(t, "next.txt", out.String())
}

func TestSummerTimeMovesNothing(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse("30 2 * * *")
	if err != nil {
		t.Fatal(err)
	}
	// 02:30 does not exist there on the 30th of March 2025, and comes twice on
	// the 26th of October.
	for _, day := range []time.Time{time.Date(2025, 3, 29, 12, 0, 0, 0, berlin), time.Date(2025, 10, 25, 12, 0, 0, 0, berlin)} {
		first := s.Next(day)
		if got := s.Next(first).Sub(first); got != 24*time.Hour {
			t.Errorf("after %s: %s between two runs", day, got)
		}
		if want := s.Next(day.UTC()); !first.Equal(want) {
			t.Errorf("after %s: %s, in UTC %s", day, first, want)
		}
	}
}

func TestNonsenseIsRefused(t *testing.T) {
	for _, e := range []string{
		" ", "x", "* * * *", "* * * * * *", "60 * * * *", "@every", "@every 0s", "@every -6h", "@every 999ms", "@sometimes",
		"TZ=UTC", "CRON_TZ=", "TZ=Europe/Berlin 0 0 * * *", "1-0 * * * *", "*/0 * * * *",
	} {
		if s, err := Parse(e); err == nil {
			t.Errorf("%q was taken for %v", e, s.Next(time.Unix(0, 0)))
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, e := range []string{"0 */6 * * *", "@every 6h", "TZ=", "CRON_TZ=x 1", ", , , , ,", "*/99999999999 * * * *"} {
		f.Add(e)
	}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, e string) {
		s, err := Parse(e)
		if err != nil {
			return
		}
		next := s.Next(start)
		if !next.IsZero() && !next.After(start) {
			t.Errorf("%q: %s does not lie after %s", e, next, start)
		}
		if s.Interval(start) < 0 {
			t.Errorf("%q: negative interval", e)
		}
	})
}

func TestTheEmptyExpressionNeverComes(t *testing.T) {
	s, err := Parse("")
	if err != nil || s != nil {
		t.Fatalf("%v, %v", s, err)
	}
	now := time.Now()
	if !s.Next(now).IsZero() || s.Interval(now) != 0 || s.Jitter(10, "x", now) != 0 || s.String() != "" {
		t.Error("a nil schedule does something")
	}
}

func TestJitterStaysInItsBoundsAndSpreads(t *testing.T) {
	s, err := Parse("0 */6 * * *")
	if err != nil {
		t.Fatal(err)
	}
	slot := time.Date(2026, 1, 1, 6, 0, 0, 0, time.UTC)
	const width = 36 * time.Minute // 10 % of 6 h
	var quarters [4]int
	for i := range 1000 {
		seed := fmt.Sprintf("cp%d", i)
		j := s.Jitter(10, seed, slot)
		if j < 0 || j >= width {
			t.Fatalf("%s: %s", seed, j)
		}
		if again := s.Jitter(10, seed, slot); again != j {
			t.Fatalf("%s: %s, then %s", seed, j, again)
		}
		quarters[4*j/width]++
	}
	for i, n := range quarters {
		if n < 200 {
			t.Errorf("quarter %d got %d of 1000", i, n)
		}
	}
	if s.Jitter(10, "cp1", slot) == s.Jitter(10, "cp1", slot.Add(6*time.Hour)) {
		t.Error("the same jitter in another slot")
	}
	if s.Jitter(0, "cp1", slot) != 0 {
		t.Error("jitter where none is wanted")
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got, -update rewrites it):\n%s", file, diff)
	}
}
