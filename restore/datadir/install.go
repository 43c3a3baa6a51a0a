package datadir

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lifeboat/internal/durable"
)

// A staging folder, <data dir>/.lifeboat-restore/<id>, holds
//
//	member    the new member; the old one once the two were exchanged
//	old       the old member, for a moment, where the file system can't exchange
//	discard   a new member that is being removed
//	journal   written and synced before the member in place is first touched
//
// Without a journal all of it is new and worth nothing. With one, recoverOne
// can tell from any state how far Install had come.
type journal struct {
	ID       string `json:"id"`
	AsideDir string `json:"asideDir,omitempty"`

	// What tells the new member from the old: the folder's inode number, which
	// renaming keeps, and the name and SHA-256 of its raft snapshot. The
	// snapshot alone would not do: a restore that is repeated with the same
	// token writes the same one again, and the old member may be the first's.
	// If only one of them is right, the folder counts as old, and is kept.
	NewInode uint64 `json:"newInode"`
	NewName  string `json:"newName"`
	NewSHA   []byte `json:"newSHA256"`
}

// Install puts the new member in the old one's place and moves the old one
// aside. Renaming is all it does, so it takes no time. The context is heeded
// before the first change and not after it.
//
// A crash leaves the old member in place or the new one. Only a file system
// without an atomic exchange (RENAME_EXCHANGE) has a moment with neither; the
// next Begin on the data directory, or Recover, then puts the new one there.
//
// ErrInUse if an etcd runs on the member in place; nothing has changed then, and
// Install may be called again. PutBack undoes it.
func (s *Staging) Install(ctx context.Context) (Result, error) {
	if !s.finished || s.lock == nil {
		return Result{}, errors.New("install a member: not finished")
	}
	member, staged := filepath.Join(s.dataDir, "member"), filepath.Join(s.dir, "member")
	// An etcd that began meanwhile is found here, and none can begin on the
	// old files before they are aside.
	locks, err := lockMember(member)
	defer locks.release()
	if err != nil {
		return Result{}, err
	}
	if err := ctx.Err(); err != nil {
		return Result{}, context.Cause(ctx)
	}
	if err := s.mark(member, staged); err != nil {
		return Result{}, err
	}
	s.opts.reach("marked")
	if err := s.writeJournal(); err != nil {
		return Result{}, err
	}
	s.opts.reach("journal")
	had, err := exists(member)
	if err != nil {
		return Result{}, err
	}
	if had {
		err = s.exchange(staged, member)
	} else {
		err = os.Rename(staged, member)
	}
	if err != nil {
		return Result{}, fmt.Errorf("put the new member in place: %w", err)
	}
	s.opts.reach("exchanged")
	// From here on the new member counts; the rest is tidying up.
	if err := errors.Join(syncFile(s.dataDir), syncFile(s.dir)); err != nil {
		return Result{}, err
	}
	s.opts.reach("synced")
	aside, err := recoverOne(s.dataDir, s.dir, s.opts.reach)
	if err != nil {
		return Result{}, fmt.Errorf("the new member is in place, but the old one could not be moved aside from %s: %w", s.dir, err)
	}
	s.opts.reach("aside")
	s.removeStagingRoot()
	s.created = false
	if err := s.Abort(); err != nil {
		return Result{}, err
	}
	return Result{
		Member:    member,
		Aside:     aside,
		ClusterID: uint64(s.cluster.ID()),
		MemberID:  uint64(s.self),
		Members:   len(s.cluster.MemberIDs()),
		Bytes:     s.got.bytes,
		Last:      s.revs.last,
		Revision:  s.revs.now,
	}, nil
}

// canExchange is turned off by tests of the way without it.
var canExchange = true

// swap exchanges two folders at once; false if the file system can't.
func swap(a, b string) (bool, error) {
	err := error(unix.ENOSYS)
	if canExchange {
		err = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	}
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	return err == nil, err
}

func (s *Staging) exchange(staged, member string) error {
	if done, err := swap(staged, member); done || err != nil {
		return err
	}
	if err := rename(member, filepath.Join(s.dir, "old")); err != nil {
		return err
	}
	s.opts.reach("between")
	return os.Rename(staged, member)
}

func (s *Staging) writeJournal() error {
	j := journal{ID: s.opts.ID, AsideDir: s.opts.AsideDir, NewName: snapName(uint64(len(s.cluster.MemberIDs())))}
	sum, err := hashFile(filepath.Join(s.dir, "member", "snap", j.NewName))
	if err != nil {
		return err
	}
	j.NewSHA = sum
	if j.NewInode, err = inode(filepath.Join(s.dir, "member")); err != nil {
		return err
	}
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, "journal")
	if err := os.WriteFile(path+".tmp", text, 0o600); err != nil {
		return fmt.Errorf("write the restore's journal: %w", err)
	}
	if err := syncFile(path + ".tmp"); err != nil {
		return err
	}
	if err := rename(path+".tmp", path); err != nil {
		return err
	}
	return errors.Join(syncFile(filepath.Dir(s.dir)), syncFile(s.dataDir))
}

// isNew says whether a folder is the member that the journal's restore made.
func (j *journal) isNew(member string) (bool, error) {
	ino, err := inode(member)
	if err != nil {
		return false, err
	}
	sum, err := hashFile(filepath.Join(member, "snap", filepath.Base(j.NewName)))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	return ino == j.NewInode && bytes.Equal(sum, j.NewSHA), err
}

func hashFile(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	return sum[:], nil
}

