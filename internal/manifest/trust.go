package manifest

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Trust says whose manifests are believed. It is a local file, part of the
// configuration and of the recovery kit, and never read from a store.
type Trust struct {
	Cluster   string // name-id
	Verifiers []Verifier
}

// Verifier is one key and what it may sign.
type Verifier struct {
	Key    string    // as Signer.VerifierText gives it: name+hash+base64
	Chains []string  // patterns; "*" within one element, or alone for every chain
	Kinds  []string  // patterns
	Until  time.Time // the latest created it may sign, UTC in whole seconds; zero is never ending
}

// maxTrustSize bounds a trust file in bytes.
const maxTrustSize = 1 << 20

// ParseTrust reads a trust file. Its lines are empty, comments (#), or
//
//	cluster NAME-ID
//	verifier KEY chains=PATTERN,... kinds=PATTERN,... until=never|TIME
//
// with one cluster line, before the verifiers. Errors name the line.
func ParseTrust(text []byte) (*Trust, error) {
	if len(text) > maxTrustSize {
		return nil, fmt.Errorf("trust file of %d bytes, limit %d", len(text), maxTrustSize)
	}
	t := new(Trust)
	number := 0
	for l := range bytes.Lines(text) {
		number++
		s := strings.TrimRight(string(l), "\r\n")
		if checkString(strings.ReplaceAll(s, "\t", " ")) != nil {
			return nil, fmt.Errorf("trust file line %d: not one line of printable text", number)
		}
		fields := strings.Fields(s)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if err := t.parseLine(fields); err != nil {
			return nil, fmt.Errorf("trust file line %d: %w", number, err)
		}
	}
	if t.Cluster == "" {
		return nil, fmt.Errorf("trust file: no cluster line")
	}
	if len(t.Verifiers) == 0 {
		return nil, fmt.Errorf("trust file: no verifier line")
	}
	return t, nil
}

func (t *Trust) parseLine(fields []string) error {
	switch {
	case fields[0] == "cluster" && len(fields) == 2:
		if t.Cluster != "" {
			return fmt.Errorf("a second cluster")
		}
		t.Cluster = fields[1]
		return CheckCluster(t.Cluster)
	case fields[0] == "verifier" && len(fields) == 5:
		if t.Cluster == "" {
			return fmt.Errorf("a verifier before the cluster")
		}
		v, err := parseVerifier(fields[1:])
		if err != nil {
			return err
		}
		t.Verifiers = append(t.Verifiers, v)
		return t.Check()
	}
	// What stands there may be a private key by mistake, so it is not repeated.
	if private := strings.Join(fields, " "); strings.Contains(private, "PRIVATE") || strings.Contains(private, "SECRET") {
		return fmt.Errorf("this looks like a private key; the trust file holds verifier keys only")
	}
	return fmt.Errorf("want \"cluster NAME-ID\" or \"verifier KEY chains=... kinds=... until=...\"")
}

func parseVerifier(fields []string) (Verifier, error) {
	v := Verifier{Key: fields[0]}
	for i, name := range []string{"chains", "kinds", "until"} {
		value, ok := strings.CutPrefix(fields[i+1], name+"=")
		if !ok {
			return v, fmt.Errorf("want %s=... as field %d", name, i+3)
		}
		switch name {
		case "chains":
			v.Chains = strings.Split(value, ",")
		case "kinds":
			v.Kinds = strings.Split(value, ",")
		case "until":
			if value == "never" {
				continue
			}
			until, err := time.Parse("2006-01-02T15:04:05Z", value)
			if err != nil || until.IsZero() {
				return v, fmt.Errorf("until=%q is neither never nor a time such as 2027-01-31T00:00:00Z", clip(value))
			}
			v.Until = until
		}
	}
	return v, nil
}

// Check reports whether the trust can be written as a file and used.
func (t *Trust) Check() error {
	if err := CheckCluster(t.Cluster); err != nil {
		return err
	}
	seen := make(map[string]bool)
	for _, v := range t.Verifiers {
		if err := v.check(); err != nil {
			return err
		}
		id := v.id()
		if seen[id] {
			return fmt.Errorf("verifier %s twice", id)
		}
		seen[id] = true
	}
	return nil
}

