package replay

import (
	"encoding/binary"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// database is an etcd database file as bbolt reads it.
type database struct {
	records   []change         // of the key bucket, in order
	leases    map[int64]int64  // id to granted seconds
	remaining map[int64]int64  // id to checkpointed seconds, where there are any
	meta      map[string]int64 // finishedCompactRev, scheduledCompactRev
}

// readDatabase reads a file without changing it. A snapshot file's hash
// trailer does not disturb.
func readDatabase(path string) (*database, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: 5 * time.Second})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	d := &database{leases: map[int64]int64{}, remaining: map[int64]int64{}, meta: map[string]int64{}}
	err = db.View(func(tx *bbolt.Tx) error {
		for problem := range tx.Check() {
			return fmt.Errorf("bbolt's check: %w", problem)
		}
		for _, name := range []string{"key", "lease", "meta"} {
			if tx.Bucket([]byte(name)) == nil {
				return fmt.Errorf("no bucket %s", name)
			}
		}
		if err := tx.Bucket([]byte("key")).ForEach(d.record); err != nil {
			return err
		}
		if err := tx.Bucket([]byte("lease")).ForEach(d.lease); err != nil {
			return err
		}
		for _, name := range []string{"finishedCompactRev", "scheduledCompactRev"} {
			if v := tx.Bucket([]byte("meta")).Get([]byte(name)); len(v) >= 8 {
				d.meta[name] = int64(binary.BigEndian.Uint64(v))
			}
		}
		return nil
	})
	return d, err
}

func (d *database) record(k, v []byte) error {
	if len(k) < 17 || k[8] != '_' || len(k) > 18 || len(k) == 18 && k[17] != 't' {
		return fmt.Errorf("record %x is no revision", k)
	}
	c := change{
		main: int64(binary.BigEndian.Uint64(k)), sub: int64(binary.BigEndian.Uint64(k[9:])), tombstone: len(k) == 18,
		raw: append([]byte(nil), v...), kv: &mvccpb.KeyValue{},
	}
	if err := proto.Unmarshal(c.raw, c.kv); err != nil {
		return fmt.Errorf("record %d/%d: %w", c.main, c.sub, err)
	}
	d.records = append(d.records, c)
	return nil
}

// lease reads a leasepb.Lease (etcd's server/lease/leasepb/lease.proto).
func (d *database) lease(k, v []byte) error {
	if len(k) != 8 {
		return fmt.Errorf("lease %x", k)
	}
	var fields [4]int64
	for len(v) > 0 {
		n, kind, size := protowire.ConsumeTag(v)
		if size < 0 || kind != protowire.VarintType || n > 3 {
			return fmt.Errorf("lease %x: field %d of kind %d", k, n, kind)
		}
		value, more := protowire.ConsumeVarint(v[size:])
		if more < 0 {
			return fmt.Errorf("lease %x: field %d", k, n)
		}
		fields[n], v = int64(value), v[size+more:]
	}
	id := int64(binary.BigEndian.Uint64(k))
	if fields[1] != id {
		return fmt.Errorf("lease %x holds id %x", k, fields[1])
	}
	d.leases[id] = fields[2]
	if fields[3] != 0 {
		d.remaining[id] = fields[3]
	}
	return nil
}

// last is the newest revision of any record.
func (d *database) last() int64 {
	if len(d.records) == 0 {
		return 0
	}
	return d.records[len(d.records)-1].main
}

// state is every key that is there.
func (d *database) state() map[string]*mvccpb.KeyValue {
	state := map[string]*mvccpb.KeyValue{}
	for _, c := range d.records {
		if c.tombstone {
			delete(state, string(c.kv.Key))
		} else {
			state[string(c.kv.Key)] = c.kv
		}
	}
	return state
}
