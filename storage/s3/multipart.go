package s3

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"
)

// The multipart upload is written out here, and not left to the SDK's transfer
// manager: docs/decisions/0005-own-multipart-upload.md says why.

const (
	minPart      = 5 << 20 // S3's least size of a part that is not the last
	maxParts     = 10_000  // S3's limit
	partsPerSize = 1_000   // equal parts, before the next ones are twice as large
	parallel     = 2       // parts on their way at once; a third is being filled

	// completionStalls is how many stall limits the server may take, without
	// a sign of life, to assemble an object: some copy all parts first.
	completionStalls = 5

	// cleanupLimit bounds what is done after a failure or a cancelled context.
	cleanupLimit = 20 * time.Second

	// createGrace is how long the create of an upload may go on after the
	// caller turned away.
	createGrace = 2 * time.Second
)

// partSize is the size of part number, counted from 1: 5 MiB for the first
// 5 GB, and so on until S3's largest object, 5 TB, has fewer than 10,000.
func partSize(number int) int64 {
	return minPart << ((number - 1) / partsPerSize)
}

// upload is an open multipart upload.
type upload struct {
	*put
	id     string
	cutOff bool // a part may still be on its way in the server

	mu    sync.Mutex
	parts []types.CompletedPart // indexed by part number - 1
}

func (p *put) multipart(ctx context.Context, first []byte, r io.Reader) error {
	u, err := p.createUpload(ctx)
	if err != nil {
		return err
	}
	if err := u.sendAll(ctx, first, r); err != nil {
		return u.abandon(ctx, err)
	}
	err = u.complete(ctx)
	if err == nil {
		return nil
	}
	return u.abandonCompletion(ctx, err)
}

func (p *put) createUpload(ctx context.Context) (*upload, error) {
	s := p.store
	if err := ctx.Err(); err != nil {
		return nil, s.fail(ctx, "put", p.name, err)
	}
	in := &awss3.CreateMultipartUploadInput{
		Bucket:               &s.cfg.Bucket,
		Key:                  s.key(p.name),
		Metadata:             map[string]string{markKey: p.mark},
		ServerSideEncryption: types.ServerSideEncryption(s.cfg.SSE),
		SSEKMSKeyId:          optional(s.cfg.KMSKeyID),
		StorageClass:         types.StorageClass(s.cfg.StorageClass),
	}
	in.ObjectLockMode, in.ObjectLockRetainUntilDate = p.lock()
	if p.checksum() {
		in.ChecksumAlgorithm = types.ChecksumAlgorithmCrc32
	}
	// An upload that is created while the caller turns away needs its id to be
	// aborted, so the answer is waited for a little longer than the caller does.
	late, cancel := outlast(ctx, createGrace)
	defer cancel()
	opCtx, op := s.begin(late)
	out, err := s.client.CreateMultipartUpload(opCtx, in, op.options)
	if err != nil || op.attempts > 1 {
		keep := ""
		if err == nil {
			keep = aws.ToString(out.UploadId)
		}
		if op.attempts > 1 || !answered(err) {
			p.abortStrays(ctx, keep)
		}
	}
	if err != nil {
		return nil, s.fail(ctx, "put", p.name, err)
	}
	return &upload{put: p, id: aws.ToString(out.UploadId)}, nil
}

// outlast returns a context that ends grace after ctx does, and holds its
// values.
func outlast(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(grace):
			cancel()
		case <-late.Done():
		}
	})
	return late, func() {
		stop()
		cancel()
	}
}

func answered(err error) bool {
	status, _ := statusOf(err)
	return status != 0
}

// abortStrays ends the uploads that an unanswered create of this object may
// have left. A failure is not reported: the Put's own is.
func (p *put) abortStrays(ctx context.Context, keep string) {
	s := p.store
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer cancel()
	opCtx, op := s.begin(ctx)
	out, err := s.client.ListMultipartUploads(opCtx, &awss3.ListMultipartUploadsInput{
		Bucket: &s.cfg.Bucket,
		Prefix: s.key(p.name),
	}, op.options)
	if err != nil {
		return
	}
	for _, stray := range out.Uploads {
		if aws.ToString(stray.Key) == *s.key(p.name) && aws.ToString(stray.UploadId) != keep {
			_ = (&upload{put: p, id: aws.ToString(stray.UploadId)}).abort(ctx)
		}
	}
}

