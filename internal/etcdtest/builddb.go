package etcdtest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/encoding/protowire"
)

// BuildOptions say what BuildDB writes.
type BuildOptions struct {
	Objects    int    // how many are created; 1000 when 0
	Bytes      int64  // instead of Objects: until this many bytes of values are written
	ValueBytes int    // mean size of a value; 1500 when 0
	Seed       uint64 // same seed, same file
	Changes    int    // updates, one in ten a deletion, after the compaction; a tenth of the objects when 0, none when negative
	Trailer    bool   // append the SHA-256 that makes a snapshot of a database file
	Storage    string // storage version; "3.6.0" when empty
}

// BuildResult says what BuildDB wrote.
type BuildResult struct {
	Revision        int64
	CompactRevision int64
	Live            int64 // keys
	Size            int64 // of the file
}

const buildLease = 0x70726f6265

// BuildDB writes a database file as etcd would have left it after creating
// all objects, a compaction, and some changes, without the time that a server
// takes: about 150 MB a second. etcdutl restores it and etcd starts from it.
func BuildDB(path string, opts BuildOptions) (res *BuildResult, err error) {
	if opts.ValueBytes == 0 {
		opts.ValueBytes = 1500
	}
	if opts.Objects == 0 && opts.Bytes == 0 {
		opts.Objects = 1000
	}
	if opts.Storage == "" {
		opts.Storage = "3.6.0"
	}
	// As etcd opens its own: no free list on disk, pages filled to nine tenths.
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, NoFreelistSync: true, NoGrowSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", path, err)
	}
	b := &builder{db: db, opts: opts, revision: 1}
	err = b.build()
	var used int64
	if err == nil {
		err = db.View(func(tx *bbolt.Tx) error { used = tx.Size(); return nil })
	}
	err = errors.Join(err, db.Close())
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", path, err)
	}
	res = &BuildResult{Revision: b.revision, CompactRevision: b.compact, Live: b.live}
	if res.Size, err = finishFile(path, used, opts.Trailer); err != nil {
		return nil, fmt.Errorf("build %s: %w", path, err)
	}
	return res, nil
}

type builder struct {
	db       *bbolt.DB
	tx       *bbolt.Tx
	keys     *bbolt.Bucket
	opts     BuildOptions
	revision int64
	compact  int64
	live     int64
	bytes    int64
	pending  int64
	kv, val  []byte
}

func (b *builder) build() error {
	defer func() {
		if b.tx != nil {
			_ = b.tx.Rollback() // an earlier error is the one to report
		}
	}()
	err := b.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{"key", "meta", "lease", "alarm", "cluster", "members", "members_removed", "auth", "authUsers", "authRoles"} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	n := 0
	for ; n < b.opts.Objects || b.bytes < b.opts.Bytes; n++ {
		if err := b.put(object{b.opts.Seed, uint64(n)}, 1, 0); err != nil {
			return err
		}
	}
	b.live = int64(n)
	b.compact = b.revision
	changes := b.opts.Changes
	if changes == 0 {
		changes = n / 10
	}
	for i := range changes {
		o := object{b.opts.Seed, uint64(i)}
		if i >= n { // by now all objects have changed once
			break
		}
		created := int64(i) + 2
		if i%10 == 9 {
			err = b.delete(o)
			b.live--
		} else {
			err = b.put(o, 2, created)
		}
		if err != nil {
			return err
		}
	}
	if err := b.flush(); err != nil {
		return err
	}
	return b.db.Update(b.finish)
}

// put writes the next revision. created is 0 for a new key.
func (b *builder) put(o object, version int, created int64) error {
	b.revision++
	if created == 0 {
		created = b.revision
	}
	b.val = o.value(b.val[:0], version, b.opts.ValueBytes)
	kv := protowire.AppendTag(b.kv[:0], 1, protowire.BytesType)
	kv = protowire.AppendString(kv, o.key())
	for field, v := range []int64{2: created, 3: b.revision, 4: int64(version)} {
		if field >= 2 {
			kv = protowire.AppendTag(kv, protowire.Number(field), protowire.VarintType)
			kv = protowire.AppendVarint(kv, uint64(v))
		}
	}
	kv = protowire.AppendTag(kv, 5, protowire.BytesType)
	kv = protowire.AppendBytes(kv, b.val)
	if o.leased() {
		kv = protowire.AppendTag(kv, 6, protowire.VarintType)
		kv = protowire.AppendVarint(kv, buildLease)
	}
	b.kv = kv
	b.bytes += int64(len(b.val))
	return b.write(revisionKey(b.revision), kv)
}

