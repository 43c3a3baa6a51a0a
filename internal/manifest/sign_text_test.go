package manifest

import (
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// signText signs any text, also what Sign would refuse to.
func signText(t testing.TB, text string, s *Signer) []byte {
	t.Helper()
	signed, err := note.Sign(&note.Note{Text: text}, s.note)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}
