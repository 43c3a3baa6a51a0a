package manifest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"
)

func TestAMarkKeyIsTheSignersAlone(t *testing.T) {
	a, b := signer(t, "cp1", 1), signer(t, "cp1", 2)
	if a.MarkKey() == b.MarkKey() {
		t.Error("two signers have one")
	}
	again, err := ParseSigner([]byte(a.PrivateText()))
	if err != nil {
		t.Fatal(err)
	}
	if again.MarkKey() != a.MarkKey() {
		t.Error("the same signer has two")
	}
}

// Marks in chains depend on it for ever: HKDF-SHA256 (RFC 5869) of the key's
// last part but for its first byte, without salt.
func TestAMarkKeyIsDerivedAsDescribed(t *testing.T) {
	s := signer(t, "cp1", 1)
	lines := strings.Fields(s.PrivateText())
	parts := strings.SplitN(lines[len(lines)-1], "+", 5)
	raw, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil {
		t.Fatal(err)
	}
	sum := func(key, data []byte) []byte {
		h := hmac.New(sha256.New, key)
		h.Write(data)
		return h.Sum(nil)
	}
	want := sum(sum(make([]byte, 32), raw[1:]), []byte("lifeboat mark v1\x01"))
	if got := s.MarkKey(); !bytes.Equal(got[:], want) {
		t.Errorf("%x instead of %x", got, want)
	}
}
