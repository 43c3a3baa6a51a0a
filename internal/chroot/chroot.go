// Package chroot resolves path names as a process would whose root directory
// is the root of some tree: absolute links lead to the tree's root and ".." at
// the root stays there. The tree may be a folder on disk, a host's root mounted
// at /host, or nothing but the entries of an archive.
//
// It only computes names. Opening what a name leads to is the caller's, best
// through os.Root, which refuses what changed in between.
package chroot

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// ErrLoop says that a name leads through too many links.
var ErrLoop = errors.New("too many symbolic links")

// maxLinks is Linux's limit (path_resolution(7)).
const maxLinks = 40

// Readlink returns the target of the link at name, or "" if what is there is
// no link. Names are relative to the tree's root, slash-separated and clean, and all
// their parents have been looked at before. fs.ErrNotExist says that nothing is there.
type Readlink func(name string) (target string, err error)

// Place is where a path leads.
type Place struct {
	Name    string   // relative to the root, through no link; "." is the root
	Links   []string // the links on the way, in the order they were followed
	Missing bool     // nothing is at Name; what follows the first missing folder was taken as it is written
	Clamped bool     // a ".." was met at the root: outside a chroot the path leads elsewhere
}

// Resolve follows path from the root. A leading slash makes no difference.
func Resolve(p string, readlink Readlink) (Place, error) {
	var place Place
	rest := strings.Split(p, "/")
	current := "."
	for len(rest) > 0 {
		step := rest[0]
		rest = rest[1:]
		switch step {
		case "", ".":
			continue
		case "..":
			if current == "." {
				place.Clamped = true
			}
			current = path.Dir(current)
			continue
		}
		next := path.Join(current, step)
		if place.Missing {
			current = next
			continue
		}
		target, err := readlink(next)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			place.Missing = true
		case err != nil:
			return place, err
		}
		if target == "" {
			current = next
			continue
		}
		place.Links = append(place.Links, next)
		if len(place.Links) > maxLinks {
			return place, fmt.Errorf("resolve %s: %w", p, ErrLoop)
		}
		if strings.HasPrefix(target, "/") {
			current = "."
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	place.Name = current
	return place, nil
}

// Within says whether name is folder or below it. Both are clean and relative.
func Within(name, folder string) bool {
	return folder == "." || name == folder || strings.HasPrefix(name, folder+"/")
}
