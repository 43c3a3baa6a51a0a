// Package manifest is the format of a manifest: the signed description of one
// committed backup. Creating a manifest's object in a store is the commit.
//
// The package is format only: fields, canonical bytes, signing, verifying. It
// reads and writes no store. Which manifest follows which, and what a chain
// is worth, is decided in internal/repository. The format's specification is
// docs/format.md.
package manifest

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// FormatVersion is the only format that this package reads and writes.
const FormatVersion = 1

// Revision is etcd's MVCC main revision.
type Revision int64

// Sequence is a manifest's place in its chain; the first is 1. Its text form
// has 20 digits, so that names sort as numbers do.
type Sequence uint64

func (s Sequence) String() string { return fmt.Sprintf("%020d", uint64(s)) }

// ID names one backup. It is random and unique in a repository.
type ID string

// Chain names a sequence of manifests: "etcd/main", "hosts/cp1", "drills".
type Chain string

// Kind says what a manifest commits.
type Kind string

// The kinds of manifest.
const (
	KindFull    Kind = "full"    // a whole etcd database
	KindSegment Kind = "segment" // the watch events of a span of revisions
	KindFiles   Kind = "files"   // one node's host files
	KindPrune   Kind = "prune"   // a promise of what will be deleted, and the chain's new base
	KindProof   Kind = "proof"   // an earlier full was proved after its commit
	KindDrill   Kind = "drill"   // a restore into a sandbox
	KindRekey   Kind = "rekey"   // an earlier backup's data, sealed anew for other recipients
	KindImages  Kind = "images"  // the container images of one node
	KindBlob    Kind = "blob"    // one part of container images
)

// Hash is a SHA-256. Its text form is lower-case hexadecimal; the zero Hash is
// the empty string and means "none".
type Hash [32]byte

func (h Hash) String() string {
	if h == (Hash{}) {
		return ""
	}
	return hex.EncodeToString(h[:])
}

// MarshalText writes the text form.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads the text form.
func (h *Hash) UnmarshalText(text []byte) error {
	*h = Hash{}
	if len(text) == 0 {
		return nil
	}
	if len(text) != 2*len(h) {
		return fmt.Errorf("hash of %d characters, want %d", len(text), 2*len(h))
	}
	if _, err := hex.Decode(h[:], text); err != nil {
		return fmt.Errorf("hash: %w", err)
	}
	return nil
}

// EtcdID is a member's or a cluster's id. etcd prints it in hexadecimal; so
// does its JSON form, since JSON numbers lose bits above 2^53.
type EtcdID uint64

func (id EtcdID) String() string { return fmt.Sprintf("%x", uint64(id)) }

// MarshalText writes the text form.
func (id EtcdID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads the text form.
func (id *EtcdID) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 16, 64)
	if err != nil {
		return fmt.Errorf("etcd id: %w", err)
	}
	*id = EtcdID(v)
	return nil
}

// Manifest describes one committed backup. Its field order is the order of
// the canonical bytes, so a change of order is a change of format. Times are
// UTC in whole milliseconds. Empty lists are left out. Check has the rules.
type Manifest struct {
	Format         int        `json:"format"`
	Cluster        string     `json:"cluster"` // name-id, as in the store
	Chain          Chain      `json:"chain"`
	Epoch          uint64     `json:"epoch"` // 1 at first; a new etcd history starts the next
	Sequence       Sequence   `json:"sequence"`
	Previous       Hash       `json:"previous"` // of the text of the manifest before; none for the first
	Skipped        []Skipped  `json:"skipped,omitempty"`
	Kind           Kind       `json:"kind"`
	ID             ID         `json:"id"`
	Created        time.Time  `json:"created"`                  // when capture began
	NextExpectedBy *time.Time `json:"nextExpectedBy,omitempty"` // a head older than this is late
	Writer         Writer     `json:"writer"`
	Heads          []Head     `json:"heads,omitempty"`  // of the writer's other chains and stores, as witnesses
	Etcd           *Etcd      `json:"etcd,omitempty"`   // fulls
	Host           *Host      `json:"host,omitempty"`   // files
	Span           *Span      `json:"span,omitempty"`   // segments
	Prune          *Prune     `json:"prune,omitempty"`  // prunes
	Proof          *Proof     `json:"proof,omitempty"`  // proofs
	Rekey          *Rekey     `json:"rekey,omitempty"`  // rekeys
	Images         *Images    `json:"images,omitempty"` // images
	Blob           *Blob      `json:"blob,omitempty"`   // blobs
	Imported       string     `json:"imported,omitempty"`
	Copied         *Head      `json:"copied,omitempty"` // where this was copied from: store, sequence and hash there
	Objects        []Object   `json:"objects,omitempty"`
	Index          []Entry    `json:"index,omitempty"`  // fulls: the live entries of the chain before this one
	Recent         []Entry    `json:"recent,omitempty"` // segments, now and then: the segments just before this one; it says nothing of others
	Recipients     []string   `json:"recipients,omitempty"`
	RetainUntil    *time.Time `json:"retainUntil,omitempty"`
	Degraded       []string   `json:"degraded,omitempty"` // why this backup is less than it should be
	Unproved       []string   `json:"unproved,omitempty"` // why HashKV was not compared at capture
}

