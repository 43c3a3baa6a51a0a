// Package seal makes a stream of bytes unreadable to whoever holds the store,
// and whole or refused to whoever opens it: zstd, then age. Archive adds the
// first step for host files, a strict tar.
//
// A sealed object is an ordinary age file around an ordinary zstd frame, so
// "age -d | zstd -d" opens it. age does not say who sealed; the manifest,
// which signs an object's size and hash, does. Start reading at Writer and
// Reader.
package seal

import "errors"

// Sums describe one sealed object. The zero value is "not known".
type Sums struct {
	PlainSize    int64    // bytes before sealing
	StoredSize   int64    // bytes of the age file
	StoredSHA256 [32]byte // of the age file
}

// What a caller may branch on.
var (
	// ErrNoIdentity: none of the identities opens the object; or its header is
	// damaged just where it names its recipients, which looks the same.
	ErrNoIdentity = errors.New("no identity opens it")

	// ErrDamaged: the bytes are not what was sealed, or not all of it.
	ErrDamaged = errors.New("sealed data is damaged")
)

const (
	// windowSize is zstd's window in bytes when sealing: what a reader must keep.
	windowSize = 2 << 20

	// maxWindow is the largest window accepted when unsealing. zstd's own
	// levels up to 19 stay below it.
	maxWindow = 16 << 20

	bufferSize = 256 << 10 // bytes
)
