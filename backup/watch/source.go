package watch

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"lifeboat/backup/etcd"
	"lifeboat/internal/manifest"
)

// Source is a member to watch, as Sources lists them.
type Source struct {
	etcd.Watchable
}

// Sources lists the members that may be watched, best first: healthy, local,
// follower before leader, never a learner or one that does not answer. It
// makes only requests that each member answers by itself.
func Sources(ctx context.Context, cluster *etcd.Cluster) ([]Source, error) {
	list, err := cluster.Watchables(ctx)
	if err != nil {
		return nil, err
	}
	sources := make([]Source, len(list))
	for i, w := range list {
		sources[i] = Source{w}
	}
	return sources, nil
}

// Head is the cluster's revision by a linearizable read through the member. It
// costs the cluster a round of heartbeats, nothing in its log.
func (s Source) Head(ctx context.Context) (int64, error) {
	header, err := readAt(ctx, s.Conn, &pb.RangeRequest{})
	if err != nil {
		return 0, fmt.Errorf("linearizable read at %s: %w", s.Endpoint, err)
	}
	if manifest.EtcdID(header.ClusterId) != s.ClusterID {
		return 0, fmt.Errorf("linearizable read at %s: %w: %s instead of %s", s.Endpoint, ErrOtherCluster, manifest.EtcdID(header.ClusterId), s.ClusterID)
	}
	return header.Revision, nil
}

// Unreadable is why Head failed: ErrNoLeader if the member answers, or takes the
// question and lets it wait; ErrLost if it is gone.
func Unreadable(err error) error {
	var said rpctypes.EtcdError
	if errors.As(err, &said) || errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded {
		return ErrNoLeader
	}
	return ErrLost
}

// Compacted is the member's compact revision: the lowest that can still be
// read; known or 0 where nothing above was compacted. known is a revision that
// was it before, or 0. It costs a few reads that the member answers by itself,
// one when nothing was compacted since.
func (s Source) Compacted(ctx context.Context, known int64) (int64, error) {
	gone, err := compacted(ctx, s.Conn, max(known, 1))
	if err != nil || !gone {
		return known, err
	}
	// The compact revision is above low. Double the step until a revision can
	// be read, then halve.
	low, step := max(known, 1), int64(1)
	high := low + step
	for {
		gone, err := compacted(ctx, s.Conn, high)
		if err != nil {
			return 0, err
		}
		if !gone {
			break
		}
		low, step = high, step*2
		high = low + step
	}
	for low+1 < high {
		middle := low + (high-low)/2
		gone, err := compacted(ctx, s.Conn, middle)
		if err != nil {
			return 0, err
		}
		if gone {
			low = middle
		} else {
			high = middle
		}
	}
	return high, nil
}

// compacted says whether the member has compacted a revision away.
func compacted(ctx context.Context, conn *grpc.ClientConn, revision int64) (bool, error) {
	_, err := readAt(ctx, conn, &pb.RangeRequest{Revision: revision, Serializable: true})
	switch {
	case err == nil, errors.Is(err, rpctypes.ErrFutureRev):
		return false, nil
	case errors.Is(err, rpctypes.ErrCompacted):
		return true, nil
	}
	return false, fmt.Errorf("read revision %d at %s: %w", revision, conn.Target(), err)
}

// probeKey is read and never written: the answer's header is what is wanted.
const probeKey = "lifeboat/floor"

// readAt makes the request, for the count of a key that does not exist. Errors
// are those of rpctypes where it has them.
func readAt(ctx context.Context, conn *grpc.ClientConn, request *pb.RangeRequest) (*pb.ResponseHeader, error) {
	request.Key, request.CountOnly = []byte(probeKey), true
	response, err := pb.NewKVClient(conn).Range(ctx, request)
	if err != nil {
		return nil, rpctypes.Error(err)
	}
	return response.Header, nil
}
