package s3

import (
	"fmt"
	"testing"

	"lifeboat/internal/s3test"
	"lifeboat/storage"
	"lifeboat/storage/storetest"
)

func TestSuite(t *testing.T) {
	server := s3test.Start(t, s3test.Options{TLS: true})
	count := 0
	storetest.Run(t, func(t *testing.T) storage.Store {
		count++
		return newStore(t, server, func(c *Config) { c.Prefix = fmt.Sprintf("store-%d", count) })
	}, storetest.Slow())
}
