// Package open turns a store's URL into a store.
package open

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"lifeboat/storage"
	"lifeboat/storage/local"
	"lifeboat/storage/s3"
)

// Store opens file:///folder or s3://bucket/prefix. settings are for S3; their
// bucket and prefix come from the URL. Credentials never stand in a URL: one
// that holds any is refused without being repeated.
func Store(ctx context.Context, rawURL string, settings s3.Config) (storage.Store, error) {
	u, err := url.Parse(rawURL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("open store: not a URL; want file:///folder or s3://bucket/prefix")
	case u.User != nil:
		return nil, fmt.Errorf("open store %s: credentials don't belong into the URL; the SDK finds them in the environment, shared files or the instance", u.Redacted())
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("open store %s://%s%s: a store URL has no query and no fragment", u.Scheme, u.Host, u.Path)
	case u.Scheme == "file" && (u.Host != "" || !filepath.IsAbs(u.Path)):
		return nil, fmt.Errorf("open store %s: want three slashes and an absolute folder, file:///folder", rawURL)
	case u.Scheme == "file":
		return local.New(filepath.Clean(u.Path))
	case u.Scheme == "s3" && u.Host == "":
		return nil, fmt.Errorf("open store %s: no bucket; want s3://bucket/prefix", rawURL)
	case u.Scheme == "s3":
		settings.Bucket, settings.Prefix = u.Host, strings.Trim(u.Path, "/")
		return s3.New(ctx, settings)
	}
	return nil, fmt.Errorf("open store %s: unknown scheme %q; want file or s3", rawURL, u.Scheme)
}
