package restore

import (
	"context"
	"fmt"
	"io"

	"filippo.io/age"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
)

// OpenFiles opens the archive of a backup of host files, unsealed: the plain
// tar that restore/files reads. What it yields counts only at io.EOF. The
// limits are what the signed manifest allows the archive to hold. The caller
// closes it.
func OpenFiles(ctx context.Context, repo *repository.Repository, m *manifest.Manifest, identities []age.Identity) (io.ReadCloser, seal.Limits, error) {
	o, err := objectOf(m, manifest.RoleFiles)
	if err != nil {
		return nil, seal.Limits{}, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	r, err := unseal(ctx, repo, o, identities)
	if err != nil {
		return nil, seal.Limits{}, err
	}
	return r, seal.Limits{Bytes: o.PlainSize}, nil
}
