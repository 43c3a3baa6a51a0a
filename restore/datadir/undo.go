package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	keptName   = "member"        // of an old member in its aside folder; then member.2 and so on
	undoneName = "undone-member" // of a new one that was put back
)

// Installed says whether the member in place is the one that the restore with
// that id made. It first finishes what a restore that died has left, as Recover
// does, so the answer is final: it is true from Install on, with or without a member
// before, and false again after PutBack, or once another member is in place.
// An etcd may run on the member. ErrInUse if a restore is at work there,
// ErrInvalid for names that can't be used.
func Installed(dataDir, asideDir, id string) (bool, error) {
	s, err := enter(Options{DataDir: dataDir, AsideDir: asideDir, ID: id})
	if err != nil || s == nil {
		return false, err
	}
	defer s.Abort()
	m, err := readMark(filepath.Join(s.dataDir, "member"))
	return m != nil && m.ID == id, err
}

// PutBack undoes the Install of the restore with that id: the old member is in
// place again, or none if there was none, and the new one is kept where the
// path says, <aside>/<id>/undone-member. Like Install it renames only, and
// exchanges the two at once where the file system can. What a restore that died
// has left is finished first.
//
// It can be killed at any moment and called again; when all is done already it
// changes nothing and returns the same path. The path is empty if that restore never
// put a member in place. A member that came into place since is left there.
//
// ErrInUse if an etcd runs on the new member or a restore is at work there,
// ErrInvalid for names that can't be used; any other error, too, leaves the old
// member or the new one in place.
func PutBack(dataDir, asideDir, id string) (kept string, err error) {
	return putBack(Options{DataDir: dataDir, AsideDir: asideDir, ID: id})
}

func putBack(opts Options) (kept string, err error) {
	s, err := enter(opts)
	if err != nil || s == nil {
		return "", err
	}
	defer s.Abort()
	u := &undoing{Staging: s, member: filepath.Join(s.dataDir, "member")}
	if opts.AsideDir != "" {
		u.asides = append(u.asides, filepath.Join(opts.AsideDir, opts.ID))
	}
	if inside := filepath.Join(s.dataDir, AsideName, opts.ID); !slices.Contains(u.asides, inside) {
		u.asides = append(u.asides, inside)
	}
	if err := u.goOn(); err != nil {
		return "", fmt.Errorf("go on putting back the member before restore %s: %w", opts.ID, err)
	}
	m, err := readMark(u.member)
	if err != nil {
		return "", err
	}
	if m == nil || m.ID != opts.ID {
		return u.kept()
	}
	if kept, err = u.take(m); err != nil {
		return "", fmt.Errorf("put back the member before restore %s: %w", opts.ID, err)
	}
	return kept, nil
}

// enter locks a data directory and finishes what a restore that died has left
// there; nil if there is no such directory. Abort unlocks it.
func enter(opts Options) (*Staging, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(opts.DataDir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	s := &Staging{opts: opts}
	err := s.openDataDir()
	if err == nil {
		_, err = recoverLeftovers(s.dataDir, opts.reach)
	}
	if err != nil {
		return nil, errors.Join(err, s.Abort())
	}
	return s, nil
}

// undoing is one PutBack.
type undoing struct {
	*Staging
	member string   // the place
	asides []string // the folders that old members of this restore may be in
}

// take puts the old member in the place of the new one.
func (u *undoing) take(m *mark) (kept string, err error) {
	// An etcd that runs is found here, and none can begin before it is done.
	locks, err := lockMember(u.member)
	defer locks.release()
	if err != nil {
		return "", err
	}
	var old string
	if m.Had {
		if old, err = u.find(m.OldInode); err != nil {
			return "", err
		}
		if old == "" {
			return "", fmt.Errorf("it is not in %s", strings.Join(u.asides, " or "))
		}
	}
	m.Undoing = true
	if err := m.write(u.member, u.owner); err != nil {
		return "", err
	}
	u.opts.reach("marked undone")
	if !m.Had {
		kept, err = moveAside(u.member, u.dataDir, u.opts.AsideDir, u.opts.ID, undoneName)
		u.opts.reach("taken away")
		return kept, err
	}
	swapped, err := swap(old, u.member)
	if err != nil {
		return "", err
	}
	if swapped {
		u.opts.reach("swapped")
		if err := errors.Join(syncFile(u.dataDir), syncFile(filepath.Dir(old))); err != nil {
			return "", err
		}
		// From here on the old member is in place, and the new one has its name.
		kept, err = moveInto(old, filepath.Dir(old), undoneName)
		u.opts.reach("kept")
		return kept, err
	}
	if kept, err = moveInto(u.member, filepath.Dir(old), undoneName); err != nil {
		return "", err
	}
	u.opts.reach("between undone")
	err = rename(old, u.member)
	u.opts.reach("kept")
	return kept, err
}

// goOn finishes what a PutBack that was killed has begun.
func (u *undoing) goOn() error {
	// Exchanged, but not yet under its own name.
	members, err := u.list(keptName)
	if err != nil {
		return err
	}
	for _, path := range members {
		if m, err := readMark(path); err == nil && m != nil && m.ID == u.opts.ID && m.Undoing {
			if _, err := moveInto(path, filepath.Dir(path), undoneName); err != nil {
				return err
			}
		}
	}
	// Taken away, where the file system can't exchange, with nothing in place.
	inPlace, err := exists(u.member)
	if err != nil || inPlace {
		return err
	}
	kept, err := u.kept()
	if err != nil || kept == "" {
		return err
	}
	m, err := readMark(kept)
	if err != nil || !m.Had {
		return err
	}
	old, err := u.find(m.OldInode)
	if err != nil || old == "" {
		return err
	}
	return rename(old, u.member)
}

// find returns the old member with that inode number, else, as after a copy of
// the whole file system, the only one that is there; empty if there is none.
func (u *undoing) find(ino uint64) (string, error) {
	members, err := u.list(keptName)
	if err != nil {
		return "", err
	}
	members = slices.DeleteFunc(members, func(path string) bool { return isOf(path, u.opts.ID) })
	for _, path := range members {
		n, err := inode(path)
		if err != nil {
			return "", err
		}
		if n == ino {
			return path, nil
		}
	}
	if len(members) == 1 {
		return members[0], nil
	}
	return "", nil
}

// kept returns where the last new member that was put back is; empty if none was.
func (u *undoing) kept() (string, error) {
	members, err := u.list(undoneName)
	if err != nil {
		return "", err
	}
	for _, path := range slices.Backward(members) {
		if isOf(path, u.opts.ID) {
			return path, nil
		}
	}
	return "", nil
}

// list returns the members with that name and its numbered ones in the aside
// folders, each folder's in the order they came.
func (u *undoing) list(name string) ([]string, error) {
	var out []string
	for _, dir := range u.asides {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		numbered := map[int]string{}
		for _, e := range entries {
			rest, ok := strings.CutPrefix(e.Name(), name)
			if rest == "" && ok {
				numbered[1] = filepath.Join(dir, e.Name())
			}
			if n, err := strconv.Atoi(strings.TrimPrefix(rest, ".")); ok && err == nil && n > 1 {
				numbered[n] = filepath.Join(dir, e.Name())
			}
		}
		var numbers []int
		for n := range numbered {
			numbers = append(numbers, n)
		}
		slices.Sort(numbers)
		for _, n := range numbers {
			out = append(out, numbered[n])
		}
	}
	return out, nil
}
