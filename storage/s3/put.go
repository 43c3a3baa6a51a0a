package s3

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"lifeboat/storage"
)

// markKey is the user metadata in which a Put leaves a random mark. A create
// whose answer was lost is refused when it is sent again, since the object
// exists by then; the mark tells our own success from another writer's.
const markKey = "lifeboat-put"

// smallObject is the size of the first buffer, enough for every manifest.
const smallObject = 64 << 10

// Put implements storage.Store. What fits into one part is one request; larger
// objects are multipart uploads, which become visible only by their last
// request, after r has ended. The reader may take its time: nothing is open on
// the network while Put waits for it.
//
// Memory is bounded by three parts of 5 MiB; parts double after every 1,000,
// so an object of 5 GiB or more takes up to 0.6 % of its size.
//
// On a versioned bucket, whether IfAbsent succeeds over a delete marker is the
// server's choice: Amazon creates the object, versitygw answers ErrExist.
func (s *Store) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	if err := storage.CheckName(name); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	p := &put{store: s, name: name, opts: opts, mark: rand.Text()}

	small := make([]byte, smallObject)
	n, end, err := fill(ctx, r, small)
	if err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	if end {
		return p.single(ctx, small[:n])
	}
	part := make([]byte, partSize(1))
	copy(part, small)
	n, end, err = fill(ctx, r, part[len(small):])
	if err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	if end {
		return p.single(ctx, part[:len(small)+n])
	}
	return p.multipart(ctx, part, r)
}

// put is one Put under way.
type put struct {
	store *Store
	name  string
	opts  storage.PutOptions
	mark  string
}

func (p *put) single(ctx context.Context, body []byte) error {
	s := p.store
	in := &awss3.PutObjectInput{
		Bucket:               &s.cfg.Bucket,
		Key:                  s.key(p.name),
		Body:                 bytes.NewReader(body),
		ContentLength:        aws.Int64(int64(len(body))),
		Metadata:             map[string]string{markKey: p.mark},
		ServerSideEncryption: types.ServerSideEncryption(s.cfg.SSE),
		SSEKMSKeyId:          optional(s.cfg.KMSKeyID),
		StorageClass:         types.StorageClass(s.cfg.StorageClass),
	}
	if p.opts.IfAbsent {
		in.IfNoneMatch = aws.String("*")
	}
	in.ObjectLockMode, in.ObjectLockRetainUntilDate = p.lock()
	if p.checksum() {
		in.ChecksumCRC32 = crcHeader(body)
	}
	opCtx, op := s.begin(ctx)
	_, err := s.client.PutObject(opCtx, in, op.options)
	if err == nil {
		return nil
	}
	return p.refused(ctx, op, err)
}

// refused is the error of a create that the server did not accept, or nil
// when it had accepted it earlier and the answer was lost.
func (p *put) refused(ctx context.Context, op *operation, err error) error {
	failure := p.store.fail(ctx, "put", p.name, err)
	if status, _ := statusOf(err); status != http.StatusPreconditionFailed || ctx.Err() != nil {
		return failure
	}
	mine, headErr := p.written(ctx)
	if headErr == nil {
		if mine {
			return nil
		}
		return failure // ErrExist: another writer's object stands there
	}
	if op.attempts == 1 {
		switch status, code := statusOf(headErr); {
		case status == http.StatusForbidden: // may write only
			return failure
		case isMissing(status, code): // some servers refuse to create over a delete marker
			return fmt.Errorf("%w; it has been deleted since, or is hidden by a delete marker", failure)
		}
	}
	// Whose object it is can't be told. This is not ErrExist, which promises
	// that nothing was written.
	return fmt.Errorf("put %s: %s: refused since the object exists, which may be this very one: an earlier answer was lost, and it can't be read back", p.name, p.store.where)
}

// written reports whether the visible object is the one of this Put.
func (p *put) written(ctx context.Context) (bool, error) {
	ctx, op := p.store.begin(ctx)
	out, err := p.store.client.HeadObject(ctx, &awss3.HeadObjectInput{
		Bucket: &p.store.cfg.Bucket,
		Key:    p.store.key(p.name),
	}, op.options)
	if err != nil {
		return false, err
	}
	return out.Metadata[markKey] == p.mark, nil
}

// lock is the Object Lock of the object. A store without a configured mode
// can't protect, and ignores the wish.
func (p *put) lock() (types.ObjectLockMode, *time.Time) {
	mode := p.store.cfg.ObjectLock.Mode
	if p.opts.RetainUntil.IsZero() || mode == "" {
		return "", nil
	}
	until := p.opts.RetainUntil.UTC()
	if mode == "governance" {
		return types.ObjectLockModeGovernance, &until
	}
	return types.ObjectLockModeCompliance, &until
}

// checksum reports whether the upload carries a CRC-32. S3 refuses to lock an
// object that comes without one.
func (p *put) checksum() bool {
	mode, _ := p.lock()
	return p.store.checksum || mode != ""
}

func crcHeader(body []byte) *string {
	var sum [4]byte
	binary.BigEndian.PutUint32(sum[:], crc32.ChecksumIEEE(body))
	return aws.String(base64.StdEncoding.EncodeToString(sum[:]))
}

func optional(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// fill reads until buf is full or r ends.
func fill(ctx context.Context, r io.Reader, buf []byte) (n int, end bool, err error) {
	for idle := 0; n < len(buf); {
		if err := ctx.Err(); err != nil {
			return n, false, err
		}
		m, err := r.Read(buf[n:])
		n += m
		switch {
		case err == io.EOF:
			return n, true, nil
		case err != nil:
			return n, false, fmt.Errorf("read what is to be stored: %w", err)
		case m > 0:
			idle = 0
		default:
			if idle++; idle == 100 {
				return n, false, fmt.Errorf("read what is to be stored: %w", io.ErrNoProgress)
			}
		}
	}
	return n, false, ctx.Err()
}
