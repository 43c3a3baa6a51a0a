package plane

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"lifeboat/restore"
)

// share is what the first node's plan gives the others.
func (w *world) share() []byte {
	w.t.Helper()
	p, err := Prepare(w.t.Context(), w.options())
	check(w.t, err)
	defer p.Close()
	text, err := p.Share()
	check(w.t, err)
	return text
}

func (w *world) take(text []byte) (*Plan, error) {
	shared, err := ParseShared(text)
	if err != nil {
		return nil, err
	}
	o := w.options()
	o.Order, o.Shared = Order{Node: "cp1"}, shared
	return Prepare(w.t.Context(), o)
}

func TestTheOtherNodesDoWhatTheFirstDoes(t *testing.T) {
	w := newWorld(t)
	w.order.Members, w.order.Rename = All, []string{"cp1=cp4"}
	text := w.share()
	w.state = folder(t) // another machine's
	p, err := w.take(text)
	check(t, err)
	defer p.Close()
	first, err := ParseShared(text)
	check(t, err)
	own := p.Order
	own.Node, own.FilesID = "", ""
	a, _ := json.Marshal(first.Order)
	b, _ := json.Marshal(own)
	if !bytes.Equal(a, b) || p.Order.Node != "cp1" || p.Order.FilesID == "" || p.Etcd.Token != first.Order.Token || p.Etcd.Bump != first.Order.Bump || p.Files.Etcd.Name != "cp4" {
		t.Errorf("the first: %s\nanother: %s", a, b)
	}
	if strings.Contains(string(text), "PRIVATE KEY") {
		t.Error("it holds a key")
	}
}

func TestASharedOrderThatWasChangedIsRefused(t *testing.T) {
	w := newWorld(t)
	text := w.share()
	w.state = folder(t)
	for name, change := range map[string]func(*Shared){
		"another token":   func(s *Shared) { s.Order.Token += "x" },
		"another point":   func(s *Shared) { s.Order.Point.Revision = 7 },
		"a new address":   func(s *Shared) { s.Order.Address = []string{"10.0.0.11=10.6.6.6"} },
		"another bump":    func(s *Shared) { s.Order.Bump++ },
		"another cluster": func(s *Shared) { s.Cluster = "other-abcdefgh" },
		"another chain":   func(s *Shared) { s.Chain = "etcd/events" },
		"no real MAC":     func(s *Shared) { s.MAC = "00" },
	} {
		shared, err := ParseShared(text)
		check(t, err)
		change(shared)
		changed, err := json.Marshal(shared)
		check(t, err)
		if p, err := w.take(changed); !errors.Is(err, ErrShared) || !errors.Is(err, restore.ErrRefused) {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
	for name, text := range map[string]string{
		"nothing": "", "no JSON": "{", "newer": `{"format": 2}`, "not whole": `{"format": 1, "order": {"restoreID": "x"}}`, "huge": strings.Repeat(" ", maxShared+1),
	} {
		if _, err := ParseShared([]byte(text)); !errors.Is(err, ErrShared) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseShared(f *testing.F) {
	f.Add([]byte(`{"format": 1, "cluster": "c", "order": {"restoreID": "x", "token": "t"}, "mac": "00"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseShared(text)
		if (s == nil) != (err != nil) || err != nil && !errors.Is(err, ErrShared) {
			t.Errorf("%+v, %v", s, err)
		}
	})
}
