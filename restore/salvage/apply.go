package salvage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/auth"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3alarm"
	"go.etcd.io/etcd/server/v3/etcdserver/apply"
	"go.etcd.io/etcd/server/v3/etcdserver/cindex"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Applied says what applying a log has done.
type Applied struct {
	From, To uint64 // indexes: the first entry and the last
	Entries  int64
	Refused  int64 // by etcd's own rules, as when they first came: the client was told
	Passed   int64 // about members and versions, which the new cluster has of its own
	Before   int64 // revision of the database
	Revision int64 // that it has now
}

// Apply brings a copy of the source's database to what the log says, up to an index
// of Found.Log. It uses the code by which a member applies its log when it starts,
// so what comes out is what that member would have; only etcd's own records of
// members and versions stay as they are. The copy, at path, has been inspected and
// is nobody else's. It is not synced; after an error it is of no use. The index of
// all keys is kept in memory meanwhile, as etcd does.
func (s *Source) Apply(ctx context.Context, path string, f *Found, through uint64, progress func(done int64)) (_ *Applied, err error) {
	log, err := s.readLog(ctx, f.Database.ConsistentIndex)
	if err != nil {
		return nil, err
	}
	if log.Gap != "" || through > log.Applied+uint64(len(log.counts)) {
		return nil, fmt.Errorf("%w: up to index %d is wanted. %s %s", ErrDamaged, through, log.Gap, log.Broken)
	}
	a := &applier{res: &Applied{From: log.Applied + 1, Before: f.Database.Revision}}
	// etcd's code panics on what must not be.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("apply the entry at index %d: %v", a.res.To+1, r)
		}
	}()
	if err := a.open(path, f.Database.ClusterVersion); err != nil {
		return nil, err
	}
	err = log.each(ctx, s.readers(), through, func(e *raftpb.Entry) error {
		if err := a.entry(ctx, e); err != nil {
			return fmt.Errorf("apply the entry at index %d: %w", e.GetIndex(), err)
		}
		a.res.To = e.GetIndex()
		a.res.Entries++
		if progress != nil {
			progress(a.res.Entries)
		}
		return nil
	})
	a.res.Revision = a.kv.Rev()
	if err = errors.Join(err, a.close()); err != nil {
		return nil, err
	}
	if a.res.To != through {
		return nil, fmt.Errorf("%w: applied up to index %d, and up to %d was wanted", ErrDamaged, a.res.To, through)
	}
	return a.res, nil
}

// applier is etcd's store, without a server around it (etcdserver.NewServer).
type applier struct {
	res    *Applied
	be     backend.Backend
	lessor lease.Lessor
	kv     mvcc.KV
	auth   auth.AuthStore
	uber   apply.UberApplier
}

const simpleTokenTTL = 300 * time.Second // auth's default; no token is given here

func (a *applier) open(path, clusterVersion string) error {
	// Without a log of its own; what ends a process must end in Apply's recover.
	lg := zap.NewNop().WithOptions(zap.WithFatalHook(zapcore.WriteThenPanic))
	config := backend.DefaultBackendConfig(lg)
	config.Path, config.UnsafeNoFsync, config.BackendFreelistType = path, true, bbolt.FreelistMapType
	config.Timeout = 10 * time.Second
	a.be = backend.New(config)
	a.lessor = lease.NewLessor(lg, a.be, version(clusterVersion), lease.LessorConfig{})
	a.kv = mvcc.NewStore(lg, a.be, a.lessor, mvcc.StoreConfig{})
	tokens, err := auth.NewTokenProvider(lg, "simple", func(uint64) <-chan struct{} { return nil }, simpleTokenTTL)
	if err != nil {
		return err
	}
	a.auth = auth.NewAuthStore(lg, schema.NewAuthBackend(lg, a.be), tokens, 0)
	alarms, err := v3alarm.NewAlarmStore(lg, schema.NewAlarmBackend(lg, a.be))
	if err != nil {
		return err
	}
	a.uber = apply.NewUberApplier(apply.ApplierOptions{
		Logger: lg, KV: a.kv, AlarmStore: alarms, AuthStore: a.auth, Lessor: a.lessor, Cluster: membership.NewCluster(lg), RaftStatus: nobody{},
		ConsistentIndex: cindex.NewFakeConsistentIndex(0), TxnModeWriteWithSharedBuffer: true, Backend: a.be,
		QuotaBackendBytesCfg: -1, // it only makes an answer an error; a full member's alarm stands in the log
		WarningApplyDuration: time.Hour,
	})
	return nil
}

