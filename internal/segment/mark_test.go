package segment

import (
	"fmt"
	"strings"
	"testing"
)

func TestMarksTellEventsApartAndKeysToo(t *testing.T) {
	m := NewMarker([32]byte{1})
	a, b := []byte("\x0a\x01a"), []byte("\x0a\x01b")
	seen := map[string]string{}
	for name, mark := range map[string]string{
		"no events":          m.Of(7, nil),
		"a put":              m.Of(7, []Event{{KV: a}}),
		"a delete":           m.Of(7, []Event{{KV: a, Delete: true}}),
		"another revision":   m.Of(8, []Event{{KV: a}}),
		"two":                m.Of(7, []Event{{KV: a}, {KV: b}}),
		"two, in turn":       m.Of(7, []Event{{KV: b}, {KV: a}}),
		"two, run together":  m.Of(7, []Event{{KV: append(append([]byte{}, a...), b...)}}),
		"two, cut elsewhere": m.Of(7, []Event{{KV: append(append([]byte{}, a...), b[0])}, {KV: b[1:]}}),
	} {
		if before := seen[mark]; before != "" {
			t.Errorf("%s has the mark of %s", name, before)
		}
		seen[mark] = name
		if len(mark) != 41 || mark[8] != ':' {
			t.Errorf("%s: %q", name, mark)
		}
		if equal, comparable := Compare(mark, m.Of(7, []Event{{KV: a}})); !comparable || equal != (name == "a put") {
			t.Errorf("%s: equal %v, comparable %v", name, equal, comparable)
		}
	}
	// As anybody with the key can compute it again; it may never change.
	if got, want := m.Of(7, []Event{{KV: a}, {KV: b, Delete: true}}), "a4d23367:793ef794e22e6e301d8caa730574cf4a"; got != want {
		t.Errorf("got %s", got)
	}
}

func TestMarksOfOtherKeysAndNoMarksAreNotCompared(t *testing.T) {
	mark := NewMarker([32]byte{1}).Of(7, nil)
	for name, other := range map[string]string{
		"another key": NewMarker([32]byte{2}).Of(7, nil), "nothing": "", "cut": mark[:40], "longer": mark + "0",
		"upper case": strings.ToUpper(mark), "no colon": strings.Replace(mark, ":", "0", 1), "not hex": mark[:40] + "g",
	} {
		for range 2 {
			if equal, comparable := Compare(mark, other); equal || comparable {
				t.Errorf("%s: equal %v, comparable %v", name, equal, comparable)
			}
			mark, other = other, mark
		}
	}
	if equal, comparable := Compare("", ""); equal || comparable {
		t.Error("two of nothing are compared")
	}
}

func TestAMarkerNeverShowsItsKey(t *testing.T) {
	m := NewMarker([32]byte{0xab, 0xcd})
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		text := fmt.Sprintf(verb, m) + fmt.Sprintf(verb, *m)
		if strings.Contains(text, "171") || strings.Contains(text, "abcd") || strings.Contains(text, "0xab") {
			t.Errorf("%s: %s", verb, text)
		}
	}
}
