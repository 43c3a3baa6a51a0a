package when

import (
	"errors"
	"strings"
	"testing"
	"time"
	_ "time/tzdata"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// Half past nine in the morning of a Saturday, in Berlin.
var now = time.Date(2026, 11, 21, 8, 30, 15, 500_000_000, time.UTC)

func TestTimesAsPeopleWriteThem(t *testing.T) {
	tests := []struct{ text, want string }{
		{"now", "2026-11-21T08:30:15.5Z"},
		{"10 minutes ago", "2026-11-21T08:20:15.5Z"},
		{"  10   Minutes  AGO ", "2026-11-21T08:20:15.5Z"},
		{"2h ago", "2026-11-21T06:30:15.5Z"},
		{"1h30m ago", "2026-11-21T07:00:15.5Z"},
		{"1 hour 30 minutes ago", "2026-11-21T07:00:15.5Z"},
		{"an hour and 30 minutes ago", "2026-11-21T07:00:15.5Z"},
		{"1.5 hours ago", "2026-11-21T07:00:15.5Z"},
		{"a day ago", "2026-11-20T08:30:15.5Z"},
		{"1 week, 2 days ago", "2026-11-12T08:30:15.5Z"},
		{"90s ago", "2026-11-21T08:28:45.5Z"},
		{"0s ago", "2026-11-21T08:30:15.5Z"},
		{"today 09:30", "2026-11-21T08:30:00Z"},
		{"yesterday 14:00", "2026-11-20T13:00:00Z"},
		{"yesterday at 14:00:05", "2026-11-20T13:00:05Z"},
		{"Yesterday 14:00 UTC", "2026-11-20T14:00:00Z"},
		{"14:05", "2026-11-21T13:05:00Z"}, // the future is the caller's matter
		{"at 7:05", "2026-11-21T06:05:00Z"},
		{"08:05:03.250", "2026-11-21T07:05:03.25Z"},
		{"08:05:03,250", "2026-11-21T07:05:03.25Z"},
		{"08:05Z", "2026-11-21T08:05:00Z"},
		{"08:05 +02:00", "2026-11-21T06:05:00Z"},
		{"2026-11-21 14:05:03", "2026-11-21T13:05:03Z"},
		{"2026-11-21 14:05", "2026-11-21T13:05:00Z"},
		{"2026-11-21T14:05:03", "2026-11-21T13:05:03Z"},
		{"2026-11-21T14:05:03Z", "2026-11-21T14:05:03Z"},
		{"2026-11-21t14:05:03.123456789z", "2026-11-21T14:05:03.123456789Z"},
		{"2026-11-21T14:05:03-05:00", "2026-11-21T19:05:03Z"},
		{"2026-11-21 14:05:03 +0530", "2026-11-21T08:35:03Z"},
		{"2026-07-21 14:05:03", "2026-07-21T12:05:03Z"}, // summer time
		{"@1763733903", "2025-11-21T14:05:03Z"},
	}
	berlin := zone(t, "Europe/Berlin")
	for _, tt := range tests {
		got, err := Parse(tt.text, now, berlin)
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
		} else if text := got.UTC().Format(time.RFC3339Nano); text != tt.want {
			t.Errorf("%q is %s, want %s", tt.text, text, tt.want)
		}
	}
}

func TestWhatIsNoTimeIsRefusedWithAReason(t *testing.T) {
	tests := []struct{ text, why string }{
		{"", "empty"},
		{"   ", "empty"},
		{"10 minutes", `say "10 minutes ago"`},
		{"-10m", `say "10m ago"`},
		{"ago", "neither a day nor"},
		{"10 parsecs ago", "none of seconds"},
		{"2 months ago", "no fixed length"},
		{"1 year ago", "no fixed length"},
		{"30m 1h ago", "larger unit"},
		{"1m 1m ago", "larger unit"},
		{"five minutes ago", "can't be told"},
		{"-5m ago", "can't be told"},
		{"1e3s ago", "none of seconds"},
		{"1.2.3h ago", "can't be told"},
		{"99999999999w ago", "too long ago"},
		{"100 weeks ago ago", "can't be told"},
		{"3000w ago", "nothing was ever recorded"},
		{"in 10 minutes", "future"},
		{"tomorrow 14:00", "future"},
		{"1763733903", "--revision 1763733903"},
		{"2026-11-21", "time of day is missing"},
		{"yesterday", "time of day is missing"},
		{"2026-02-30 14:00", "no day"},
		{"2026-13-01 14:00", "no day"},
		{"26-11-21 14:00", "no day"},
		{"21.11.2026 14:00", "neither a day nor"},
		{"11/21/2026 14:00", "neither a day nor"},
		{"24:00", "no time of day"},
		{"14:60", "no time of day"},
		{"14:05:60", "no time of day"},
		{"14:05 pm", "no zone"},
		{"2:05pm", "no zone"},
		{"14:05 CET", "no zone"},
		{"14:05 +1", "no offset"},
		{"14:05 +25:00", "no offset"},
		{"monday 14:00", "neither a day nor"},
		{"1066-10-14 09:00", "nothing was ever recorded"},
		{"@-5", "whole seconds"},
		{"@1e9", "whole seconds"},
		{strings.Repeat("9", 1000), "too long"},
	}
	for _, tt := range tests {
		got, err := Parse(tt.text, now, zone(t, "Europe/Berlin"))
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%q is %s, error %v", tt.text, got, err)
			continue
		}
		if !strings.Contains(e.Why, tt.why) {
			t.Errorf("%q: %q, want it to say %q", tt.text, e.Why, tt.why)
		}
		if text := err.Error(); !strings.Contains(text, "yesterday 14:00") || len(text) > 600 {
			t.Errorf("%q: no examples, or too long: %s", tt.text, text)
		}
	}
}

