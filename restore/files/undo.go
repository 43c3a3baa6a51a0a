package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"lifeboat/internal/chroot"
)

// Undone says what an undo did.
type Undone struct {
	PutBack  int // files and links that are in their place again
	Moved    int // files and links that were moved, or kept before their place was taken, in Dir
	Removed  int // folders, which were empty
	Adjusted int // entries that have their old mode, owner and time again

	Dir  string   // what was moved is here under its path; it exists if there is any
	Left []string // names that are not as before, with the reason: somebody else's work
}

// Undo gives the entries that a restore changed back what they were, by what
// the aside folder holds and Before says. What the restore created, and what
// anybody wrote in its places since, goes to asideDir/<restoreID>.undone under
// its path: no file is deleted. Created folders are removed when they are empty.
// The aside folder stays as it is.
//
// Undo can be killed at any moment and called again, and comes out right after
// an Apply that did all, a part or nothing. Owners are given back only by root.
//
// ErrInvalid for names that can't be used, ErrInUse if a restore runs there;
// ErrConflict, after all else is done, for originals whose place can't be had.
// The original is then still in the aside folder.
func Undo(ctx context.Context, root, asideDir, restoreID string, before Before) (*Undone, error) {
	return undo(ctx, root, asideDir, restoreID, before, func(string, string) error { return nil })
}

func undo(ctx context.Context, root, asideDir, restoreID string, before Before, step func(op, name string) error) (*Undone, error) {
	if err := checkNames(asideDir, restoreID); err != nil {
		return nil, err
	}
	if err := before.check(); err != nil {
		return nil, err
	}
	d, err := openDisk(root)
	if err != nil {
		return nil, err
	}
	defer d.root.Close()
	u := &undoing{
		disk: d, before: before, step: step, aside: filepath.Join(asideDir, restoreID),
		result: &Undone{Dir: filepath.Join(asideDir, restoreID+".undone")}, dirty: make(map[string]bool),
	}
	if err := u.run(ctx); err != nil {
		return u.result, fmt.Errorf("undo the restore of files: %w", err)
	}
	return u.result, nil
}

// check refuses what no plan gives: a Before comes back from a disk.
func (b *Before) check() error {
	var names []string
	for _, c := range b.Created {
		names = append(names, c.Name)
	}
	for _, f := range slices.Concat(b.Replaced, b.Adjusted) {
		names = append(names, f.Name)
	}
	for _, name := range names {
		if !fs.ValidPath(name) || name == "." {
			return fmt.Errorf("%w: %q is no name below the root", ErrInvalid, name)
		}
	}
	return nil
}

// undoing is one run of Undo.
type undoing struct {
	disk      *disk
	before    Before
	step      func(op, name string) error // a test's hook before every change
	aside     string                      // where the originals are kept
	originals map[string]string           // name -> its place in the aside folder
	result    *Undone
	dirty     map[string]bool // folders to sync
	conflicts []error
}

