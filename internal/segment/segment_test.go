package segment

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

func keyValue(t testing.TB, kv *mvccpb.KeyValue) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(kv)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t testing.TB, main int64, key, value string) Record {
	t.Helper()
	return Record{Kind: KindPut, Main: main, KV: keyValue(t, &mvccpb.KeyValue{
		Key: []byte(key), Value: []byte(value), CreateRevision: main, ModRevision: main, Version: 1,
	})}
}

func remove(main int64, key string) Record {
	return Record{Kind: KindDelete, Main: main, KV: AppendTombstone(nil, []byte(key))}
}

var header = Header{ClusterID: 0xcdf818194e3a8c32, MemberID: 0x8e9e05c52164694d, First: 41, At: 1767225600000}

// sample has every kind of record, a revision of three events, extreme numbers
// and a negative lease id.
func sample(t testing.TB) []Record {
	return []Record{
		{Kind: KindTime, Time: Moment{At: 1767225600001, AtLeast: 40, AtMost: 41}},
		put(t, 41, "/registry/pods/a", "one"),
		{Kind: KindLease, Lease: Lease{ID: 7587895512345678901, TTL: 3600, Revision: 42}},
		{Kind: KindPut, Main: 42, KV: keyValue(t, &mvccpb.KeyValue{
			Key: []byte("leased"), CreateRevision: 3, ModRevision: 42, Version: 9, Lease: 7587895512345678901,
		})},
		remove(42, "/registry/pods/b"),
		put(t, 42, "\x00\xff", ""),
		{Kind: KindCompaction, Compaction: Compaction{Revision: 30, Head: 42, At: math.MaxInt64}},
		{Kind: KindHash, Hash: Hash{Revision: 30, Compact: 20, HashKV: 0xdeadbeef, Member: 0xb71f75320dc06a6c}},
		{Kind: KindLease, Lease: Lease{ID: -5, TTL: 60, Synthetic: true, Revision: 43}},
		remove(43, strings.Repeat("k", 200)),
		{Kind: KindTime, Time: Moment{At: 1767225601001, AtLeast: 43, AtMost: 43}},
	}
}

func write(t testing.TB, h Header, records []Record, last int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, h)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(last); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// read gives copies of all records, and the error that ended it: nil for a
// whole segment.
func read(from io.Reader) (records []Record, err error) {
	r, err := NewReader(from)
	if err != nil {
		return nil, err
	}
	for {
		record, err := r.Next()
		if err != nil {
			if _, again := r.Next(); !errors.Is(again, err) {
				return records, fmt.Errorf("after %w, Next says %w", err, again)
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return records, err
		}
		record.KV = bytes.Clone(record.KV)
		records = append(records, record)
	}
}

func TestASegmentReadsAsWritten(t *testing.T) {
	want := sample(t)
	b := write(t, header, want, 43)
	for name, from := range map[string]io.Reader{
		"at once": bytes.NewReader(b), "byte by byte": iotest.OneByteReader(bytes.NewReader(b)),
		"with the end at once": iotest.DataErrReader(bytes.NewReader(b)),
	} {
		got, err := read(from)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	r, err := NewReader(bytes.NewReader(b))
	if err != nil || r.Header() != header {
		t.Errorf("header %+v, error %v", r.Header(), err)
	}
}

// The bytes are those of docs/segments.md. A change here is a new version.
func TestTheFormatStaysAsItIs(t *testing.T) {
	path := filepath.Join("testdata", "version1.hex")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var plain strings.Builder
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		plain.WriteString(strings.Join(strings.Fields(line), ""))
	}
	want, err := hex.DecodeString(plain.String())
	if err != nil {
		t.Fatal(err)
	}
	records := []Record{
		{Kind: KindTime, Time: Moment{At: 1767225600001, AtLeast: 40, AtMost: 41}},
		{Kind: KindPut, Main: 41, KV: keyValue(t, &mvccpb.KeyValue{
			Key: []byte("a"), CreateRevision: 41, ModRevision: 41, Version: 1, Value: []byte("one"), Lease: 7,
		})},
		remove(41, "b"),
		{Kind: KindLease, Lease: Lease{ID: 7, TTL: 3600, Revision: 41}},
		{Kind: KindCompaction, Compaction: Compaction{Revision: 30, Head: 41, At: 1767225600500}},
		{Kind: KindHash, Hash: Hash{Revision: 30, Compact: 20, HashKV: 0xdeadbeef, Member: 0xb71f75320dc06a6c}},
	}
	if got := write(t, header, records, 41); !bytes.Equal(got, want) {
		t.Errorf("written:\n%s\nin %s:\n%s", hex.Dump(got), path, hex.Dump(want))
	}
}

func TestAnEmptySegmentMovesTimeOnly(t *testing.T) {
	moment := Record{Kind: KindTime, Time: Moment{At: 5, AtLeast: 40, AtMost: 40}}
	b := write(t, header, []Record{moment}, 40)
	got, err := read(bytes.NewReader(b))
	if err != nil || len(got) != 1 || got[0].Time != moment.Time {
		t.Errorf("got %+v, error %v", got, err)
	}
	if _, err := read(bytes.NewReader(write(t, Header{First: 1}, nil, 0))); err != nil {
		t.Errorf("of a new cluster: %v", err)
	}
}

func TestASegmentCutAnywhereIsTruncated(t *testing.T) {
	whole := write(t, header, sample(t), 43)
	for n := range whole {
		if _, err := read(bytes.NewReader(whole[:n])); !errors.Is(err, ErrTruncated) || errors.Is(err, ErrMalformed) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(whole), err)
		}
	}
}

