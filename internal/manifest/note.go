package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// What a caller may branch on. Each of them means that the bytes are not a
// manifest that this trust accepts; the text says why.
var (
	ErrMalformed     = errors.New("malformed manifest")
	ErrNotCanonical  = errors.New("manifest is not in its canonical form")
	ErrUnsigned      = errors.New("manifest without a trusted signature")
	ErrOtherCluster  = errors.New("manifest of another cluster")
	ErrUnknownFormat = errors.New("manifest in an unknown format")
)

const (
	// MaxNoteSize is the largest signed manifest in bytes. Two hundred thousand
	// index entries fit.
	MaxNoteSize = 64 << 20

	maxNesting       = 8       // levels of JSON; the types need four
	maxSignatureLine = 8 << 10 // bytes; a post-quantum witness needs half
	maxSignatures    = 64
)

// Text is the manifest's canonical text: one line of compact JSON and a
// newline. It refuses a manifest that Check refuses.
func (m *Manifest) Text() ([]byte, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	return m.encode()
}

func (m *Manifest) encode() ([]byte, error) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return text.Bytes(), nil
}

// Sign makes the bytes to store: the text, an empty line, the signature's line.
func Sign(m *Manifest, s *Signer) ([]byte, error) {
	text, err := m.Text()
	if err != nil {
		return nil, fmt.Errorf("sign manifest: %w", err)
	}
	signed, err := note.Sign(&note.Note{Text: string(text)}, s.note)
	if err != nil {
		return nil, fmt.Errorf("sign manifest: %w", err)
	}
	if len(signed) > MaxNoteSize {
		return nil, fmt.Errorf("sign manifest: %w: %d bytes, limit %d", ErrMalformed, len(signed), MaxNoteSize)
	}
	return signed, nil
}

// Cosign adds a signature to a signed manifest: for the rotation of keys and
// for witnesses. The text, and so its hash, stays as it is.
func Cosign(signed []byte, trust *Trust, s *Signer) ([]byte, error) {
	if _, err := Open(signed, trust); err != nil {
		return nil, fmt.Errorf("cosign: %w", err)
	}
	_, lines, err := split(signed)
	if err != nil {
		return nil, fmt.Errorf("cosign: %w", err)
	}
	for _, l := range lines {
		if l.name == s.note.Name() && l.keyHash() == s.note.KeyHash() {
			return nil, fmt.Errorf("cosign: key %s has signed already", s)
		}
	}
	text := signed[:bytes.LastIndex(signed, []byte("\n\n"))+1]
	added, err := note.Sign(&note.Note{Text: string(text)}, s.note)
	if err != nil {
		return nil, fmt.Errorf("cosign: %w", err)
	}
	return append(bytes.Clone(signed), added[len(text)+1:]...), nil
}

// TextHash is the SHA-256 of a signed manifest's text: what the next
// manifest's previous holds. Adding signatures does not change it. It checks
// no signature.
func TextHash(signed []byte) (Hash, error) {
	text, _, err := split(signed)
	if err != nil {
		return Hash{}, err
	}
	return sha256.Sum256(text), nil
}

// Open verifies and reads a signed manifest. It refuses bytes that are not
// their own canonical re-encoding, signature lines included; any line of a
// trusted key that does not verify, even beside others that do; and a manifest
// that no trusted key which signed it may sign, by chain, kind and time.
//
// Lines of keys that trust does not hold are allowed, for rotation and
// witnesses, and mean nothing here.
func Open(signed []byte, trust *Trust) (*Manifest, error) {
	m, _, err := OpenSigned(signed, trust)
	return m, err
}

// OpenSigned is Open for those who ask by whom: it also returns the trusted
// keys that signed the manifest and may sign it, at least one.
func OpenSigned(signed []byte, trust *Trust) (*Manifest, []Verifier, error) {
	m, signers, err := open(signed, trust)
	if err != nil {
		return nil, nil, fmt.Errorf("open manifest: %w", err)
	}
	return m, signers, nil
}

func open(signed []byte, trust *Trust) (*Manifest, []Verifier, error) {
	if trust == nil {
		return nil, nil, fmt.Errorf("%w: no trust given", ErrUnsigned)
	}
	text, lines, err := split(signed)
	if err != nil {
		return nil, nil, err
	}
	signers, err := trust.verify(signed, text, lines)
	if err != nil {
		return nil, nil, err
	}
	m, err := decode(text)
	if err != nil {
		var other *FormatError
		if errors.As(err, &other) {
			return nil, nil, other.judge(trust, signers)
		}
		return nil, nil, err
	}
	if m.Cluster != trust.Cluster {
		return nil, nil, fmt.Errorf("%w: %s, want %s", ErrOtherCluster, m.Cluster, trust.Cluster)
	}
	if signers, err = allowed(signers, m); err != nil {
		return nil, nil, err
	}
	return m, signers, nil
}

// allowed keeps the signers that may sign m; none is ErrUnsigned.
func allowed(signers []Verifier, m *Manifest) ([]Verifier, error) {
	var may []Verifier
	var why error
	for _, v := range signers {
		if err := v.Allows(m); err != nil {
			why = err
			continue
		}
		may = append(may, v)
	}
	if len(may) == 0 {
		return nil, fmt.Errorf("%w: %w", ErrUnsigned, why)
	}
	return may, nil
}