func (b *builder) delete(o object) error {
	b.revision++
	kv := protowire.AppendTag(b.kv[:0], 1, protowire.BytesType)
	b.kv = protowire.AppendString(kv, o.key())
	return b.write(append(revisionKey(b.revision), 't'), b.kv)
}

func (b *builder) write(key, value []byte) error {
	if b.tx == nil {
		tx, err := b.db.Begin(true)
		if err != nil {
			return err
		}
		b.tx, b.keys = tx, tx.Bucket([]byte("key"))
		b.keys.FillPercent = 0.9
	}
	// bbolt keeps the value until the commit.
	if err := b.keys.Put(key, append([]byte(nil), value...)); err != nil {
		return err
	}
	if b.pending += int64(len(value)); b.pending < 16<<20 {
		return nil
	}
	return b.flush()
}

func (b *builder) flush() error {
	if b.tx == nil {
		return nil
	}
	tx := b.tx
	b.tx, b.pending = nil, 0
	return tx.Commit()
}

// finish writes all that is not keys.
func (b *builder) finish(tx *bbolt.Tx) error {
	const member = "8e9e05c52164694d"
	number := func(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
	memberJSON, err := json.Marshal(map[string]any{
		"id": uint64(0x8e9e05c52164694d), "name": "cp1",
		"peerURLs": []string{"https://10.0.0.1:2380"}, "clientURLs": []string{"https://10.0.0.1:2379"},
	})
	if err != nil {
		return err
	}
	lease := protowire.AppendTag(nil, 1, protowire.VarintType)
	lease = protowire.AppendVarint(lease, buildLease)
	lease = protowire.AppendTag(lease, 2, protowire.VarintType)
	lease = protowire.AppendVarint(lease, 3600)
	for _, e := range []struct {
		bucket, key string
		value       []byte
	}{
		{"meta", "consistent_index", number(uint64(b.revision) + 10)},
		{"meta", "term", number(2)},
		{"meta", "confState", []byte(`{"voters":[10276657743932975437],"auto_leave":false}`)},
		{"meta", "storageVersion", []byte(b.opts.Storage)},
		{"meta", "scheduledCompactRev", revisionKey(b.compact)},
		{"meta", "finishedCompactRev", revisionKey(b.compact)},
		{"cluster", "clusterVersion", []byte(b.opts.Storage)},
		{"members", member, memberJSON},
		{"auth", "authEnabled", []byte{0}},
		{"auth", "authRevision", number(1)},
		{"lease", string(number(buildLease)), lease},
	} {
		if e.key == "storageVersion" && e.value[2] == '5' {
			continue // etcd 3.5 writes none
		}
		if err := tx.Bucket([]byte(e.bucket)).Put([]byte(e.key), e.value); err != nil {
			return err
		}
	}
	return nil
}

// revisionKey is the key of a revision in the key bucket: etcd's
// server/storage/mvcc/revision.go.
func revisionKey(main int64) []byte {
	k := binary.BigEndian.AppendUint64(make([]byte, 0, 18), uint64(main))
	return binary.BigEndian.AppendUint64(append(k, '_'), 0)
}

// finishFile cuts what bbolt allocated beyond the last page in use, as a
// snapshot does, appends the trailer where one is wanted, and returns the size.
func finishFile(path string, used int64, trailer bool) (size int64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(used); err != nil {
		return 0, err
	}
	if !trailer {
		return used, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return 0, err
	}
	n, err := f.Write(h.Sum(nil))
	return used + int64(n), err
}