// Skipped names an object in a manifest's place that was not one: junk, a
// forgery, damage. The chain goes on behind it.
type Skipped struct {
	Sequence Sequence `json:"sequence"`
	SHA256   Hash     `json:"sha256"` // of the object's stored bytes
}

// Writer says who committed.
type Writer struct {
	Node    string `json:"node"`
	Version string `json:"version"` // of lifeboat
}

// Head is another chain's head as the writer saw it.
type Head struct {
	Store    string   `json:"store"` // the store's URL without credentials
	Chain    Chain    `json:"chain"`
	Sequence Sequence `json:"sequence"`
	Hash     Hash     `json:"hash"` // of the manifest's text
}

// Etcd holds what was true of etcd when a full was captured.
type Etcd struct {
	ClusterID       EtcdID   `json:"clusterID"`
	MemberID        EtcdID   `json:"memberID"` // whose snapshot this is
	Version         string   `json:"version"`  // of the member's server
	StorageVersion  string   `json:"storageVersion"`
	ClusterVersion  string   `json:"clusterVersion"`
	Revision        Revision `json:"revision"` // exact, read from the file; with Unproved a lower bound may stand here
	CompactRevision Revision `json:"compactRevision"`
	HashKV          uint32   `json:"hashKV"` // computed over the file
	ComparedWith    []EtcdID `json:"comparedWith,omitempty"`
	Dissenting      []EtcdID `json:"dissenting,omitempty"` // members whose HashKV differs from the majority's
	AuthRevision    uint64   `json:"authRevision"`
	RaftIndex       uint64   `json:"raftIndex"`
	RaftTerm        uint64   `json:"raftTerm"`
	Members         []Member `json:"members,omitempty"`
	Alarms          []string `json:"alarms,omitempty"`
	Keys            int64    `json:"keys"`                 // live keys
	DBBytes         int64    `json:"dbBytes"`              // the database file without its hash trailer
	Rate            float64  `json:"rate"`                 // revisions a second since the chain's last full; 0 if unknown
	Encryption      []KeyUse `json:"encryption,omitempty"` // encryption keys that stored objects use
	Mark            string   `json:"mark,omitempty"`       // keyed hash of the events of the last revision, as in Span
}

// etcd's default quota and the largest one advised (its documents, dev-guide/limit).
const (
	defaultQuota = 2 << 30
	largestQuota = 8 << 30
)

// AssumedQuota is the quota in bytes that a cluster is taken to have where
// nobody tells: etcd's default, or where the database shows that it has a larger
// one, the largest that etcd's documents advise.
func (e *Etcd) AssumedQuota() int64 {
	if e.DBBytes <= defaultQuota {
		return defaultQuota
	}
	return max(largestQuota, e.DBBytes)
}

