// Package files puts a node's files back: it extracts a host archive below a
// root, and looks into one without extracting.
//
// A restore reads the archive twice. Prepare reads it whole, refuses what is
// hostile, compares it with the disk and returns a plan; nothing has been touched
// when it returns. Apply reads it again, verifies that it is the same archive entry by
// entry, and writes. A file that is on disk and differs is kept in the aside folder
// before its place is taken; what the archive doesn't have is left where it is.
// Apply can be killed at any moment: preparing and applying again finishes the work.
// Undo takes it back, by the plan's Before.
//
// Names are resolved as in a chroot of the root, by package chroot, and opened
// through os.Root, so that neither the archive's links nor the disk's lead out.
package files

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"lifeboat/internal/chroot"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/seal"
)

// factsLimit bounds what is held of the facts in memory.
const factsLimit = 32 << 20

// What a caller may want to tell apart. A hostile archive is a *seal.RefusedError.
var (
	// ErrInvalid says that the options can't be used as they are.
	ErrInvalid = errors.New("invalid restore options")
	// ErrConflict says that something on disk is in the way that is not moved
	// aside: a folder, a device, a socket.
	ErrConflict = errors.New("something is in the way")
	// ErrNoMatch says that an include pattern matches nothing in the archive.
	ErrNoMatch = errors.New("nothing in the backup matches")
	// ErrChanged says that the archive's second reading is not the first's.
	ErrChanged = errors.New("the archive changed between its two readings")
	// ErrInUse says that another restore writes below the same root.
	ErrInUse = errors.New("another restore runs there")
	// ErrNotFound says that the archive has no such entry.
	ErrNotFound = errors.New("no such file in the backup")
)

// Options says where and what to restore.
type Options struct {
	Root      string   // an existing folder
	AsideDir  string   // absolute; what is replaced is kept in AsideDir/RestoreID under its path
	RestoreID string   // one path element; the same id again continues an interrupted restore
	Include   []string // patterns (path.Match) of names or of folders above them; empty: everything
	Exclude   []string // the same for what is not restored; wins over Include
	Limits    seal.Limits
	// KeepOwner leaves files to the user who restores. Owners are restored
	// only by root in any case.
	KeepOwner bool
}

// Action is what a restore does with one entry.
type Action string

// The actions.
const (
	Create    Action = "create"    // nothing is there
	Identical Action = "identical" // nothing to do
	Adjust    Action = "adjust"    // the content is the same, but not the mode, owner or time
	Replace   Action = "replace"   // what is there is kept aside
)

// Step is one entry of the plan.
type Step struct {
	Name   string // in the archive
	Type   seal.Type
	Action Action
	Size   int64

	index int    // in the archive; -1 for a folder that the archive merely implies
	real  string // where it goes, through no link
	owned bool   // a folder whose mode, owner and time are the archive's
	linkd bool   // a folder that is a link to a folder on disk, which stays

	found fs.FileInfo // what is there now; nil if nothing is
}

// Plan is what a restore will do.
type Plan struct {
	Steps    []Step   // by name
	Left     []string // on disk in the restored folders and not in the backup: they stay
	Warnings []string

	opts    Options
	disk    *disk
	entries []record
	step    func(op, name string) error // a test's hook before every change
}

// record is what pass one saw of an entry.
type record struct {
	header seal.Header
	sum    [sha256.Size]byte
}

// Count returns how many steps have the action.
func (p *Plan) Count(a Action) int {
	n := 0
	for _, s := range p.Steps {
		if s.Action == a {
			n++
		}
	}
	return n
}

// Aside is the folder where replaced files are kept. It exists once Apply has
// begun and the plan replaces something.
func (p *Plan) Aside() string { return filepath.Join(p.opts.AsideDir, p.opts.RestoreID) }

// Close releases the root.
func (p *Plan) Close() error { return p.disk.root.Close() }

// Prepare reads and checks a whole archive, the plain tar, and compares it
// with the disk. It changes nothing. The caller closes the plan.
func Prepare(ctx context.Context, archive io.Reader, opts Options) (*Plan, error) {
	if err := checkNames(opts.AsideDir, opts.RestoreID); err != nil {
		return nil, err
	}
	for _, pattern := range slices.Concat(opts.Include, opts.Exclude) {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, fmt.Errorf("%w: pattern %q: %w", ErrInvalid, pattern, err)
		}
	}
	d, err := openDisk(opts.Root)
	if err != nil {
		return nil, err
	}
	p := &Plan{opts: opts, disk: d, step: func(string, string) error { return nil }}
	if os.Geteuid() != 0 {
		p.opts.KeepOwner = true
	}
	if err := p.prepare(ctx, archive); err != nil {
		d.root.Close()
		return nil, fmt.Errorf("prepare the restore of files: %w", err)
	}
	return p, nil
}

