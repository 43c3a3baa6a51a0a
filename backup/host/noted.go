package host

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"lifeboat/internal/manifest"
)

// set keeps distinct texts, each fit for a manifest and for a terminal.
type set struct{ texts map[string]bool }

func (s *set) addf(format string, args ...any) {
	if s.texts == nil {
		s.texts = make(map[string]bool)
	}
	text := fmt.Sprintf(format, args...)
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsGraphic(r) || r == utf8.RuneError }) {
		quoted := strconv.QuoteToGraphic(text) // a file's name may hold anything
		text = quoted[1 : len(quoted)-1]
	}
	s.texts[manifest.Line(text)] = true
}

func (s *set) sorted() []string {
	out := make([]string, 0, len(s.texts))
	for text := range s.texts {
		out = append(out, text)
	}
	slices.Sort(out)
	return out
}

// note is a folder that is known by hash only.
type note struct {
	files int
	sum   [sha256.Size]byte
	bytes int64
}

// note hashes a folder without storing it: names, types, contents.
func (c *closure) note(name string) {
	if _, known := c.noted[name]; known {
		return
	}
	n := note{}
	h := sha256.New()
	var walk func(name string, depth int)
	walk = func(name string, depth int) {
		names, err := c.t.folder(name, c.limits.Files)
		if err != nil || depth > maxDepth {
			return
		}
		for _, base := range names {
			child := path.Join(name, base)
			info, err := c.t.root.Lstat(child)
			if err != nil || n.files >= c.limits.Files {
				continue
			}
			switch {
			case info.IsDir():
				walk(child, depth+1)
			case info.Mode()&fs.ModeSymlink != 0:
				target, _ := c.t.root.Readlink(child)
				fmt.Fprintf(h, "link %q %q\n", child, target)
				n.files++
			case info.Mode().IsRegular():
				got, err := c.t.read(child, c.limits.FileBytes, 0)
				if err != nil || n.bytes+got.size > c.limits.TotalBytes {
					fmt.Fprintf(h, "unread %q\n", child)
					continue
				}
				fmt.Fprintf(h, "file %q %x\n", child, got.sum)
				n.files++
				n.bytes += got.size
			}
		}
	}
	walk(name, 0)
	h.Sum(n.sum[:0])
	c.noted[name] = n
}

// show makes a path that came from a file fit for a message.
func show(p string) string {
	if len(p) > 200 {
		p = p[:200] + "…"
	}
	return strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, p), "?")
}
