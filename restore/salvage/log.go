package salvage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"lifeboat/internal/manifest"
)

// Log is what a write-ahead log holds, mostly of what the database lacks. Indexes
// are raft's; an entry is one request of a client, or one of etcd's own.
type Log struct {
	Files     int             `json:"files"`
	ClusterID manifest.EtcdID `json:"clusterID,omitempty"`
	MemberID  manifest.EtcdID `json:"memberID,omitempty"`

	// Applied is up to where the database has it; Last is where it ends; Commit is the
	// highest index that the member wrote down as committed, which lags.
	Applied uint64 `json:"applied"`
	Last    uint64 `json:"last"`
	Term    uint64 `json:"term"` // of the last entry. Of several survivors the one with the higher Term, then Last, is further
	Commit  uint64 `json:"commit"`

	// What lies behind Applied. Each change makes one revision at most.
	Entries    int64 `json:"entries"`
	Uncertain  int64 `json:"uncertain"`  // of them: behind Commit
	Changes    int64 `json:"changes"`    // puts, deletes, transactions and revoked leases
	Membership int64 `json:"membership"` // changes of the cluster's members
	Bytes      int64 `json:"bytes"`

	// Gap says why what lies behind can't be applied; empty: it can.
	Gap string `json:"gap,omitempty"`
	// Broken says why reading ended before the log did, or that the log ends too
	// early: more may have been there.
	Broken string `json:"broken,omitempty"`

	joined []uint64 // members that became voters
}

// Through is the last index that a way of taking the log takes.
func (l *Log) Through(t Take) uint64 {
	switch {
	case t == TakeNone || l.Gap != "" || l.Entries == 0:
		return l.Applied
	case t == TakeCommitted:
		return max(l.Applied, min(l.Last, l.Commit))
	}
	return l.Last
}

// Take says how much of the log counts.
type Take string

// The ways.
const (
	TakeAll       Take = "all"       // as a member that is elected leader does
	TakeCommitted Take = "committed" // up to Log.Commit, as etcd's --force-new-cluster does
	TakeNone      Take = "none"      // the database alone
)

// logIndex knows which of a log's entries count. Entries may be written anew:
// one of an index removes all of that and later ones that were read before.
type logIndex struct {
	Log
	counts []uint64 // ordinals among the log's entries; counts[i] is of index Applied+1+i
}

// readLog reads the log of a database that holds all up to applied.
func (s *Source) readLog(ctx context.Context, applied uint64) (*logIndex, error) {
	l, err := indexLog(ctx, s.readers, applied)
	if err != nil {
		return nil, err
	}
	l.Files = len(s.logs)
	if l.Files == 0 {
		l.Broken = filepath.Join(s.Dir, "member", "wal") + " holds no log"
	}
	if l.Broken != "" {
		return l, nil
	}
	last := s.logs[len(s.logs)-1]
	info, err := last.Stat()
	switch {
	case err != nil:
		return nil, err
	case l.Last < applied:
		l.Broken = fmt.Sprintf("the log ends at index %d, before the database does at %d", l.Last, applied)
	case info.Size() < wal.SegmentSizeBytes:
		l.Broken = fmt.Sprintf("%s has %d bytes, and etcd makes the last file of a log with %d", last.Name(), info.Size(), wal.SegmentSizeBytes)
	}
	return l, nil
}

// readers gives the log from its beginning.
func (s *Source) readers() (list []logFile) {
	for _, f := range s.logs {
		list = append(list, logFile{io.NewSectionReader(f, 0, 1<<62), f.Stat})
	}
	return list
}

// logFile is one file of a log, read without moving an offset that others use.
type logFile struct {
	*io.SectionReader
	stat func() (fs.FileInfo, error)
}

func (f logFile) FileInfo() (fs.FileInfo, error) { return f.stat() }

