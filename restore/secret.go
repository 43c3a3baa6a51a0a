package restore

import (
	"context"
	"fmt"

	"filippo.io/age"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
)

// Secret derives, for a purpose, what only who can unseal a full backup can know;
// see seal.Secret. It reads the beginning of the backup's snapshot.
func Secret(ctx context.Context, repo *repository.Repository, m *manifest.Manifest, purpose string, identities []age.Identity) ([]byte, error) {
	o, err := objectOf(m, manifest.RoleSnapshot)
	if err != nil {
		return nil, err
	}
	// The rest of the object is not wanted; its stream ends with this context.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stored, err := repo.OpenStored(ctx, o)
	if err != nil {
		return nil, err
	}
	defer stored.Close()
	secret, err := seal.Secret(stored, purpose, identities...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, verification(err))
	}
	return secret, nil
}
