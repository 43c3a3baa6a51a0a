package s3

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"lifeboat/storage"
)

// errLostPage is an answer after which there is more, but no new place to go
// on from: taken for the end it would lose names, followed it might never end.
var errLostPage = errors.New("the server says that there is more, and not where")

// List implements storage.Store. A page is asked for when the one before it
// has been taken. Keys that are no valid object names are left out.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return s.ListAfter(ctx, prefix, "")
}

// ListAfter implements storage.Ranger. A server that knows no start-after and
// begins at the first name gives the right answer, later.
func (s *Store) ListAfter(ctx context.Context, prefix, after string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		var token, start *string
		if after != "" {
			start = aws.String(s.prefix + after)
		}
		last := ""
		for {
			opCtx, op := s.begin(ctx)
			page, err := s.client.ListObjectsV2(opCtx, &awss3.ListObjectsV2Input{
				Bucket:            &s.cfg.Bucket,
				Prefix:            aws.String(s.prefix + prefix),
				ContinuationToken: token,
				StartAfter:        start,
			}, op.options)
			if err != nil {
				yield(storage.Info{}, s.fail(ctx, "list", prefix, err))
				return
			}
			for _, object := range page.Contents {
				name, ok := s.name(aws.ToString(object.Key))
				if !ok {
					continue
				}
				if name <= last {
					yield(storage.Info{}, fmt.Errorf("list %s: %s: %s came after %s: the server does not list in order", prefix, s.where, name, last))
					return
				}
				last = name
				if name <= after {
					continue
				}
				if !yield(storage.Info{Name: name, Size: aws.ToInt64(object.Size), Modified: aws.ToTime(object.LastModified)}, nil) {
					return
				}
			}
			if !aws.ToBool(page.IsTruncated) {
				return
			}
			next := aws.ToString(page.NextContinuationToken)
			if next == "" || next == aws.ToString(token) {
				yield(storage.Info{}, fmt.Errorf("list %s: %s: %w", prefix, s.where, errLostPage))
				return
			}
			token = &next
		}
	}
}

// Versions implements storage.Versioned.
func (s *Store) Versions(ctx context.Context, name string) iter.Seq2[storage.Version, error] {
	return func(yield func(storage.Version, error) bool) {
		if err := storage.CheckName(name); err != nil {
			yield(storage.Version{}, fmt.Errorf("list versions: %w", err))
			return
		}
		in := &awss3.ListObjectVersionsInput{Bucket: &s.cfg.Bucket, Prefix: s.key(name)}
		for {
			opCtx, op := s.begin(ctx)
			page, err := s.client.ListObjectVersions(opCtx, in, op.options)
			if status, _ := statusOf(err); status == http.StatusNotImplemented {
				return // a server without versions
			}
			if err != nil {
				yield(storage.Version{}, s.fail(ctx, "list versions of", name, err))
				return
			}
			for _, v := range page.Versions {
				if aws.ToString(v.Key) != *in.Prefix {
					return // other keys follow in order: ours are done
				}
				if unversioned(v, page) {
					return
				}
				found := storage.Version{ID: aws.ToString(v.VersionId), Info: storage.Info{
					Name: name, Size: aws.ToInt64(v.Size), Modified: aws.ToTime(v.LastModified),
				}}
				if !yield(found, nil) {
					return
				}
			}
			if !aws.ToBool(page.IsTruncated) {
				return
			}
			// From a key alone the list would go on after all of its versions.
			key, version := aws.ToString(page.NextKeyMarker), aws.ToString(page.NextVersionIdMarker)
			if key > *in.Prefix {
				return
			}
			if key == "" || version == "" || key == aws.ToString(in.KeyMarker) && version == aws.ToString(in.VersionIdMarker) {
				yield(storage.Version{}, fmt.Errorf("list versions of %s: %s: %w", name, s.where, errLostPage))
				return
			}
			in.KeyMarker, in.VersionIdMarker = &key, &version
		}
	}
}

// unversioned reports whether v is the one content of an object in a bucket
// that keeps no others: S3 lists it under the id "null".
func unversioned(v types.ObjectVersion, page *awss3.ListObjectVersionsOutput) bool {
	if aws.ToString(v.VersionId) != "null" || !aws.ToBool(v.IsLatest) {
		return false
	}
	count := 0
	for _, other := range page.Versions {
		if aws.ToString(other.Key) == aws.ToString(v.Key) {
			count++
		}
	}
	return count == 1
}
