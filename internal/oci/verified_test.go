package oci

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestABlobIsCheckedWhileItIsRead(t *testing.T) {
	text := strings.Repeat("some bytes ", 1000)
	good := Descriptor{Digest: DigestOf(sha256.Sum256([]byte(text))), Size: int64(len(text))}
	for how, through := range map[string]func(io.Reader) io.Reader{
		"as it comes": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "the end with the data": iotest.DataErrReader,
	} {
		if got, err := io.ReadAll(Verified(through(strings.NewReader(text)), good)); err != nil || string(got) != text {
			t.Errorf("%s: %d bytes, %v", how, len(got), err)
		}
		for name, bad := range map[string]string{
			"other bytes": "S" + text[1:], "one too few": text[1:], "one too many": text + "x", "none": "",
		} {
			r := Verified(through(strings.NewReader(bad)), good)
			got, err := io.ReadAll(r)
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), string(good.Digest)) || len(got) > len(text) {
				t.Errorf("%s, %s: %d bytes, %v", name, how, len(got), err)
			}
			if n, again := r.Read(make([]byte, 1)); n != 0 || again != err {
				t.Errorf("%s, %s, and then %d bytes, %v", name, how, n, again)
			}
		}
	}
	empty := Descriptor{Digest: DigestOf(sha256.Sum256(nil))}
	if got, err := io.ReadAll(Verified(strings.NewReader(""), empty)); err != nil || len(got) > 0 {
		t.Errorf("no bytes: %v", err)
	}
	endless := io.MultiReader(strings.NewReader(text), zeros{})
	if _, err := io.ReadAll(Verified(endless, good)); !errors.Is(err, ErrDamaged) {
		t.Errorf("bytes without end: %v", err)
	}
	broken := errors.New("the line was cut")
	r := Verified(io.MultiReader(bytes.NewReader([]byte(text)), iotest.ErrReader(broken)), good)
	if _, err := io.ReadAll(r); !errors.Is(err, broken) || errors.Is(err, ErrDamaged) {
		t.Errorf("what could not be read: %v", err)
	}
	if _, err := io.ReadAll(Verified(strings.NewReader(text), Descriptor{Digest: "latest", Size: good.Size})); !errors.Is(err, ErrMalformed) {
		t.Errorf("a digest that is none: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
