package seal

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"filippo.io/age"
)

func TestWhatIsPutIsAllThatWasRead(t *testing.T) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	recipients := []age.Recipient{identity.Recipient()}
	want := strings.Repeat("plain ", 200_000)
	var stored bytes.Buffer
	sums, err := Into(recipients, strings.NewReader(want), func(sealed io.Reader) error {
		_, err := io.Copy(&stored, sealed)
		return err
	})
	if err != nil || sums.PlainSize != int64(len(want)) || sums.StoredSize != int64(stored.Len()) {
		t.Fatalf("%+v, %v", sums, err)
	}
	r, err := NewReader(&stored, sums, identity)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != want {
		t.Errorf("%d bytes, %v", len(got), err)
	}

	damaged, full := errors.New("damaged"), errors.New("the disk is full")
	half := io.MultiReader(strings.NewReader(want), iotest.ErrReader(damaged))
	_, err = Into(recipients, half, func(sealed io.Reader) error {
		if _, err := io.Copy(io.Discard, sealed); err == nil {
			t.Error("the store was told that this is all")
		}
		return errors.New("no body") // stores need not say why
	})
	if !errors.Is(err, damaged) {
		t.Errorf("a source that fails: %v", err)
	}
	_, err = Into(recipients, strings.NewReader(want), func(io.Reader) error { return full })
	if !errors.Is(err, full) || err.Error() != full.Error() {
		t.Errorf("a store that fails: %v", err)
	}
	if _, err = Into(recipients, strings.NewReader(want), func(io.Reader) error { return nil }); err == nil {
		t.Error("a store that reads nothing and says that it is done")
	}
}
