package manifest

import (
	"encoding/base32"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// idLength is that of an ID: 128 bits in base32.
const idLength = 26

// clusterIDLength is that of the random part of a cluster's name-id: 40 bits,
// enough to keep apart clusters that people gave the same name.
const clusterIDLength = 8

const (
	letters    = "abcdefghijklmnopqrstuvwxyz"
	base32set  = letters + "234567"
	nameSet    = letters + "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	maxName    = 200 // bytes of one element of a chain, of a cluster, of a key's name
	maxString  = 4096
	maxReasons = 1024 // bytes that Line keeps
)

var encoding = base32.NewEncoding(base32set).WithPadding(base32.NoPadding)

// NewID makes a random ID: 128 bits as 26 characters of lower-case base32.
func NewID(rand io.Reader) (ID, error) {
	var raw [16]byte
	if _, err := io.ReadFull(rand, raw[:]); err != nil {
		return "", fmt.Errorf("make a backup id: %w", err)
	}
	return ID(encoding.EncodeToString(raw[:])), nil
}

// Check reports whether id has the form that NewID gives.
func (id ID) Check() error {
	if len(id) != idLength || strings.Trim(string(id), base32set) != "" {
		return fmt.Errorf("backup id %q is not %d characters of a-z and 2-7", clip(string(id)), idLength)
	}
	return nil
}

// NewCluster gives a cluster its full name: the operator's name, "-" and eight
// random characters, so that two clusters of one name never share a folder.
func NewCluster(rand io.Reader, name string) (string, error) {
	var raw [5]byte
	if _, err := io.ReadFull(rand, raw[:]); err != nil {
		return "", fmt.Errorf("make a cluster id: %w", err)
	}
	cluster := name + "-" + encoding.EncodeToString(raw[:])
	return cluster, CheckCluster(cluster)
}

// CheckCluster reports whether cluster is a name, "-" and eight characters of
// a-z and 0-9, as NewCluster makes it.
func CheckCluster(cluster string) error {
	name, id, ok := ClusterName(cluster)
	if !ok {
		return fmt.Errorf("cluster %q is not a name, \"-\" and %d characters of a-z and 0-9", clip(cluster), clusterIDLength)
	}
	if strings.Trim(id, letters+"0123456789") != "" {
		return fmt.Errorf("cluster %q ends in %q, want %d characters of a-z and 0-9", clip(cluster), id, clusterIDLength)
	}
	return checkElement("cluster", name)
}

// ClusterName splits a cluster's full name into the operator's name and the
// random part. It reports false if cluster does not have that shape.
func ClusterName(cluster string) (name, id string, ok bool) {
	i := strings.LastIndexByte(cluster, '-')
	if i < 1 || len(cluster)-i-1 != clusterIDLength {
		return "", "", false
	}
	return cluster[:i], cluster[i+1:], true
}

// Check reports whether c is one of "etcd/<name>", "hosts/<node>", "images" and "drills".
func (c Chain) Check() error {
	family, name, nested := strings.Cut(string(c), "/")
	switch {
	case c == "drills" || c == ImagesChain:
		return nil
	case nested && (family == "etcd" || family == "hosts"):
		return checkElement("chain", name)
	}
	return fmt.Errorf("chain %q is none of etcd/<name>, hosts/<node>, images and drills", clip(string(c)))
}

// kinds that each family of chains holds.
var kindsOf = map[string][]Kind{
	"etcd":   {KindFull, KindSegment, KindPrune, KindProof, KindRekey},
	"hosts":  {KindFiles, KindPrune, KindRekey},
	"images": {KindImages, KindBlob, KindPrune, KindRekey},
	"drills": {KindDrill, KindPrune},
}

var allKinds = []Kind{KindFull, KindSegment, KindFiles, KindPrune, KindProof, KindDrill, KindRekey, KindImages, KindBlob}

func (c Chain) family() string {
	family, _, _ := strings.Cut(string(c), "/")
	return family
}

// DataFolder is where the data objects of one backup lie, with the final
// slash, below the cluster's folder.
func (c Chain) DataFolder(id ID) string { return string(c) + "/data/" + string(id) + "/" }

// checkElement accepts one element of a path in the store: letters, digits,
// ".", "_" and "-", beginning with a letter or a digit. The two folder names
// of a chain are reserved, so that a name in the store has one reading.
func checkElement(what, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%s: empty name", what)
	case len(s) > maxName:
		return fmt.Errorf("%s: name of %d bytes, limit %d", what, len(s), maxName)
	case strings.Trim(s, nameSet) != "" || strings.ContainsAny(s[:1], "._-"):
		return fmt.Errorf("%s: name %q is not letters, digits, '.', '_' and '-' after a letter or digit", what, s)
	case s == "manifests" || s == "data":
		return fmt.Errorf("%s: the name %q is reserved", what, s)
	}
	return nil
}

// Line makes any text fit for a manifest: one line of valid UTF-8 without
// control characters, of at most 1 KiB. Writers pass error texts, etcd keys
// and member names through it, so that no odd byte can stop a backup.
func Line(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.Map(func(r rune) rune {
		if !printable(r) {
			return ' '
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	if len(s) > maxReasons {
		s = strings.TrimSpace(strings.ToValidUTF8(s[:maxReasons-len("…")], "")) + "…"
	}
	return s
}

// printable excludes what could break or reorder a line on a terminal.
func printable(r rune) bool {
	return r == ' ' || unicode.IsGraphic(r) && r != '\u2028' && r != '\u2029'
}

func checkString(s string) error {
	switch {
	case len(s) > maxString:
		return fmt.Errorf("text of %d bytes, limit %d", len(s), maxString)
	case !utf8.ValidString(s):
		return fmt.Errorf("%q is not UTF-8", clip(s))
	case strings.ContainsFunc(s, func(r rune) bool { return !printable(r) }):
		return fmt.Errorf("%q is not one line of printable text", clip(s))
	}
	return nil
}

// clip keeps hostile text in an error message short.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
