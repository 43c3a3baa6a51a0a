package s3

import (
	"context"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"lifeboat/storage"
)

var _ storage.Clock = (*Store)(nil)

// Now implements storage.Clock: it lists at most one name, which everybody may
// who may use the bucket at all, and takes the date of the answer.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	const doing = "ask for the time"
	opCtx, op := s.begin(ctx)
	out, err := s.client.ListObjectsV2(opCtx, &awss3.ListObjectsV2Input{
		Bucket: &s.cfg.Bucket, Prefix: aws.String(s.prefix), MaxKeys: aws.Int32(1),
	}, op.options)
	if err != nil {
		return time.Time{}, s.fail(ctx, doing, "", err)
	}
	now, dated := awsmiddleware.GetServerTime(out.ResultMetadata)
	if !dated {
		return time.Time{}, fmt.Errorf("%s: %s: the answer has no date", doing, s.where)
	}
	return now, nil
}
