package files

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"lifeboat/internal/seal"
)

// Result says what a restore did.
type Result struct {
	Created, Replaced, Adjusted, Identical int
	Bytes                                  int64 // of the files that were written
}

// Apply restores by the plan. archive is the same archive from its start: every
// entry is verified against the first reading before it takes its place. An
// error leaves a part restored and nothing lost; preparing and applying again goes on.
func (p *Plan) Apply(ctx context.Context, archive io.Reader) (*Result, error) {
	a := &applying{Plan: p, result: &Result{}, dirty: make(map[string]bool), steps: make(map[int]*Step)}
	for i := range p.Steps {
		if s := &p.Steps[i]; s.index >= 0 {
			a.steps[s.index] = s
		}
	}
	if err := a.run(ctx, archive); err != nil {
		return a.result, fmt.Errorf("restore files: %w", err)
	}
	return a.result, nil
}

// applying is one run of Apply.
type applying struct {
	*Plan
	result *Result
	steps  map[int]*Step   // by index in the archive
	dirty  map[string]bool // folders to sync
}

func (a *applying) run(ctx context.Context, archive io.Reader) error {
	unlock, err := a.disk.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if a.Count(Replace) > 0 {
		if err := canKeep(a.Aside()); err != nil {
			return fmt.Errorf("what is replaced can't be kept, and nothing was changed: %w", err)
		}
	}
	clear(a.disk.gone) // from here on, what is on disk is what counts
	if err := a.folders(); err != nil {
		return err
	}
	if err := a.sweep(); err != nil {
		return err
	}
	r := seal.NewArchiveReader(archive, a.opts.Limits)
	i := 0
	err = walk(ctx, r, func(h *seal.Header) error {
		if i >= len(a.entries) || *h != a.entries[i].header {
			return fmt.Errorf("%s: %w", h.Name, ErrChanged)
		}
		i++
		return a.entry(r, i-1)
	})
	if err != nil {
		return err
	}
	if i != len(a.entries) {
		return fmt.Errorf("it ends after %d of %d entries: %w", i, len(a.entries), ErrChanged)
	}
	return a.finishFolders()
}

// folders makes the folders, outermost first. Until the end their owner may
// write in them, whatever their mode.
func (a *applying) folders() error {
	for i := range a.Steps {
		s := &a.Steps[i]
		if s.Type != seal.TypeDir || s.Action != Create && s.Action != Replace {
			continue
		}
		if err := a.makeFolder(s); err != nil {
			return fmt.Errorf("make folder %s: %w", s.Name, err)
		}
	}
	return nil
}

func (a *applying) makeFolder(s *Step) error {
	info, err := a.disk.lstat(s.real)
	if err == nil && info.IsDir() {
		return nil
	}
	if err == nil {
		if err := a.setAside(s, info); err != nil {
			return err
		}
		if err := a.step("remove", s.real); err != nil {
			return err
		}
		// The one moment in which a name is missing: no call swaps a file for a folder.
		if err := a.disk.root.Remove(s.real); err != nil {
			return err
		}
		a.result.Replaced++
	} else {
		a.result.Created++
	}
	mode := fs.FileMode(0o755)
	if s.index >= 0 {
		mode = a.entries[s.index].header.Mode
	}
	if err := a.step("mkdir", s.real); err != nil {
		return err
	}
	if err := a.disk.root.Mkdir(s.real, mode.Perm()|0o700); err != nil {
		return err
	}
	a.dirty[path.Dir(s.real)], a.dirty[s.real] = true, true
	return nil
}

// sweep removes what an interrupted restore left half-written.
func (a *applying) sweep() error {
	for _, s := range a.Steps {
		if s.Type == seal.TypeDir {
			continue
		}
		if err := a.disk.removeLeftover(temp(s.real)); err != nil {
			return fmt.Errorf("remove what an earlier restore left: %w", err)
		}
	}
	return nil
}

// entry verifies one entry of the second reading, and restores it if the plan says so.
func (a *applying) entry(r io.Reader, i int) error {
	e := a.entries[i]
	s := a.steps[i]
	var err error
	switch {
	case e.header.Type == seal.TypeFile && s != nil && (s.Action == Create || s.Action == Replace):
		err = a.file(s, e, r)
	case e.header.Type == seal.TypeFile:
		sum, sumErr := sumOf(r)
		if err = sumErr; err == nil && sum != e.sum {
			err = ErrChanged
		}
		if err == nil && s != nil {
			err = a.adjust(s)
		}
	case e.header.Type == seal.TypeSymlink && s != nil && (s.Action == Create || s.Action == Replace):
		err = a.link(s, e)
	case e.header.Type == seal.TypeSymlink && s != nil:
		err = a.adjust(s)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", e.header.Name, err)
	}
	return nil
}