func checkNames(asideDir, restoreID string) error {
	if !filepath.IsAbs(asideDir) || restoreID == "" || strings.ContainsAny(restoreID, `/\`) || restoreID[0] == '.' {
		return fmt.Errorf("%w: an absolute aside folder and a restore id are needed, not %q and %q", ErrInvalid, asideDir, restoreID)
	}
	return nil
}

func (p *Plan) prepare(ctx context.Context, archive io.Reader) error {
	facts, err := p.readArchive(ctx, archive)
	if err != nil {
		return err
	}
	if err := p.checkLinks(); err != nil {
		return err
	}
	if err := p.checkAside(facts.Folders); err != nil {
		return err
	}
	included, err := p.included()
	if err != nil {
		return err
	}
	if err := p.compare(included, facts.Folders); err != nil {
		return err
	}
	p.findLeft(included, facts.Folders)
	p.danglingLinks()
	return nil
}

// hostFacts is the part of the facts that a restore of files reads.
type hostFacts struct {
	Folders []string `json:"folders"` // stored whole
}

// readArchive is the first pass.
func (p *Plan) readArchive(ctx context.Context, archive io.Reader) (facts hostFacts, err error) {
	r := seal.NewArchiveReader(archive, p.opts.Limits)
	var text []byte
	err = walk(ctx, r, func(h *seal.Header) error {
		body := io.Reader(r)
		if h.Name == hostfacts.Name && h.Type == seal.TypeFile && h.Size <= factsLimit {
			if text, err = io.ReadAll(r); err != nil {
				return err
			}
			body = strings.NewReader(string(text))
		}
		sum, err := sumOf(body)
		if err != nil {
			return err
		}
		p.entries = append(p.entries, record{header: *h, sum: sum})
		return nil
	})
	if err != nil {
		return facts, err
	}
	if text == nil {
		p.Warnings = append(p.Warnings, "the backup holds no "+hostfacts.Name+": files that it does not have can't be listed")
	} else if err := json.Unmarshal(text, &facts); err != nil {
		p.Warnings = append(p.Warnings, hostfacts.Name+" can't be parsed: files that the backup does not have can't be listed")
	}
	facts.Folders = slices.DeleteFunc(facts.Folders, func(name string) bool { return !fs.ValidPath(name) || name == "." })
	return facts, nil
}

// walk calls visit for every entry up to the archive's end.
func walk(ctx context.Context, r *seal.ArchiveReader, visit func(*seal.Header) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := visit(h); err != nil {
			return err
		}
	}
}

func sumOf(r io.Reader) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

// checkLinks refuses links that climb past the root, directly or through other
// links of the archive. Absolute targets mean the root's.
func (p *Plan) checkLinks() error {
	targets := make(map[string]string)
	for _, e := range p.entries {
		if e.header.Type == seal.TypeSymlink {
			targets[e.header.Name] = e.header.Linkname
		}
	}
	for name, target := range targets {
		place, err := chroot.Resolve(name, func(name string) (string, error) { return targets[name], nil })
		if errors.Is(err, chroot.ErrLoop) {
			continue // useless, and harmless: nothing is written through a link
		}
		if err != nil {
			return err
		}
		if place.Clamped {
			return &seal.RefusedError{Name: name, Reason: fmt.Sprintf("its target %q climbs past the root", target)}
		}
	}
	return nil
}

// checkAside keeps the aside folder out of the restored ones: a kubelet
// runs every file in its manifests folder.
func (p *Plan) checkAside(folders []string) error {
	relative, err := filepath.Rel(p.disk.path, p.opts.AsideDir)
	if err != nil {
		return nil // no relation: it is elsewhere
	}
	for _, folder := range folders {
		if chroot.Within(filepath.ToSlash(relative), folder) {
			return fmt.Errorf("the aside folder %s lies in %s, which is restored: %w", p.opts.AsideDir, folder, ErrConflict)
		}
	}
	return nil
}

// Reasons for an entry's being part of a restore.
const (
	wanted = 1 + iota // matched by itself or by a folder above it
	above             // a folder above a wanted one
)

// included maps the names to restore to the reason.
func (p *Plan) included() (map[string]int, error) {
	out := make(map[string]int)
	used := make([]bool, len(p.opts.Include))
	for _, e := range p.entries {
		name := e.header.Name
		if name == hostfacts.Name || name == path.Dir(hostfacts.Name) {
			continue
		}
		match := len(p.opts.Include) == 0
		for i, pattern := range p.opts.Include {
			if matches(pattern, name) {
				match, used[i] = true, true
			}
		}
		if !match || slices.ContainsFunc(p.opts.Exclude, func(pattern string) bool { return matches(pattern, name) }) {
			continue
		}
		out[name] = wanted
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if out[dir] == 0 {
				out[dir] = above
			}
		}
	}
	for i, ok := range used {
		if !ok {
			return nil, fmt.Errorf("include %q: %w", p.opts.Include[i], ErrNoMatch)
		}
	}
	return out, nil
}

// matches says whether a pattern matches a name or a folder above it. A
// leading slash makes no difference.
func matches(pattern, name string) bool {
	pattern = strings.Trim(pattern, "/")
	for ; name != "."; name = path.Dir(name) {
		if ok, err := path.Match(pattern, name); err == nil && ok {
			return true
		}
	}
	return false
}
