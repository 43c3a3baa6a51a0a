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
	Heads          []Head     `json:"heads,omitempty"` // of the writer's other chains and stores, as witnesses
	Etcd           *Etcd      `json:"etcd,omitempty"`  // fulls
	Host           *Host      `json:"host,omitempty"`  // files
	Span           *Span      `json:"span,omitempty"`  // segments
	Prune          *Prune     `json:"prune,omitempty"` // prunes
	Proof          *Proof     `json:"proof,omitempty"` // proofs
	Rekey          *Rekey     `json:"rekey,omitempty"` // rekeys
	Imported       string     `json:"imported,omitempty"`
	Copied         *Head      `json:"copied,omitempty"` // where this was copied from: store, sequence and hash there
	Objects        []Object   `json:"objects,omitempty"`
	Index          []Entry    `json:"index,omitempty"` // fulls: the live entries of the chain before this one
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

// Host holds what may be known of a node's files without unsealing them.
type Host struct {
	Node  string `json:"node"`
	Files int    `json:"files"`
	Bytes int64  `json:"bytes"`
}

// Span is the contiguous span of revisions in a segment.
type Span struct {
	First       Revision   `json:"first"`
	Last        Revision   `json:"last"`
	FirstTime   time.Time  `json:"firstTime"`
	LastTime    time.Time  `json:"lastTime"`
	Compactions []Revision `json:"compactions,omitempty"`
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
)

// Entry names an earlier manifest of the same chain.
type Entry struct {
	Sequence Sequence `json:"sequence"`
	Hash     Hash     `json:"hash"` // of its text
	Kind     Kind     `json:"kind"`
	ID       ID       `json:"id"`
}
