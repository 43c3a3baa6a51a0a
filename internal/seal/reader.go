package seal

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

// Reader unseals. Bytes that it yields are authentic only together: act on
// none of them before io.EOF, which comes only when all of the source was
// read, is one whole age file around whole zstd frames, and is what the wanted
// sums say. It is not safe for concurrent use.
type Reader struct {
	src   *input
	age   *counted // decrypted, compressed
	zstd  *zstd.Decoder
	want  Sums
	check bool
	plain int64
	err   error
}

// NewReader opens the sealed object src with the first identity that fits. The
// wanted sums are those of the signed manifest and all are checked: more
// stored or plain bytes than they say are an error at once, other sums one
// before io.EOF. The zero Sums check nothing; then the caller must bound what
// it takes.
//
// Errors of src come through as they are. All else that is wrong with the
// bytes wraps ErrDamaged, and missing keys ErrNoIdentity. The caller closes
// the Reader, unless it has read it to the end or an error, and src.
func NewReader(src io.Reader, want Sums, ids ...age.Identity) (*Reader, error) {
	in := &input{src: src, limit: -1}
	r := &Reader{src: in, want: want, check: want != Sums{}}
	if r.check {
		in.limit = want.StoredSize
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("unseal: %w: none given", ErrNoIdentity)
	}
	decrypted, err := age.Decrypt(bufio.NewReaderSize(in, bufferSize), ids...)
	if err != nil {
		var noMatch *age.NoIdentityMatchError
		var plugin *pluginError
		switch {
		case errors.As(err, &noMatch):
			return nil, fmt.Errorf("unseal: %w: it is sealed to %d other(s)", ErrNoIdentity, len(noMatch.StanzaTypes))
		case errors.As(err, &plugin):
			return nil, fmt.Errorf("unseal: %w", err)
		}
		return nil, r.failed(err)
	}
	r.age = &counted{src: decrypted}
	r.zstd, err = zstd.NewReader(r.age,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxWindow(maxWindow),
		zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, r.failed(err)
	}
	return r, nil
}

// Read yields plaintext.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.zstd.Read(p)
	if err := r.count(n); err != nil {
		return 0, r.end(err)
	}
	if err != nil {
		return n, r.end(r.finish(err))
	}
	return n, nil
}

// WriteTo writes all of the plaintext to w. A nil error means what io.EOF
// means for Read.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	if r.err == io.EOF {
		return 0, nil
	}
	if r.err != nil {
		return 0, r.err
	}
	to := &bounded{r: r, w: w}
	n, err := r.zstd.WriteTo(to)
	switch {
	case to.err != nil:
		err = to.err
	case err == nil:
		err = r.finish(io.EOF)
	default:
		err = r.finish(err)
	}
	if r.end(err) == io.EOF {
		return n, nil
	}
	return n, r.err
}

// Close frees what the Reader holds. It does not close the source.
func (r *Reader) Close() error {
	r.end(errors.New("unseal: reader is closed"))
	return nil
}

// end makes err the answer to all later calls.
func (r *Reader) end(err error) error {
	if r.zstd != nil {
		r.zstd.Close()
		r.zstd = nil
	}
	if r.err == nil {
		r.err = err
	}
	return err
}

// count adds n bytes of plaintext, refusing more than were sealed.
func (r *Reader) count(n int) error {
	r.plain += int64(n)
	if r.check && r.plain > r.want.PlainSize {
		return fmt.Errorf("unseal: %w: more than the %d bytes that were sealed", ErrDamaged, r.want.PlainSize)
	}
	return nil
}

// finish turns the decoder's end into a verdict on all of the source.
func (r *Reader) finish(err error) error {
	if err != io.EOF {
		return r.failed(err)
	}
	// The decoder stops at what looks like the end; the age file must end there
	// too, and the source behind it.
	for _, rest := range []io.Reader{r.age, r.src} {
		var one [1]byte
		if n, err := io.ReadFull(rest, one[:]); n > 0 {
			return r.failed(errors.New("bytes after its end"))
		} else if err != io.EOF {
			return r.failed(err)
		}
	}
	if r.age.size == 0 {
		return r.failed(errors.New("nothing is in it, not even an empty frame"))
	}
	if !r.check {
		return io.EOF
	}
	switch {
	case r.src.size != r.want.StoredSize:
		return r.failed(fmt.Errorf("%d bytes are stored, want %d", r.src.size, r.want.StoredSize))
	case r.src.sum.sum() != r.want.StoredSHA256:
		return r.failed(errors.New("the SHA-256 of the stored bytes differs"))
	case r.plain != r.want.PlainSize:
		return r.failed(fmt.Errorf("it holds %d bytes, want %d", r.plain, r.want.PlainSize))
	}
	return io.EOF
}

// failed tells an error of the source from damage.
func (r *Reader) failed(err error) error {
	if r.src.err != nil {
		return fmt.Errorf("unseal: %w", r.src.err)
	}
	if errors.Is(err, ErrDamaged) {
		return err
	}
	return fmt.Errorf("unseal: %w: %w", ErrDamaged, hideEOF(err))
}

// hideEOF keeps a caller who compares with io.EOF, or a copy loop, from
// taking damage for the end.
func hideEOF(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errors.New("it ends too early")
	}
	return err
}

// input counts and hashes the stored bytes as they are read.
type input struct {
	src   io.Reader
	sum   sideHash
	size  int64
	limit int64 // bytes; -1 is none
	err   error // of src itself
}

func (in *input) Read(p []byte) (int, error) {
	n, err := in.src.Read(p)
	in.sum.write(p[:n])
	in.size += int64(n)
	if err != nil && err != io.EOF {
		in.err = err
	}
	if in.limit >= 0 && in.size > in.limit {
		return 0, fmt.Errorf("unseal: %w: more than the %d bytes that were stored", ErrDamaged, in.limit)
	}
	return n, err
}

// counted counts bytes.
type counted struct {
	src  io.Reader
	size int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.src.Read(p)
	c.size += int64(n)
	return n, err
}

// bounded passes plaintext on while it is no more than was sealed.
type bounded struct {
	r   *Reader
	w   io.Writer
	err error
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.err = b.r.count(len(p)); b.err != nil {
		return 0, b.err
	}
	var n int
	n, b.err = b.w.Write(p)
	if b.err == nil && n < len(p) {
		b.err = io.ErrShortWrite
	}
	return n, b.err
}
