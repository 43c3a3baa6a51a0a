package salvage

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// size is what is known of bytes that are taken for a file.
type size int64

func (s size) Name() string       { return "fuzz.wal" }
func (s size) Size() int64        { return int64(s) }
func (s size) Mode() fs.FileMode  { return 0o600 }
func (s size) ModTime() time.Time { return time.Time{} }
func (s size) IsDir() bool        { return false }
func (s size) Sys() any           { return nil }

func readerOf(b []byte) logFile {
	return logFile{io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))), func() (fs.FileInfo, error) { return size(len(b)), nil }}
}

// seedLog is a small log as etcd's library writes it, without the zeros at its end.
func seedLog(t testing.TB) []byte {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "wal")
	metadata, err := proto.Marshal(&etcdserverpb.Metadata{NodeID: new(uint64(7)), ClusterID: new(uint64(8))})
	if err != nil {
		t.Fatal(err)
	}
	w, err := wal.Create(zap.NewNop(), dir, metadata)
	if err != nil {
		t.Fatal(err)
	}
	write := func(commit, from uint64, terms ...uint64) {
		t.Helper()
		var entries []*raftpb.Entry
		for i, term := range terms {
			data, err := proto.Marshal(&etcdserverpb.InternalRaftRequest{ID: term, Put: &etcdserverpb.PutRequest{Key: []byte{byte(from) + byte(i)}, Value: []byte{byte(term)}}})
			if err != nil {
				t.Fatal(err)
			}
			entries = append(entries, &raftpb.Entry{Term: new(term), Index: new(from + uint64(i)), Data: data})
		}
		if err := w.Save(&raftpb.HardState{Term: new(terms[0]), Commit: new(commit)}, entries); err != nil {
			t.Fatal(err)
		}
	}
	write(1, 1, 1, 1, 1, 1)
	write(3, 3, 2, 2) // what a new leader sends in the place of 3 and 4
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "0000000000000000-0000000000000000.wal"))
	if err != nil {
		t.Fatal(err)
	}
	return append(bytes.TrimRight(text, "\x00"), make([]byte, 16)...)
}

func TestEntriesThatWereWrittenAnewCountOnce(t *testing.T) {
	text := seedLog(t)
	open := func() []logFile { return []logFile{readerOf(text)} }
	l, err := indexLog(t.Context(), open, 1)
	if err != nil {
		t.Fatal(err)
	}
	if l.Last != 4 || l.Term != 2 || l.Commit != 3 || l.Entries != 3 || l.Uncertain != 1 || l.Changes != 3 || l.ClusterID != 8 || l.MemberID != 7 || l.Broken != "" || l.Gap != "" {
		t.Errorf("%+v", l.Log)
	}
	var terms []uint64
	if err := l.each(t.Context(), open(), l.Last, func(e *raftpb.Entry) error { terms = append(terms, e.GetTerm()); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(terms) != 3 || terms[0] != 1 || terms[1] != 2 || terms[2] != 2 {
		t.Errorf("terms %v", terms)
	}
}

// FuzzLog reads any bytes as one or two files of a log: it ends, and what counts is
// in the order of the indexes without a hole.
func FuzzLog(f *testing.F) {
	text := seedLog(f)
	f.Add(text, len(text), uint64(0))
	f.Add(text, len(text), uint64(1))
	f.Add(text, len(text)/2, uint64(0))
	f.Add(text[:len(text)-20], 100, uint64(2))
	f.Add([]byte{}, 0, uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, cut int, applied uint64) {
		if len(b) > 1<<20 {
			return
		}
		cut = min(max(cut, 0), len(b))
		open := func() []logFile { return []logFile{readerOf(b[:cut]), readerOf(b[cut:])} }
		l, err := indexLog(t.Context(), open, applied)
		if err != nil {
			t.Fatal(err)
		}
		if l.Through(TakeAll) < applied || l.Through(TakeCommitted) > l.Through(TakeAll) || l.Uncertain > l.Entries || l.Through(TakeNone) != applied {
			t.Fatalf("%+v", l.Log)
		}
		next := applied
		if err := l.each(t.Context(), open(), l.Through(TakeAll), func(e *raftpb.Entry) error {
			if next++; e.GetIndex() != next {
				t.Fatalf("index %d, after %d", e.GetIndex(), next-1)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if next != l.Through(TakeAll) {
			t.Fatalf("%d of %+v", next, l.Log)
		}
	})
}

// FuzzRequest reads any bytes as an entry's request.
func FuzzRequest(f *testing.F) {
	put, _ := proto.Marshal(&etcdserverpb.InternalRaftRequest{ID: 1, Put: &etcdserverpb.PutRequest{Key: []byte("k")}})
	f.Add(put)
	f.Add([]byte("\x08\x01\x12\x03PUT\x1a\x1f/0/members/8e9e05c52164694d/att"))
	f.Add([]byte("\x08\x01\x12\x04SYNC\x1a\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := requestOf(&raftpb.Entry{Data: b})
		if (req == nil) != (err != nil || len(b) == 0) {
			t.Fatalf("%v, %v", req, err)
		}
	})
}
