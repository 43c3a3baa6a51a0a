package files

import (
	"encoding/hex"
	"io/fs"
	"os"
	"path"
	"time"

	"lifeboat/internal/seal"
)

// Before is what Undo has to know beside what the aside folder holds: how the
// entries that a plan changes were. It is plain data, to be written down before
// Apply. When an interrupted Apply is gone on with by a new plan, the Before of
// the first one still holds, and is the one that counts.
//
// Names are those on disk below the root, through no link.
type Before struct {
	Created  []Created `json:"created,omitempty"`  // nothing was there
	Replaced []Former  `json:"replaced,omitempty"` // files and links whose place is taken
	Adjusted []Former  `json:"adjusted,omitempty"` // what gets another mode, owner or time only
}

// Created is an entry that a restore makes.
type Created struct {
	Name   string `json:"name"`
	Folder bool   `json:"folder,omitempty"`
}

// Former is what an entry was before a restore.
type Former struct {
	Name string      `json:"name"`
	Mode fs.FileMode `json:"mode"` // with its type
	UID  int         `json:"uid"`
	GID  int         `json:"gid"`
	Time time.Time   `json:"time"`

	// What tells the original among other files of its name, if it is replaced:
	// a file's SHA-256, empty if it could not be read, or a link's target.
	SHA256 string `json:"sha256,omitempty"`
	Link   string `json:"link,omitempty"`

	// Given is the time that the restore gives to a file or link that it
	// adjusts: with any other than this and Time, somebody has written to it since.
	Given *time.Time `json:"given,omitempty"`
}

// Before says how what the plan changes is now. It is to be called before Apply.
func (p *Plan) Before() Before {
	busy := map[string]bool{} // folders whose own time will change
	for _, s := range p.Steps {
		if s.Action == Create || s.Action == Replace {
			busy[path.Dir(s.real)] = true
		}
	}
	var b Before
	for i := range p.Steps {
		s := &p.Steps[i]
		switch {
		case s.linkd:
		case s.Action == Create:
			b.Created = append(b.Created, Created{Name: s.real, Folder: s.Type == seal.TypeDir})
		case s.Action == Replace:
			b.Replaced = append(b.Replaced, p.disk.identify(formerOf(s)))
		case s.Action == Adjust && s.Type != seal.TypeDir:
			f := formerOf(s)
			given := p.entries[s.index].header.ModTime.UTC()
			f.Given = &given
			b.Adjusted = append(b.Adjusted, f)
		case s.Action == Adjust, s.Type == seal.TypeDir && s.owned && busy[s.real]:
			b.Adjusted = append(b.Adjusted, formerOf(s))
		}
	}
	return b
}

func formerOf(s *Step) Former {
	uid, gid := ownerOf(s.found)
	return Former{Name: s.real, Mode: modeOf(s.found) | s.found.Mode().Type(), UID: uid, GID: gid, Time: s.found.ModTime().UTC()}
}

// identify adds what tells the file or link from others.
func (d *disk) identify(f Former) Former {
	if f.Mode&fs.ModeSymlink != 0 {
		f.Link, _ = d.root.Readlink(f.Name)
		return f
	}
	in, err := d.openFile(f.Name)
	if err != nil {
		return f
	}
	defer in.Close()
	if sum, err := sumOf(in); err == nil {
		f.SHA256 = hex.EncodeToString(sum[:])
	}
	return f
}

// isContent says whether a file or link has the content that f had. path may
// be outside the root.
func (f *Former) isContent(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != f.Mode.Type() {
		return false
	}
	if f.Mode&fs.ModeSymlink != 0 {
		to, err := os.Readlink(path)
		return err == nil && to == f.Link
	}
	if !f.Mode.IsRegular() || f.SHA256 == "" {
		return false
	}
	in, err := openOutside(path)
	if err != nil {
		return false
	}
	defer in.Close()
	sum, err := sumOf(in)
	return err == nil && hex.EncodeToString(sum[:]) == f.SHA256
}
