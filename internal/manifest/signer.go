package manifest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// Signer holds a private Ed25519 key. Printing one, in any way, prints its
// name and hash only.
type Signer struct {
	note     note.Signer
	verifier string
	private  func() string // a function, so that no printer reaches the text
}

const privatePrefix = "PRIVATE+KEY+"

// GenerateSigner makes a new key. The name is letters, digits, '.', '_', '-'
// and '/'; it tells keys apart for people, so make it the writer's.
func GenerateSigner(rand io.Reader, name string) (*Signer, error) {
	if err := checkKeyName(name); err != nil {
		return nil, err
	}
	private, _, err := note.GenerateKey(rand, name)
	if err != nil {
		return nil, fmt.Errorf("make a signing key: %w", err)
	}
	return newSigner(private)
}

// ParseSigner reads a private key file: comments (#), empty lines and one
// line with the key. Errors never hold its text.
func ParseSigner(text []byte) (*Signer, error) {
	private := ""
	for l := range bytes.Lines(text) {
		s := strings.TrimSpace(string(l))
		if s == "" || strings.HasPrefix(s, "#") {
			continue
		}
		if private != "" {
			return nil, fmt.Errorf("signing key file: more than one key")
		}
		private = s
	}
	if private == "" {
		return nil, fmt.Errorf("signing key file: no key")
	}
	s, err := newSigner(private)
	if err != nil {
		return nil, fmt.Errorf("signing key file: %w", err)
	}
	return s, nil
}

func newSigner(private string) (*Signer, error) {
	known, err := note.NewSigner(private)
	if err != nil {
		return nil, fmt.Errorf("not a signing key (it begins with %s)", privatePrefix)
	}
	if err := checkKeyName(known.Name()); err != nil {
		return nil, err
	}
	seed, err := seedOf(private)
	if err != nil {
		return nil, err
	}
	public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	verifier, err := note.NewEd25519VerifierKey(known.Name(), public)
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w", known.Name(), err)
	}
	return &Signer{note: known, verifier: verifier, private: func() string { return private }}, nil
}

// seedOf is the Ed25519 seed in a key's text that note has accepted: behind
// the algorithm's byte in its last part.
func seedOf(private string) ([]byte, error) {
	raw, err := base64.StdEncoding.DecodeString(strings.SplitN(private, "+", 5)[4])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return nil, fmt.Errorf("not a signing key (it begins with %s)", privatePrefix)
	}
	return raw[1:], nil
}

// MarkKey is a secret of its own that is derived from the private key, for the
// marks of events (internal/segment). It does not lead back to the private key.
func (s *Signer) MarkKey() [32]byte {
	seed, err := seedOf(s.private())
	if err != nil {
		panic("manifest: a signer that could not have been made: " + err.Error())
	}
	key, err := hkdf.Key(sha256.New, seed, nil, "lifeboat mark v1", 32)
	if err != nil {
		panic("manifest: derive a key of 32 bytes: " + err.Error())
	}
	return [32]byte(key)
}

// PrivateText is the private key file, which its writer must create with mode 0600.
func (s *Signer) PrivateText() string {
	return fmt.Sprintf("# lifeboat signing key %s\n# secret: whoever has it can sign backups in this cluster's name\n%s\n", s, s.private())
}

// VerifierText is the public key, as a trust file names it.
func (s *Signer) VerifierText() string { return s.verifier }

// Name is the key's name.
func (s *Signer) Name() string { return s.note.Name() }

// String names the key by name and hash.
func (s Signer) String() string {
	if s.note == nil {
		return "no key"
	}
	return fmt.Sprintf("%s+%08x", s.note.Name(), s.note.KeyHash())
}

// Format prints String for every verb.
func (s Signer) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// LogValue logs String.
func (s Signer) LogValue() slog.Value { return slog.StringValue(s.String()) }

func checkKeyName(name string) error {
	if name == "" || len(name) > maxName || strings.Trim(name, nameSet+"/") != "" {
		return fmt.Errorf("key name %q is not letters, digits, '.', '_', '-' and '/'", clip(name))
	}
	return nil
}
