package datadir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"golang.org/x/sys/unix"

	"lifeboat/internal/durable"
)

// AsideName is the folder in a data directory that keeps old members, each in a
// folder with the restore's id, where they have nowhere else to go.
const AsideName = ".lifeboat-aside"

const (
	stagingName = ".lifeboat-restore" // in the data directory, while a restore runs

	// headroomBytes is what a new member takes beside its database: one
	// preallocated segment of the write-ahead log (64 MiB), the next one that
	// etcd's library prepares, and a few pages.
	headroomBytes = 2*64<<20 + 16<<20
)

// Staging is a member in the making. Its steps are Receive, Finish, Install,
// in this order; Abort ends it at any time. It holds a lock on the data
// directory, so that two restores can't meet there.
type Staging struct {
	// Recovered tells what an earlier restore, which died, had left in the
	// data directory and what became of it.
	Recovered []string

	opts     Options
	cluster  *membership.RaftCluster
	self     types.ID
	dataDir  string
	created  bool // we made dataDir
	dir      string
	lock     *os.File
	locked   bool // nobody else has the data directory
	owner    *Owner
	synced   func() error // waits for the first sync of the database
	got      *received
	finished bool
	revs     revisions
}

// Preflight checks what Begin checks, and changes nothing: for a plan that is
// only shown.
func Preflight(opts Options) error {
	if err := opts.check(); err != nil {
		return err
	}
	if _, err := Members(opts.Name, opts.PeerURLs, opts.InitialCluster, opts.Token); err != nil {
		return err
	}
	if err := opts.inUse(opts.DataDir); err != nil {
		return err
	}
	return opts.checkSpace(opts.DataDir)
}

// inUse is InUse as far as the restore minds before Install.
func (o *Options) inUse(dataDir string) error {
	if o.Live {
		return nil
	}
	return InUse(dataDir)
}

// checkSpace looks at the file system of dir or of its nearest existing parent.
func (o *Options) checkSpace(dir string) error {
	for {
		free, err := durable.FreeSpace(dir)
		if parent := filepath.Dir(dir); errors.Is(err, fs.ErrNotExist) && parent != dir {
			dir = parent
			continue
		}
		if err != nil {
			return err
		}
		if need := o.Size + o.Extra + headroomBytes; free < need {
			return fmt.Errorf("%w: %s has %d bytes left, the restore takes %d", ErrNoSpace, dir, free, need)
		}
		return nil
	}
}

// Begin checks the options, the data directory and the free space, finishes
// what a restore that died has left, and makes the staging folder. The member
// in place is not touched; ErrInUse if an etcd runs on it, unless that is Live.
func Begin(ctx context.Context, opts Options) (_ *Staging, err error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	cluster, err := Members(opts.Name, opts.PeerURLs, opts.InitialCluster, opts.Token)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	s := &Staging{opts: opts, cluster: cluster, self: cluster.MemberByName(opts.Name).ID}
	defer func() {
		if err != nil {
			s.Abort()
		}
	}()
	if err := s.openDataDir(); err != nil {
		return nil, err
	}
	if err := opts.inUse(s.dataDir); err != nil {
		return nil, err
	}
	if s.Recovered, err = recoverLeftovers(s.dataDir, opts.reach); err != nil {
		return nil, fmt.Errorf("finish an earlier restore in %s: %w", s.dataDir, err)
	}
	if err := opts.checkSpace(s.dataDir); err != nil {
		return nil, err
	}
	opts.reach("begin")
	s.dir = filepath.Join(s.dataDir, stagingName, opts.ID)
	if err := os.MkdirAll(filepath.Join(s.dir, "member", "snap"), 0o700); err != nil {
		return nil, fmt.Errorf("make the staging folder: %w", err)
	}
	return s, nil
}

