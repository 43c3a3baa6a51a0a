package seal

import (
	"bytes"
	"errors"
	"testing"

	"filippo.io/age"
)

func TestASecretIsTheSameForAllWhoCanUnseal(t *testing.T) {
	var ids []*age.X25519Identity
	for range 3 {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	seal := func() []byte {
		var out bytes.Buffer
		w, err := NewWriter(&out, []age.Recipient{ids[0].Recipient(), ids[1].Recipient()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("the same text")); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	secret := func(object []byte, purpose string, id age.Identity) []byte {
		t.Helper()
		s, err := Secret(bytes.NewReader(object), purpose, id)
		if err != nil || len(s) != 32 {
			t.Fatalf("%x, %v", s, err)
		}
		return s
	}
	one, other := seal(), seal()
	first := secret(one, "a", ids[0])
	if !bytes.Equal(first, secret(one, "a", ids[1])) {
		t.Error("two recipients get two secrets")
	}
	if bytes.Equal(first, secret(other, "a", ids[0])) || bytes.Equal(first, secret(one, "b", ids[0])) {
		t.Error("another object or purpose has the same")
	}
	if _, err := Secret(bytes.NewReader(one), "a", ids[2]); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("a stranger: %v", err)
	}
	if _, err := Secret(bytes.NewReader(one), "a"); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("nobody: %v", err)
	}
	for _, bad := range [][]byte{nil, []byte("age-encryption.org/v1\n"), one[:60]} {
		if _, err := Secret(bytes.NewReader(bad), "a", ids[0]); !errors.Is(err, ErrDamaged) {
			t.Errorf("a damaged header: %v", err)
		}
	}
}