func (a *applier) close() error {
	a.lessor.Stop()
	return errors.Join(a.kv.Close(), a.auth.Close(), a.be.Close())
}

func (a *applier) entry(ctx context.Context, e *raftpb.Entry) error {
	if e.GetType() != raftpb.EntryNormal {
		a.res.Passed++
		return nil
	}
	req, err := requestOf(e)
	if err != nil {
		return err
	}
	switch {
	case req == nil: // a leader's first
		return nil
	case req.ClusterVersionSet != nil, req.ClusterMemberAttrSet != nil, req.DowngradeInfoSet != nil, req.DowngradeVersionTest != nil, proto.Size(req) == 0:
		a.res.Passed++
		return nil
	case req.Range != nil, req.AuthUserGet != nil, req.AuthRoleGet != nil, req.AuthStatus != nil, req.AuthUserList != nil, req.AuthRoleList != nil, req.Authenticate != nil:
		return nil // these change nothing, and who asked is gone
	}
	res := a.uber.Apply(&apply.InternalRaftRequestWrapper{InternalRaftRequest: req, SkipRangeExecution: req.Txn != nil}, membership.ApplyBoth)
	if res.Err != nil {
		a.res.Refused++
		return nil
	}
	if res.Physc != nil { // a compaction, which etcd makes beside
		select {
		case <-res.Physc:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// requestOf reads an entry's request; nil for an empty entry. Members of 3.5 tell
// of themselves and of the cluster's version in an older form too, which is given
// as an empty request.
func requestOf(e *raftpb.Entry) (*pb.InternalRaftRequest, error) {
	if len(e.Data) == 0 {
		return nil, nil
	}
	req := &pb.InternalRaftRequest{}
	if err := proto.Unmarshal(e.Data, req); err != nil {
		if isV2(e.Data) {
			return &pb.InternalRaftRequest{}, nil
		}
		return nil, fmt.Errorf("%w: %v", ErrUnknown, err)
	}
	if known(req) {
		return req, nil
	}
	if isV2(e.Data) || len(req.ProtoReflect().GetUnknown()) > 0 && wrapsV2(req.ProtoReflect().GetUnknown()) {
		return &pb.InternalRaftRequest{}, nil
	}
	return nil, ErrUnknown
}

// known says whether a request names what is to be done.
func known(r *pb.InternalRaftRequest) bool {
	n := 0
	if r.Header != nil {
		n++
	}
	if r.ID != 0 {
		n++
	}
	fields := 0
	r.ProtoReflect().Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool { fields++; return true })
	return fields > n
}

// changes says whether a request can make a revision.
func changes(r *pb.InternalRaftRequest) bool {
	return r != nil && (r.Put != nil || r.DeleteRange != nil || r.Txn != nil || r.LeaseRevoke != nil)
}

// The fields of 3.5's etcdserverpb.Request, of which the log needs no more, and the
// one of InternalRaftRequest that held it.
const v2Method, v2Path, wrappedV2 = 2, 3, 2

// isV2 says whether bytes are a request of the second API: with a method, and a path
// below which only etcd itself writes.
func isV2(b []byte) bool {
	method, path := "", ""
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		if kind == protowire.BytesType {
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return false
			}
			switch number {
			case v2Method:
				method = string(v)
			case v2Path:
				path = string(v)
			}
			b = b[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return false
		}
		b = b[n:]
	}
	return (method == "PUT" || method == "SYNC" || method == "DELETE" || method == "POST" || method == "QGET") && (path == "" || path[0] == '/')
}

// wrapsV2 says whether fields that are not known are one such request.
func wrapsV2(b []byte) bool {
	number, kind, n := protowire.ConsumeTag(b)
	if n < 0 || number != wrappedV2 || kind != protowire.BytesType {
		return false
	}
	v, m := protowire.ConsumeBytes(b[n:])
	return m >= 0 && n+m == len(b) && isV2(v)
}

// nobody is the raft of no server.
type nobody struct{}

func (nobody) MemberID() types.ID     { return 0 }
func (nobody) Leader() types.ID       { return 0 }
func (nobody) CommittedIndex() uint64 { return 0 }
func (nobody) AppliedIndex() uint64   { return 0 }
func (nobody) Term() uint64           { return 0 }

// version is the cluster's, which says whether leases keep their checkpoints.
type version string

func (v version) Version() *semver.Version {
	parsed, err := semver.NewVersion(string(v))
	if err != nil {
		return nil
	}
	return parsed
}