// Recover finishes what a restore that died has left in a data directory, and
// says what it did. Begin does so itself. ErrInUse if an etcd or a restore is
// at work there.
func Recover(dataDir string) ([]string, error) {
	s := &Staging{opts: Options{DataDir: dataDir}}
	if _, err := os.Stat(dataDir); err != nil {
		return nil, err
	}
	if err := s.openDataDir(); err != nil {
		return nil, err
	}
	defer s.Abort()
	if err := InUse(s.dataDir); err != nil {
		return nil, err
	}
	return recoverLeftovers(s.dataDir, s.opts.reach)
}

func recoverLeftovers(dataDir string, reach func(string)) ([]string, error) {
	root := filepath.Join(dataDir, stagingName)
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var said []string
	for _, e := range entries {
		had, err := exists(filepath.Join(dataDir, "member"))
		if err != nil {
			return said, err
		}
		aside, err := recoverOne(dataDir, filepath.Join(root, e.Name()), reach)
		if err != nil {
			return said, err
		}
		has, err := exists(filepath.Join(dataDir, "member"))
		if err != nil {
			return said, err
		}
		switch {
		case has && !had:
			said = append(said, fmt.Sprintf("restore %s was cut off half-way; its member is in place now, the one before it is in %s", e.Name(), aside))
		case aside != "":
			said = append(said, fmt.Sprintf("restore %s was cut off after it had put its member in place; the one before it is in %s now", e.Name(), aside))
		default:
			said = append(said, fmt.Sprintf("restore %s was cut off before it had changed anything; its leftovers are removed", e.Name()))
		}
	}
	if err := os.Remove(root); err != nil {
		return said, err
	}
	return said, syncFile(dataDir)
}

// recoverOne ends the restore of one staging folder, whatever state it is in,
// and returns where the old member went, if it was still here. It is the last
// part of Install as well, and Abort.
func recoverOne(dataDir, dir string, reach func(point string)) (aside string, err error) {
	text, err := os.ReadFile(filepath.Join(dir, "journal"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", os.RemoveAll(dir)
	}
	if err != nil {
		return "", err
	}
	var j journal
	if err := json.Unmarshal(text, &j); err != nil || j.NewName == "" || len(j.NewSHA) != sha256.Size {
		return "", fmt.Errorf("%s is not a journal of a restore; look at the folder and move it away", filepath.Join(dir, "journal"))
	}
	member, staged, old := filepath.Join(dataDir, "member"), filepath.Join(dir, "member"), filepath.Join(dir, "old")
	inPlace, err := exists(member)
	if err != nil {
		return "", err
	}
	isStaged, err := exists(staged)
	if err != nil {
		return "", err
	}
	isOld, err := exists(old)
	if err != nil {
		return "", err
	}
	// Without an exchange the old one is in its own place, so the other is new.
	isNew := isStaged && isOld
	if isStaged && !isOld {
		if isNew, err = j.isNew(staged); err != nil {
			return "", err
		}
	}
	discard := filepath.Join(dir, "discard")
	if isStaged && isNew {
		to := discard // by its new name half a removal can't pass for an old member
		if isOld && !inPlace {
			to = member
		}
		if err := rename(staged, to); err != nil {
			return "", err
		}
		reach("moved")
	}
	if isStaged && !isNew {
		old, isOld = staged, true
	}
	if isOld {
		if aside, err = moveAside(old, dataDir, j.AsideDir, filepath.Base(j.ID), keptName); err != nil {
			return "", err
		}
	}
	reach("tidied")
	if err := os.RemoveAll(discard); err != nil {
		return aside, err
	}
	if err := os.Remove(filepath.Join(dir, "journal")); err != nil {
		return aside, err
	}
	reach("forgotten")
	_ = os.Remove(filepath.Join(dir, "journal.tmp"))
	// Not RemoveAll: by now there is nothing left that we know of.
	if err := os.Remove(dir); err != nil {
		return aside, err
	}
	return aside, syncFile(filepath.Dir(dir))
}

// moveAside renames a member to where it is kept, by that name or with a
// number behind it, and returns its place.
func moveAside(member, dataDir, asideDir, id, name string) (string, error) {
	inside := filepath.Join(dataDir, AsideName)
	if asideDir != "" {
		to, err := moveInto(member, filepath.Join(asideDir, id), name)
		if err == nil {
			return to, nil
		}
		if asideDir == inside {
			return "", err
		}
	}
	return moveInto(member, filepath.Join(inside, id), name)
}

func moveInto(member, dir, name string) (string, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	for i := 1; ; i++ {
		to := filepath.Join(dir, name)
		if i > 1 {
			to = fmt.Sprintf("%s.%d", to, i)
		}
		taken, err := exists(to)
		if err != nil {
			return "", err
		}
		if taken {
			continue
		}
		if err := rename(member, to); err != nil {
			_ = os.Remove(dir) // only if empty
			return "", err
		}
		return to, nil
	}
}

// Aside says where Install will keep the member that is in place now; empty
// if there is none.
func Aside(dataDir, asideDir, id string) (string, error) {
	member := filepath.Join(dataDir, "member")
	if had, err := exists(member); err != nil || !had {
		return "", err
	}
	if asideDir != "" {
		from, err := device(member)
		if err != nil {
			return "", err
		}
		to, err := device(asideDir)
		if err != nil {
			return "", err
		}
		if from == to {
			return filepath.Join(asideDir, id, "member"), nil
		}
	}
	return filepath.Join(dataDir, AsideName, id, "member"), nil
}
