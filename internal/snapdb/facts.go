package snapdb

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

// Limits on what is copied out of a file. etcd itself allows far less.
const (
	maxMembers   = 1000
	maxAlarms    = 1000
	maxSmall     = 64 << 10 // bytes of a value in a small bucket
	maxProviders = 1000     // encryption providers and keys
	maxName      = 255      // bytes of a provider's, version's or key's name
)

// metaValues are those of the meta bucket.
type metaValues struct {
	index, term uint64
	storage     string
}

func (r *reader) readMetaBucket() error {
	v := &r.values
	return r.walkBucket(r.buckets["meta"], r.seen, func(e element) (err error) {
		switch string(e.key) {
		case "finishedCompactRev":
			r.finished, err = compactRevision(e)
		case "scheduledCompactRev":
			r.scheduled, err = compactRevision(e)
		case "consistent_index":
			v.index, err = uint64Value(e)
		case "term":
			v.term, err = uint64Value(e)
		case "storageVersion":
			v.storage, err = version(e)
		}
		return err
	})
}

func compactRevision(e element) (int64, error) {
	main, _, _, err := parseRevision(e.value)
	return main, err
}

func uint64Value(e element) (uint64, error) {
	if len(e.value) != 8 {
		return 0, corruptf("%s has %d bytes", e.key, len(e.value))
	}
	return binary.BigEndian.Uint64(e.value), nil
}

func version(e element) (string, error) {
	for _, c := range e.value {
		if len(e.value) > 64 || c <= ' ' || c > '~' {
			return "", corruptf("%s is %q", e.key, clip(e.value))
		}
	}
	return string(e.value), nil
}

// smallBuckets reads all known buckets but "key" and "meta" into f.
func (r *reader) smallBuckets(f *Facts) error {
	f.ConsistentIndex, f.Term, f.StorageVersion = r.values.index, r.values.term, r.values.storage
	if f.StorageVersion == "" && f.Term > 0 {
		// etcd 3.5 brought the term, 3.6 the storage version (etcd's
		// server/storage/schema/schema.go).
		f.StorageVersion = "3.5.0"
	}
	for _, b := range []struct {
		name string
		read func(element) error
	}{
		{"alarm", f.readAlarm},
		{"auth", f.readAuth},
		{"cluster", f.readCluster},
		{"lease", f.readLease},
		{"members", f.readMember},
	} {
		bucket, ok := r.buckets[b.name]
		if !ok {
			continue
		}
		err := r.walkBucket(bucket, r.seen, func(e element) error {
			if e.flags != 0 || len(e.value) > maxSmall || len(e.key) > maxSmall {
				return corruptf("bucket %s: flags %#x, a key of %d and a value of %d bytes", b.name, e.flags, len(e.key), len(e.value))
			}
			return b.read(e)
		})
		if err != nil {
			return err
		}
	}
	slices.SortFunc(f.Members, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	return nil
}

// readAlarm decodes an etcdserverpb.AlarmMember, which is the key: 1 member,
// 2 kind.
func (f *Facts) readAlarm(e element) error {
	var member, kind uint64
	for b := e.key; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 || typ != protowire.VarintType {
			return corruptf("alarm %x", clip(e.key))
		}
		b = b[n:]
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return corruptf("alarm %x", clip(e.key))
		}
		b = b[n:]
		switch num {
		case 1:
			member = v
		case 2:
			kind = v
		}
	}
	if len(f.Alarms) == maxAlarms {
		return corruptf("more than %d alarms", maxAlarms)
	}
	name := strconv.FormatUint(kind, 10)
	if names := []string{"NONE", "NOSPACE", "CORRUPT"}; kind < uint64(len(names)) {
		name = names[kind]
	}
	f.Alarms = append(f.Alarms, Alarm{Member: member, Kind: name})
	return nil
}