func TestAClockThatIsSetLeavesTimesThatNeverWereAndSomeThatWereTwice(t *testing.T) {
	tests := []struct{ zone, text, want, why string }{
		{"Europe/Berlin", "2026-03-29 01:59:59", "2026-03-29T00:59:59Z", ""},
		{"Europe/Berlin", "2026-03-29 02:30", "", "set forward"},
		{"Europe/Berlin", "2026-03-29 03:00", "2026-03-29T01:00:00Z", ""},
		{"Europe/Berlin", "2026-10-25 01:59:59", "2026-10-24T23:59:59Z", ""},
		{"Europe/Berlin", "2026-10-25 02:00", "", "2026-10-25T02:00:00+02:00 or 2026-10-25T02:00:00+01:00"},
		{"Europe/Berlin", "2026-10-25 02:59:59", "", "twice"},
		{"Europe/Berlin", "2026-10-25 03:00", "2026-10-25T02:00:00Z", ""},
		{"Europe/Berlin", "2026-10-25T02:30:00+02:00", "2026-10-25T00:30:00Z", ""},
		{"Australia/Lord_Howe", "2026-04-05 01:45", "", "twice"}, // half an hour back
		{"Pacific/Apia", "2011-12-30 12:00", "", "set forward"},  // a day that never was
		{"UTC", "2026-03-29 02:30", "2026-03-29T02:30:00Z", ""},
	}
	for _, tt := range tests {
		got, err := Parse(tt.text, now, zone(t, tt.zone))
		switch {
		case tt.why == "" && err != nil:
			t.Errorf("%s in %s: %v", tt.text, tt.zone, err)
		case tt.why == "" && got.UTC().Format(time.RFC3339) != tt.want:
			t.Errorf("%s in %s is %s, want %s", tt.text, tt.zone, got.UTC(), tt.want)
		case tt.why != "" && (err == nil || !strings.Contains(err.Error(), tt.why)):
			t.Errorf("%s in %s: %s, %v, want it to say %q", tt.text, tt.zone, got, err, tt.why)
		}
	}
}

func TestYesterdayIsTheDayBeforeAlsoWhereDaysAreNot24Hours(t *testing.T) {
	// Half past midnight on the day after the clock was set forward.
	at := time.Date(2026, 3, 30, 0, 30, 0, 0, zone(t, "Europe/Berlin"))
	got, err := Parse("yesterday 12:00", at, zone(t, "Europe/Berlin"))
	if err != nil || got.UTC().Format(time.RFC3339) != "2026-03-29T10:00:00Z" {
		t.Errorf("%s, %v", got.UTC(), err)
	}
	// And whose yesterday it is: in Auckland it is tomorrow already.
	got, err = Parse("yesterday 12:00", time.Date(2026, 11, 21, 14, 0, 0, 0, time.UTC), zone(t, "Pacific/Auckland"))
	if err != nil || got.UTC().Format(time.RFC3339) != "2026-11-20T23:00:00Z" {
		t.Errorf("%s, %v", got.UTC(), err)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"now", "10 minutes ago", "1h30m ago", "an hour and 5 minutes ago", "yesterday at 14:00", "today 9:3:1", "14:05:03.5 utc", "at 7:00",
		"2026-11-21 14:05:03", "2026-11-21T14:05:03.123456789+05:30", "2026-10-25 02:30", "2026-03-29 02:30", "@1763733903",
		"99999999999999999999w ago", "-5m", "2026-02-30", "t:", ":t:", "- -", "1t", "+", "9999-12-31T23:59:59-23:59",
	} {
		f.Add(seed)
	}
	berlin := zone(f, "Europe/Berlin")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Parse(text, now, berlin)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Why == "" {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if got.Before(time.Unix(0, 0)) {
			t.Fatalf("%q is %s", text, got)
		}
		// What was understood can be said in a form that means the same.
		again, err := Parse(got.UTC().Format(time.RFC3339Nano), now, time.UTC)
		if err != nil || !again.Equal(got) {
			t.Fatalf("%q is %s, and that is %s, %v", text, got, again, err)
		}
	})
}