// file writes beside the place, verifies, and only then takes the place.
func (a *applying) file(s *Step, e record, r io.Reader) error {
	tmp := temp(s.real)
	if err := a.step("write", tmp); err != nil {
		return err
	}
	f, err := a.disk.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), r)
	if err == nil && [sha256.Size]byte(h.Sum(nil)) != e.sum {
		err = ErrChanged
	}
	if err == nil && !a.opts.KeepOwner {
		err = f.Chown(e.header.UID, e.header.GID)
	}
	if err == nil {
		err = f.Chmod(e.header.Mode) // after chown, which clears bits
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = a.disk.root.Chtimes(tmp, e.header.ModTime, e.header.ModTime)
	}
	if err != nil {
		return errors.Join(err, a.disk.root.Remove(tmp))
	}
	a.result.Bytes += e.header.Size
	return a.install(s, tmp)
}

func (a *applying) link(s *Step, e record) error {
	tmp := temp(s.real)
	if err := a.step("symlink", tmp); err != nil {
		return err
	}
	err := a.disk.root.Symlink(e.header.Linkname, tmp)
	if err == nil && !a.opts.KeepOwner {
		err = a.disk.root.Lchown(tmp, e.header.UID, e.header.GID)
	}
	if err == nil {
		err = a.disk.linkTime(tmp, e.header.ModTime)
	}
	if err != nil {
		return err
	}
	return a.install(s, tmp)
}

// install puts a written file in its place. What is there gets its second name
// in the aside folder first, so that at every moment both exist somewhere, and
// the place is never empty.
func (a *applying) install(s *Step, tmp string) error {
	info, err := a.disk.lstat(s.real)
	switch {
	case err == nil && !info.Mode().IsRegular() && info.Mode()&fs.ModeSymlink == 0:
		return ErrConflict
	case err == nil:
		if err := a.setAside(s, info); err != nil {
			return err
		}
		a.result.Replaced++
	case errors.Is(err, fs.ErrNotExist):
		a.result.Created++
	default:
		return err
	}
	if err := a.step("rename", s.real); err != nil {
		return err
	}
	a.dirty[path.Dir(s.real)] = true
	return a.disk.root.Rename(tmp, s.real)
}

func (a *applying) setAside(s *Step, info fs.FileInfo) error {
	if info.IsDir() {
		return ErrConflict
	}
	if err := a.step("aside", s.real); err != nil {
		return err
	}
	if err := a.disk.aside(s.real, a.Aside()); err != nil {
		return fmt.Errorf("keep what is there in %s: %w", a.Aside(), err)
	}
	return nil
}

// adjust gives what is there the archive's owner, mode and time.
func (a *applying) adjust(s *Step) error {
	if s.Action != Adjust {
		a.result.Identical++
		return nil
	}
	a.result.Adjusted++
	if err := a.step("adjust", s.real); err != nil {
		return err
	}
	return a.meta(s)
}

func (a *applying) meta(s *Step) error {
	h := a.entries[s.index].header
	if !a.opts.KeepOwner {
		if err := a.disk.root.Lchown(s.real, h.UID, h.GID); err != nil {
			return err
		}
	}
	if s.Type == seal.TypeSymlink {
		return a.disk.linkTime(s.real, h.ModTime)
	}
	if err := a.disk.root.Chmod(s.real, h.Mode); err != nil {
		return err
	}
	return a.disk.root.Chtimes(s.real, h.ModTime, h.ModTime)
}

// finishFolders makes everything durable and gives folders their mode, owner
// and time, innermost first, since all that happened in them changed their time.
func (a *applying) finishFolders() error {
	for _, s := range slices.Backward(a.Steps) {
		if s.Type != seal.TypeDir || s.index < 0 || s.linkd {
			continue
		}
		switch {
		case s.owned && (s.Action != Identical || a.dirty[s.real]):
			if err := a.step("folder", s.real); err != nil {
				return err
			}
			if err := a.meta(&s); err != nil {
				return fmt.Errorf("folder %s: %w", s.Name, err)
			}
			if s.Action == Adjust {
				a.result.Adjusted++
			}
		case s.Action == Identical:
			a.result.Identical++
		}
	}
	for dir := range a.dirty {
		if err := a.disk.sync(dir); err != nil {
			return fmt.Errorf("make folder %s durable: %w", dir, err)
		}
	}
	return nil
}