func (s *Staging) openDataDir() error {
	path, err := filepath.Abs(s.opts.DataDir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := durable.MkdirAll(path, 0o700); err != nil {
			return fmt.Errorf("create the data directory: %w", err)
		}
		s.created = true
	}
	if s.dataDir, err = filepath.EvalSymlinks(path); err != nil {
		return fmt.Errorf("open the data directory: %w", err)
	}
	if s.lock, err = os.OpenFile(s.dataDir, os.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return fmt.Errorf("open the data directory: %w", err)
	}
	// A file system that can't lock a folder is not refused for it.
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%w: another restore runs in %s", ErrInUse, s.dataDir)
	}
	s.locked = true
	member := filepath.Join(s.dataDir, "member")
	var dir, old unix.Stat_t
	if err := unix.Stat(s.dataDir, &dir); err != nil {
		return &fs.PathError{Op: "stat", Path: s.dataDir, Err: err}
	}
	owner := Owner{int(dir.Uid), int(dir.Gid)}
	switch err := unix.Lstat(member, &old); {
	case err == nil && old.Dev != dir.Dev:
		return fmt.Errorf("%w: %s is a mount point and can't be moved aside; restore into another data directory", ErrInvalid, member)
	case err == nil:
		owner = Owner{int(old.Uid), int(old.Gid)}
	case !errors.Is(err, unix.ENOENT):
		return &fs.PathError{Op: "stat", Path: member, Err: err}
	}
	if s.opts.Owner != nil {
		owner = *s.opts.Owner
	}
	if os.Geteuid() == 0 {
		s.owner = &owner
	}
	if s.created && s.owner != nil && s.opts.Owner != nil { // else etcd could not enter
		if err := os.Lchown(s.dataDir, owner.UID, owner.GID); err != nil {
			return fmt.Errorf("give the data directory to its owner: %w", err)
		}
	}
	return nil
}

// DBPath is the path of the new member's database.
func (s *Staging) DBPath() string { return filepath.Join(s.dir, "member", "snap", "db") }

// Scratch is a folder beside the new member for the caller's temporary files,
// which is removed with the staging.
func (s *Staging) Scratch() string { return s.dir }

// Receive reads the snapshot, trailer included, into the new member's
// database. The write-ahead log is made meanwhile. When it returns, the hash
// and the disk may still be at work, so that the caller can look at the
// database in that time; Verified and Finish wait for the verdict.
func (s *Staging) Receive(ctx context.Context, r io.Reader) error {
	raft := make(chan error, 1)
	go func() {
		member := filepath.Join(s.dir, "member")
		raft <- writeRaft(filepath.Join(member, "wal"), filepath.Join(member, "snap"), s.cluster, s.self)
	}()
	got, err := receive(ctx, s.DBPath(), r, s.opts.Size, func(done int64) {
		s.opts.reach("receiving")
		if s.opts.Progress != nil {
			s.opts.Progress(done)
		}
	})
	s.got = got
	if rerr := <-raft; err == nil {
		err = rerr
	}
	if err != nil {
		return err
	}
	synced := make(chan error, 1)
	go func() { synced <- syncFile(s.DBPath()) }()
	s.synced = sync.OnceValue(func() error { return <-synced })
	s.opts.reach("received")
	return nil
}

// Verified waits until the whole snapshot is hashed and says whether its
// trailer is right; ErrDamaged if not.
func (s *Staging) Verified() error {
	if s.got == nil {
		return errors.New("verify a snapshot: none was received")
	}
	return s.got.wait()
}

// Finish edits the database and makes the new member whole and durable. It
// still changes nothing of the member in place.
func (s *Staging) Finish(ctx context.Context) (err error) {
	if s.synced == nil {
		return errors.New("finish a member: no snapshot was received")
	}
	if err := errors.Join(s.Verified(), s.synced()); err != nil {
		return err
	}
	s.opts.reach("verified")
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if s.revs, err = editForMember(s.DBPath(), s.cluster, s.opts.Bump); err != nil {
		return err
	}
	if err := syncFile(s.DBPath()); err != nil {
		return err
	}
	member := filepath.Join(s.dir, "member")
	err = filepath.WalkDir(member, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if s.owner != nil {
			if err := os.Lchown(path, s.owner.UID, s.owner.GID); err != nil {
				return err
			}
		}
		if d.IsDir() {
			return syncFile(path)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("finish the new member: %w", err)
	}
	s.finished = true
	s.opts.reach("finished")
	return nil
}

// Abort removes the staging folder if the new member is not installed, and
// unlocks the data directory. After Install it does nothing. The member in
// place is never touched.
func (s *Staging) Abort() error {
	if s.lock == nil {
		return nil
	}
	var err error
	if s.dir != "" {
		// What still works on the files must be done with them first.
		if s.got != nil {
			s.got.stop()
		}
		if s.synced != nil {
			_ = s.synced()
		}
		_, err = recoverOne(s.dataDir, s.dir, s.opts.reach)
	}
	if s.locked { // else what is there is another restore's
		s.removeStagingRoot()
		if s.created {
			_ = os.Remove(s.dataDir) // only if empty
		}
	}
	// Closing alone leaves the lock to a child process that is just being started.
	_ = unix.Flock(int(s.lock.Fd()), unix.LOCK_UN)
	s.lock.Close()
	s.lock = nil
	return err
}

func (s *Staging) removeStagingRoot() {
	if os.Remove(filepath.Join(s.dataDir, stagingName)) == nil { // only if empty
		_ = syncFile(s.dataDir)
	}
}