func (u *undoing) run(ctx context.Context) error {
	unlock, err := u.disk.lock()
	if err != nil {
		return err
	}
	defer unlock()
	u.findOriginals()
	if err := u.open(); err != nil {
		return err
	}
	if err := u.sweep(); err != nil {
		return err
	}
	if err := u.places(ctx); err != nil {
		return err
	}
	adjusted := slices.Clone(u.before.Adjusted)
	slices.SortFunc(adjusted, func(a, b Former) int { return strings.Compare(b.Name, a.Name) }) // a folder after what is in it
	for _, f := range adjusted {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := u.adjust(&f); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	for dir := range u.dirty {
		if err := u.disk.sync(dir); err != nil && !errors.Is(err, fs.ErrNotExist) { // it may be removed by now
			return fmt.Errorf("make folder %s durable: %w", dir, err)
		}
	}
	return errors.Join(u.conflicts...)
}

// findOriginals finds the original of every replaced entry among the files
// that are kept under its name, or its name and a number: what an entry of just
// that name, or a later run of the same restore, set aside may be one of them.
func (u *undoing) findOriginals() {
	u.originals = make(map[string]string)
	taken := make(map[string]bool)
	for _, sure := range []bool{true, false} {
		for _, f := range u.before.Replaced {
			if u.originals[f.Name] != "" {
				continue
			}
			for _, kept := range u.kept(f.Name) {
				if !taken[kept] && (!sure || f.isContent(kept)) {
					u.originals[f.Name], taken[kept] = kept, true
					break
				}
			}
		}
	}
}

// kept lists what is kept under a name.
func (u *undoing) kept(name string) (out []string) {
	base := filepath.Join(u.aside, filepath.FromSlash(name))
	for n, target := 1, base; ; n++ {
		info, err := os.Lstat(target)
		if err != nil {
			return out
		}
		if info.Mode().IsRegular() || info.Mode()&fs.ModeSymlink != 0 {
			out = append(out, target)
		}
		target = fmt.Sprintf("%s.%d", base, n)
	}
}

// open lets their owner write in the restore's folders, which only root can
// do without.
func (u *undoing) open() error {
	if os.Geteuid() == 0 {
		return nil
	}
	var folders []string
	for _, c := range u.before.Created {
		if c.Folder {
			folders = append(folders, c.Name)
		}
	}
	for _, f := range u.before.Adjusted {
		if f.Mode.IsDir() {
			folders = append(folders, f.Name)
		}
	}
	slices.Sort(folders)
	for _, name := range folders {
		info, err := u.disk.lstat(name)
		if err != nil || !info.IsDir() || info.Mode()&0o700 == 0o700 || !u.straight(name) {
			continue
		}
		if err := u.disk.root.Chmod(name, modeOf(info)|0o700); err != nil {
			return err
		}
	}
	return nil
}

// sweep removes what an interrupted restore or undo left half-written.
func (u *undoing) sweep() error {
	var names []string
	for _, c := range u.before.Created {
		if !c.Folder {
			names = append(names, c.Name)
		}
	}
	for _, f := range slices.Concat(u.before.Replaced, u.before.Adjusted) {
		if !f.Mode.IsDir() {
			names = append(names, f.Name)
		}
	}
	for _, name := range names {
		if !u.straight(name) {
			continue
		}
		if err := u.disk.removeLeftover(temp(name)); err != nil && !errors.Is(err, syscall.ENOTDIR) {
			return fmt.Errorf("remove what the restore left half-written: %w", err)
		}
	}
	return nil
}

// straight says whether a name still leads through no link.
func (u *undoing) straight(name string) bool {
	place, err := chroot.Resolve(path.Dir(name), u.disk.readlink)
	return err == nil && len(place.Links) == 0
}

// places empties and fills places, a folder's after those in it.
func (u *undoing) places(ctx context.Context) error {
	todo := make(map[string]func() error)
	var names []string
	for _, c := range u.before.Created {
		names = append(names, c.Name)
		todo[c.Name] = func() error { return u.takeAway(c) }
	}
	for _, f := range u.before.Replaced {
		names = append(names, f.Name)
		todo[f.Name] = func() error { return u.putBack(&f) }
	}
	slices.Sort(names)
	for _, name := range slices.Backward(names) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := todo[name](); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (u *undoing) left(name, why string) error {
	u.result.Left = append(u.result.Left, name+": "+why)
	return nil
}

// takeAway empties a place where nothing was.
func (u *undoing) takeAway(c Created) error {
	if !u.straight(c.Name) {
		return u.left(c.Name, "its folder is a link now")
	}
	info, err := u.disk.lstat(c.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.IsDir():
		err := u.move(c.Name)
		if errors.Is(err, ErrConflict) {
			return u.left(c.Name, "what is there now can't be moved")
		}
		return err
	case !c.Folder:
		return u.left(c.Name, "a folder is there now")
	}
	if err := u.removeFolder(c.Name); errors.Is(err, errNotEmpty) {
		return u.left(c.Name, "the folder holds what the restore did not create")
	} else if err != nil {
		return err
	}
	return nil
}

var errNotEmpty = errors.New("the folder is not empty")

func (u *undoing) removeFolder(name string) error {
	if err := u.step("rmdir", name); err != nil {
		return err
	}
	err := u.disk.root.Remove(name)
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST) || errors.Is(err, syscall.EBUSY) {
		return errNotEmpty
	}
	if err != nil {
		return err
	}
	u.dirty[path.Dir(name)] = true
	u.result.Removed++
	return nil
}

func (u *undoing) move(name string) error {
	if err := u.disk.moveTo(name, u.result.Dir, u.step); err != nil {
		return fmt.Errorf("move it to %s: %w", u.result.Dir, err)
	}
	u.dirty[path.Dir(name)] = true
	u.result.Moved++
	return nil
}

// putBack gives a place its original again. Where the restore had not come
// to the entry, there is none aside, and what is there stays.
func (u *undoing) putBack(f *Former) error {
	original := u.originals[f.Name]
	if original == "" {
		return nil
	}
	if !u.straight(f.Name) {
		return u.conflict(f.Name, "its folder is a link now", original)
	}
	info, err := u.disk.lstat(f.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case info.IsDir():
		err := u.removeFolder(f.Name)
		if errors.Is(err, errNotEmpty) {
			err = u.move(f.Name)
		}
		if errors.Is(err, ErrConflict) {
			return u.conflict(f.Name, "a folder is there now that can't be moved", original)
		}
		if err != nil {
			return err
		}
	case info.Mode().IsRegular() || info.Mode()&fs.ModeSymlink != 0:
		if modeOf(info) == f.Mode&^fs.ModeType && f.isContent(u.disk.full(f.Name)) {
			return nil
		}
		if same, err := u.disk.sameFile(f.Name, original); err != nil || same {
			return err
		}
		// It gets a second name, so that the place is never empty.
		if err := u.step("keep", f.Name); err != nil {
			return err
		}
		if err := u.disk.aside(f.Name, u.result.Dir); err != nil {
			return fmt.Errorf("keep what is there in %s: %w", u.result.Dir, err)
		}
		u.result.Moved++
	default: // a device, fifo or socket
		err := u.move(f.Name)
		if errors.Is(err, ErrConflict) {
			return u.conflict(f.Name, "what is there now can't be moved", original)
		}
		if err != nil {
			return err
		}
	}
	err = u.place(f, original)
	if errors.Is(err, syscall.ENOTDIR) {
		return u.conflict(f.Name, "a folder above it is none now", original)
	}
	return err
}

// conflict notes what keeps an original from its place, and lets the rest go on.
func (u *undoing) conflict(name, why, original string) error {
	u.conflicts = append(u.conflicts, fmt.Errorf("%s: %s, and the original stays at %s: %w", name, why, original, ErrConflict))
	return nil
}

// place puts the original in its place, which is free or may be taken.
func (u *undoing) place(f *Former, original string) error {
	parent := path.Dir(f.Name)
	if _, err := u.disk.lstat(parent); errors.Is(err, fs.ErrNotExist) {
		if err := u.step("mkdir", parent); err != nil {
			return err
		}
		if err := u.disk.root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	tmp := temp(f.Name)
	if err := u.step("write", tmp); err != nil {
		return err
	}
	if err := u.disk.bring(original, tmp); err != nil {
		return err
	}
	if f.Mode&fs.ModeSymlink != 0 && f.isContent(original) {
		// A link that could only be copied has lost these.
		if err := u.meta(f, tmp); err != nil {
			return err
		}
	}
	if err := u.step("rename", f.Name); err != nil {
		return err
	}
	if err := u.disk.root.Rename(tmp, f.Name); err != nil {
		return err
	}
	u.dirty[parent] = true
	u.result.PutBack++
	return nil
}

// adjust gives an entry that only got another mode, owner or time the old ones.
func (u *undoing) adjust(f *Former) error {
	if !u.straight(f.Name) {
		return u.left(f.Name, "its folder is a link now")
	}
	info, err := u.disk.lstat(f.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return u.left(f.Name, "it is gone")
	case err != nil:
		return err
	case info.Mode().Type() != f.Mode.Type():
		return u.left(f.Name, "something else is there now")
	case f.Given != nil && !info.ModTime().Equal(f.Time) && !info.ModTime().Equal(*f.Given):
		return u.left(f.Name, "somebody has written to it since")
	}
	uid, gid := ownerOf(info)
	isLink := f.Mode&fs.ModeSymlink != 0
	if info.ModTime().Equal(f.Time) && (isLink || modeOf(info) == f.Mode&^fs.ModeType) && (os.Geteuid() != 0 || uid == f.UID && gid == f.GID) {
		return nil
	}
	if err := u.step("adjust", f.Name); err != nil {
		return err
	}
	u.result.Adjusted++
	return u.meta(f, f.Name)
}

// meta gives what is at name the mode, owner and time of f.
func (u *undoing) meta(f *Former, name string) error {
	if os.Geteuid() == 0 {
		if err := u.disk.root.Lchown(name, f.UID, f.GID); err != nil {
			return err
		}
	}
	if f.Mode&fs.ModeSymlink != 0 {
		return u.disk.linkTime(name, f.Time)
	}
	if err := u.disk.root.Chmod(name, f.Mode&^fs.ModeType); err != nil {
		return err
	}
	return u.disk.root.Chtimes(name, f.Time, f.Time)
}
