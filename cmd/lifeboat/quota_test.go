package main

import "testing"

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "2147483648": 2 << 30, "8GiB": 8 << 30, "8 gib": 8 << 30, "1.5MiB": 3 << 19, "4GB": 4_000_000_000, "10kB": 10_000, "7B": 7, " 1TiB ": 1 << 40,
	} {
		if got, err := parseBytes(text); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "GiB", "8G", "8Gi", "-1", "1.5", "8XiB", "1e400", "99999999TiB", "NaN", "inf", "8GiB8", "0x10"} {
		if got, err := parseBytes(text); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
}
