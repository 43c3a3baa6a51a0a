package seal

import (
	"errors"
	"io"

	"filippo.io/age"
)

// errNotTaken ends a sealing whose put has ended.
var errNotTaken = errors.New("the store takes no more")

// Into seals plain for the recipients on its way into put, which reads it. put gets
// its io.EOF only after plain has given its own, so a put that ends well has stored
// all of it. An error of plain comes before put's, which it has caused.
func Into(recipients []age.Recipient, plain io.Reader, put func(sealed io.Reader) error) (Sums, error) {
	r, w := io.Pipe()
	type result struct {
		sums Sums
		err  error
	}
	sealed := make(chan result, 1)
	go func() {
		sums, err := copyTo(w, recipients, plain)
		w.CloseWithError(err) // nil is the end
		sealed <- result{sums, err}
	}()
	putErr := put(r)
	r.CloseWithError(errNotTaken) // no-op if all was read
	done := <-sealed
	switch {
	case putErr == nil:
		return done.sums, done.err
	case done.err == nil, errors.Is(done.err, errNotTaken), errors.Is(done.err, io.ErrClosedPipe), errors.Is(putErr, done.err):
		return Sums{}, putErr
	}
	return Sums{}, errors.Join(done.err, putErr)
}

// copyBuffer is how much plaintext one step reads.
const copyBuffer = 256 << 10

func copyTo(dst io.Writer, recipients []age.Recipient, plain io.Reader) (Sums, error) {
	w, err := NewWriter(dst, recipients)
	if err != nil {
		return Sums{}, err
	}
	// The writer's ReadFrom and the reader's WriteTo would choose their own buffers.
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{plain}, make([]byte, copyBuffer)); err != nil {
		return Sums{}, err
	}
	if err := w.Close(); err != nil {
		return Sums{}, err
	}
	return w.Sums(), nil
}