// sendAll uploads first and all that follows in r as parts.
func (u *upload) sendAll(ctx context.Context, first []byte, r io.Reader) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	free := make(chan []byte, parallel+1)

	buf, n, end := first, len(first), false
	var err error
	for number := 1; ; number++ {
		if number > maxParts {
			err = fmt.Errorf("put %s: the object is too large for %d parts", u.name, maxParts)
			break
		}
		if n == 0 { // the parts before hold all
			break
		}
		body := buf[:n]
		u.mu.Lock()
		u.parts = append(u.parts, types.CompletedPart{})
		u.mu.Unlock()
		group.Go(func() error { // waits while as many as allowed are on their way
			if err := u.send(groupCtx, number, body); err != nil {
				return err
			}
			free <- body[:cap(body)]
			return nil
		})
		if end {
			break
		}
		buf = nil
		select {
		case buf = <-free:
		default:
		}
		if size := partSize(number + 1); int64(len(buf)) != size {
			buf = make([]byte, size)
		}
		n, end, err = fill(groupCtx, r, buf)
		if err != nil {
			err = fmt.Errorf("put %s: %w", u.name, err)
			break
		}
	}
	// When the source failed, the parts on their way are for nothing, but a
	// part that is cut off may still land after the abort: they may end.
	if sendErr := group.Wait(); sendErr != nil {
		u.cutOff = true
		return sendErr
	}
	return err
}

func (u *upload) send(ctx context.Context, number int, body []byte) error {
	s := u.store
	in := &awss3.UploadPartInput{
		Bucket:        &s.cfg.Bucket,
		Key:           s.key(u.name),
		UploadId:      &u.id,
		PartNumber:    aws.Int32(int32(number)),
		Body:          bytes.NewReader(body),
		ContentLength: aws.Int64(int64(len(body))),
	}
	if u.checksum() {
		in.ChecksumCRC32 = crcHeader(body)
	}
	opCtx, op := s.begin(ctx)
	out, err := s.client.UploadPart(opCtx, in, op.options)
	if err != nil {
		return s.fail(ctx, fmt.Sprintf("put part %d of", number), u.name, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.parts[number-1] = types.CompletedPart{
		ETag:          out.ETag,
		PartNumber:    in.PartNumber,
		ChecksumCRC32: in.ChecksumCRC32,
	}
	return nil
}

// complete makes the object visible. Before it returns nil nothing is; an
// error leaves it open whether the server has done it, which the caller finds
// out by the mark.
func (u *upload) complete(ctx context.Context) error {
	s := u.store
	in := &awss3.CompleteMultipartUploadInput{
		Bucket:          &s.cfg.Bucket,
		Key:             s.key(u.name),
		UploadId:        &u.id,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: u.parts},
	}
	if u.opts.IfAbsent {
		in.IfNoneMatch = aws.String("*")
	}
	opCtx, op := s.begin(ctx)
	op.limit, op.maxStalls = completionStalls*s.cfg.StallTimeout, 1
	_, err := s.client.CompleteMultipartUpload(opCtx, in, op.options)
	return err
}

// abandonCompletion ends an upload whose completion failed, and reports nil
// when it turns out to have taken effect after all.
func (u *upload) abandonCompletion(ctx context.Context, completion error) error {
	failure := u.abandon(ctx, u.store.fail(ctx, "complete", u.name, completion))
	fresh, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer cancel()
	mine, err := u.written(fresh)
	if err == nil && mine {
		return nil
	}
	if isGone(completion) {
		// The upload is gone, which is not the object's absence.
		return fmt.Errorf("put %s: %s: the multipart upload was ended by someone else", u.name, u.store.where)
	}
	return failure
}

// abandon aborts the upload, under a context of its own since the caller's may
// be done, and returns the failure that led here. A part that was cut off can
// take effect after the abort and bring the upload back, which S3's manual says
// of AbortMultipartUpload and versitygw does: hence several times.
func (u *upload) abandon(ctx context.Context, failure error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer cancel()
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		if err := u.abort(ctx); err != nil {
			return fmt.Errorf("%w; and its open multipart upload %s is left: %w", failure, u.id, u.store.fail(ctx, "abort", u.name, err))
		}
		if !u.cutOff || wait > time.Second/2 {
			return failure
		}
		time.Sleep(wait)
	}
}

// isGone reports whether the answer is that the upload is not open.
func isGone(err error) bool {
	status, code := statusOf(err)
	return status == http.StatusNotFound && (code == "NoSuchUpload" || isMissing(status, code))
}

func (u *upload) abort(ctx context.Context) error {
	opCtx, op := u.store.begin(ctx)
	_, err := u.store.client.AbortMultipartUpload(opCtx, &awss3.AbortMultipartUploadInput{
		Bucket:   &u.store.cfg.Bucket,
		Key:      u.store.key(u.name),
		UploadId: &u.id,
	}, op.options)
	if isGone(err) {
		return nil // completed or aborted already
	}
	return err
}
