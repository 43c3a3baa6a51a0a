package segment

import (
	"bytes"
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// What is read is what is written again, byte by byte.
func FuzzReader(f *testing.F) {
	whole := write(f, header, sample(f), 43)
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add(append(bytes.Clone(whole), 0))
	f.Add(write(f, Header{First: 1}, nil, 0))
	f.Add(raw(Header{First: 1}, put(f, 1, "a", ""), put(f, 3, "a", ""), end(3, 2)))
	f.Add(append(raw(Header{First: 1}), appendNumbers(nil, MaxRecord)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := read(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTruncated) {
				t.Fatal(err)
			}
			return
		}
		contiguous(t, records)
		r, err := NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		last := r.Header().First - 1
		for _, record := range records {
			if record.IsEvent() {
				last = record.Main
			}
		}
		if again := write(t, r.Header(), records, last); !bytes.Equal(again, b) {
			t.Fatalf("read %x, wrote %x", b, again)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	for _, r := range sample(f) {
		f.Add(AppendRecord(nil, r))
	}
	f.Add(AppendRecord(nil, Record{Kind: KindHeader, Header: header}))
	f.Add(AppendRecord(nil, end(43, 5)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRecord(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if again := AppendRecord(nil, r); !bytes.Equal(again, b) {
			t.Fatalf("parsed %x, appended %x", b, again)
		}
	})
}

// What the scan accepts, protobuf reads the same.
func FuzzFieldsOf(f *testing.F) {
	for _, r := range sample(f) {
		if r.IsEvent() {
			f.Add(r.KV)
		}
	}
	f.Add([]byte("\x0a\x01a\x0a\x01b\x3d1234\x41\x31\x32\x33\x34\x35\x36\x37\x38\x4a\x00"))
	f.Add([]byte("\x08\x01"))
	f.Add([]byte("\x0b\x0c"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := FieldsOf(b)
		if err != nil {
			return
		}
		var want mvccpb.KeyValue
		if err := proto.Unmarshal(b, &want); err != nil {
			t.Fatalf("accepted %x: %v", b, err)
		}
		if !bytes.Equal(got.Key, want.Key) || !bytes.Equal(got.Value, want.Value) || got.CreateRevision != want.CreateRevision ||
			got.ModRevision != want.ModRevision || got.Version != want.Version || got.Lease != want.Lease {
			t.Fatalf("%x: %+v instead of %v", b, got, &want)
		}
		key, keyErr := KeyOf(b)
		lease, leaseErr := LeaseOf(b)
		if keyErr != nil || leaseErr != nil || !bytes.Equal(key, want.Key) || lease != want.Lease {
			t.Fatalf("%x: key %x, lease %d", b, key, lease)
		}
		if tombstone := keyValue(t, &mvccpb.KeyValue{Key: want.Key}); len(want.Key) > 0 &&
			(!bytes.Equal(tombstone, AppendTombstone(nil, got.Key)) || len(tombstone) != tombstoneSize(got.Key)) {
			t.Fatalf("tombstone of %x", got.Key)
		}
	})
}