func TestBytesBehindTheEndAreMalformed(t *testing.T) {
	whole := write(t, header, sample(t), 43)
	for _, more := range []string{"\x00", "\x08", string(whole)} {
		if _, err := read(strings.NewReader(string(whole) + more)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d bytes more: %v", len(more), err)
		}
	}
}

// The seal finds flipped bytes; the reader must only not fall for them.
func TestNoFlippedByteMakesTheReaderPanicOrAcceptAHole(t *testing.T) {
	whole := write(t, header, sample(t), 43)
	for at := range whole {
		for _, bit := range []byte{0x01, 0x10, 0x80, 0xff} {
			b := bytes.Clone(whole)
			b[at] ^= bit
			if records, err := read(bytes.NewReader(b)); err == nil {
				contiguous(t, records)
			} else if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTruncated) {
				t.Fatalf("byte %d ^ %x: %v", at, bit, err)
			}
		}
	}
}

// contiguous fails if a whole segment's records have a hole.
func contiguous(t *testing.T, records []Record) {
	t.Helper()
	last := int64(0)
	for _, r := range records {
		if r.IsEvent() {
			if last != 0 && r.Main != last && r.Main != last+1 {
				t.Fatalf("revision %d after %d", r.Main, last)
			}
			last = r.Main
		}
	}
}

// raw assembles a segment from records that the writer would refuse.
func raw(h Header, records ...Record) []byte {
	b := []byte(Magic + "\x01")
	for _, r := range append([]Record{{Kind: KindHeader, Header: h}}, records...) {
		b = append(b, frame(AppendRecord(nil, r))...)
	}
	return b
}

func frame(record []byte) []byte {
	return append(appendNumbers(nil, int64(len(record))), record...)
}

func end(last, events int64) Record {
	return Record{Kind: KindEnd, End: End{Last: last, Events: events}}
}