// Member is one etcd member at capture.
type Member struct {
	ID         EtcdID   `json:"id"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
	Learner    bool     `json:"learner,omitempty"`
}

// KeyUse is one encryption provider and key that values in etcd name in their
// "k8s:enc:" prefix, with one object as an example.
type KeyUse struct {
	Provider string `json:"provider"`
	Key      string `json:"key"`
	Objects  int64  `json:"objects"`
	Example  string `json:"example"` // an etcd key
}

// Name is the key's own, as an EncryptionConfiguration names it.
func (u KeyUse) Name() KeyName {
	provider, _, _ := strings.Cut(u.Provider, ":") // kms:v2 is kms's newer form
	return KeyName{Provider: provider, Key: u.Key}
}

// KeyName is one key of an EncryptionConfiguration: its provider and, for kms the
// provider's, name. It tells nothing of the key itself.
type KeyName struct {
	Provider string `json:"provider"`
	Key      string `json:"key"`
}

// Host holds what may be known of a node's files without unsealing them.
type Host struct {
	Node       string    `json:"node"`
	Files      int       `json:"files"`
	Bytes      int64     `json:"bytes"`
	Encryption []KeyName `json:"encryption,omitempty"` // encryption keys that the files hold, by name, each once
}

// Span is the contiguous span of revisions in a segment, and what may be known
// of it without unsealing: which revision was the last at which time, and what
// the members' hashes were.
type Span struct {
	ClusterID EtcdID   `json:"clusterID"`
	MemberID  EtcdID   `json:"memberID"` // whose watch this is
	First     Revision `json:"first"`    // Last+1 where nothing changed: the segment only moves the recovery point
	Last      Revision `json:"last"`
	// All that etcd acknowledged before LastTime is at or below Last. By the
	// recorder's clock, as all times here.
	FirstTime time.Time   `json:"firstTime"`
	LastTime  time.Time   `json:"lastTime"`
	Events    int64       `json:"events"`           // changes of keys
	RollUp    bool        `json:"rollUp,omitempty"` // sealed again from many segments, which it replaces
	Times     []TimeDelta `json:"times,omitempty"`  // SetMoments and Moments have the plain form
	// Compactions that were seen while this segment was recorded.
	Compactions []Revision `json:"compactions,omitempty"`
	Hashes      []HashKV   `json:"hashes,omitempty"`
	Mark        string     `json:"mark,omitempty"` // keyed hash of the events of revision Last, to know them again by
}

// TimeDelta is a Moment as the difference to the one before it: milliseconds,
// AtLeast, AtMost. The first one's are to FirstTime and to First-1.
type TimeDelta [3]int64

// Moment bounds the revision at a time.
type Moment struct {
	At      time.Time
	AtLeast Revision // had been made before At
	AtMost  Revision // holds all that was acknowledged before At
}

// HashKV is the hash that members gave of all keys at a revision, as of a
// compact revision (0: never compacted).
type HashKV struct {
	Revision        Revision `json:"revision"`
	CompactRevision Revision `json:"compactRevision"`
	HashKV          uint32   `json:"hashKV"`
	Members         []EtcdID `json:"members"` // who gave it; all of them the same
}

// Prune is the promise that precedes every deletion.
type Prune struct {
	Base      Sequence `json:"base"` // the lowest live manifest's sequence afterwards
	Manifests []Entry  `json:"manifests,omitempty"`
	Objects   []string `json:"objects,omitempty"` // data objects, of backups and garbage alike
	Drop      []ID     `json:"drop,omitempty"`    // uncommitted ids whose writers must give up
}

// Proof says that an earlier full of the chain was proved later.
type Proof struct {
	Of       ID       `json:"of"`
	Revision Revision `json:"revision"`
	HashKV   uint32   `json:"hashKV"`
	How      string   `json:"how"` // "deep verification" or "drill"
}

// Rekey says that an earlier backup's data was sealed anew: this manifest's
// object stands for that backup's own from then on.
type Rekey struct {
	Of ID `json:"of"`
}

// Object is one data object that a manifest commits.
type Object struct {
	Name      string `json:"name"` // below the cluster's folder: <chain>/data/<id>/<file>
	Role      Role   `json:"role"`
	Size      int64  `json:"size"`   // bytes as stored
	SHA256    Hash   `json:"sha256"` // of the bytes as stored
	PlainSize int64  `json:"plainSize"`
}

// Role says what an object holds.
type Role string

// The roles of objects.
const (
	RoleSnapshot Role = "snapshot" // zstd, age: an etcd snapshot file with its hash trailer
	RoleEvents   Role = "events"   // zstd, age: a segment's events
	RoleFiles    Role = "files"    // tar, zstd, age: host files
	RoleBlob     Role = "blob"     // zstd, age: one part of container images
)

// Entry names an earlier manifest of the same chain.
type Entry struct {
	Sequence Sequence `json:"sequence"`
	Hash     Hash     `json:"hash"` // of its text
	Kind     Kind     `json:"kind"`
	ID       ID       `json:"id"`
	Reach    *Reach   `json:"reach,omitempty"` // of a segment, so that it need not be read to know what it holds
}

// Reach is what an entry says of a segment.
type Reach struct {
	Epoch    uint64    `json:"epoch"`
	First    Revision  `json:"first"`
	Last     Revision  `json:"last"`
	LastTime time.Time `json:"lastTime"`
	RollUp   bool      `json:"rollUp,omitempty"`
}
