package s3

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"lifeboat/storage"
)

// maxMessage bounds how much of a server's own words goes into an error.
const maxMessage = 300

// fail turns an error of the SDK into one of this package: what was being
// done, the sentinel of package storage where one fits, and the provider's
// status, code and request id as text only.
func (s *Store) fail(ctx context.Context, doing, name string, err error) error {
	if name != "" {
		doing += " " + name
	}
	if ctx.Err() != nil {
		if cause := context.Cause(ctx); cause != ctx.Err() {
			return fmt.Errorf("%s: %w: %w", doing, ctx.Err(), cause)
		}
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	}
	if errors.Is(err, errStalled) {
		return fmt.Errorf("%s: %s: %w: no byte moved for %v", doing, s.where, storage.ErrStalled, s.cfg.StallTimeout)
	}
	status, code := statusOf(err)
	if status == 0 && code == "" {
		return fmt.Errorf("%s: %s: %w", doing, s.where, plain(err))
	}
	if code == "NoSuchBucket" {
		return fmt.Errorf("%s: %s does not exist (%s)", doing, s.where, answer(err))
	}
	if sentinel := sentinelOf(status, code); sentinel != nil {
		return fmt.Errorf("%s: %s: %w (%s)", doing, s.where, sentinel, answer(err))
	}
	return fmt.Errorf("%s: %s: %s", doing, s.where, answer(err))
}

// statusOf is the HTTP status and the error code of an answer; zero when the
// error is not an answer of the server.
func statusOf(err error) (int, string) {
	var status int
	var response *smithyhttp.ResponseError
	if errors.As(err, &response) && response.Response != nil {
		status = response.HTTPStatusCode()
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		return status, api.ErrorCode()
	}
	if status < 300 {
		status = 0 // a good answer that could not be read
	}
	return status, ""
}

func sentinelOf(status int, code string) error {
	switch {
	case isKeyProblem(code):
		return storage.ErrPermission
	case isParentConflict(code):
		return storage.ErrInvalidName
	case isMissing(status, code):
		return storage.ErrNotExist
	case status == http.StatusPreconditionFailed:
		return storage.ErrExist
	case status == http.StatusInsufficientStorage,
		oneOf(code, "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage"):
		return storage.ErrFull
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return storage.ErrPermission
	}
	return nil
}

// isMissing reports whether the answer is that an object is not there. Status
// 404 alone does not say so: versitygw gives it to unknown access keys, others
// to wrong hosts, and an empty repository must not be seen in those.
func isMissing(status int, code string) bool {
	return status == http.StatusNotFound && oneOf(code, "NoSuchKey", "NoSuchVersion", "NotFound", "")
}

// answer is the server's answer as text. The message is a stranger's: it is
// cut and its control characters are escaped.
func answer(err error) string {
	status, code := statusOf(err)
	var b strings.Builder
	fmt.Fprintf(&b, "status %d", status)
	var api smithy.APIError
	if errors.As(err, &api) {
		fmt.Fprintf(&b, ", code %s", clean(code))
		if m := api.ErrorMessage(); m != "" && m != code {
			fmt.Fprintf(&b, ", %s", clean(m))
		}
	}
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		if response.RequestID != "" {
			fmt.Fprintf(&b, ", request %s", clean(response.RequestID))
		}
		if response.Response != nil && (status == http.StatusMovedPermanently || status == http.StatusBadRequest) {
			if region := response.Response.Header.Get("x-amz-bucket-region"); region != "" {
				fmt.Fprintf(&b, "; the bucket is in region %s", clean(region))
			}
		}
	}
	return b.String()
}

func clean(text string) string {
	if len(text) > maxMessage {
		text = text[:maxMessage] + "..."
	}
	quoted := strconv.Quote(text)
	return quoted[1 : len(quoted)-1]
}

// plain reduces an error that is not an answer of the server to its text, so
// that no type of the SDK leaves, and keeps what callers may ask for.
func plain(err error) error {
	text := err.Error()
	var request *url.Error
	if errors.As(err, &request) {
		text = request.Err.Error() // without the URL, which says nothing new
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		text += " (caFile or AWS_CA_BUNDLE names the authority to trust)"
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %s", io.ErrUnexpectedEOF, text)
	}
	return errors.New(text)
}
