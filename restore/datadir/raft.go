package datadir

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// raftTerm is the term of every entry of a new log.
const raftTerm = 1

// writeRaft makes the write-ahead log and the raft snapshot of a new cluster's
// member: one committed configuration change for each member, in the order of
// their ids, and a snapshot right behind them. Every member of one restore
// computes the same entries, so that they agree without having spoken. It
// needs nothing of the database.
func writeRaft(walDir, snapDir string, cl *membership.RaftCluster, self types.ID) (err error) {
	ids := cl.MemberIDs()
	voters := make([]uint64, len(ids))
	entries := make([]*raftpb.Entry, len(ids))
	for i, id := range ids {
		voters[i] = uint64(id)
		text, err := json.Marshal(cl.Member(id))
		if err != nil {
			return fmt.Errorf("encode member %s: %w", id, err)
		}
		change, err := proto.Marshal(&raftpb.ConfChange{
			Type:    raftpb.ConfChangeAddNode.Enum(),
			NodeId:  new(uint64(id)),
			Context: text,
		})
		if err != nil {
			return fmt.Errorf("encode the addition of member %s: %w", id, err)
		}
		entries[i] = &raftpb.Entry{
			Type:  raftpb.EntryConfChange.Enum(),
			Term:  new(uint64(raftTerm)),
			Index: new(uint64(i + 1)),
			Data:  change,
		}
	}
	commit := uint64(len(entries))
	state := &raftpb.ConfState{Voters: voters}

	metadata, err := proto.Marshal(&etcdserverpb.Metadata{
		NodeID:    new(uint64(self)),
		ClusterID: new(uint64(cl.ID())),
	})
	if err != nil {
		return fmt.Errorf("encode the log's metadata: %w", err)
	}
	log, err := wal.Create(zap.NewNop(), walDir, metadata)
	if err != nil {
		return fmt.Errorf("create the write-ahead log: %w", err)
	}
	defer func() {
		if cerr := log.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("close the write-ahead log: %w", cerr)
		}
	}()
	hard := &raftpb.HardState{Term: new(uint64(raftTerm)), Vote: new(voters[0]), Commit: new(commit)}
	if err := log.Save(hard, entries); err != nil {
		return fmt.Errorf("write the write-ahead log: %w", err)
	}
	// The snapshot file first: a log that names a snapshot which is not there
	// can't be opened, a snapshot that no log names is ignored.
	if err := snap.New(zap.NewNop(), snapDir).SaveSnap(&raftpb.Snapshot{
		Data: etcdserver.GetMembershipInfoInV2Format(zap.NewNop(), cl),
		Metadata: &raftpb.SnapshotMetadata{
			Index:     new(commit),
			Term:      new(uint64(raftTerm)),
			ConfState: state,
		},
	}); err != nil {
		return fmt.Errorf("write the raft snapshot: %w", err)
	}
	if err := os.Chmod(filepath.Join(snapDir, snapName(commit)), 0o600); err != nil {
		return err
	}
	if err := log.SaveSnapshot(&walpb.Snapshot{Index: new(commit), Term: new(uint64(raftTerm)), ConfState: state}); err != nil {
		return fmt.Errorf("note the snapshot in the write-ahead log: %w", err)
	}
	return nil
}

// snapName is the name that etcd gives a raft snapshot.
func snapName(index uint64) string { return fmt.Sprintf("%016x-%016x.snap", raftTerm, index) }
