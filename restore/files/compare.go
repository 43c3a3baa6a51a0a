package files

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"lifeboat/internal/chroot"
	"lifeboat/internal/seal"
)

// leftLimit bounds the list of files that stay.
const leftLimit = 10_000

// compare makes the steps: what the disk has at every included name.
func (p *Plan) compare(included map[string]int, folders []string) error {
	all := make(map[string]int, len(p.entries)) // name -> index in the archive
	for i, e := range p.entries {
		all[e.header.Name] = i
	}
	names := make([]string, 0, len(included))
	for name := range included {
		names = append(names, name)
	}
	slices.Sort(names) // a folder comes before what is in it

	taken := make(map[string]string)
	var conflicts []string
	for _, name := range names {
		s := Step{Name: name, Type: seal.TypeDir, index: -1}
		if i, ok := all[name]; ok {
			s.index, s.Type, s.Size = i, p.entries[i].header.Type, p.entries[i].header.Size
		}
		parent, err := p.disk.resolve(path.Dir(name))
		if err != nil {
			return err
		}
		s.real = path.Join(parent.Name, path.Base(name))
		conflict, err := p.compareOne(&s, included[name] == wanted, folders, all)
		if err != nil {
			return fmt.Errorf("compare %s with the disk: %w", name, err)
		}
		if conflict != "" {
			conflicts = append(conflicts, name+": "+conflict)
			continue
		}
		if !s.linkd {
			if other, ok := taken[s.real]; ok {
				conflicts = append(conflicts, fmt.Sprintf("%s and %s are the same place on this disk", other, name))
				continue
			}
			taken[s.real] = name
		}
		if s.Action == Replace {
			p.disk.gone[s.real] = true // names below it don't lead through what is there now
		}
		p.Steps = append(p.Steps, s)
	}
	if len(conflicts) > 0 {
		return fmt.Errorf("%w: %s", ErrConflict, strings.Join(conflicts, "; "))
	}
	return nil
}

// compareOne fills the step's action, or returns what is in the way.
func (p *Plan) compareOne(s *Step, wanted bool, folders []string, all map[string]int) (conflict string, err error) {
	info, err := p.disk.lstat(s.real)
	if errors.Is(err, fs.ErrNotExist) {
		s.Action, s.owned = Create, true
		return "", nil
	}
	if err != nil {
		return "", err
	}
	s.found = info
	isLink := info.Mode()&fs.ModeSymlink != 0
	switch {
	case !info.IsDir() && !isLink && !info.Mode().IsRegular():
		return "a device, fifo or socket is there", nil
	case s.Type == seal.TypeDir && info.IsDir():
		return "", p.compareDir(s, info, wanted, folders, all)
	case s.Type == seal.TypeDir && isLink && p.disk.leadsToDir(s.real):
		// /lib -> usr/lib: replacing such a link would take the machine apart.
		s.Action, s.linkd = Identical, true
		return "", nil
	case info.IsDir():
		return "a folder is there", nil
	case s.Type == seal.TypeFile && info.Mode().IsRegular():
		same, err := p.sameContent(s, info)
		if err != nil {
			return "", err
		}
		s.Action = Replace
		if same {
			s.Action = p.compareMeta(s, info)
		}
	case s.Type == seal.TypeSymlink && isLink:
		target, err := p.disk.root.Readlink(s.real)
		if err != nil {
			return "", err
		}
		s.Action = Replace
		if target == p.entries[s.index].header.Linkname {
			s.Action = p.compareMeta(s, info)
		}
	default:
		s.Action = Replace
		s.owned = s.Type == seal.TypeDir
	}
	return "", nil
}

// compareDir decides whether an existing folder takes the archive's mode,
// owner and time: when it was stored whole, or when it holds nothing else, as after
// an interrupted restore. Others, such as /etc, are the machine's.
func (p *Plan) compareDir(s *Step, info fs.FileInfo, wanted bool, folders []string, all map[string]int) error {
	s.Action = Identical
	if s.index < 0 || !wanted {
		return nil
	}
	for _, folder := range folders {
		s.owned = s.owned || chroot.Within(s.Name, folder)
	}
	if !s.owned {
		names, err := p.disk.folder(s.real)
		if err != nil {
			return err
		}
		s.owned = !slices.ContainsFunc(names, func(base string) bool {
			_, ok := all[path.Join(s.Name, base)]
			return !ok && !isTemp(base)
		})
	}
	action := p.compareMeta(s, info)
	if s.owned {
		s.Action = action
		return nil
	}
	if h := p.entries[s.index].header; h.Mode != modeOf(info) {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s keeps its mode %v; it was %v in the backup", s.Name, modeOf(info), h.Mode))
	}
	return nil
}

// compareMeta compares what is not content. Links have no mode of their own.
func (p *Plan) compareMeta(s *Step, info fs.FileInfo) Action {
	h := p.entries[s.index].header
	uid, gid := ownerOf(info)
	switch {
	case s.Type != seal.TypeSymlink && h.Mode != modeOf(info):
	case !p.opts.KeepOwner && (uid != h.UID || gid != h.GID):
	case !info.ModTime().Equal(h.ModTime):
	default:
		return Identical
	}
	return Adjust
}

func (p *Plan) sameContent(s *Step, info fs.FileInfo) (bool, error) {
	e := p.entries[s.index]
	if info.Size() != e.header.Size {
		return false, nil
	}
	f, err := p.disk.openFile(s.real)
	if err != nil {
		return false, err
	}
	defer f.Close()
	sum, err := sumOf(f)
	return sum == e.sum, err
}

// findLeft lists what the disk has in the folders that were stored whole and
// the archive has not.
func (p *Plan) findLeft(included map[string]int, folders []string) {
	have := make(map[string]bool, len(p.entries))
	for _, e := range p.entries {
		have[e.header.Name] = true
	}
	seen := make(map[string]bool)
	var list func(name string, depth int)
	list = func(name string, depth int) {
		if seen[name] || depth > 32 {
			return
		}
		seen[name] = true
		place, err := p.disk.resolve(name)
		if err != nil || place.Missing {
			return
		}
		names, err := p.disk.folder(place.Name)
		if err != nil {
			return
		}
		for _, base := range names {
			child := path.Join(name, base)
			if len(p.Left) >= leftLimit {
				return
			}
			if !have[child] && !isTemp(base) {
				p.Left = append(p.Left, child)
				continue
			}
			if info, err := p.disk.lstat(path.Join(place.Name, base)); err == nil && info.IsDir() {
				list(child, depth+1)
			}
		}
	}
	for _, folder := range folders {
		if included[folder] == wanted && have[folder] {
			list(folder, 0)
		}
	}
	slices.Sort(p.Left)
}

// danglingLinks warns of restored links whose target is neither restored nor there.
func (p *Plan) danglingLinks() {
	comes := make(map[string]bool)
	targets := make(map[string]string)
	for _, s := range p.Steps {
		comes[s.Name] = true
		if s.Type == seal.TypeSymlink {
			targets[s.Name] = p.entries[s.index].header.Linkname
		}
	}
	for _, s := range p.Steps {
		if s.Type != seal.TypeSymlink {
			continue
		}
		place, err := chroot.Resolve(s.Name, func(name string) (string, error) {
			if target, ok := targets[name]; ok {
				return target, nil
			}
			if comes[name] {
				return "", nil
			}
			return p.disk.readlink(name)
		})
		if err != nil || place.Missing && !comes[place.Name] {
			p.Warnings = append(p.Warnings, fmt.Sprintf("%s is a link to %s, which is neither restored nor there", s.Name, targets[s.Name]))
		}
	}
}
