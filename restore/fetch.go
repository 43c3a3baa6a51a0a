package restore

import (
	"context"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/datadir"
	"lifeboat/restore/materialize"
)

// objectOf finds the one object of a role that a backup must have.
func objectOf(m *manifest.Manifest, role manifest.Role) (manifest.Object, error) {
	for _, o := range m.Objects {
		if o.Role == role {
			return o, nil
		}
	}
	return manifest.Object{}, fmt.Errorf("backup %s of %s is a %s and holds no %s", m.ID, m.Chain, m.Kind, role)
}

// unsealed is the plain bytes of a stored object. Nothing that it yields
// counts before io.EOF.
type unsealed struct {
	io.Reader
	close func() error
}

func (u *unsealed) Close() error { return u.close() }

// unseal opens an object and finds the identity for it. The reader checks
// sizes and hash of the stored bytes against the manifest on its way.
func unseal(ctx context.Context, repo *repository.Repository, o manifest.Object, ids []age.Identity) (*unsealed, error) {
	stored, err := repo.OpenStored(ctx, o)
	if err != nil {
		return nil, err
	}
	r, err := seal.NewReader(stored, seal.Sums{PlainSize: o.PlainSize, StoredSize: o.Size, StoredSHA256: o.SHA256}, ids...)
	if err != nil {
		stored.Close()
		return nil, fmt.Errorf("%s: %w", o.Name, verification(err))
	}
	return &unsealed{Reader: r, close: func() error { return errors.Join(r.Close(), stored.Close()) }}, nil
}

// canUnseal finds out whether an identity fits, from the object's header.
func canUnseal(ctx context.Context, repo *repository.Repository, o manifest.Object, ids []age.Identity) error {
	// The rest of the object is not wanted; its stream ends with this context.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := unseal(ctx, repo, o, ids)
	if err != nil {
		return err
	}
	_ = r.Close() // it was not read to its end, and may say so
	return nil
}

// verification marks an error that means that bytes are not what was backed
// up, so that the caller need not know who found it out.
func verification(err error) error {
	if err == nil || errors.Is(err, repository.ErrVerification) {
		return err
	}
	var refused *seal.RefusedError
	if errors.Is(err, seal.ErrDamaged) || errors.Is(err, datadir.ErrDamaged) || errors.Is(err, snapdb.ErrCorrupt) || errors.Is(err, materialize.ErrDamaged) || errors.As(err, &refused) {
		return fmt.Errorf("%w: %w", repository.ErrVerification, err)
	}
	return err
}

// checkDatabase reads an unsealed database file once and compares it with its
// manifest: pages, revision, HashKV.
func checkDatabase(ctx context.Context, path string, m *manifest.Manifest, progress func(int64)) (*snapdb.Facts, error) {
	facts, err := snapdb.Inspect(ctx, path, snapdb.Options{Progress: func(done, _ int64) { progress(done) }})
	if err != nil {
		return nil, verification(err)
	}
	return facts, compareFacts(ctx, path, facts, m)
}

// compareFacts holds a database to what its manifest says of it. A backup
// that was streamed without scratch knows its revision as a lower bound only
// and no hash.
func compareFacts(ctx context.Context, path string, facts *snapdb.Facts, m *manifest.Manifest) error {
	want := m.Etcd
	failed := func(format string, args ...any) error {
		return fmt.Errorf("%w: backup %s: %s", repository.ErrVerification, m.ID, fmt.Sprintf(format, args...))
	}
	if facts.Revision < int64(want.Revision) {
		return failed("the database ends at revision %d, its manifest says %d", facts.Revision, want.Revision)
	}
	if want.HashKV == 0 {
		if len(m.Unproved) == 0 {
			return failed("its manifest has no HashKV and does not say that it is unproved")
		}
		return nil
	}
	if facts.Revision != int64(want.Revision) {
		return failed("the database ends at revision %d, its manifest says %d", facts.Revision, want.Revision)
	}
	hash := facts.HashKV
	if max(0, facts.CompactRevision) != max(0, int64(want.CompactRevision)) {
		var err error
		if hash, err = snapdb.HashKV(ctx, path, int64(want.Revision), int64(want.CompactRevision)); err != nil {
			return verification(err)
		}
	}
	if hash != want.HashKV {
		return failed("HashKV of the database is %d, its manifest says %d", hash, want.HashKV)
	}
	return nil
}
