package segment

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strings"
)

// Marker makes marks: keyed hashes of the events of one revision, values
// included, by which a recorder knows them again without unsealing. They are
// keyed because values may be guessable secrets and manifests are not sealed. It
// is for several goroutines.
type Marker struct {
	key [32]byte
	id  string
}

// Event is one event of the revision that is marked.
type Event struct {
	Delete bool
	KV     []byte // as in Record
}

const (
	markKeyHex = 8
	markHex    = 32
)

// NewMarker makes marks with the key, which is manifest.Signer's MarkKey.
func NewMarker(key [32]byte) *Marker {
	id := hmac.New(sha256.New, key[:])
	id.Write([]byte("lifeboat mark key id"))
	return &Marker{key: key, id: hex.EncodeToString(id.Sum(nil))[:markKeyHex]}
}

// String tells nothing of the key but its id.
func (m Marker) String() string { return "marker " + m.id }

// Format prints String for every verb.
func (m Marker) Format(f fmt.State, _ rune) { io.WriteString(f, m.String()) }

// Of marks all events of revision main, in the order of their sub revisions:
// the key's id in 8 hex digits, a colon, and the first 16 bytes of an HMAC-SHA256
// in 32.
func (m *Marker) Of(main int64, events []Event) string {
	mark := m.Begin(main, len(events))
	for _, e := range events {
		mark.Add(e)
	}
	return mark.String()
}

// Mark is one that is being made.
type Mark struct {
	mac    hash.Hash
	id     string
	number [8]byte
}

// Begin begins what Of does, where the events are too many to be held: so many
// are to be added.
func (m *Marker) Begin(main int64, events int) *Mark {
	mark := &Mark{mac: hmac.New(sha256.New, m.key[:]), id: m.id}
	mark.mac.Write([]byte("lifeboat mark v1"))
	mark.write(uint64(main))
	mark.write(uint64(events))
	return mark
}

func (m *Mark) write(n uint64) { m.mac.Write(binary.BigEndian.AppendUint64(m.number[:0], n)) }

// Add adds the next event.
func (m *Mark) Add(e Event) {
	kind := KindPut
	if e.Delete {
		kind = KindDelete
	}
	m.mac.Write([]byte{byte(kind)})
	m.write(uint64(len(e.KV)))
	m.mac.Write(e.KV)
}

// String is the mark.
func (m *Mark) String() string { return m.id + ":" + hex.EncodeToString(m.mac.Sum(nil))[:markHex] }

// Compare tells whether two marks are of the same events. Marks that were made
// with different keys, or are none, can't be compared.
func Compare(a, b string) (equal, comparable bool) {
	if !isMark(a) || !isMark(b) || a[:markKeyHex] != b[:markKeyHex] {
		return false, false
	}
	return hmac.Equal([]byte(a), []byte(b)), true
}

func isMark(s string) bool {
	return len(s) == markKeyHex+1+markHex && s[markKeyHex] == ':' && strings.Trim(s[:markKeyHex]+s[markKeyHex+1:], "0123456789abcdef") == ""
}
