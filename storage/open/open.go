// Package open turns a store's URL into a storage.Store. It is apart from
// package storage so that the contract does not import its backends.
package open

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"lifeboat/storage"
	"lifeboat/storage/local"
	"lifeboat/storage/s3"
)

// Store opens the store at
//
//	file:///absolute/directory
//	s3://bucket/prefix
//
// The settings, but for Bucket and Prefix, apply to s3 URLs. A URL never
// carries credentials or settings: userinfo, query and fragment are refused,
// and not repeated in the error.
func Store(ctx context.Context, rawURL string, settings s3.Config) (storage.Store, error) {
	u, err := Parse(rawURL)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "s3" {
		settings.Bucket, settings.Prefix = u.Host, strings.Trim(u.Path, "/")
		store, err := s3.New(ctx, settings)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", u, err)
		}
		return store, nil
	}
	store, err := local.New(filepath.Clean(u.Path))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", u, err)
	}
	return store, nil
}

// Parse checks a store's URL without opening the store.
func Parse(rawURL string) (*url.URL, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		// The parser's error repeats the URL, which may hold a password.
		return nil, errors.New("the store's URL can't be parsed: use file:///directory or s3://bucket/prefix")
	}
	shown := u.Redacted()
	switch {
	case u.User != nil:
		return nil, errors.New("the store's URL holds credentials: they belong into the environment or a credentials file")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, errors.New("the store's URL has a query or a fragment: settings belong into the configuration")
	case u.Scheme == "":
		return nil, fmt.Errorf("store %q has no scheme: use file:///directory or s3://bucket/prefix", shown)
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" || u.Opaque != "" || !filepath.IsAbs(u.Path) {
			return nil, fmt.Errorf("store %q is not an absolute directory: use file:///directory, with three slashes", shown)
		}
		if strings.ContainsRune(u.Path, 0) {
			return nil, errors.New("the store's directory holds a NUL")
		}
	case "s3":
		if u.Opaque != "" || u.Host == "" {
			return nil, fmt.Errorf("store %q names no bucket: use s3://bucket/prefix", shown)
		}
		if strings.Contains(u.Host, ":") {
			return nil, fmt.Errorf("store %q has a port: the endpoint belongs into the configuration, use s3://bucket/prefix", shown)
		}
	default:
		return nil, fmt.Errorf("store %q has the unknown scheme %q: use file:///directory or s3://bucket/prefix", shown, u.Scheme)
	}
	return u, nil
}
