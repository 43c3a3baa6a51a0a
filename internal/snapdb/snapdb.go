// Package snapdb reads etcd database files: what a snapshot holds, whether it
// is whole, and which HashKV the members should answer for it.
//
// It reads with a page walker of its own and not with bbolt, which panics on
// damaged pages and whose check keeps a map entry a page; the reasons are in
// docs/decisions/0002-own-page-walker.md. The walker is safe on any input: it
// ends, does not panic, and takes no more time than the file's size warrants.
// Nothing here writes, opens etcd's store, or holds more in memory than a bit
// a page and, where HashKV's rules ask for it, 10 to 14 bytes a key.
//
// Start at Inspect.
package snapdb

import (
	"context"
	"errors"
	"fmt"
)

// Errors that callers tell apart.
var (
	ErrCorrupt   = errors.New("corrupt etcd database")
	ErrNoTrailer = errors.New("no hash at the end of the file")
	ErrCompacted = errors.New("already compacted") // HashKV: the file no longer holds what the hash is over
	ErrFuture    = errors.New("revision to come")  // HashKV: the file ends before the revision
)

func corruptf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// Options configure Inspect. The zero value is ready to use.
type Options struct {
	// Progress is called now and then with the bytes seen and the bytes to
	// see, and with both equal at the end.
	Progress func(done, total int64)

	// LastRevision is called once, when all else was found good, with what the
	// file's last revision has done, in the order of its operations: what a watch
	// tells of that revision. The records are part of the file and go with the
	// call. It is not called where that can't be known: the file is empty, a
	// compaction has reached the revision and may have removed some of it, or it
	// is a mark that a revision bump has left.
	LastRevision func(main int64, records []LastRecord)
}

// LastRecord is one operation on one key.
type LastRecord struct {
	Tombstone bool
	KV        []byte // a marshaled mvccpb.KeyValue; of a tombstone, with the key alone
}

// Facts are what a database file says about itself.
type Facts struct {
	Size       int64 // bytes of the file
	DBBytes    int64 // bytes without the trailer
	HasTrailer bool  // a SHA-256 is at the end; VerifyTrailer checks it
	PageSize   int64
	Pages      int64 // in use or free
	FreePages  int64
	// DamagedMeta says that one of the two meta pages is not valid. bbolt
	// opens such a file, but a snapshot never has one.
	DamagedMeta bool

	// Revision is exact: the largest of the last key's and the two of compactions.
	Revision int64
	// CompactRevision is what a member started from this file would compare
	// by: the larger of the next two, or -1, as etcd has it, when never compacted.
	CompactRevision  int64
	FinishedCompact  int64 // 0 when there was none
	ScheduledCompact int64 // 0 when there was none
	// HashKV is as of Revision and CompactRevision. While a compaction is
	// unfinished and no key is alive, members' own answers depend on how far
	// each of them is; this is then the answer of one that has finished.
	HashKV uint32

	Keys       int64 // alive at Revision
	Revisions  int64 // stored, deletions included
	Tombstones int64 // stored deletions
	// BumpedTo is the revision of the newest mark that a restore with a
	// revision bump leaves, a key with an empty value; 0 when there is none.
	BumpedTo int64

	// StorageVersion is "3.6.0" or the like. 3.5 stores none and is told by its
	// fields ("3.5.0"); nothing is known of older ones (""). A member of 3.6 or
	// later stores its own only some seconds after its first raft snapshot and
	// looks like 3.5 until then: ask ClusterVersion too.
	StorageVersion  string
	ClusterVersion  string // "" when not stored
	ConsistentIndex uint64
	Term            uint64
	AuthEnabled     bool
	AuthRevision    uint64
	Leases          int64
	Alarms          []Alarm
	Members         []Member // by id
	Encryption      []EncryptionUse
}

// UnfinishedCompaction says that a compaction had begun and not ended. A member
// started from this file goes on with it.
func (f *Facts) UnfinishedCompaction() bool { return f.ScheduledCompact > f.FinishedCompact }

// Alarm is an alarm as stored.
type Alarm struct {
	Member uint64
	Kind   string // "NOSPACE", "CORRUPT"
}

// Member is a member as stored. Its client URLs and name are missing until it
// has started once.
type Member struct {
	ID         uint64
	Name       string
	PeerURLs   []string
	ClientURLs []string
	Learner    bool
}

