package storage

import (
	"context"
	"fmt"
	"io"
	"iter"
)

// ReadOnly refuses every change to s with ErrPermission: for verbs that only
// look, so that no mistake of theirs can change a store.
func ReadOnly(s Store) Store { return &readOnly{s} }

type readOnly struct{ Store }

func (s *readOnly) Put(_ context.Context, name string, _ io.Reader, _ PutOptions) error {
	if err := CheckName(name); err != nil {
		return err
	}
	return fmt.Errorf("put %s: %w: opened for reading only", name, ErrPermission)
}

func (s *readOnly) Delete(_ context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	return fmt.Errorf("delete %s: %w: opened for reading only", name, ErrPermission)
}

func (s *readOnly) Versions(ctx context.Context, name string) iter.Seq2[Version, error] {
	return versionsOf(ctx, s.Store, name)
}

func (s *readOnly) OpenVersion(ctx context.Context, v Version) (io.ReadCloser, Info, error) {
	return openVersionOf(ctx, s.Store, v)
}
