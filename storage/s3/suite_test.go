package s3

import (
	"fmt"
	"testing"

	"lifeboat/internal/s3test"
	"lifeboat/storage"
	"lifeboat/storage/storetest"
)

func TestSuite(t *testing.T) {
	for name, c := range map[string]struct {
		server  s3test.Options
		lock    string
		options []storetest.Option
	}{
		"TLS":                      {server: s3test.Options{TLS: true}},
		"versions and Object Lock": {server: s3test.Options{ObjectLock: true}, lock: "compliance", options: []storetest.Option{storetest.MarkersBlock(), storetest.Protects()}},
	} {
		t.Run(name, func(t *testing.T) {
			server := s3test.Start(t, c.server)
			count := 0
			storetest.Run(t, func(t *testing.T) storage.Store {
				count++
				return newStore(t, server, func(cfg *Config) {
					cfg.Prefix, cfg.ObjectLock.Mode = fmt.Sprintf("store-%d", count), c.lock
				})
			}, append(c.options, storetest.Slow())...)
		})
	}
}