func (v Verifier) check() error {
	known, err := v.verifier()
	if err != nil {
		return err
	}
	if err := checkKeyName(known.Name()); err != nil {
		return err
	}
	if len(v.Chains) == 0 || len(v.Kinds) == 0 {
		return fmt.Errorf("verifier %s without chains or kinds", known.Name())
	}
	for _, p := range v.Chains {
		if p == "" || strings.Trim(p, nameSet+"/*?") != "" {
			return fmt.Errorf("verifier %s: bad pattern %q of chains", known.Name(), clip(p))
		}
	}
	for _, p := range v.Kinds {
		if p == "" || strings.Trim(p, letters+"*?") != "" ||
			!slices.ContainsFunc(allKinds, func(k Kind) bool { return matches([]string{p}, string(k)) }) {
			return fmt.Errorf("verifier %s: pattern %q matches no kind", known.Name(), clip(p))
		}
	}
	if !v.Until.IsZero() && (v.Until.Location() != time.UTC || v.Until.Nanosecond() != 0 || checkTime(v.Until) != nil) {
		return fmt.Errorf("verifier %s: until is not UTC in whole seconds", known.Name())
	}
	return nil
}

// id is the key's name and hash, as a signature line carries them.
func (v Verifier) id() string {
	parts := strings.SplitN(v.Key, "+", 3)
	return strings.Join(parts[:min(2, len(parts))], "+")
}

// verifier reads the key, refusing other ways of writing the same one.
func (v Verifier) verifier() (note.Verifier, error) {
	known, err := note.NewVerifier(v.Key)
	if err != nil {
		return nil, fmt.Errorf("not a verifier key: %w", err) // and perhaps a private one: not repeated
	}
	raw, err := base64.StdEncoding.DecodeString(strings.SplitN(v.Key, "+", 3)[2])
	if err != nil {
		return nil, fmt.Errorf("verifier key of %s: %w", known.Name(), err)
	}
	again, err := note.NewEd25519VerifierKey(known.Name(), raw[1:])
	if err != nil || again != v.Key {
		return nil, fmt.Errorf("the verifier key of %s is not in its canonical form", known.Name())
	}
	return known, nil
}

// String is the trust file's text; ParseTrust reads it back.
func (t *Trust) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster %s\n", t.Cluster)
	for _, v := range t.Verifiers {
		until := "never"
		if !v.Until.IsZero() {
			until = v.Until.UTC().Format("2006-01-02T15:04:05Z")
		}
		fmt.Fprintf(&b, "verifier %s chains=%s kinds=%s until=%s\n", v.Key, strings.Join(v.Chains, ","), strings.Join(v.Kinds, ","), until)
	}
	return b.String()
}

// verify checks every signature line and returns the trusted keys that signed.
func (t *Trust) verify(signed, text []byte, lines []line) ([]Verifier, error) {
	if err := CheckCluster(t.Cluster); err != nil {
		return nil, fmt.Errorf("%w: trust: %w", ErrUnsigned, err)
	}
	known := make([]note.Verifier, len(t.Verifiers))
	for i, v := range t.Verifiers {
		var err error
		if known[i], err = v.verifier(); err != nil {
			return nil, fmt.Errorf("%w: trust: %w", ErrUnsigned, err)
		}
	}
	opened, err := note.Open(signed, note.VerifierList(known...))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsigned, err)
	}
	var signers []Verifier
	for i, v := range known {
		if slices.ContainsFunc(opened.Sigs, func(s note.Signature) bool { return s.Name == v.Name() && s.Hash == v.KeyHash() }) {
			signers = append(signers, t.Verifiers[i])
		}
	}
	// A line whose key's name or hash was damaged names a stranger, and
	// strangers are allowed. Its signature still gives it away; but the sixth
	// base64 character holds the last two bits of the hash and the first of the
	// signature, so one flipped bit there can change both: hence the 30 bits.
	for _, l := range lines {
		if slices.ContainsFunc(opened.Sigs, func(s note.Signature) bool { return s.Name == l.name && s.Hash == l.keyHash() }) {
			continue
		}
		for _, v := range known {
			if l.name == v.Name() && l.keyHash()>>2 == v.KeyHash()>>2 || v.Verify(text, l.raw[4:]) {
				return nil, fmt.Errorf("%w: the name or hash of key %s in its signature", ErrNotCanonical, v.Name())
			}
		}
	}
	return signers, nil
}

// Allows says why v may not sign m, by chain, kind and time; nil if it may. It
// checks no signature.
func (v Verifier) Allows(m *Manifest) error {
	name := v.id()
	switch {
	case !matches(v.Chains, string(m.Chain)):
		return fmt.Errorf("key %s may not sign for chain %s", name, m.Chain)
	case !matches(v.Kinds, string(m.Kind)):
		return fmt.Errorf("key %s may not sign kind %s", name, m.Kind)
	case !v.Until.IsZero() && m.Created.After(v.Until):
		return fmt.Errorf("key %s may sign until %s, not at %s", name, v.Until.Format(time.RFC3339), m.Created.Format(time.RFC3339))
	}
	return nil
}

// matches: a pattern's "*" and "?" stay within one element; "*" alone is all.
func matches(patterns []string, s string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if p == "*" {
			return true
		}
		ok, err := path.Match(p, s)
		return err == nil && ok
	})
}