func (f *Facts) readAuth(e element) (err error) {
	switch string(e.key) {
	case "authEnabled":
		f.AuthEnabled = bytes.Equal(e.value, []byte{1})
	case "authRevision":
		f.AuthRevision, err = uint64Value(e)
	}
	return err
}

func (f *Facts) readCluster(e element) (err error) {
	if string(e.key) == "clusterVersion" {
		f.ClusterVersion, err = version(e)
	}
	return err
}

func (f *Facts) readLease(e element) error {
	if len(e.key) != 8 {
		return corruptf("lease %x", clip(e.key))
	}
	f.Leases++
	return nil
}

func (f *Facts) readMember(e element) error {
	var m struct {
		ID         uint64   `json:"id"`
		Name       string   `json:"name"`
		PeerURLs   []string `json:"peerURLs"`
		ClientURLs []string `json:"clientURLs"`
		Learner    bool     `json:"isLearner"`
	}
	if err := json.Unmarshal(e.value, &m); err != nil {
		return corruptf("member %q: %v", clip(e.key), err)
	}
	// The key is the authority, as it is for etcd.
	id, err := strconv.ParseUint(string(e.key), 16, 64)
	if err != nil {
		return corruptf("member %q: not an id", clip(e.key))
	}
	if len(f.Members) == maxMembers {
		return corruptf("more than %d members", maxMembers)
	}
	f.Members = append(f.Members, Member{ID: id, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, Learner: m.Learner})
	return nil
}

// counter gathers facts from the records as they go by.
type counter struct {
	facts      *Facts
	never      bool  // the file was never compacted
	created    int64 // never compacted: creations less deletions, which is what is alive
	encryption encryption
}

func (c *counter) count(r *record, counts bool) {
	f := c.facts
	f.Revisions++
	switch {
	case r.tombstone:
		f.Tombstones++
		c.created--
	case r.marker:
		f.BumpedTo = r.main
	default:
		if r.version == 1 {
			c.created++
		}
		if counts && bytes.HasPrefix(r.value, encryptionPrefix) {
			c.encryption.add(r.key, r.value)
		}
	}
}

var encryptionPrefix = []byte("k8s:enc:")

// encryption counts by prefix.
type encryption struct {
	byPrefix map[string]*EncryptionUse
	last     []byte // the prefix before: mostly the next one's too
	lastUse  *EncryptionUse
}

func (n *encryption) add(key, value []byte) {
	if len(n.last) > 0 && bytes.HasPrefix(value, n.last) {
		n.lastUse.Count++
		return
	}
	// k8s:enc:aescbc:v1:key1:...
	prefix, fresh := []byte(nil), EncryptionUse{Provider: "unknown"}
	rest := value[len(encryptionPrefix):min(len(value), len(encryptionPrefix)+3*(maxName+1))]
	if parts := bytes.SplitN(rest, []byte(":"), 4); len(parts) == 4 {
		prefix = value[:len(encryptionPrefix)+len(rest)-len(parts[3])]
		fresh = EncryptionUse{Provider: string(parts[0]), Version: string(parts[1]), Key: string(parts[2])}
	}
	use := n.byPrefix[string(prefix)]
	if use == nil {
		if len(n.byPrefix) == maxProviders {
			return // a hostile file: a cluster has a few
		}
		if n.byPrefix == nil {
			n.byPrefix = map[string]*EncryptionUse{}
		}
		fresh.Example = string(key[:min(len(key), 4<<10)])
		use = &fresh
		n.byPrefix[string(prefix)] = use
	}
	use.Count++
	n.last, n.lastUse = prefix, use
}

func (n *encryption) list() []EncryptionUse {
	var all []EncryptionUse
	for _, u := range n.byPrefix {
		all = append(all, *u)
	}
	slices.SortFunc(all, func(a, b EncryptionUse) int {
		return cmp.Or(cmp.Compare(a.Provider, b.Provider), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Key, b.Key))
	})
	return all
}
