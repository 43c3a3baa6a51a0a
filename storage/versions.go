package storage

import (
	"context"
	"fmt"
	"io"
	"iter"
)

// versionsOf lets a decorator implement Versioned around any store: one that
// keeps no versions yields nothing, as if versioning were off.
func versionsOf(ctx context.Context, s Store, name string) iter.Seq2[Version, error] {
	if v, ok := s.(Versioned); ok {
		return v.Versions(ctx, name)
	}
	return func(func(Version, error) bool) {}
}

func openVersionOf(ctx context.Context, s Store, v Version) (io.ReadCloser, Info, error) {
	if versioned, ok := s.(Versioned); ok {
		return versioned.OpenVersion(ctx, v)
	}
	return nil, Info{}, fmt.Errorf("open version %s of %s: %w", v.ID, v.Name, ErrNotExist)
}
