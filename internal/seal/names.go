package seal

import (
	"archive/tar"
	"io/fs"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxPath    = 4096 // bytes of a name or a link's target: Linux's PATH_MAX
	maxElement = 255  // bytes of one element: Linux's NAME_MAX
	maxDepth   = 128  // elements: far above any node's, and a bound on the folders that one name implies
)

// CheckName reports whether an archive may hold an entry of this name: a clean
// relative path of printable UTF-8 (graphic characters and spaces) without
// backslashes, not absurdly long or deep. The error is a *RefusedError.
func CheckName(name string) error {
	switch {
	case name == "" || name == ".":
		return refuse(name, "no name")
	case len(name) > maxPath:
		return refuse(name[:80]+"…", "a name of %d bytes", len(name))
	case !printable(name) || strings.Contains(name, `\`):
		return refuse(name, "the name holds unprintable characters, backslashes or bytes that are not UTF-8")
	case name[0] == '/':
		return refuse(name, "the name is absolute")
	case name == ".." || strings.HasPrefix(name, "../") || path.Clean(name) != name:
		return refuse(name, "the name is not a clean path below the root")
	case strings.Count(name, "/") >= maxDepth:
		return refuse(name, "the name has more than %d elements", maxDepth)
	}
	for element := range strings.SplitSeq(name, "/") {
		if len(element) > maxElement {
			return refuse(name, "an element of %d bytes", len(element))
		}
	}
	return nil
}

// printable: names and targets are shown on terminals and written in tar's text
// records. What steers a terminal, hides or turns the direction of what follows
// (control characters of both blocks, zero-width signs, bidirectional marks,
// line separators) is not graphic to Unicode.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) })
}

// names are the entries so far: what each is, and the folders that others
// merely imply.
type names map[string]Type

const impliedDir Type = 0

// add refuses a name that is taken, and one below what is not a directory:
// extracting such an entry would write through a link or over a file.
func (n names) add(name string, t Type) error {
	if old, taken := n[name]; taken && (old != impliedDir || t != TypeDir) {
		return refuse(name, "the name is taken by an earlier entry")
	}
	var implied []string
	for parent := path.Dir(name); parent != "."; parent = path.Dir(parent) {
		old, known := n[parent]
		if !known {
			implied = append(implied, parent)
			continue
		}
		if old == TypeSymlink {
			return refuse(name, "it would be written through the link %q", parent)
		}
		if old == TypeFile {
			return refuse(name, "it lies below the file %q", parent)
		}
		break // what is above a known directory was looked at when it was added
	}
	for _, parent := range implied {
		n[parent] = impliedDir
	}
	n[name] = t
	return nil
}

// paxAllowed are the extended records that change nothing but the fields of
// Header. Others (sparse maps, extended attributes, character sets) change
// what the bytes mean.
var paxAllowed = map[string]bool{
	"path": true, "linkpath": true, "size": true, "uid": true, "gid": true, "mtime": true,
	"atime": true, "ctime": true, "uname": true, "gname": true,
}

// fromTar takes over a tar header, refusing what a Header can't say.
func fromTar(t *tar.Header) (*Header, error) {
	h := &Header{
		Name: t.Name, Type: Type(t.Typeflag), Mode: fs.FileMode(t.Mode & 0o777), UID: t.Uid, GID: t.Gid,
		ModTime: t.ModTime.UTC(), Size: t.Size, Linkname: t.Linkname,
	}
	switch h.Type {
	case TypeFile, TypeSymlink:
	case TypeDir:
		// Our writer and tar put one slash at the end of a directory's name.
		h.Name = strings.TrimSuffix(h.Name, "/")
	default:
		return nil, refuse(t.Name, "it is neither a file, a directory nor a symbolic link (type %q)", t.Typeflag)
	}
	if t.Format != tar.FormatUSTAR && t.Format != tar.FormatPAX {
		return nil, refuse(t.Name, "its header is not of the POSIX formats")
	}
	for key := range t.PAXRecords {
		if !paxAllowed[key] {
			return nil, refuse(t.Name, "it has the extended record %.80q", key)
		}
	}
	if t.Mode&^0o7777 != 0 {
		return nil, refuse(t.Name, "mode %#o", t.Mode)
	}
	for bit, mode := range map[int64]fs.FileMode{tarSetuid: fs.ModeSetuid, tarSetgid: fs.ModeSetgid, tarSticky: fs.ModeSticky} {
		if t.Mode&bit != 0 {
			h.Mode |= mode
		}
	}
	return h, h.check()
}