// indexLog reads a log twice: which entries count, and what those behind applied
// are. Any bytes may be in it; errors are those of reading and of the context.
func indexLog(ctx context.Context, open func() []logFile, applied uint64) (*logIndex, error) {
	l := &logIndex{Log: Log{Applied: applied, Commit: applied}}
	ordinal := uint64(0)
	broken, err := records(ctx, open(), func(r *walpb.Record) error {
		switch r.GetType() {
		case wal.MetadataType:
			return l.metadata(r.Data)
		case wal.EntryType:
			ordinal++
			return l.entry(r.Data, ordinal)
		case wal.StateType:
			var state raftpb.HardState
			if err := proto.Unmarshal(r.Data, &state); err != nil {
				return fmt.Errorf("%w: a state: %v", ErrDamaged, err)
			}
			l.Commit = max(l.Commit, state.GetCommit())
		case wal.SnapshotType:
			var snap walpb.Snapshot
			if err := proto.Unmarshal(r.Data, &snap); err != nil {
				return fmt.Errorf("%w: a snapshot's place: %v", ErrDamaged, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if broken != nil {
		l.Broken = broken.Error()
	}
	l.Entries = int64(len(l.counts))
	if l.Gap != "" {
		l.Entries = int64(min(l.Last-l.Applied, math.MaxInt64))
	}
	if l.Commit < l.Last {
		l.Uncertain = min(l.Entries, int64(l.Last-l.Commit))
	}
	return l, l.each(ctx, open(), l.Last, func(e *raftpb.Entry) error {
		l.Bytes += int64(len(e.Data))
		if e.GetType() != raftpb.EntryNormal {
			l.Membership++
			var change raftpb.ConfChange
			if proto.Unmarshal(e.Data, &change) == nil && change.GetType() == raftpb.ConfChangeAddNode {
				l.joined = append(l.joined, change.GetNodeId())
			}
			return nil
		}
		req, err := requestOf(e)
		if err == nil && changes(req) {
			l.Changes++
		}
		return nil // what can't be read is an error once it is applied
	})
}

func (l *logIndex) metadata(data []byte) error {
	var m pb.Metadata
	if err := proto.Unmarshal(data, &m); err != nil {
		return fmt.Errorf("%w: its metadata: %v", ErrDamaged, err)
	}
	cluster, member := manifest.EtcdID(m.GetClusterID()), manifest.EtcdID(m.GetNodeID())
	if l.ClusterID != 0 && (l.ClusterID != cluster || l.MemberID != member) {
		return fmt.Errorf("%w: files of two members are in it: of %s in cluster %s and of %s in cluster %s", ErrDamaged, l.MemberID, l.ClusterID, member, cluster)
	}
	l.ClusterID, l.MemberID = cluster, member
	return nil
}

func (l *logIndex) entry(data []byte, ordinal uint64) error {
	var e raftpb.Entry
	if err := proto.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("%w: an entry: %v", ErrDamaged, err)
	}
	index := e.GetIndex()
	l.Last, l.Term = index, e.GetTerm()
	if index <= l.Applied {
		l.counts, l.Gap = l.counts[:0], ""
		return nil
	}
	at := index - l.Applied - 1
	if at > uint64(len(l.counts)) {
		// Behind it nothing can be applied, unless the log turns back.
		if l.Gap == "" {
			l.Gap = fmt.Sprintf("the log goes on at index %d, and the database ends at %d: a leader may have sent a snapshot that was not put in place yet", index, l.Applied+uint64(len(l.counts)))
		}
		return nil
	}
	l.counts, l.Gap = append(l.counts[:at], ordinal), ""
	return nil
}

// each gives the entries behind Applied that count, up to an index.
func (l *logIndex) each(ctx context.Context, files []logFile, through uint64, fn func(*raftpb.Entry) error) error {
	ordinal, next := uint64(0), 0
	stop := errors.New("stop")
	_, err := records(ctx, files, func(r *walpb.Record) error {
		if next == len(l.counts) || l.Applied+uint64(next)+1 > through {
			return stop
		}
		if r.GetType() != wal.EntryType {
			return nil
		}
		if ordinal++; ordinal != l.counts[next] {
			return nil
		}
		next++
		var e raftpb.Entry
		if err := proto.Unmarshal(r.Data, &e); err != nil {
			return err
		}
		return fn(&e)
	})
	if errors.Is(err, stop) {
		err = nil
	}
	return err
}

// records gives a log's records in order. broken is what is wrong with the log at
// the place where it ended, and nil if nothing is: a last record that is half
// written is what a kill leaves. err is fn's, unless that is ErrDamaged, and the
// context's.
func records(ctx context.Context, files []logFile, fn func(*walpb.Record) error) (broken, err error) {
	if len(files) == 0 {
		return nil, nil
	}
	at := 0 // the file that is being read
	var readers []fileutil.FileReader
	for i, f := range files {
		readers = append(readers, watched{f, func() { at = i }})
	}
	d := wal.NewDecoder(readers...)
	damaged := func(format string, args ...any) error {
		return fmt.Errorf("%w: file %d of %d: %s", ErrDamaged, at+1, len(files), fmt.Sprintf(format, args...))
	}
	var rec walpb.Record
	for n := 0; ; n++ {
		if n&0xfff == 0 && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		switch err := d.Decode(&rec); {
		case errors.Is(err, io.EOF):
			return nil, nil
		case errors.Is(err, io.ErrUnexpectedEOF) && at == len(files)-1 && tornAt(files[at], d.LastOffset()):
			return nil, nil
		case err != nil:
			return damaged("%v", err), nil
		}
		if rec.GetType() == wal.CrcType {
			if sum := d.LastCRC(); sum != 0 && rec.Validate(sum) != nil {
				return damaged("it does not go on where the one before it ended"), nil
			}
			d.UpdateCRC(rec.GetCrc())
			continue
		}
		if err := fn(&rec); errors.Is(err, ErrDamaged) {
			return err, nil
		} else if err != nil {
			return nil, err
		}
	}
}

// tornAt says whether the record at an offset is the last that was written: the file
// has room for it, and holds nothing behind it.
func tornAt(f logFile, off int64) bool {
	const frame, padding = 8, 8
	info, err := f.FileInfo()
	if err != nil {
		return false
	}
	var head [frame]byte
	if _, err := f.ReadAt(head[:], off); err != nil {
		return false
	}
	length := int64(binary.LittleEndian.Uint64(head[:]) &^ (0xff << 56))
	behind := off + frame + length + padding
	if length > info.Size() || behind > info.Size() {
		return false
	}
	buf := make([]byte, 64<<10)
	for behind < info.Size() {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), info.Size()-behind)], behind)
		if err != nil && n == 0 {
			return false
		}
		if slices.ContainsFunc(buf[:n], func(b byte) bool { return b != 0 }) {
			return false
		}
		behind += int64(n)
	}
	return true
}

// watched tells that it is being read.
type watched struct {
	logFile
	read func()
}

func (w watched) Read(p []byte) (int, error) {
	w.read()
	return w.logFile.Read(p)
}
