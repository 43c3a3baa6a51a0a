// Package datadir writes the data directory that one etcd member starts from,
// out of a snapshot as the maintenance API streams it.
//
// The result is equal in effect to `etcdutl snapshot restore` with a revision
// bump and mark-compacted, and a test holds it to that; the way is shorter.
// The snapshot goes once from the reader into its final file, hashed on the
// way, while the write-ahead log is made beside it; then one transaction makes
// every edit. Nothing of the data directory changes before Install, which
// exchanges the old member for the new one and never deletes the old.
//
// Write does all of it. Whoever wants to look at the database before it counts
// calls Begin, Receive, Finish and Install one after the other. PutBack undoes
// an Install, and Installed says whether there was one.
package datadir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.uber.org/zap"
)

// What a caller may branch on.
var (
	ErrInUse   = errors.New("data directory is in use")
	ErrNoSpace = errors.New("not enough free space")
	ErrDamaged = errors.New("snapshot is damaged")
	ErrInvalid = errors.New("invalid restore options")
)

// Options says what to write where.
type Options struct {
	// DataDir is etcd's --data-dir. It is created (0700) if missing and may be
	// a mount point. Only <DataDir>/member is replaced.
	DataDir string

	// Name and PeerURLs are this member's --name and
	// --initial-advertise-peer-urls.
	Name     string
	PeerURLs []string

	// InitialCluster is etcd's --initial-cluster: every voting member, this one
	// included. Empty means this member alone. There is no way to name a
	// learner: learners are added to a running cluster.
	InitialCluster string

	// Token is etcd's --initial-cluster-token. Member ids derive from it, so it
	// must be fresh for every restore and the same on all members of one.
	Token string

	// Bump is added to the last revision, and all that is older is marked
	// compacted, so that no client can take the past for the present. 0 leaves
	// the revision as it is and marks nothing.
	Bump uint64

	// ID names this restore: the staging folder and the folder that the old
	// member is kept in. One path element.
	ID string

	// AsideDir is the folder in which <ID>/member receives the old member. If
	// it is empty or on another file system, the old member goes to
	// <DataDir>/.lifeboat-aside/<ID>/member.
	AsideDir string

	// Size is the number of bytes that the snapshot will have, trailer
	// included; 0 if unknown. It serves the check for free space, and a
	// snapshot of another size is refused.
	Size int64

	// Extra is the number of bytes that the caller will add to the database
	// between Receive and Finish, at most; for the check for free space.
	Extra int64

	// Live lets an etcd run on the data directory until Install, which still
	// refuses it: all that takes time is then done before etcd is stopped.
	Live bool

	// Owner, if set and the process is root, owns the new member. By default
	// it is the owner of the existing member, else of the data directory.
	Owner *Owner

	// Check, if set, is called by Write with the path of the received database
	// before it is edited. It must not write to it. An error ends the restore.
	Check func(ctx context.Context, path string) error

	// Progress, if set, is told how many bytes of the snapshot were received.
	Progress func(done int64)

	// at is told which step is about to be taken; tests crash there.
	at func(point string)
}

// Owner is a numeric user and group.
type Owner struct{ UID, GID int }

// Result says what was written.
type Result struct {
	Member    string // the path of the new member folder
	Aside     string // where the old one is kept; empty if there was none
	ClusterID uint64
	MemberID  uint64
	Members   int   // voting members of the new cluster
	Bytes     int64 // of the database as received, without its hash trailer
	Last      int64 // the snapshot's last revision
	Revision  int64 // what etcd will start at: Last plus the bump
}

// Write restores the snapshot in r into a data directory: Begin, Receive,
// Check, Finish and Install. After an error the data directory is as before.
func Write(ctx context.Context, r io.Reader, opts Options) (Result, error) {
	s, err := Begin(ctx, opts)
	if err != nil {
		return Result{}, err
	}
	defer s.Abort()
	if err := s.Receive(ctx, r); err != nil {
		return Result{}, err
	}
	if opts.Check != nil {
		if err := opts.Check(ctx, s.DBPath()); err != nil {
			// A wrong trailer explains whatever else was found.
			return Result{}, errors.Join(s.Verified(), fmt.Errorf("check the received database: %w", err))
		}
	}
	if err := s.Finish(ctx); err != nil {
		return Result{}, err
	}
	return s.Install(ctx)
}

// Members parses an --initial-cluster and computes the cluster that a member
// of that name starts in. It is what Begin checks first, for a plan to fail
// early. It asks no name server.
func Members(name string, peerURLs []string, initialCluster, token string) (*membership.RaftCluster, error) {
	if name == "" {
		return nil, fmt.Errorf("%w: no member name", ErrInvalid)
	}
	if token == "" {
		return nil, fmt.Errorf("%w: no cluster token", ErrInvalid)
	}
	own, err := types.NewURLs(peerURLs)
	if err != nil {
		return nil, fmt.Errorf("%w: peer URLs of %s: %v", ErrInvalid, name, err)
	}
	if initialCluster == "" {
		for i, u := range own.StringSlice() {
			if i > 0 {
				initialCluster += ","
			}
			initialCluster += name + "=" + u
		}
	}
	cluster, err := types.NewURLsMap(initialCluster)
	if err != nil {
		return nil, fmt.Errorf("%w: initial cluster %q: %v", ErrInvalid, initialCluster, err)
	}
	listed, ok := cluster[name]
	if !ok {
		return nil, fmt.Errorf("%w: member %q is not in the initial cluster %q", ErrInvalid, name, initialCluster)
	}
	// etcd would also accept two spellings of one address; it finds that out
	// by resolving names, which may not work where a restore runs.
	if !slices.Equal(listed.StringSlice(), own.StringSlice()) {
		return nil, fmt.Errorf("%w: peer URLs of %s are %s, but the initial cluster lists %s", ErrInvalid, name,
			own, listed)
	}
	seen := map[string]string{}
	for member, urls := range cluster {
		for _, u := range urls.StringSlice() {
			if other, ok := seen[u]; ok {
				return nil, fmt.Errorf("%w: %s and %s share the peer URL %s", ErrInvalid, other, member, u)
			}
			seen[u] = member
		}
	}
	cl, err := membership.NewClusterFromURLsMap(zap.NewNop(), token, cluster)
	if err != nil {
		return nil, fmt.Errorf("%w: initial cluster %q: %v", ErrInvalid, initialCluster, err)
	}
	return cl, nil
}

func (o *Options) check() error {
	switch {
	case o.DataDir == "":
		return fmt.Errorf("%w: no data directory", ErrInvalid)
	case o.ID == "" || o.ID == "." || o.ID == ".." || strings.ContainsAny(o.ID, `/\`) || strings.ContainsRune(o.ID, 0):
		return fmt.Errorf("%w: restore id %q is not one path element", ErrInvalid, o.ID)
	case o.AsideDir != "" && !filepath.IsAbs(o.AsideDir):
		return fmt.Errorf("%w: aside folder %q is not absolute", ErrInvalid, o.AsideDir)
	case o.Bump > 1<<62:
		return fmt.Errorf("%w: bump %d", ErrInvalid, o.Bump)
	}
	return nil
}

func (o *Options) reach(point string) {
	if o.at != nil {
		o.at(point)
	}
}