func TestWriterAndReaderHoldToTheRules(t *testing.T) {
	kv := func(kv *mvccpb.KeyValue) []byte { return keyValue(t, kv) }
	for name, test := range map[string]struct {
		first   int64
		records []Record
		last    int64
	}{
		"a hole":                       {1, []Record{put(t, 1, "a", ""), put(t, 3, "a", "")}, 3},
		"a hole at the beginning":      {1, []Record{put(t, 2, "a", "")}, 2},
		"a revision from before":       {2, []Record{put(t, 1, "a", ""), put(t, 2, "a", "")}, 2},
		"a revision again":             {1, []Record{put(t, 1, "a", ""), put(t, 2, "a", ""), put(t, 1, "b", "")}, 2},
		"an end too early":             {1, []Record{put(t, 1, "a", ""), put(t, 2, "a", "")}, 1},
		"an end too late":              {1, []Record{put(t, 1, "a", "")}, 2},
		"an end of nothing, too late":  {5, nil, 5},
		"an end of nothing, too early": {5, nil, 3},
		"revision 0":                   {0, []Record{put(t, 0, "a", "")}, 0},
		"a negative revision":          {-3, []Record{put(t, -3, "a", "")}, -3},
		"revisions that overflow":      {math.MinInt64, nil, math.MaxInt64},
		"a put of another revision":    {1, []Record{{Kind: KindPut, Main: 1, KV: kv(&mvccpb.KeyValue{Key: []byte("a"), ModRevision: 2})}}, 1},
		"a put without a key":          {1, []Record{{Kind: KindPut, Main: 1, KV: kv(&mvccpb.KeyValue{ModRevision: 1})}}, 1},
		"a put of nothing":             {1, []Record{{Kind: KindPut, Main: 1}}, 1},
		"a put of junk":                {1, []Record{{Kind: KindPut, Main: 1, KV: []byte("junk")}}, 1},
		"a delete with a revision":     {1, []Record{{Kind: KindDelete, Main: 1, KV: kv(&mvccpb.KeyValue{Key: []byte("a"), ModRevision: 1})}}, 1},
		"a delete of nothing":          {1, []Record{{Kind: KindDelete, Main: 1}}, 1},
		"a delete of an empty key":     {1, []Record{{Kind: KindDelete, Main: 1, KV: AppendTombstone(nil, nil)}}, 1},
		"a second header":              {1, []Record{{Kind: KindHeader, Header: Header{First: 1}}}, 0},
		"an early end":                 {1, []Record{end(0, 0)}, 0},
		"no kind":                      {1, []Record{{}}, 0},
		"an unknown kind":              {1, []Record{{Kind: 9}}, 0},
		"a negative time":              {1, []Record{{Kind: KindTime, Time: Moment{At: -1}}}, 0},
		"a negative TTL":               {1, []Record{{Kind: KindLease, Lease: Lease{TTL: -1}}}, 0},
		"a negative compaction":        {1, []Record{{Kind: KindCompaction, Compaction: Compaction{Head: -1}}}, 0},
		"a negative hash":              {1, []Record{{Kind: KindHash, Hash: Hash{Compact: -1}}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tryWrite(Header{First: test.first}, test.records, test.last); !errors.Is(err, ErrMalformed) {
				t.Errorf("written: %v", err)
			}
			events := int64(0)
			for _, r := range test.records {
				if r.IsEvent() {
					events++
				}
			}
			b := raw(Header{First: test.first}, append(test.records, end(test.last, events))...)
			if _, err := read(bytes.NewReader(b)); !errors.Is(err, ErrMalformed) {
				t.Errorf("read: %v", err)
			}
		})
	}
}

func tryWrite(h Header, records []Record, last int64) error {
	w, err := NewWriter(io.Discard, h)
	if err != nil {
		return err
	}
	for _, r := range records {
		if err := w.Write(r); err != nil {
			if again := w.Close(last); !errors.Is(again, err) {
				return fmt.Errorf("a failed writer was closed: %w", again)
			}
			return err
		}
	}
	return w.Close(last)
}

