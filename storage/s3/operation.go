package s3

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
)

// operation is one call of the S3 API with all its tries. It carries what the
// tries have to know of each other: the SDK's retryer judges each error alone.
type operation struct {
	store *Store
	limit time.Duration // one try without progress for this long has stalled

	mu        sync.Mutex
	attempts  int
	stalls    int // tries that ended so since the last byte moved
	maxStalls int
	rekeyed   bool // the credentials were read again
}

type operationKey struct{}

// begin returns a context that marks the requests made under it as one
// operation's, and the option to pass to the SDK's call.
func (s *Store) begin(ctx context.Context) (context.Context, *operation) {
	op := &operation{store: s, limit: s.cfg.StallTimeout / 2, maxStalls: 2}
	return op.attach(ctx), op
}

func (op *operation) attach(ctx context.Context) context.Context {
	return context.WithValue(ctx, operationKey{}, op)
}

// options installs the operation's own retry rules before the general ones.
func (op *operation) options(o *awss3.Options) {
	if general, ok := o.Retryer.(aws.RetryerV2); ok {
		o.Retryer = &operationRetryer{general, op}
	}
}

type operationRetryer struct {
	aws.RetryerV2
	op *operation
}

func (r *operationRetryer) IsErrorRetryable(err error) bool {
	if retry, known := r.op.retryable(err); known {
		return retry
	}
	return r.RetryerV2.IsErrorRetryable(err)
}

// retryable decides the cases in which the SDK's judgement is not ours.
func (op *operation) retryable(err error) (retry, known bool) {
	op.mu.Lock()
	defer op.mu.Unlock()
	if errors.Is(err, errStalled) {
		return op.stalls < op.maxStalls, true
	}
	status, code := statusOf(err)
	switch {
	case status == http.StatusConflict:
		// Versioned buckets answer 409 to a conditional create that meets
		// another one in progress, versitygw to a create that meets the
		// removal of an emptied folder.
		return true, true
	case status == http.StatusTooManyRequests, status == http.StatusRequestTimeout:
		return true, true
	case isKeyProblem(code):
		// Keys may have been rotated since they were read. Once is enough:
		// the next try reads them from their source.
		first := !op.rekeyed
		op.rekeyed = true
		if first {
			op.store.creds.Invalidate()
		}
		return first, true
	}
	return false, false
}

// isKeyProblem reports whether the server does not take the credentials as
// such. The last code is versitygw's, with status 404.
func isKeyProblem(code string) bool {
	return oneOf(code, "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "TokenRefreshRequired",
		"ExpiredToken", "ExpiredTokenException", "XAdminUserNotFound")
}

// isParentConflict reports whether a server on top of a file system refuses an
// object below another object, or in a folder's place.
func isParentConflict(code string) bool {
	return oneOf(code, "ObjectParentIsFile", "ExistingObjectIsDirectory", "XMinioParentIsObject", "XMinioObjectExistsAsDirectory")
}

// errStalled is what a try ends with when no byte moved for the limit.
var errStalled = errors.New("the connection stalled: no byte moved within the limit")

// watchedClient ends a try that makes no progress. Progress is a byte of the
// request's body taken by the transport, the response's header, or a byte of
// its body; the time during which the caller does not read is not counted.
type watchedClient struct {
	next awss3.HTTPClient
}

func (c *watchedClient) Do(req *http.Request) (*http.Response, error) {
	op, ok := req.Context().Value(operationKey{}).(*operation)
	if !ok {
		return c.next.Do(req)
	}
	op.mu.Lock()
	op.attempts++
	op.mu.Unlock()

	ctx, cancel := context.WithCancelCause(req.Context())
	w := &watch{op: op, cancel: cancel, ctx: ctx}
	w.timer = time.AfterFunc(op.limit, func() { cancel(errStalled) })
	req = req.WithContext(ctx)
	if req.Body != nil && req.ContentLength > 0 {
		req.Body = &sentBody{req.Body, w}
	}
	resp, err := c.next.Do(req)
	w.timer.Stop()
	if err != nil {
		err = w.verdict(err)
		cancel(nil)
		return resp, err
	}
	resp.Body = &receivedBody{resp.Body, w}
	return resp, nil
}

// watch is the stop-watch of one try.
type watch struct {
	op     *operation
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	once   sync.Once
}

// verdict replaces an error that the stop-watch caused, and counts the stall.
func (w *watch) verdict(err error) error {
	if context.Cause(w.ctx) != errStalled {
		return err
	}
	w.once.Do(func() {
		w.op.mu.Lock()
		w.op.stalls++
		w.op.mu.Unlock()
	})
	return errStalled
}

type sentBody struct {
	io.ReadCloser
	w *watch
}

func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.w.timer.Reset(b.w.op.limit)
	return n, err
}

type receivedBody struct {
	io.ReadCloser
	w *watch
}

func (b *receivedBody) Read(p []byte) (int, error) {
	b.w.timer.Reset(b.w.op.limit)
	n, err := b.ReadCloser.Read(p)
	b.w.timer.Stop()
	if err != nil && err != io.EOF {
		err = b.w.verdict(err)
	}
	return n, err
}

func (b *receivedBody) Close() error {
	b.w.timer.Stop()
	err := b.ReadCloser.Close()
	b.w.cancel(nil)
	return err
}

// progressed forgets the stalls before a byte that moved.
func (op *operation) progressed() {
	op.mu.Lock()
	op.stalls = 0
	op.mu.Unlock()
}
