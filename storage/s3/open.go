package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"lifeboat/storage"
)

// maxResumes is how often in a row, without one byte in between, a broken
// download is taken up again.
const maxResumes = 4

// Open implements storage.Store. A download that breaks is taken up again
// where it broke, as long as the object is still the same one.
func (s *Store) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, storage.Info, error) {
	if err := storage.CheckName(name); err != nil {
		return nil, storage.Info{}, fmt.Errorf("open: %w", err)
	}
	if rng.Offset < 0 || rng.Length < 0 {
		return nil, storage.Info{}, fmt.Errorf("open %s: range %d+%d is negative", name, rng.Offset, rng.Length)
	}
	return s.open(ctx, name, "", rng)
}

// OpenVersion implements storage.Versioned.
func (s *Store) OpenVersion(ctx context.Context, v storage.Version) (io.ReadCloser, storage.Info, error) {
	if err := storage.CheckName(v.Name); err != nil {
		return nil, storage.Info{}, fmt.Errorf("open version: %w", err)
	}
	if v.ID == "" {
		return nil, storage.Info{}, fmt.Errorf("open version of %s: it has no id", v.Name)
	}
	return s.open(ctx, v.Name, v.ID, storage.Range{})
}

func (s *Store) open(ctx context.Context, name, version string, rng storage.Range) (io.ReadCloser, storage.Info, error) {
	ctx, op := s.begin(ctx)
	d := &download{ctx: ctx, op: op, name: name, version: version, next: rng.Offset}
	info, err := d.start(rng)
	if status, _ := statusOf(err); status == http.StatusRequestedRangeNotSatisfiable {
		return s.openPastEnd(ctx, name, rng)
	}
	if err != nil {
		return nil, storage.Info{}, s.fail(ctx, "open", name, err)
	}
	return d, info, nil
}

// openPastEnd answers a range that begins at the object's end or after it,
// which S3 refuses: there are no bytes there.
func (s *Store) openPastEnd(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, storage.Info, error) {
	ctx, op := s.begin(ctx)
	out, err := s.client.HeadObject(ctx, &awss3.HeadObjectInput{Bucket: &s.cfg.Bucket, Key: s.key(name)}, op.options)
	if err != nil {
		return nil, storage.Info{}, s.fail(ctx, "open", name, err)
	}
	info := storage.Info{Name: name, Size: aws.ToInt64(out.ContentLength), Modified: aws.ToTime(out.LastModified)}
	if rng.Offset < info.Size {
		return nil, storage.Info{}, fmt.Errorf("open %s: %s: the range %d+%d of %d bytes is refused", name, s.where, rng.Offset, rng.Length, info.Size)
	}
	return io.NopCloser(strings.NewReader("")), info, nil
}

// download is an object being read.
// Invariant: next + left is the end of the asked range.
type download struct {
	ctx           context.Context
	op            *operation
	name, version string
	etag          string
	next          int64 // offset of the next byte in the object
	left          int64
	body          io.ReadCloser // nil between a break and the next try
	resumes       int           // since the last byte
	err           error         // final
}

// start asks for the range and sets up the rest of d from the answer.
func (d *download) start(rng storage.Range) (storage.Info, error) {
	s := d.op.store
	in := &awss3.GetObjectInput{
		Bucket:    &s.cfg.Bucket,
		Key:       s.key(d.name),
		VersionId: optional(d.version),
		IfMatch:   optional(d.etag),
	}
	if rng.Length > 0 {
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", rng.Offset, rng.Offset+rng.Length-1))
	} else if rng.Offset > 0 {
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", rng.Offset))
	}
	out, err := s.client.GetObject(d.ctx, in, d.op.options)
	if err != nil {
		return storage.Info{}, err
	}
	size, err := wholeSize(in.Range != nil, rng.Offset, out)
	if err != nil {
		_ = out.Body.Close()
		return storage.Info{}, err
	}
	d.body, d.left, d.etag = out.Body, *out.ContentLength, aws.ToString(out.ETag)
	return storage.Info{Name: d.name, Size: size, Modified: aws.ToTime(out.LastModified)}, nil
}

// wholeSize is the size of the whole object. It refuses an answer whose bytes
// are not those that were asked for.
func wholeSize(ranged bool, offset int64, out *awss3.GetObjectOutput) (int64, error) {
	if out.ContentLength == nil || *out.ContentLength < 0 {
		return 0, errors.New("the answer does not tell its length")
	}
	if !ranged {
		return *out.ContentLength, nil
	}
	span, total, ok := strings.Cut(strings.TrimPrefix(aws.ToString(out.ContentRange), "bytes "), "/")
	first, _, ok2 := strings.Cut(span, "-")
	start, err := strconv.ParseInt(first, 10, 64)
	size, err2 := strconv.ParseInt(total, 10, 64)
	if !ok || !ok2 || err != nil || err2 != nil || start != offset || offset+*out.ContentLength > size {
		return 0, fmt.Errorf("asked for a range from %d, the answer holds %q", offset, clean(aws.ToString(out.ContentRange)))
	}
	return size, nil
}

func (d *download) Read(p []byte) (int, error) {
	for d.err == nil {
		if d.left == 0 {
			return 0, io.EOF
		}
		if len(p) == 0 {
			return 0, nil
		}
		if d.body == nil {
			d.resume()
			continue
		}
		if int64(len(p)) > d.left {
			p = p[:d.left]
		}
		n, err := d.body.Read(p)
		d.next += int64(n)
		d.left -= int64(n)
		if n > 0 {
			d.resumes = 0
			d.op.progressed()
		}
		if err != nil && d.left > 0 {
			d.interrupt(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, d.err
}

// interrupt notes a break; the next Read takes the download up again unless
// this was one too many.
func (d *download) interrupt(err error) {
	_ = d.body.Close()
	d.body = nil
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	retry, known := d.op.retryable(err)
	if d.ctx.Err() != nil || known && !retry || d.resumes >= maxResumes {
		d.err = d.op.store.fail(d.ctx, "read", d.name, err)
	}
}

func (d *download) resume() {
	s := d.op.store
	if d.resumes > 0 { // the first time at once
		delay, err := s.client.Options().Retryer.RetryDelay(d.resumes, io.ErrUnexpectedEOF)
		if err != nil {
			delay = time.Second
		}
		select {
		case <-time.After(delay):
		case <-d.ctx.Done():
		}
	}
	d.resumes++
	left := d.left
	if _, err := d.start(storage.Range{Offset: d.next, Length: left}); err != nil {
		d.err = s.fail(d.ctx, "read on", d.name, err)
		if status, _ := statusOf(err); status == http.StatusPreconditionFailed {
			d.err = fmt.Errorf("read %s: %s: the object was replaced while it was read", d.name, s.where)
		}
		return
	}
	if d.left != left {
		d.interrupt(fmt.Errorf("%w: %d bytes are left, the answer has %d", io.ErrUnexpectedEOF, left, d.left))
		d.left = left
	}
}

// Close ends the download.
func (d *download) Close() error {
	if d.err == nil {
		d.err = fmt.Errorf("read %s: the reader is closed", d.name)
	}
	if d.body == nil {
		return nil
	}
	body := d.body
	d.body = nil
	_ = body.Close() // whether all bytes came was told by Read
	return nil
}
