package web

import (
	"math"
	"strings"
	"testing"
	"time"
)

func plain(text string) string {
	return strings.NewReplacer("\u00a0", " ", "\u202f", " ").Replace(text)
}

func TestSpans(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 s", 5: "1 ms", 250 * time.Millisecond: "250 ms", 1400 * time.Millisecond: "1.4 s", 9999 * time.Millisecond: "9.9 s", 42 * time.Second: "42 s",
		62 * time.Second: "1 min 2 s", 38 * time.Minute: "38 min", 2*time.Hour + 14*time.Minute + 59*time.Second: "2 h 14 min", 6 * time.Hour: "6 h",
		-6 * time.Hour: "6 h", 50 * time.Hour: "2 d 2 h", 14 * day: "14 d", 400*day + time.Hour: "400 d",
	} {
		if got := plain(span(d)); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

func TestRelativeTimes(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		0: "now", time.Millisecond: "now", -time.Millisecond: "now", -9 * time.Second: "9 s ago", -100 * time.Second: "1 min ago",
		-(2*time.Hour + 14*time.Minute): "2 h 14 min ago", 3 * time.Hour: "in 3 h", 87*day + 5*time.Hour: "in 87 d", math.MinInt64: "106751 d ago",
	} {
		if got := plain(relative(now.Add(d), now)); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
	if got := plain(relative(time.Time{}.Add(1), now)); got != "106751 d ago" {
		t.Errorf("out of range: %q", got)
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 10 << 10: "10.0 KiB", 1023 << 10: "1023 KiB", 1<<20 - 1: "1.00 MiB", 1536 << 20: "1.50 GiB", 123 << 30: "123 GiB", math.MaxInt64: "8.00 EiB",
	} {
		if got := plain(size(n)); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestCounts(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1 000", -1234567: "-1 234 567", math.MaxInt64: "9 223 372 036 854 775 807"} {
		if got := plain(count(n)); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestCleanTextsCantHideOrTurnAroundWhatStandsBesideThem(t *testing.T) {
	for text, want := range map[string]string{
		"plain": "plain", "two\nlines\tand": "two lines and", "a\u202eb\x00c\x1b[31m\u200b": "a�b�c�[31m�", "bad \xff byte": "bad � byte",
		"Zürich 東京": "Zürich 東京", "0123456789012345678901234567890": "012345678901234567890123456789…",
	} {
		if got := clean(text, 30); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
