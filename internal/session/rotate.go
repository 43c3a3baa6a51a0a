package session

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"lifeboat/internal/config"
	"lifeboat/internal/durable"
	"lifeboat/internal/manifest"
)

// Rotation is a new signing key that is trusted and not used yet.
type Rotation struct {
	KeyFile   string // of the new key
	TrustFile string // that has its verifier now
	New, Old  string // verifier keys
}

// RotateSigner makes a signing key in a new file, out or one beside the
// configuration's present key, and adds its verifier to the configuration's
// trust file, with what the present key may sign. The key is written first, so
// that an interruption leaves at worst a key that nobody trusts.
func RotateSigner(c *config.Config, out string, rand io.Reader) (*Rotation, error) {
	trust, old, err := Keys(c)
	if err != nil {
		return nil, err
	}
	signer, err := manifest.GenerateSigner(rand, trust.Cluster)
	if err != nil {
		return nil, err
	}
	if out == "" {
		_, hash, _ := strings.Cut(signer.String(), "+")
		out = filepath.Join(filepath.Dir(c.Signing.KeyFile), "signing-"+hash+".key")
	}
	if out, err = filepath.Abs(out); err != nil {
		return nil, err
	}
	verifier := manifest.Verifier{Key: signer.VerifierText()}
	for _, v := range trust.Verifiers {
		if v.Key == old.VerifierText() {
			verifier.Chains, verifier.Kinds = v.Chains, v.Kinds
		}
	}
	text, mode, err := trustWith(c.Signing.TrustFile, verifier)
	if err != nil {
		return nil, err
	}
	_, err = durable.WriteFile(out, strings.NewReader(signer.PrivateText()), durable.Options{Mode: 0o600, IfAbsent: true})
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%w: %s exists, and a key is never overwritten; name another file with --out", config.ErrInvalid, out)
	}
	if err != nil {
		return nil, fmt.Errorf("write the new signing key: %w", err)
	}
	if _, err := durable.WriteFile(c.Signing.TrustFile, bytes.NewReader(text), durable.Options{Mode: mode}); err != nil {
		return nil, fmt.Errorf("add the new key to the trust file (it is in %s, and not trusted yet): %w", out, err)
	}
	return &Rotation{KeyFile: out, TrustFile: c.Signing.TrustFile, New: verifier.Key, Old: old.VerifierText()}, nil
}

// trustWith is a trust file's text with one more line, everything else as it
// was, comments too.
func trustWith(path string, v manifest.Verifier) ([]byte, fs.FileMode, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, fmt.Errorf("read trust file: %w", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, fmt.Errorf("read trust file: %w", err)
	}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	text = fmt.Appendf(text, "verifier %s chains=%s kinds=%s until=never\n", v.Key, strings.Join(v.Chains, ","), strings.Join(v.Kinds, ","))
	if _, err := manifest.ParseTrust(text); err != nil {
		return nil, 0, fmt.Errorf("%w: trust file %s: %w", config.ErrInvalid, path, err)
	}
	return text, info.Mode().Perm(), nil
}
