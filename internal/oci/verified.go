package oci

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
)

// ErrDamaged: bytes are not those of their digest, or not as many as their
// descriptor says.
var ErrDamaged = errors.New("the bytes are not those of the digest")

// Verified reads a blob from r and checks it on the way. What it yields counts once
// io.EOF came: bytes of another size or digest are ErrDamaged in its place, too many
// of them as soon as they are met. A digest that is none is ErrMalformed, and
// nothing is read. r stays the caller's to close.
func Verified(r io.Reader, d Descriptor) io.Reader {
	want, err := d.Digest.Sum()
	return &verified{r: r, d: d, want: want, sum: sha256.New(), err: err}
}

type verified struct {
	r    io.Reader
	d    Descriptor
	want [32]byte
	sum  hash.Hash
	n    int64
	err  error // what every further call returns
}

func (v *verified) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.r.Read(p)
	v.sum.Write(p[:n])
	v.n += int64(n)
	switch {
	case v.n > v.d.Size:
		n, v.err = 0, v.damaged("there are more than %d", v.d.Size)
	case err == io.EOF:
		v.err = v.end()
	default:
		v.err = err
	}
	return n, v.err
}

func (v *verified) end() error {
	if v.n != v.d.Size {
		return v.damaged("there are %d, want %d", v.n, v.d.Size)
	}
	if got := [32]byte(v.sum.Sum(nil)); got != v.want {
		return v.damaged("they are those of %s", DigestOf(got))
	}
	return io.EOF
}

func (v *verified) damaged(format string, args ...any) error {
	return fmt.Errorf("blob %s: %w: %s", v.d.Digest, ErrDamaged, fmt.Sprintf(format, args...))
}
