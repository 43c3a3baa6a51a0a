package s3

import (
	"context"
	"fmt"
	"net/http"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"lifeboat/storage"
)

// Delete implements storage.Store. On a versioned bucket it leaves a delete
// marker: the object is no longer visible, its versions stay until a lifecycle
// rule of the bucket removes them, and Object Lock protects those, so that
// Delete succeeds on a locked object too. A server that refuses even the
// marker of a locked object is storage.ErrProtected.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := storage.CheckName(name); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	opCtx, op := s.begin(ctx)
	_, err := s.client.DeleteObject(opCtx, &awss3.DeleteObjectInput{
		Bucket: &s.cfg.Bucket,
		Key:    s.key(name),
	}, op.options)
	if err == nil {
		return nil
	}
	status, code := statusOf(err)
	if isMissing(status, code) {
		return nil
	}
	if (status == http.StatusForbidden || code == "ObjectLocked") && s.locked(ctx, name) {
		return fmt.Errorf("delete %s: %s: %w (%s)", name, s.where, storage.ErrProtected, answer(err))
	}
	if status >= http.StatusInternalServerError && s.missing(ctx, name) {
		return nil // versitygw with versions answers so when name is a folder's
	}
	return s.fail(ctx, "delete", name, err)
}

func (s *Store) missing(ctx context.Context, name string) bool {
	ctx, op := s.begin(ctx)
	_, err := s.client.HeadObject(ctx, &awss3.HeadObjectInput{Bucket: &s.cfg.Bucket, Key: s.key(name)}, op.options)
	return err != nil && isMissing(statusOf(err))
}

// locked reports whether the object is under a legal hold, or a retention that
// still runs by the store's clock, which is the answer's date. When that can't
// be read, it is not said to be.
func (s *Store) locked(ctx context.Context, name string) bool {
	ctx, op := s.begin(ctx)
	out, err := s.client.HeadObject(ctx, &awss3.HeadObjectInput{Bucket: &s.cfg.Bucket, Key: s.key(name)}, op.options)
	if err != nil {
		return false
	}
	if out.ObjectLockLegalHoldStatus == types.ObjectLockLegalHoldStatusOn {
		return true
	}
	now, dated := awsmiddleware.GetServerTime(out.ResultMetadata)
	return dated && out.ObjectLockRetainUntilDate != nil && out.ObjectLockRetainUntilDate.After(now)
}