// EncryptionUse counts what kube-apiserver has encrypted with one key, by the
// prefix "k8s:enc:<provider>:<version>:<key>:" of the value.
type EncryptionUse struct {
	Provider string // "aescbc", "aesgcm", "secretbox", "kms"
	Version  string // "v1"; "v2" for the newer KMS interface
	Key      string // the key's name; the plugin's for kms
	Count    int64  // stored revisions; of those up to the compact revision, only current ones
	Example  string // an etcd key
}

// Inspect reads the whole file once, in the order of its trees, and returns
// what it says. It checks every page (each is reached once or is free, the
// keys ascend), every revision's form, and computes HashKV as of the file's own
// revision and compact revision. Any damage it meets is ErrCorrupt. HashKV does
// not cover revisions that a compaction has given up or, up to the compact
// revision, that were changed later; nothing but the trailer does.
//
// The file must not change meanwhile.
func Inspect(ctx context.Context, path string, opts Options) (*Facts, error) {
	var facts *Facts
	err := withFile(path, func(data []byte, size int64) (err error) {
		facts, err = inspect(ctx, data, opts)
		if err == nil {
			facts.Size, facts.HasTrailer = size, size != int64(len(data))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("inspect etcd database %s: %w", path, err)
	}
	return facts, nil
}

// HashKV computes the hash that members would answer for revision rev when
// their compact revision is compactRev (0 or less: never compacted). The file
// may go beyond rev and be compacted less far; it is ErrFuture when it ends
// before rev, and ErrCompacted when it was compacted further than compactRev.
// It takes up to 14 bytes a key when compactRev is above what the file was
// compacted to, else as much for keys changed after compactRev.
func HashKV(ctx context.Context, path string, rev, compactRev int64) (uint32, error) {
	sum, _, err := hashKV(ctx, path, rev, compactRev)
	return sum, err
}

// CheckHashKV compares a file with a hash that members gave, and says what the
// file's is. It is HashKV but for this: a member that compacts keeps the hash of
// that revision and answers with it, and when then no key is alive and the last
// one was deleted by just that revision, it is another one than a scan gives
// (etcd's kvstore_compaction.go: its set of revisions to keep holds the
// deletion and is not empty). Either is right.
func CheckHashKV(ctx context.Context, path string, rev, compactRev int64, want uint32) (got uint32, same bool, err error) {
	got, kept, err := hashKV(ctx, path, rev, compactRev)
	return got, err == nil && (got == want || kept == want), err
}

// hashKV computes what a scan gives and what is kept of a compaction at rev.
func hashKV(ctx context.Context, path string, rev, compactRev int64) (scan, kept uint32, err error) {
	err = withFile(path, func(data []byte, _ int64) error {
		r, err := openDatabase(ctx, data, nil)
		if err != nil {
			return err
		}
		at := point{rev: rev, compact: compactRev}
		if err := at.check(r.revision, r.compacted()); err != nil {
			return err
		}
		h, err := r.hash(at, nil)
		if err != nil {
			return err
		}
		scan, kept = h.sum(), h.afterCompaction()
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("hash etcd database %s: %w", path, err)
	}
	return scan, kept, nil
}

func inspect(ctx context.Context, data []byte, opts Options) (*Facts, error) {
	r, err := openDatabase(ctx, data, opts.Progress)
	if err != nil {
		return nil, err
	}
	f := &Facts{
		DBBytes: int64(len(data)), PageSize: int64(r.pageSize), Pages: int64(r.pages), DamagedMeta: r.damaged > 0,
		Revision: r.revision, CompactRevision: r.compacted(),
		FinishedCompact: r.finished, ScheduledCompact: r.scheduled,
	}
	if err := r.smallBuckets(f); err != nil {
		return nil, err
	}
	c := counter{facts: f, never: f.CompactRevision <= 0}
	h, err := r.hash(point{rev: f.Revision, compact: f.CompactRevision}, c.count)
	if err != nil {
		return nil, err
	}
	f.HashKV = h.sum()
	if f.Keys = h.live; c.never {
		f.Keys = max(0, c.created)
	}
	f.Encryption = c.encryption.list()
	if f.FreePages, err = r.checkPages(r.seen); err != nil {
		return nil, err
	}
	if opts.LastRevision != nil {
		if err := r.tellLast(opts.LastRevision); err != nil {
			return nil, err
		}
	}
	if opts.Progress != nil {
		total := int64(r.pages * r.pageSize)
		opts.Progress(total, total)
	}
	return f, nil
}
