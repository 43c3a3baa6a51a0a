package seal

import (
	"bufio"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
)

// Secret derives, for a purpose, 32 bytes that only who can unseal the object src
// can know, whichever of its recipients they are: from the object's own key, which
// age has made at random. It reads no further than the header. Errors are those of
// NewReader.
func Secret(src io.Reader, purpose string, ids ...age.Identity) ([]byte, error) {
	if len(ids) == 0 {
		return nil, fmt.Errorf("unseal: %w: none given", ErrNoIdentity)
	}
	header, err := age.ExtractHeader(bufio.NewReader(src))
	if err != nil {
		return nil, fmt.Errorf("unseal: %w: %w", ErrDamaged, err)
	}
	key, err := age.DecryptHeader(header, ids...)
	var noMatch *age.NoIdentityMatchError
	if errors.As(err, &noMatch) {
		return nil, fmt.Errorf("unseal: %w: it is sealed to %d other(s)", ErrNoIdentity, len(noMatch.StanzaTypes))
	}
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	// age derives its own keys from it under other names (C2SP age, "header" and "payload").
	return hkdf.Key(sha256.New, key, nil, "lifeboat "+purpose, sha256.Size)
}
