// Package docs embeds the pages that are needed when nothing else is alive, so
// that the binary can print them into a recovery kit.
package docs

import (
	"embed"
	"io/fs"
	"strings"
)

//go:embed restore*.md distributions.md
var pages embed.FS

// Page is one document, in Markdown.
type Page struct {
	Name string // of the file, such as restore.md
	Text string
}

// Restore is the page for the worst day, and after it those that it leads to.
func Restore() ([]Page, error) {
	names, err := fs.Glob(pages, "*.md")
	if err != nil {
		return nil, err
	}
	list := make([]Page, 1, len(names))
	for _, name := range names {
		text, err := pages.ReadFile(name)
		if err != nil {
			return nil, err
		}
		page := Page{Name: name, Text: strings.TrimSpace(string(text)) + "\n"}
		if name == "restore.md" {
			list[0] = page
		} else {
			list = append(list, page)
		}
	}
	return list, nil
}