func TestTheReaderRefusesWhatNoWriterWrites(t *testing.T) {
	good := put(t, 1, "a", "")
	h := Header{First: 1}
	begin := Magic + "\x01"
	for name, b := range map[string][]byte{
		"another magic":                 []byte("lifeboat event\n\x01\x00"),
		"something short":               []byte("PK"),
		"another version":               []byte(Magic + "\x02"),
		"no header":                     append([]byte(begin), frame(AppendRecord(nil, good))...),
		"an empty record":               []byte(begin + "\x00"),
		"an endless record":             []byte(begin + "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
		"an endless length":             append([]byte(begin), bytes.Repeat([]byte{0x80}, 99)...),
		"a record over the limit":       append([]byte(begin), appendNumbers(nil, MaxRecord+1)...),
		"a length in a longer form":     append(raw(h), "\x83\x00\x08\x00\x00"...), // else it is a good end
		"a number in a longer form":     append([]byte(begin), frame(append(make([]byte, 0), "\x01AAAAAAAABBBBBBBB\x81\x00\x00"...))...),
		"a wrong count":                 raw(h, good, end(1, 2)),
		"a wrong count of none":         raw(h, end(0, 1)),
		"a time with more bytes":        append(raw(h), frame([]byte("\x04\x00\x00\x00\x00"))...),
		"a time with fewer bytes":       append(raw(h), frame([]byte("\x04\x00\x00"))...),
		"a lease neither true nor so":   append(raw(h), frame([]byte("\x05AAAAAAAA\x02\x00\x00"))...),
		"a number over 63 bits":         append(raw(h), frame([]byte("\x04\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))...),
		"a delete in a longer form":     append(raw(h), frame([]byte("\x03\x01\x0a\x81\x00a"))...),
		"a delete with two keys":        append(raw(h), frame([]byte("\x03\x01\x0a\x01a\x0a\x01b"))...),
		"a delete with a field, unread": append(raw(h), frame([]byte("\x03\x01\x0a\x01a\x38\x01"))...),
	} {
		if _, err := read(bytes.NewReader(b)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestALongRecordIsReadAndItsLengthAloneTakesNoMemory(t *testing.T) {
	big := put(t, 1, "big", strings.Repeat("x", 5<<20))
	b := write(t, Header{First: 1}, []Record{big, put(t, 2, "small", "")}, 2)
	got, err := read(bytes.NewReader(b))
	if err != nil || len(got) != 2 || !bytes.Equal(got[0].KV, big.KV) {
		t.Fatalf("%d records, error %v", len(got), err)
	}
	r, err := NewReader(bytes.NewReader(b))
	for range 2 {
		if err == nil {
			_, err = r.Next()
		}
	}
	if err != nil || cap(r.scratch) > step {
		t.Errorf("%d bytes of memory for a short record behind a long one, error %v", cap(r.scratch), err)
	}
	lie := append(raw(Header{First: 1}), appendNumbers(nil, MaxRecord)...)
	lie = append(lie, byte(KindPut))
	r, err = NewReader(bytes.NewReader(lie))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); !errors.Is(err, ErrTruncated) {
		t.Errorf("got %v", err)
	}
	if cap(r.scratch) > 2*step {
		t.Errorf("%d bytes of memory for a length", cap(r.scratch))
	}
	// Of which the key-value's own fields, revision and type take a few bytes.
	room := make([]byte, MaxRecord)
	for size, fits := range map[int]bool{MaxRecord - 64: true, MaxRecord: false} {
		kv := append([]byte("\x0a\x01a\x20\x01\x18\x01\x2a"), appendNumbers(nil, int64(size))...)
		r := Record{Kind: KindPut, Main: 1, KV: append(kv, room[:size]...)}
		if err := tryWrite(Header{First: 1}, []Record{r}, 1); fits != (err == nil) || !fits && !errors.Is(err, ErrMalformed) {
			t.Errorf("a value of %d bytes: %v", size, err)
		}
	}
}

func TestErrorsBelowAreHandedOn(t *testing.T) {
	broken := errors.New("tampered")
	whole := write(t, header, sample(t), 43)
	for _, n := range []int{0, 5, 20, len(whole) / 2, len(whole)} { // the last: where only the end is missing
		_, err := read(io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) || errors.Is(err, ErrTruncated) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
	w, err := NewWriter(failing{broken}, header)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(40); !errors.Is(err, broken) {
		t.Errorf("close: %v", err)
	}
	if err := w.Close(40); err == nil {
		t.Error("closed twice")
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
