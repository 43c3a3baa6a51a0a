package bench

import (
	"testing"

	"lifeboat/internal/s3test"
	"lifeboat/storage"
	"lifeboat/storage/s3"
)

// s3Store is a bucket of a real S3 server on the same machine, which shares
// its two cores with etcd and with us.
func s3Store(b *testing.B) storage.Store {
	b.Helper()
	server := s3test.Start(b, s3test.Options{TLS: true})
	server.Setenv(b)
	store, err := s3.New(b.Context(), s3.Config{Bucket: server.Bucket, Endpoint: server.Endpoint, Region: s3test.Region, CAFile: server.CAFile})
	if err != nil {
		b.Fatal(err)
	}
	return store
}
