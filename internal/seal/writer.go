package seal

import (
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

// Writer seals what is written to it. It is not safe for concurrent use.
type Writer struct {
	zstd  *zstd.Encoder
	age   io.WriteCloser
	out   *output
	plain int64
	err   error // sticky, so that Close after a failed Write never succeeds
}

var errClosed = errors.New("seal: writer is closed")

// Option changes how NewWriter seals.
type Option func(*options)

type options struct{ workers int }

// Workers lets n goroutines compress at once. The default is 1, the caller's own.
func Workers(n int) Option { return func(o *options) { o.workers = n } }

// NewWriter begins a sealed object on dst for the recipients, any of whom can
// open it. The object is whole once Close has returned nil. Writes to dst are
// of about 64 KiB. Close does not close dst.
func NewWriter(dst io.Writer, recipients []age.Recipient, opts ...Option) (*Writer, error) {
	o := options{workers: 1}
	for _, opt := range opts {
		opt(&o)
	}
	out := &output{dst: dst}
	encrypted, err := age.Encrypt(out, recipients...)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	encoder, err := zstd.NewWriter(encrypted,
		zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(o.workers),
		zstd.WithWindowSize(windowSize),
		zstd.WithZeroFrames(true)) // also nothing at all has a frame, which its absence would show as damage
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return &Writer{zstd: encoder, age: encrypted, out: out}, nil
}

// Write seals p.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.zstd.Write(p)
	w.plain += int64(n)
	if err != nil {
		w.err = fmt.Errorf("seal: %w", err)
		return n, w.err
	}
	return n, nil
}

// Close ends the object. Without it, or after any failed Write, what dst got
// is refused by every reader.
func (w *Writer) Close() error {
	if w.err == errClosed {
		return nil
	}
	if w.err != nil {
		return w.err
	}
	if err := w.zstd.Close(); err != nil {
		w.err = fmt.Errorf("seal: %w", err)
		return w.err
	}
	if err := w.age.Close(); err != nil {
		w.err = fmt.Errorf("seal: %w", err)
		return w.err
	}
	w.err = errClosed
	return nil
}

// Sums describe the object. They are final once Close has returned nil.
func (w *Writer) Sums() Sums {
	return Sums{PlainSize: w.plain, StoredSize: w.out.size, StoredSHA256: w.out.sum.sum()}
}

// output counts and hashes the stored bytes on their way.
type output struct {
	dst  io.Writer
	sum  sideHash
	size int64
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.dst.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	o.sum.write(p[:n])
	o.size += int64(n)
	return n, err
}
