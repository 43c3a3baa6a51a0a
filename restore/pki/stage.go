package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"

	"lifeboat/internal/durable"
)

// content is what a place is to hold: a file, a link, or nothing.
type content struct {
	place string
	data  []byte
	mode  fs.FileMode
	uid   int
	gid   int
	link  string // not "": a link, with this target
	gone  bool   // nothing
	old   *saved // what a file's place holds now; nil if nothing or a link
}

// put replaces what all the contents name at once: after an error either
// nothing has changed, or the journal is there and the next run goes on. keep is
// asked to keep what is in the places before anything changes.
func (t *tree) put(id string, contents []content, keepOwner bool, keep func([]content) error) error {
	j := &journal{ID: id}
	err := t.stageAll(j, contents, keepOwner)
	if err == nil {
		err = keep(contents)
	}
	if err != nil {
		return errors.Join(err, t.drop(j))
	}
	if err := t.begin(j); err != nil {
		return fmt.Errorf("write the journal /%s; nothing was changed: %w", journalName, err)
	}
	// The commit point: from here on the run is finished, if need be by the next one.
	return t.finish(j)
}

func (t *tree) stageAll(j *journal, contents []content, keepOwner bool) error {
	for _, c := range contents {
		m := move{Place: c.place}
		if !c.gone {
			m.Staged, m.Sum = stagedName(c.place), sumOf(c.data)
			if c.link != "" {
				m.Sum = sumOf([]byte(c.link))
			}
		}
		j.Moves = append(j.Moves, m)
		if c.gone {
			continue
		}
		if err := t.stage(c, m.Staged, keepOwner); err != nil {
			return fmt.Errorf("write the new /%s; nothing was changed: %w", c.place, err)
		}
	}
	return nil
}

// drop removes what was staged for a journal that was never written.
func (t *tree) drop(j *journal) error {
	var errs []error
	for _, m := range j.Moves {
		if m.Staged == "" {
			continue
		}
		if err := t.root.Remove(m.Staged); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove the unfinished /%s: %w", m.Staged, err))
		}
	}
	return errors.Join(errs...)
}

// stage writes a content beside its place, with its mode and owner.
func (t *tree) stage(c content, staged string, keepOwner bool) error {
	if err := t.before("stage", staged); err != nil {
		return err
	}
	if c.link != "" {
		if err := t.root.Remove(staged); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := t.root.Symlink(c.link, staged); err != nil {
			return err
		}
		if !keepOwner {
			if err := t.root.Lchown(staged, c.uid, c.gid); err != nil {
				return err
			}
		}
		return durable.SyncDirIn(t.root, path.Dir(staged))
	}
	if err := t.write(staged, c.data); err != nil { // 0600 until it has its owner
		return err
	}
	f, err := t.root.OpenFile(staged, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if !keepOwner {
		if err := f.Chown(c.uid, c.gid); err != nil {
			return err
		}
	}
	if err := f.Chmod(c.mode); err != nil { // after chown, which clears bits
		return err
	}
	return f.Sync()
}

// sweepAll removes the unfinished files of dead runs from the folders of what
// was read.
func (s *scan) sweepAll() error {
	var dirs []string
	for _, f := range s.pems {
		dirs = append(dirs, path.Dir(f.place))
		if f.link != "" {
			dirs = append(dirs, path.Dir(f.link))
		}
	}
	for _, c := range s.configs {
		dirs = append(dirs, path.Dir(c.place))
	}
	slices.Sort(dirs)
	for _, dir := range slices.Compact(dirs) {
		if err := s.t.sweep(dir); err != nil {
			return fmt.Errorf("remove what an interrupted run left in /%s: %w", dir, err)
		}
	}
	return nil
}
