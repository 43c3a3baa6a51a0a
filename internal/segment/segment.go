// Package segment is the format of recorded changes: every event of a contiguous
// span of etcd's revisions, with the times, leases, compactions and hashes that
// were seen meanwhile. docs/segments.md describes it byte by byte.
//
// Writer and Reader are for a whole segment and hold it to the rules: no
// revision missing, the end as announced. AppendRecord and ParseRecord are for
// one record, as a log holds them too. Marker makes the keyed hash by which the
// events of one revision are known again. Nothing here compresses, encrypts or
// signs: that is internal/seal's and internal/manifest's work.
package segment

import (
	"errors"
	"fmt"
)

// Magic begins every segment; a byte with the version follows.
const (
	Magic   = "lifeboat events\n"
	Version = 1
)

// MaxRecord bounds a record's type and body in bytes. The largest value that
// etcd takes is a matter of its configuration (1.5 MiB unless
// --max-request-bytes says more).
const MaxRecord = 64 << 20

// What is wrong with bytes that are not a segment, or with records that can't
// be part of one.
var (
	ErrMalformed = errors.New("malformed segment")
	ErrTruncated = errors.New("truncated segment")
)

// Kind is a record's type, as it is stored.
type Kind byte

const (
	KindHeader     Kind = 1 // first, once
	KindPut        Kind = 2
	KindDelete     Kind = 3
	KindTime       Kind = 4
	KindLease      Kind = 5
	KindCompaction Kind = 6
	KindHash       Kind = 7
	KindEnd        Kind = 8 // last, once
)

var kindNames = map[Kind]string{
	KindHeader: "header", KindPut: "put", KindDelete: "delete", KindTime: "time",
	KindLease: "lease", KindCompaction: "compaction", KindHash: "hash", KindEnd: "end",
}

// String is the kind's name.
func (k Kind) String() string {
	if name := kindNames[k]; name != "" {
		return name
	}
	return fmt.Sprintf("kind %d", byte(k))
}

// Record is one record of any kind; which fields count says its Kind. All
// numbers but ids are never negative.
type Record struct {
	Kind Kind

	// Main is a put's or delete's revision. Events of one revision come in the
	// order of their sub revisions: 0, 1, 2 and so on.
	Main int64
	// KV is what etcd's database holds for the event, a marshaled
	// mvccpb.KeyValue: of a delete, the key alone.
	KV []byte

	Time       Moment
	Lease      Lease
	Compaction Compaction
	Hash       Hash
	Header     Header
	End        End
}

// IsEvent tells puts and deletes from the rest.
func (r *Record) IsEvent() bool { return r.Kind == KindPut || r.Kind == KindDelete }

// Header says whose events follow and from which revision on.
type Header struct {
	ClusterID, MemberID uint64
	First               int64 // at least 1
	At                  int64 // when it was begun, in milliseconds since 1970
}

// Moment bounds the revision at a time, as manifest.Moment does.
type Moment struct {
	At      int64 // milliseconds since 1970, by the recorder's clock
	AtLeast int64 // had been made before At
	AtMost  int64 // holds all that was acknowledged before At
}

// Lease is a grant that an event names, or will.
type Lease struct {
	ID        int64
	TTL       int64 // as granted, in seconds
	Synthetic bool  // the lease was gone before it could be asked: TTL is made up
	Revision  int64 // the first at which it was seen attached to a key
}

// Compaction is a compaction that was seen.
type Compaction struct {
	Revision int64 // what is superseded at or below it is gone
	Head     int64 // etcd's revision when it was seen
	At       int64 // milliseconds since 1970
}

// Hash is etcd's HashKV at a revision, as of a compact revision.
type Hash struct {
	Revision, Compact int64
	HashKV            uint32
	Member            uint64 // who said so
}

// End says what must have come before it.
type End struct {
	Last   int64 // First-1 where there are no events
	Events int64 // puts and deletes
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrMalformed, fmt.Errorf(format, args...))
}