// FormatError says that a text is in a format that this package does not know,
// and of which place. It is an ErrUnknownFormat. Every format keeps these fields,
// so that a manifest of a newer one can't be taken for one of another place.
type FormatError struct {
	Format   int      `json:"format"`
	Cluster  string   `json:"cluster"`
	Chain    Chain    `json:"chain"`
	Sequence Sequence `json:"sequence"`
	Kind     Kind     `json:"kind"`
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("%v: %d; this version reads %d", ErrUnknownFormat, e.Format, FormatVersion)
}

// Is makes errors.Is(err, ErrUnknownFormat) true.
func (e *FormatError) Is(target error) bool { return target == ErrUnknownFormat }

// judge says what is wrong with a manifest in another format: its cluster, its
// signers, or nothing else.
func (e *FormatError) judge(trust *Trust, signers []Verifier) error {
	if e.Cluster != trust.Cluster {
		return fmt.Errorf("%w: %s, want %s", ErrOtherCluster, e.Cluster, trust.Cluster)
	}
	if _, err := allowed(signers, &Manifest{Chain: e.Chain, Kind: e.Kind}); err != nil {
		return err
	}
	return e
}

// ours is how a canonical text of this format begins.
var ours = fmt.Appendf(nil, `{"format":%d,`, FormatVersion)

// decode reads a text and compares it with its own re-encoding, which refuses
// unknown and repeated fields, other orders, spaces and number forms at once.
func decode(text []byte) (*Manifest, error) {
	if err := checkNesting(text); err != nil {
		return nil, err
	}
	// The format first: a newer one has fields that would only look wrong. It is
	// the first field, so most texts need not be parsed for it.
	if !bytes.HasPrefix(text, ours) {
		head := new(FormatError)
		if err := json.Unmarshal(text, head); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		if head.Format != FormatVersion {
			return nil, head
		}
	}
	m := new(Manifest)
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if err := m.Check(); err != nil {
		return nil, err
	}
	again, err := m.encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(text, again) {
		return nil, fmt.Errorf("%w: the text differs from its re-encoding", ErrNotCanonical)
	}
	return m, nil
}

// checkNesting bounds the depth of the JSON before a parser sees it.
func checkNesting(text []byte) error {
	depth, inString := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > maxNesting {
				return fmt.Errorf("%w: nested deeper than %d", ErrMalformed, maxNesting)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// line is one signature line of a note.
type line struct {
	name string
	raw  []byte // four bytes of key hash, then the signature
}

func (l line) keyHash() uint32 {
	return uint32(l.raw[0])<<24 | uint32(l.raw[1])<<16 | uint32(l.raw[2])<<8 | uint32(l.raw[3])
}

// split takes a note apart and accepts only the one way of writing it. The
// note package is more lenient: it takes base64 whose unused last bits are
// set, and drops repeated lines.
func split(signed []byte) (text []byte, lines []line, err error) {
	if len(signed) > MaxNoteSize {
		return nil, nil, fmt.Errorf("%w: %d bytes, limit %d", ErrMalformed, len(signed), MaxNoteSize)
	}
	i := bytes.LastIndex(signed, []byte("\n\n"))
	if i < 0 {
		return nil, nil, fmt.Errorf("%w: no empty line before signatures", ErrMalformed)
	}
	text, block := signed[:i+1], signed[i+2:]
	if bytes.Count(text, []byte("\n")) != 1 {
		return nil, nil, fmt.Errorf("%w: the text is not one line", ErrNotCanonical)
	}
	if len(block) == 0 || block[len(block)-1] != '\n' {
		return nil, nil, fmt.Errorf("%w: no whole signature line", ErrMalformed)
	}
	seen := make(map[string]bool)
	for l := range bytes.Lines(block) {
		one, err := parseLine(strings.TrimSuffix(string(l), "\n"))
		if err != nil {
			return nil, nil, err
		}
		key := fmt.Sprintf("%s+%08x", one.name, one.keyHash())
		if seen[key] {
			return nil, nil, fmt.Errorf("%w: two signatures by %s", ErrNotCanonical, key)
		}
		seen[key] = true
		if lines = append(lines, one); len(lines) > maxSignatures {
			return nil, nil, fmt.Errorf("%w: more than %d signatures", ErrMalformed, maxSignatures)
		}
	}
	return text, lines, nil
}

func parseLine(s string) (line, error) {
	if len(s) > maxSignatureLine {
		return line{}, fmt.Errorf("%w: a signature line of %d bytes", ErrMalformed, len(s))
	}
	rest, ok := strings.CutPrefix(s, "— ")
	if !ok {
		return line{}, fmt.Errorf("%w: a signature line without its dash", ErrMalformed)
	}
	name, b64, ok := strings.Cut(rest, " ")
	if !ok {
		return line{}, fmt.Errorf("%w: a signature line without a signature", ErrMalformed)
	}
	if err := checkKeyName(name); err != nil {
		return line{}, fmt.Errorf("%w: signature: %w", ErrMalformed, err)
	}
	raw, err := base64.StdEncoding.DecodeString(b64)
	if err != nil || len(raw) < 5 {
		return line{}, fmt.Errorf("%w: the signature by %s is not base64", ErrMalformed, name)
	}
	if base64.StdEncoding.EncodeToString(raw) != b64 {
		return line{}, fmt.Errorf("%w: the base64 of the signature by %s", ErrNotCanonical, name)
	}
	return line{name, raw}, nil
}
