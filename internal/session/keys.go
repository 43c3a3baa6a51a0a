package session

import (
	"fmt"
	"os"
	"slices"

	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
)

// LoadTrust reads a trust file and holds it to the cluster's name, which may
// be the short or the full one.
func LoadTrust(path, cluster string) (*manifest.Trust, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: read trust file: %w", config.ErrInvalid, err)
	}
	trust, err := manifest.ParseTrust(text)
	if err != nil {
		return nil, fmt.Errorf("%w: trust file %s: %w", config.ErrInvalid, path, err)
	}
	name, _, _ := manifest.ClusterName(trust.Cluster)
	if cluster != "" && cluster != name && cluster != trust.Cluster {
		return nil, fmt.Errorf("%w: the trust file %s is of cluster %s, not of %q", config.ErrInvalid, path, trust.Cluster, cluster)
	}
	return trust, nil
}

// LoadSigner reads a signing key.
func LoadSigner(path string) (*manifest.Signer, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: read signing key: %w", config.ErrInvalid, err)
	}
	signer, err := manifest.ParseSigner(text)
	if err != nil {
		return nil, fmt.Errorf("%w: signing key %s: %w", config.ErrInvalid, path, err)
	}
	return signer, nil
}

// Believes reports whether the trust holds the signer's key.
func Believes(trust *manifest.Trust, signer *manifest.Signer) bool {
	return slices.ContainsFunc(trust.Verifiers, func(v manifest.Verifier) bool { return v.Key == signer.VerifierText() })
}

// Keys reads the trust file and the signing key that a configuration names, for
// one who commits.
func Keys(c *config.Config) (*manifest.Trust, *manifest.Signer, error) {
	trust, err := LoadTrust(c.Signing.TrustFile, c.Cluster)
	if err != nil {
		return nil, nil, err
	}
	signer, err := LoadSigner(c.Signing.KeyFile)
	if err != nil {
		return nil, nil, err
	}
	// A manifest that its own writer would not believe is worse than none.
	if !Believes(trust, signer) {
		return nil, nil, fmt.Errorf("%w: the signing key %s is not one that the trust file %s believes; use the pair that `lifeboat init` made",
			config.ErrInvalid, c.Signing.KeyFile, c.Signing.TrustFile)
	}
	return trust, signer, nil
}
